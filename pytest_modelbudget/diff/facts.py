"""What differs between a row and the same row in the other summary, each difference with its cause where it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

from pytest_modelbudget.diff.change import Kind
from pytest_modelbudget.diff.finding import Finding, Moved, Rank, minus, moved
from pytest_modelbudget.diff.flow import Flow, Shift, shifts
from pytest_modelbudget.diff.words import shown
from pytest_modelbudget.explain import why_changed
from pytest_modelbudget.summary import Layer, TensorSpec, Weight
from pytest_modelbudget.summary.formulas import why

NOT_KNOWN, KNOWN = "shapes and calls not known", "known"
"""What a row says of a model that was not run (it had no inputs), beside one that was."""

WeightPair = tuple[Weight | None, Weight | None]


def row_facts(old: Layer, new: Layer, flow: Flow) -> Iterator[Finding]:
    """Each thing that changed in one row; shapes of outputs only where its own weights do not say it."""
    pairs = list(_weight_pairs(old.weights, new.weights))
    if old.type != new.type:
        yield _type(old, new)
        told = True
    else:
        found = list(_weights(old, new, pairs, flow))
        yield from found
        told = any(one.kind in ("widened", "narrowed", "weights") for one in found)
        told |= any(one.kind == "dtype" for one in found) and _dims(old) == _dims(new)
    if (old.calls is None) != (new.calls is None):
        yield Finding("calls", new.path, _whether_known(old), _whether_known(new), old=old, new=new)
        return
    if old.outputs != new.outputs and not told:
        yield _output(old, new, flow)
    if old.calls != new.calls:
        yield Finding("calls", new.path, _times(old.calls), _times(new.calls), old=old, new=new)
    elif (kind := flow.connections(old, new)) is not None:
        was, now = connections_text(old), connections_text(new)
        rank = Rank.FOLLOWS if kind == "follows" else Rank.CAUSE
        yield Finding(kind, new.path, was, now, rank=rank, old=old, new=new)
    if old.container != new.container:
        yield Finding("nesting", new.path, _nesting(old), _nesting(new), rank=Rank.NAME, old=old, new=new)


def _dims(layer: Layer) -> object:
    return [[spec.shape for spec in call] for call in layer.outputs]


def _type(old: Layer, new: Layer) -> Finding:
    both = moved(old.weights, new.weights)
    reason = why_changed(old, new)
    return Finding("type", new.path, row_text(old), row_text(new), both, why=reason, old=old, new=new)


def row_text(layer: Layer) -> str:
    """A row in a sentence: `Dense [B, 50], 1,050 params`."""
    params = f"{layer.params:,} params" if layer.weights or not layer.container else ""
    return ", ".join(filter(None, (f"{shown(layer.type)} {layer.output_text}".strip(), params)))


def _weight_pairs(old: Sequence[Weight], new: Sequence[Weight]) -> Iterator[WeightPair]:
    """By name; those left over by what they are, as a weight may be renamed too."""
    there = {weight.name: weight for weight in new}
    ours = {weight.name for weight in old}
    spare: dict[object, list[Weight]] = {}
    for weight in new:
        if weight.name not in ours:
            spare.setdefault(_spec(weight), []).append(weight)
    for weight in old:
        if weight.name in there:
            yield weight, there[weight.name]
        elif same := spare.get(_spec(weight)):
            yield weight, same.pop(0)
        else:
            yield weight, None
    yield from ((None, weight) for weights in spare.values() for weight in weights)


def _spec(weight: Weight) -> object:
    return replace(weight, name="", tied_to=None if weight.tied_to is None else "")


def _weights(old: Layer, new: Layer, pairs: Sequence[WeightPair], flow: Flow) -> Iterator[Finding]:
    groups: dict[str, list[WeightPair]] = {}
    for pair in pairs:
        if kind := _weight_kind(*pair, flow):
            groups.setdefault(kind, []).append(pair)
    if "shape" in groups:  # running statistics grow with what they are statistics of
        groups["shape"] += groups.pop("buffer", [])
    if not groups and tuple(map(_told, old.weights)) != tuple(map(_told, new.weights)):
        groups["shape"] = []  # the same weights in another order
    for name, group in groups.items():
        both = moved((one for one, _ in group if one), (other for _, other in group if other))
        yield _shapes(old, new, group, both, flow) if name == "shape" else _state(name, old, new, group, both)
    loose = [pair for pair in pairs if None not in pair and _weight_kind(*pair, flow) not in ("frozen", "unfrozen")]
    for kind in ("frozen", "unfrozen"):  # a weight that was resized or cast as well is frozen all the same
        extra = [pair for pair in loose if _thawed(*pair) == kind]
        if extra and kind not in groups:
            yield _state(kind, old, new, extra, Moved())


def _told(weight: Weight) -> object:
    return replace(weight, tied_to=None)


def _thawed(old: Weight | None, new: Weight | None) -> str | None:
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
    if thawed := _thawed(old, new):
        return thawed
    return "shape" if old.name != new.name else None


def _state(kind: str, old: Layer, new: Layer, group: Sequence[WeightPair], both: Moved) -> Finding:
    """A change of weights that keep their shapes."""
    ours, theirs = [one for one, _ in group if one], [other for _, other in group if other]
    path = new.path
    match kind:
        case "untied":
            text = f"{_names(ours)} = {_owners(ours)}", f"{_names(theirs)} of its own"
            return Finding("untied", path, *text, both, old=old, new=new)
        case "tied":
            was = f"= {_owners(ours)}" if any(one.tied_to for one in ours) else "of its own"
            text = f"{_names(ours)} {was}", f"{_names(theirs)} = {_owners(theirs)}"
            return Finding("tied", path, *text, both, old=old, new=new)
        case "buffer":
            text = _names(ours) or "none", _names(theirs) or "none"
            return Finding("buffer", path, *text, both, old=old, new=new)
        case "dtype":
            text = _dtypes(ours), _dtypes(theirs)
            return Finding("dtype", path, *text, both, cause=f"{text[0]} -> {text[1]}", old=old, new=new)
        case _:
            name: Kind = "unfrozen" if kind == "unfrozen" else "frozen"
            params = sum(weight.elements for weight in theirs if weight.tied_to is None)
            was, now = ("trainable", "frozen") if name == "frozen" else ("frozen", "trainable")
            return Finding(name, path, f"{params:,} params {was}", now, both, old=old, new=new)


def _names(weights: Sequence[Weight]) -> str:
    words = [f"{shown(weight.name, 40)} {'x'.join(map(str, weight.shape)) or 'scalar'}" for weight in weights]
    return " + ".join([*words[:3], *([f"{len(words) - 3} more"] if len(words) > 3 else [])])


def _owners(weights: Sequence[Weight]) -> str:
    return ", ".join(sorted({shown(weight.tied_to) for weight in weights if weight.tied_to}))


def _dtypes(weights: Sequence[Weight]) -> str:
    """The dtypes, with the bytes where packing decides them."""
    packed = [weight for weight in weights if weight.packed_bytes is not None]
    names = sorted({shown(weight.dtype, 40) for weight in weights})
    return f"{', '.join(names)}{f' in {sum(weight.bytes for weight in packed):,} bytes' if packed else ''}"


def _shapes(old: Layer, new: Layer, group: Sequence[WeightPair], both: Moved, flow: Flow) -> Finding:
    """Weights that grew, shrank, came or went; from an input that changed, where its shape shows it."""
    params = [(one, other) for one, other in group if one and other and one.role == "param"] or group
    resized = Counter(change for one, other in params if one and other for change in shifts(one.shape, other.shape))
    source, through = _upstream(old, new, list(resized), flow)
    kind: Kind = "weights"
    grown = sum((other.elements if other else 0) - (one.elements if one else 0) for one, other in params)
    if grown and resized and all(one is not None and other is not None for one, other in params):
        kind = "widened" if grown > 0 else "narrowed"
    return Finding(
        kind,
        new.path,
        *_shape_texts(old, new),
        moved=both,
        rank=Rank.CAUSED if source else Rank.CAUSE,
        why=why_changed(old, new) or _both_names(group),
        source=source,
        through=through,
        cause=_shift_text(flow.commonest(resized)),
        old=old,
        new=new,
    )


def _both_names(group: Sequence[WeightPair]) -> str:
    was, now = _names([one for one, _ in group if one]), _names([other for _, other in group if other])
    return f"{was or 'none'} -> {now or 'none'}" if was != now else ""


def _shift_text(shift: Shift | None) -> str:
    return "" if shift is None else " -> ".join(map(dim_text, shift))


def dim_text(dim: object) -> str:
    """A dimension or dtype: `1,024`, `T`, `?` for any size."""
    return f"{dim:,}" if isinstance(dim, int) else "?" if dim is None else shown(str(dim))


def _shape_texts(old: Layer, new: Layer) -> tuple[str, str]:
    was, now = f"{old.params:,} params", f"{new.params:,} params"
    if was == now:
        was, now = old.weights_text or "no weights", new.weights_text or "no weights"
    if old.outputs != new.outputs:
        was, now = f"{was} {_output_text(old)}", f"{now} {_output_text(new)}"
    return was, now


def _upstream(old: Layer, new: Layer, resized: Sequence[Shift], flow: Flow) -> tuple[str, str]:
    """The source of a row whose output changed as its weights did, and the change: `128 -> 640`."""
    for name, was, now in flow.fed(old, new):
        for old_spec, new_spec in zip(was, now, strict=False):
            changed = set(shifts(old_spec.shape, new_spec.shape))
            for before, after in resized:
                if (before, after) in changed:
                    return name, f"{_verb(before, after)} {_shift_text((before, after))}"
                if (before, after) == (_inner(old_spec), _inner(new_spec)):  # flattened on the way
                    return name, f"{_verb(before, after)} {old_spec.dims} -> {new_spec.dims}"
    return "", ""


def _verb(before: object, after: object) -> str:
    if isinstance(before, int) and isinstance(after, int):
        return "widened" if after > before else "narrowed"
    return "changed"


def _inner(spec: TensorSpec) -> int | None:
    """The elements of one sample, where they are known."""
    sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
    return prod(sizes) if len(sizes) == len(spec.shape) - 1 else None


def _output(old: Layer, new: Layer, flow: Flow) -> Finding:
    text = _output_text(old), _output_text(new)
    if flow.output_follows(old, new):
        return Finding("follows", new.path, *text, rank=Rank.FOLLOWS, through="output", old=old, new=new)
    return Finding("output", new.path, *text, old=old, new=new)


def _output_text(layer: Layer) -> str:
    return layer.output_text or ("?" if layer.calls is None else "no output")


def connections_text(layer: Layer) -> str:
    """`from a, b`; connections of different calls are joined by `; `, and very many are cut."""
    text = "; ".join(", ".join(map(shown, call[:6])) for call in layer.connected_to[:4])
    return f"from {shown(text, 200) or 'nothing'}"


def _whether_known(layer: Layer) -> str:
    return NOT_KNOWN if layer.calls is None else KNOWN


def _times(calls: int | None) -> str:
    match calls:
        case None:
            return "an unknown number of times"
        case 1:
            return "called once"
        case _:
            return f"called {calls:,} times" if calls else "never called"


def _nesting(layer: Layer) -> str:
    return "holds layers" if layer.container else "holds no layers"


def subtree(kind: Kind, layers: Sequence[Layer]) -> Finding:
    """Rows that came or went together, the first of which holds the others."""
    top = layers[0]
    count = sum((moved((), layer.weights) for layer in layers), Moved())
    both = count if kind == "added" else minus(Moved(), count)
    rows = f", {len(layers):,} rows" if len(layers) > 1 else ""
    text = f"{f'{shown(top.type)} {top.output_text}'.strip()}{rows}, {count.params:,} params"
    largest = max(layers, key=lambda layer: layer.params)
    reason = why(largest) if len(layers) == 1 else _largest(top, largest, count.params)
    texts = ("", text) if kind == "added" else (text, "")
    return Finding(kind, top.path, *texts, moved=both, why=reason, rows=len(layers), old=top, new=top)


def _largest(top: Layer, largest: Layer, total: int) -> str:
    if not largest.params or not total:
        return ""
    name = shown(largest.path[len(top.path) :].lstrip("./") or largest.path)
    return f"most of it {name}, {why(largest)}"


def fields(layer: Layer) -> tuple[object, ...]:
    """What a comparison looks at in a row, without its path."""
    return layer.type, layer.outputs, layer.weights, layer.connected_to, layer.calls, layer.container
