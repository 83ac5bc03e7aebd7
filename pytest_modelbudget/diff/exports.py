"""A model against the file that it was exported to: why params, bytes and FLOPs are not the same, by cause.

Weights are matched by name, those that the exporter named anew by their shapes, whatever the order of the axes. What is
left over on one side has a cause: a tied matrix that was written twice, a batch norm that was folded into the layer
before it, tensors that the exporter left out because they are zero or equal to others, constants of the file alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from pytest_modelbudget import units
from pytest_modelbudget.summary import Layer, Summary, Weight
from pytest_modelbudget.summary.export import EXPORT_METRICS, Export, ExportCause
from pytest_modelbudget.summary.metrics import METRICS

_NORMALISATION = "BatchNorm"
_MOST_NAMES = 3


@dataclass(frozen=True, slots=True)
class _Held:
    """A weight that counts, with its row."""

    row: Layer
    weight: Weight

    @property
    def name(self) -> str:
        """Its full name, in the words of torch for all frameworks."""
        path = "" if self.row.path == "(root)" else f"{self.row.path}."
        return f"{path}{self.weight.name}".replace("/", ".")

    @property
    def params(self) -> int:
        """What it adds to the params."""
        return self.weight.elements if self.weight.role == "param" else 0

    @property
    def form(self) -> tuple[int, ...]:
        """Its sizes above 1, whatever their order."""
        return tuple(sorted(size for size in self.weight.shape if size > 1))


@dataclass(slots=True)
class _Match:
    """Which weights of two models are the same one, and what is left on each side."""

    before: dict[str, _Held]
    after: dict[str, _Held]
    pairs: list[tuple[_Held, _Held]] = field(default_factory=list)

    def pair(self, key: Callable[[_Held], Hashable], *, only: Callable[[_Held], bool] = lambda _: True) -> None:
        """Take weights with equal keys as the same, in their order."""
        waiting: dict[Hashable, list[str]] = defaultdict(list)
        for name, held in self.after.items():
            if only(held):
                waiting[key(held)].append(name)
        for name, held in [item for item in self.before.items() if only(item[1])]:
            if names := waiting.get(key(held)):
                self.pairs.append((held, self.after.pop(names.pop(0))))
                del self.before[name]


def export_of(original: Summary, exported: Summary) -> Export:
    """How `exported`, a file, stands to `original`, the model that it was made from."""
    match = _matched(original, exported)
    sizes = sizes_of_export(original, exported)
    alike = sizes is not None and sizes.items() <= dict(original.sizes).items()
    known = alike and not original.flops.is_lower_bound
    amounts: Counter[tuple[str, str]] = Counter()
    for label, params, weight_bytes in _weight_causes(match, original):
        amounts["params", label] += params
        amounts["weight_bytes", label] += weight_bytes
    for label, flops in _flops_causes(original, exported) if known else ():
        amounts["flops", label] += flops
    return Export(
        original=original.model,
        numbers={
            name: _whole(METRICS[name].get(original)) if known or name != "flops" else None for name in EXPORT_METRICS
        },
        causes=tuple(ExportCause(metric, label, amount) for (metric, label), amount in amounts.items() if amount),
        notes=(
            *_not_quantised(match),
            *_port_notes(original, exported),
            *_flops_notes(original, exported, alike=alike),
        ),
    )


def sizes_of_export(original: Summary, exported: Summary) -> dict[str, int] | None:
    """The sizes of the model's dimensions at which it gets what the file was counted with; None where none are that."""
    if not original.inputs or not exported.inputs:
        return {}
    if len(original.inputs) != len(exported.inputs):
        return None
    by_name = {port.name: port.spec for port in exported.inputs}
    in_order = [by_name.get(port.name, exported.inputs[index].spec) for index, port in enumerate(original.inputs)]
    sizes: dict[str, int] = {}
    for port, spec in zip(original.inputs, in_order, strict=True):
        if len(port.spec.shape) != len(spec.shape):
            return None
        for dim, other in zip(port.spec.shape, spec.shape, strict=True):
            size = dict(exported.sizes).get(other) if isinstance(other, str) else other
            if size is None or (isinstance(dim, int) and dim != size):
                return None
            if isinstance(dim, str) and (not dim.isidentifier() or sizes.setdefault(dim, size) != size):
                return None
    return sizes


def _whole(number: object) -> int | None:
    return number if isinstance(number, int) else None


def _held(summary: Summary) -> dict[str, _Held]:
    held = [_Held(row, weight) for row in summary.layers for weight in row.own]
    return {f"{index}": item for index, item in enumerate(held)}


def _matched(original: Summary, exported: Summary) -> _Match:
    match = _Match(_held(original), _held(exported))
    match.pair(lambda held: (held.name, held.form))
    known = {held.name for held in match.before.values()}
    match.pair(lambda held: (_inner_name(held.name, known), held.form))
    match.pair(lambda held: held.form, only=lambda held: len(held.form) > 1)
    match.pair(lambda held: held.weight.elements, only=lambda held: len(held.form) > 1)  # in another shape
    folded = _folded_rows(match)
    match.pair(
        lambda held: (held.form, held.weight.role),
        only=lambda held: held.row.path not in folded and held.weight.elements > 1,
    )
    return match


def _inner_name(name: str, known: set[str]) -> str:
    """A name without what an exporter or a wrapper put before it (`m.`, `model.`), where that makes it known."""
    parts = name.split(".")
    names = (".".join(parts[start:]) for start in range(min(len(parts), 3)))
    return next((inner for inner in names if inner in known), name)


def _folded_rows(match: _Match) -> set[str]:
    """The batch norms of which the file has nothing."""
    paired = {before.row.path for before, _ in match.pairs}
    rows = {held.row.path: held.row for held in match.before.values()}
    return {path for path, row in rows.items() if _NORMALISATION in row.type and row.calls and path not in paired}


def _weight_causes(match: _Match, original: Summary) -> Iterator[tuple[str, int, int]]:
    """Each cause with the params and the bytes that it adds, in parts."""
    for before, after in match.pairs:
        yield _pair_label(before, after), after.params - before.params, after.weight.bytes - before.weight.bytes
    folded = _folded_rows(match)
    channels = Counter(held.form for held in match.before.values() if held.row.path in folded)
    for held in match.before.values():
        label = _FOLDED if held.row.path in folded else _absent_label(held)
        yield label, -held.params, -held.weight.bytes
    tied = _tied_forms(original)
    for held in match.after.values():
        if len(held.form) == 1 and channels[held.form] > 0:  # the bias that a folded batch norm leaves
            channels[held.form] -= 1
            label = _FOLDED
        else:
            label = f"{held.name} written twice" if held.form in tied else _added_label(held)
        yield label, held.params, held.weight.bytes


_FOLDED = "batch norms folded into the layers before"


def _pair_label(before: _Held, after: _Held) -> str:
    if before.weight.role != after.weight.role:
        return f"{before.weight.role}s that the file has as {after.weight.role}s"
    if before.weight.dtype != after.weight.dtype:
        return f"{before.weight.dtype} -> {after.weight.dtype}"
    return "stored otherwise"


def _absent_label(held: _Held) -> str:
    return f"{held.weight.name} of {held.row.type} not in the file"


def _added_label(held: _Held) -> str:
    return "scales, zero points and other constants" if held.weight.role == "buffer" else "weights of the file alone"


def _tied_forms(summary: Summary) -> set[tuple[int, ...]]:
    """The forms of the matrices that the model has in two places and stores once."""
    tied = (_Held(row, weight) for row in summary.layers for weight in row.weights if weight.tied_to is not None)
    return {held.form for held in tied if len(held.form) > 1}


def _flops_causes(original: Summary, exported: Summary) -> Iterator[tuple[str, int]]:
    """The rows whose FLOPs differ, by their paths, and what stands on one side alone, by its types.

    Nothing where the totals are the same: an exporter may call the same work by other names.
    """
    if original.flops.value is None or exported.flops.value in (None, original.flops.value):
        return
    if exported.flops.is_lower_bound:
        return
    before, after = _costs_by_path(original), _costs_by_path(exported)
    known = set(before)
    after_inner = {_inner_name(path, known): cost for path, cost in after.items()}
    for path in before.keys() & after_inner.keys():
        if difference := after_inner[path][1] - before[path][1]:
            yield path, difference
    lone = [(kind, -cost) for path, (kind, cost) in before.items() if path not in after_inner]
    lone += [(kind, cost) for path, (kind, cost) in after_inner.items() if path not in before]
    if sum(cost for _, cost in lone):
        yield from ((f"{kind} ({'file' if cost > 0 else 'model'})", cost) for kind, cost in lone if cost)


def _costs_by_path(summary: Summary) -> dict[str, tuple[str, int]]:
    return {row.path.replace("/", "."): (row.type, row.flops or 0) for row in summary.layers if row.flops}


def _flops_notes(original: Summary, exported: Summary, *, alike: bool) -> Iterator[str]:
    if not alike and exported.flops.value is not None and original.flops.value is not None:
        yield "FLOPs are not compared: the file and the model get inputs of other sizes"
    for summary, whose in ((original, "the model"), (exported, "the file")):
        if summary.flops.uncounted:
            names = ", ".join(f"{name} x{calls}" for name, calls in summary.flops.uncounted[:_MOST_NAMES])
            yield f"FLOPs of {whose} are a lower bound: not known of {names}"


def _not_quantised(match: _Match) -> Iterator[str]:
    """Matrices that kept their dtype where most of them became smaller ones."""
    matrices = [(before, after) for before, after in match.pairs if len(before.form) > 1]
    smaller = [after for before, after in matrices if after.weight.bytes < before.weight.bytes]
    kept = [after for before, after in matrices if after.weight.bytes >= before.weight.bytes]
    if not kept or len(smaller) < len(kept):
        return
    [(dtype, _)] = Counter(after.weight.dtype for after in smaller).most_common(1)
    names = ", ".join(held.name for held in kept[:_MOST_NAMES]) + (", ..." if len(kept) > _MOST_NAMES else "")
    size = units.size(sum(held.weight.bytes for held in kept))
    yield (f"{kept[0].weight.dtype} where {dtype} was meant: {len(kept)} of {len(matrices)} weights, {size} ({names})")


def _port_notes(original: Summary, exported: Summary) -> Iterator[str]:
    """Inputs and outputs that are not the same, one by one; those of a side that does not know them are left out.

    An input that is declared by its position has no name that could differ.
    """
    if original.inputs and exported.inputs:
        by_position = all(port.name.isdigit() for port in original.inputs)
        inputs = [[port.spec if by_position else port for port in summary.inputs] for summary in (original, exported)]
        yield from _differences("input", *(list(map(str, ports)) for ports in inputs))
    if original.outputs and exported.outputs:
        yield from _differences(
            "output", *([str(spec) for spec in summary.outputs] for summary in (original, exported))
        )


def _differences(kind: str, before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    if len(before) != len(after):
        yield f"{kind}s: {', '.join(before)} -> {', '.join(after)}"
        return
    yield from (f"{kind}: {old} -> {new}" for old, new in zip(before, after, strict=True) if old != new)
