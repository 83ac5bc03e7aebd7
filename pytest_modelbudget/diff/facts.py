"""What differs between a row and the same row in the other summary, each difference with its cause where it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod

from pytest_modelbudget.diff.change import ChangeKind
from pytest_modelbudget.diff.finding import MetricDelta, Rank, RowFinding, difference, moved
from pytest_modelbudget.diff.flow import Flow, Shift, shifts
from pytest_modelbudget.diff.words import shown
from pytest_modelbudget.explain import why_changed
from pytest_modelbudget.summary import Layer, TensorSpec, Weight
from pytest_modelbudget.summary.formulas import why

NOT_KNOWN, KNOWN = "shapes and calls not known", "known"
"""What a row says of a model that was not run (it had no inputs), beside one that was."""

WeightPair = tuple[Weight | None, Weight | None]


def row_findings(old: Layer, new: Layer, flow: Flow) -> Iterator[RowFinding]:
    """Each thing that changed in one row; shapes of outputs only where its own weights do not say it."""
    pairs = list(_weight_pairs(old.weights, new.weights))
    if old.type != new.type:
        yield _type_finding(old, new)
        explained = True
    else:
        weight_findings = list(_weight_findings(old, new, pairs, flow))
        yield from weight_findings
        explained = any(finding.kind in ("widened", "narrowed", "weights") for finding in weight_findings)
        explained |= any(finding.kind == "dtype" for finding in weight_findings) and _output_shapes(
            old
        ) == _output_shapes(new)
    if (old.calls is None) != (new.calls is None):
        yield RowFinding("calls", new.path, _known_text(old), _known_text(new), old=old, new=new)
        return
    if old.outputs != new.outputs and not explained:
        yield _output_finding(old, new, flow)
    if old.calls != new.calls:
        yield RowFinding("calls", new.path, _calls_text(old.calls), _calls_text(new.calls), old=old, new=new)
    elif (kind := flow.connections(old, new)) is not None:
        old_text, new_text = connections_text(old), connections_text(new)
        rank = Rank.FOLLOWS if kind == "follows" else Rank.CAUSE
        yield RowFinding(kind, new.path, old_text, new_text, rank=rank, old=old, new=new)
    if old.container != new.container:
        yield RowFinding("nesting", new.path, _nesting_text(old), _nesting_text(new), rank=Rank.NAME, old=old, new=new)


def _output_shapes(layer: Layer) -> object:
    return [[spec.shape for spec in call] for call in layer.outputs]


def _type_finding(old: Layer, new: Layer) -> RowFinding:
    delta = moved(old.weights, new.weights)
    reason = why_changed(old, new)
    return RowFinding("type", new.path, row_text(old), row_text(new), delta, why=reason, old=old, new=new)


def row_text(layer: Layer) -> str:
    """A row in a sentence: `Dense [B, 50], 1,050 params`."""
    params = f"{layer.params:,} params" if layer.weights or not layer.container else ""
    return ", ".join(filter(None, (f"{shown(layer.type)} {layer.output_text}".strip(), params)))


def _weight_pairs(old: Sequence[Weight], new: Sequence[Weight]) -> Iterator[WeightPair]:
    """By name; those left over by what they are, as a weight may be renamed too."""
    new_by_name = {weight.name: weight for weight in new}
    old_names = {weight.name for weight in old}
    unmatched: dict[object, list[Weight]] = {}
    for weight in new:
        if weight.name not in old_names:
            unmatched.setdefault(_without_names(weight), []).append(weight)
    for weight in old:
        if weight.name in new_by_name:
            yield weight, new_by_name[weight.name]
        elif candidates := unmatched.get(_without_names(weight)):
            yield weight, candidates.pop(0)
        else:
            yield weight, None
    yield from ((None, weight) for weights in unmatched.values() for weight in weights)


def _without_names(weight: Weight) -> object:
    return replace(weight, name="", tied_to=None if weight.tied_to is None else "")


def _weight_findings(old: Layer, new: Layer, pairs: Sequence[WeightPair], flow: Flow) -> Iterator[RowFinding]:
    groups: dict[str, list[WeightPair]] = {}
    for pair in pairs:
        for kind, step in _weight_steps(*pair, flow):
            groups.setdefault(kind, []).append(step)
    if "shape" in groups:  # running statistics grow with what they are statistics of
        groups["shape"] += groups.pop("buffer", [])
    if not groups and tuple(map(_without_tie, old.weights)) != tuple(map(_without_tie, new.weights)):
        groups["shape"] = []  # the same weights in another order
    for name, group in groups.items():
        delta = moved((before for before, _ in group if before), (after for _, after in group if after))
        yield (
            _shape_finding(old, new, group, delta, flow)
            if name == "shape"
            else _state_finding(name, old, new, group, delta)
        )


def _weight_steps(old: Weight | None, new: Weight | None, flow: Flow) -> Iterator[tuple[str, WeightPair]]:
    """What happened to a weight, one thing at a time, so that each has its own part of the difference.

    A weight is resized as it was stored, then cast, then frozen.
    """
    kind = _weight_kind(old, new, flow)
    if old is None or new is None or kind in (None, "tied", "untied") or old.role != new.role:
        yield from [] if kind is None else [(kind, (old, new))]
        return
    for before, after in pairwise((old, _resized(old, new), replace(new, trainable=old.trainable), new)):
        if step := _weight_kind(before, after, flow):
            yield step, (before, after)


def _resized(old: Weight, new: Weight) -> Weight:
    """`old` with the name and shape of `new`; a packed weight takes as many bytes for each element as before."""
    packed_bytes = old.packed_bytes
    if packed_bytes is not None and new.packed_bytes is not None and old.dtype == new.dtype:
        packed_bytes = new.packed_bytes
    elif packed_bytes is not None and old.elements:
        packed_bytes = packed_bytes * new.elements // old.elements
    return replace(old, name=new.name, shape=new.shape, packed_bytes=packed_bytes)


def _without_tie(weight: Weight) -> object:
    return replace(weight, tied_to=None)


def _freeze_kind(old: Weight | None, new: Weight | None) -> str | None:
    if old is None or new is None or "buffer" in (old.role, new.role) or old.trainable == new.trainable:
        return None
    return "unfrozen" if new.trainable else "frozen"


def _weight_kind(old: Weight | None, new: Weight | None, flow: Flow) -> str | None:
    """The one thing that a weight's difference is counted under."""
    if old is None or new is None:
        return "buffer" if (old or new or Weight("", ())).role == "buffer" else "shape"
    if (old.tied_to is None) != (new.tied_to is None):
        return "untied" if new.tied_to is None else "tied"
    if old.tied_to is not None and new.tied_to is not None and flow.tie(old.tied_to) != new.tied_to:
        return "tied"
    if old.role != new.role:
        return "shape"
    if old.shape != new.shape:
        return "buffer" if new.role == "buffer" else "shape"
    if old.dtype != new.dtype or old.packed_bytes != new.packed_bytes:
        return "dtype"
    if thawed := _freeze_kind(old, new):
        return thawed
    return "shape" if old.name != new.name else None


def _state_finding(kind: str, old: Layer, new: Layer, group: Sequence[WeightPair], delta: MetricDelta) -> RowFinding:
    """A change of weights that keep their shapes."""
    old_weights, new_weights = [before for before, _ in group if before], [after for _, after in group if after]
    path = new.path
    match kind:
        case "untied":
            text = (
                f"{_weights_text(old_weights)} = {_owners_text(old_weights)}",
                f"{_weights_text(new_weights)} of its own",
            )
            return RowFinding("untied", path, *text, delta, old=old, new=new)
        case "tied":
            old_text = (
                f"= {_owners_text(old_weights)}" if any(before.tied_to for before in old_weights) else "of its own"
            )
            text = (
                f"{_weights_text(old_weights)} {old_text}",
                f"{_weights_text(new_weights)} = {_owners_text(new_weights)}",
            )
            return RowFinding("tied", path, *text, delta, old=old, new=new)
        case "buffer":
            text = _weights_text(old_weights) or "none", _weights_text(new_weights) or "none"
            return RowFinding("buffer", path, *text, delta, old=old, new=new)
        case "dtype":
            text = _dtypes_text(old_weights), _dtypes_text(new_weights)
            return RowFinding("dtype", path, *text, delta, cause=f"{text[0]} -> {text[1]}", old=old, new=new)
        case _:
            name: ChangeKind = "unfrozen" if kind == "unfrozen" else "frozen"
            params = sum(weight.elements for weight in new_weights if weight.tied_to is None)
            old_text, new_text = ("trainable", "frozen") if name == "frozen" else ("frozen", "trainable")
            return RowFinding(name, path, f"{params:,} params {old_text}", new_text, delta, old=old, new=new)


def _weights_text(weights: Sequence[Weight]) -> str:
    parts = [f"{shown(weight.name, 40)} {'x'.join(map(str, weight.shape)) or 'scalar'}" for weight in weights]
    return " + ".join([*parts[:3], *([f"{len(parts) - 3} more"] if len(parts) > 3 else [])])


def _owners_text(weights: Sequence[Weight]) -> str:
    return ", ".join(sorted({shown(weight.tied_to) for weight in weights if weight.tied_to}))


def _dtypes_text(weights: Sequence[Weight]) -> str:
    """The dtypes, with the bytes where packing decides them."""
    packed = [weight for weight in weights if weight.packed_bytes is not None]
    names = sorted({shown(weight.dtype, 40) for weight in weights})
    return f"{', '.join(names)}{f' in {sum(weight.bytes for weight in packed):,} bytes' if packed else ''}"


def _shape_finding(old: Layer, new: Layer, group: Sequence[WeightPair], delta: MetricDelta, flow: Flow) -> RowFinding:
    """Weights that grew, shrank, came or went; from an input that changed, where its shape shows it."""
    params = [(before, after) for before, after in group if before and after and before.role == "param"] or group
    resized = Counter(
        change for before, after in params if before and after for change in shifts(before.shape, after.shape)
    )
    source, through = _source_of_change(old, new, list(resized), flow)
    kind: ChangeKind = "weights"
    growth = sum((after.elements if after else 0) - (before.elements if before else 0) for before, after in params)
    if growth and resized and all(before is not None and after is not None for before, after in params):
        kind = "widened" if growth > 0 else "narrowed"
    return RowFinding(
        kind,
        new.path,
        *_shape_texts(old, new),
        moved=delta,
        rank=Rank.CAUSED if source else Rank.CAUSE,
        why=why_changed(old, new) or _names_change(group),
        source=source,
        through=through,
        cause=_shift_text(flow.commonest(resized)),
        old=old,
        new=new,
    )


def _names_change(group: Sequence[WeightPair]) -> str:
    old_text, new_text = (
        _weights_text([before for before, _ in group if before]),
        _weights_text([after for _, after in group if after]),
    )
    return f"{old_text or 'none'} -> {new_text or 'none'}" if old_text != new_text else ""


def _shift_text(shift: Shift | None) -> str:
    return "" if shift is None else " -> ".join(map(dim_text, shift))


def dim_text(dim: object) -> str:
    """A dimension or dtype: `1,024`, `T`, `?` for any size."""
    return f"{dim:,}" if isinstance(dim, int) else "?" if dim is None else shown(str(dim))


def _shape_texts(old: Layer, new: Layer) -> tuple[str, str]:
    old_text, new_text = f"{old.params:,} params", f"{new.params:,} params"
    if old_text == new_text:
        old_text, new_text = old.weights_text or "no weights", new.weights_text or "no weights"
    if old.outputs != new.outputs:
        old_text, new_text = f"{old_text} {_output_text(old)}", f"{new_text} {_output_text(new)}"
    return old_text, new_text


def _source_of_change(old: Layer, new: Layer, resized: Sequence[Shift], flow: Flow) -> tuple[str, str]:
    """The source of a row whose output changed as its weights did, and the change: `128 -> 640`."""
    for name, old_specs, new_specs in flow.changed_sources(old, new):
        for old_spec, new_spec in zip(old_specs, new_specs, strict=False):
            changed = set(shifts(old_spec.shape, new_spec.shape))
            for before, after in resized:
                if (before, after) in changed:
                    return name, f"{_verb(before, after)} {_shift_text((before, after))}"
                if (before, after) == (_sample_elements(old_spec), _sample_elements(new_spec)):  # flattened on the way
                    return name, f"{_verb(before, after)} {old_spec.dims} -> {new_spec.dims}"
    return "", ""


def _verb(before: object, after: object) -> str:
    if isinstance(before, int) and isinstance(after, int):
        return "widened" if after > before else "narrowed"
    return "changed"


def _sample_elements(spec: TensorSpec) -> int | None:
    """The elements of one sample, where they are known."""
    sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
    return prod(sizes) if len(sizes) == len(spec.shape) - 1 else None


def _output_finding(old: Layer, new: Layer, flow: Flow) -> RowFinding:
    text = _output_text(old), _output_text(new)
    if flow.output_follows(old, new):
        return RowFinding("follows", new.path, *text, rank=Rank.FOLLOWS, through="output", old=old, new=new)
    return RowFinding("output", new.path, *text, old=old, new=new)


def _output_text(layer: Layer) -> str:
    return layer.output_text or ("?" if layer.calls is None else "no output")


def connections_text(layer: Layer) -> str:
    """`from a, b`; connections of different calls are joined by `; `, and very many are cut."""
    text = "; ".join(", ".join(map(shown, call[:6])) for call in layer.connected_to[:4])
    return f"from {shown(text, 200) or 'nothing'}"


def _known_text(layer: Layer) -> str:
    return NOT_KNOWN if layer.calls is None else KNOWN


def _calls_text(calls: int | None) -> str:
    match calls:
        case None:
            return "an unknown number of times"
        case 1:
            return "called once"
        case _:
            return f"called {calls:,} times" if calls else "never called"


def _nesting_text(layer: Layer) -> str:
    return "holds layers" if layer.container else "holds no layers"


def subtree_finding(kind: ChangeKind, layers: Sequence[Layer]) -> RowFinding:
    """Rows that came or went together, the first of which holds the others."""
    top = layers[0]
    count = sum((moved((), layer.weights) for layer in layers), MetricDelta())
    delta = count if kind == "added" else difference(MetricDelta(), count)
    rows = f", {len(layers):,} rows" if len(layers) > 1 else ""
    text = f"{f'{shown(top.type)} {top.output_text}'.strip()}{rows}, {count.params:,} params"
    largest = max(layers, key=lambda layer: layer.params)
    reason = why(largest) if len(layers) == 1 else _largest_text(top, largest, count.params)
    texts = ("", text) if kind == "added" else (text, "")
    return RowFinding(kind, top.path, *texts, moved=delta, why=reason, rows=len(layers), old=top, new=top)


def _largest_text(top: Layer, largest: Layer, total: int) -> str:
    if not largest.params or not total:
        return ""
    name = shown(largest.path[len(top.path) :].lstrip("./") or largest.path)
    return f"most of it {name}, {why(largest)}"


def compared_fields(layer: Layer) -> tuple[object, ...]:
    """What a comparison looks at in a row, without its path."""
    return layer.type, layer.outputs, layer.weights, layer.connected_to, layer.calls, layer.container
