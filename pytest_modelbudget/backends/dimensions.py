"""Giving dimensions their names back: a model is run at a few sizes, and each output dimension is explained by them.

Recognised are `B`, `2*B`, `T+1`, `T-4`, `2*T+2`, `B*T`, `3*B*T`, `S+T`, `T//2`, `(T+1)//2` and `2*(T//2)`; any other
dimension stays the number it had at the declared sizes, or is left open. The frameworks run the models, `resolve` says
at which sizes, and `DimensionNaming` makes specs of what they saw.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, islice
from math import gcd, prod
from typing import Protocol, TypeVar

from pytest_modelbudget.backends.calls import RecordedPass, ShapeDtype, ranks
from pytest_modelbudget.summary import Dim, Input, TensorSpec

T = TypeVar("T")
R = TypeVar("R")

Sizes = Mapping[str, int]

_PROBE_STEPS = (7, 11, 13, 17, 19, 23, 29, 31)  # different primes: what grows by 7 follows B and by 11 follows T
_SECOND_PROBE_STEPS = (30, 43, 59, 73, 89, 101, 109, 131)
_LAST_STEPS = (53, 77, 103, 127, 139, 151, 163, 179)
_LARGEST_FACTOR = 64
_FEW = 8
"""So many explanations of one dimension are worth one more run."""


def symbols(ports: Iterable[Input]) -> tuple[str, ...]:
    """The names of the symbolic dimensions, in the order first met."""
    return tuple(dict.fromkeys(dim for port in ports for dim in port.spec.shape if isinstance(dim, str)))


def name_dimension(sizes: Sequence[Sizes], dims: Sequence[int]) -> tuple[Dim, bool]:
    """The name of a dimension that had `dims[i]` at `sizes[i]`, and whether more runs could change the answer.

    The first entry is the declared one; its number is the answer when no formula fits all runs, or more than one does.
    None is the answer when two runs at the same sizes differed: then the dimension depends on values.

    >>> name_dimension([{"B": 1, "T": 10}, {"B": 8, "T": 21}], [9, 20])
    ('T-1', True)
    """
    if len(set(dims)) == 1:
        return dims[0], True
    if any(run == sizes[0] and dim != dims[0] for run, dim in zip(sizes, dims, strict=True)):
        return None, True
    varied = [name for name in sizes[0] if len({run[name] for run in sizes}) > 1]
    for family in (_symbol_itself, _multiple_or_offset, _product_or_sum):
        fits = [text for text, value in family(varied, sizes, dims) if _fits(value, sizes, dims)]
        if fits:
            is_clear = len(fits) == 1 and not (_has_offset(fits[0]) and any(_floor_divisions(varied, sizes, dims)))
            return (fits[0], True) if is_clear else (dims[0], False)
    linear = [text for text, value in _linear(varied, sizes, dims) if _fits(value, sizes, dims)]
    fits = [*linear, *islice(_floors(varied, sizes, dims), _FEW + 1)]
    if _are_few(dims):
        return dims[0], not fits
    return (fits[0], True) if len(fits) == 1 else (dims[0], not 0 < len(fits) <= _FEW)


Formula = tuple[str, Callable[[Sizes], int]]


def _are_few(dims: Sequence[int]) -> bool:
    """Through two points there is always a line."""
    return len(set(dims)) <= 2


def _has_offset(text: str) -> bool:
    return text.rpartition("+")[2].isdigit() or text.rpartition("-")[2].isdigit()


def _fits(value: Callable[[Sizes], int], sizes: Sequence[Sizes], dims: Sequence[int]) -> bool:
    return all(value(run) == dim for run, dim in zip(sizes, dims, strict=True))


def _symbol_itself(varied: Sequence[str], sizes: Sequence[Sizes], dims: Sequence[int]) -> Iterator[Formula]:
    for name in varied:
        yield name, lambda run, name=name: run[name]  # type: ignore[misc]


def _multiple_or_offset(varied: Sequence[str], sizes: Sequence[Sizes], dims: Sequence[int]) -> Iterator[Formula]:
    for name in varied:
        times, rest = divmod(dims[0], sizes[0][name]) if sizes[0][name] else (0, 1)
        if rest == 0:
            yield f"{times}*{name}", lambda run, name=name, times=times: times * run[name]  # type: ignore[misc]
        offset = dims[0] - sizes[0][name]
        yield f"{name}{offset:+d}", lambda run, name=name, offset=offset: run[name] + offset  # type: ignore[misc]


def _product_or_sum(varied: Sequence[str], sizes: Sequence[Sizes], dims: Sequence[int]) -> Iterator[Formula]:
    for count in range(2, len(varied) + 1):
        for names in combinations(varied, count):
            product = prod(sizes[0][name] for name in names)
            times, rest = divmod(dims[0], product) if product else (0, 1)
            if rest == 0 and times:
                text = "*".join(names) if times == 1 else f"{times}*{'*'.join(names)}"
                yield text, lambda run, names=names, times=times: times * prod(run[name] for name in names)  # type: ignore[misc]
            offset = dims[0] - sum(sizes[0][name] for name in names)
            text = "+".join(names) + (f"{offset:+d}" if offset else "")
            yield text, lambda run, names=names, offset=offset: offset + sum(run[name] for name in names)  # type: ignore[misc]


def _linear(varied: Sequence[str], sizes: Sequence[Sizes], dims: Sequence[int]) -> Iterator[Formula]:
    for name in varied:
        other_run = next(index for index, run in enumerate(sizes) if run[name] != sizes[0][name])
        times, rest = divmod(dims[other_run] - dims[0], sizes[other_run][name] - sizes[0][name])
        offset = dims[0] - times * sizes[0][name]
        if rest == 0 and times > 0:
            yield (
                f"{times}*{name}{offset:+d}",
                lambda run, name=name, times=times, offset=offset: times * run[name] + offset,  # type: ignore[misc]
            )


def _floors(varied: Sequence[str], sizes: Sequence[Sizes], dims: Sequence[int]) -> Iterator[str]:
    """`(T+1)//2` and multiples of such: all that fit."""
    common = gcd(*dims)
    for factor in (factor for factor in range(1, min(common, _LARGEST_FACTOR) + 1) if common % factor == 0):
        for text in _floor_divisions(varied, sizes, [dim // factor for dim in dims]):
            yield text if factor == 1 else f"{factor}*({text})"


def _floor_divisions(varied: Sequence[str], sizes: Sequence[Sizes], dims: Sequence[int]) -> Iterator[str]:
    """`(T+offset)//divisor` for every offset and divisor that fit.

    From `dim <= (size + offset) / divisor < dim + 1` at each size follow the smallest and the largest offset.
    """
    for name in varied:
        points = [(run[name], dim) for run, dim in zip(sizes, dims, strict=True)]
        (low, smallest), (high, largest) = min(points), max(points)
        for divisor in range(2, (high - low) // (largest - smallest - 1) + 1 if largest - smallest > 1 else 2):
            least = max(dim * divisor - size for size, dim in points)
            most = min(dim * divisor - size for size, dim in points) + divisor - 1
            for offset in range(least, most + 1):
                yield f"({name}{offset:+d})//{divisor}" if offset else f"{name}//{divisor}"


def probe(sizes: Sizes, run: Callable[[Sizes], T | None]) -> list[tuple[Sizes, T]]:
    """Run at other sizes until every symbol has moved; `run` returns None when the model does not take them.

    First all symbols together, larger, then doubled; when neither works, one symbol at a time. A symbol that never
    moved is missing from the differences of the result, and no dimension is named after it.
    """
    if not sizes:
        return []
    for other_sizes in (_stepped_sizes(sizes, _PROBE_STEPS), {name: 2 * size for name, size in sizes.items()}):
        if (result := run(other_sizes)) is not None:
            return [(other_sizes, result)]
    results: list[tuple[Sizes, T]] = []
    if len(sizes) == 1:
        return _probe_one_symbol(next(iter(sizes)), sizes, run)
    for name in sizes:
        results += _probe_one_symbol(name, sizes, run, steps=_PROBE_STEPS)
    return results


def _probe_one_symbol(
    name: str, sizes: Sizes, run: Callable[[Sizes], T | None], steps: Sequence[int] = ()
) -> list[tuple[Sizes, T]]:
    size = sizes[name]
    candidates = [size + step for step in steps[:1]] + ([2 * size] if steps else [])
    candidates += [size - 1, size // 2, size + 1, 3 * size]
    for other_size in dict.fromkeys(candidates):
        if other_size > 0 and other_size != size and (result := run({**sizes, name: other_size})) is not None:
            return [({**sizes, name: other_size}, result)]
    return []


def probe_again(
    sizes: Sizes, varied: Sizes, run: Callable[[Sizes], T | None], steps: Sequence[int] = _SECOND_PROBE_STEPS
) -> list[tuple[Sizes, T]]:
    """One more run, at sizes unlike those of `probe`, to decide between explanations; `varied` is a run that worked."""
    names = [name for name in sizes if sizes[name] != varied[name]]
    doubled = all(varied[name] == 2 * sizes[name] for name in names)
    other = {**sizes, **{name: 3 * sizes[name] for name in names}} if doubled else _stepped_sizes(sizes, steps)
    other = {name: other[name] if name in names else sizes[name] for name in sizes}
    return [] if (seen := run(other)) is None else [(other, seen)]


def _probe_last(sizes: Sizes, varied: Sizes, run: Callable[[Sizes], T | None]) -> list[tuple[Sizes, T]]:
    """Once more, or one symbol at a time where all moved by the same factor: then nothing else tells them apart."""
    if any(varied[name] != 2 * sizes[name] for name in sizes):
        return probe_again(sizes, varied, run, _LAST_STEPS)
    others = [{**sizes, name: 2 * size} for name, size in sizes.items()] if len(sizes) > 1 else []
    return [(other, seen) for other in others if (seen := run(other)) is not None]


def resolve(
    seen: Sequence[tuple[Sizes, T]],
    run: Callable[[Sizes], T | None],
    name: Callable[[Sequence[tuple[Sizes, T]]], tuple[DimensionNaming, R]],
) -> tuple[DimensionNaming, R, list[tuple[Sizes, T]]]:
    """What `name` makes of the passes in `seen`, the one at the declared sizes first, and of as many more as it needs.

    `run` makes a pass at other sizes, and returns None when the model does not take them. All passes are returned, too.
    """
    sizes = seen[0][0]
    others = probe(sizes, run)
    passes = [*seen, *others]
    naming, result = name(passes)
    for probe_further in (probe_again, _probe_last) if len(others) == 1 else ():
        if naming.settled or not (further := probe_further(sizes, others[0][0], run)):
            continue
        passes += further
        naming, result = name(passes)
    return naming, result, passes


def fixed_symbol_notes(passes: Sequence[tuple[Sizes, T]]) -> list[str]:
    """What is to be said of the symbols that no pass could move."""
    sizes = passes[0][0]
    fixed = [symbol for symbol in sizes if all(other[symbol] == sizes[symbol] for other, _ in passes)]
    return [
        f"the model runs only at {symbol}={sizes[symbol]}: dimensions that depend on {symbol} show numbers"
        for symbol in fixed
    ]


def _stepped_sizes(sizes: Sizes, steps: Sequence[int]) -> dict[str, int]:
    return {
        name: size + steps[index % len(steps)] * (1 + index // len(steps))
        for index, (name, size) in enumerate(sizes.items())
    }


class Called(Protocol):
    """A part of a model as one pass saw it."""

    @property
    def calls(self) -> Sequence[tuple[ShapeDtype, ...]]:
        """The tensors that each call of it made."""
        ...

    @property
    def inputs(self) -> Sequence[tuple[ShapeDtype, ...]]:
        """The tensors that each call of it was given."""
        ...


Specs = tuple[TensorSpec, ...]
_Calls = Sequence[tuple[ShapeDtype, ...]]
_NamedCalls = tuple[Specs, ...]


@dataclass(slots=True)
class DimensionNaming:
    """Names the dimensions seen in several passes at different sizes; remembers what it could not settle."""

    sizes: Sequence[Sizes]
    settled: bool = True
    unexplained_open: bool = False
    """Whether a dimension that moves as no formula says is open, not the number it had at the declared sizes."""
    twins: tuple[int, ...] = field(init=False)
    _known_dims: dict[tuple[int | None, ...], Dim] = field(default_factory=dict)
    _known_rows: dict[tuple[tuple[int, ...], ...], tuple[_NamedCalls, _NamedCalls]] = field(default_factory=dict)
    _named_calls: dict[Hashable, _NamedCalls] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """`twins` are the places of the other passes at the first one's sizes."""
        first, *others = self.sizes
        self.twins = tuple(position for position, other in enumerate(others, 1) if other == first)

    def specs(self, calls_by_pass: Sequence[tuple[ShapeDtype, ...]]) -> tuple[TensorSpec, ...]:
        """The tensors of one call, given as each pass saw them, the declared one first."""
        first, *others = calls_by_pass
        same_ranks = all(ranks(other) == ranks(first) for other in others)
        if any(ranks(calls_by_pass[position]) != ranks(first) for position in self.twins):
            return tuple(TensorSpec((None,) * len(shape), dtype) for shape, dtype in first)
        if not same_ranks:
            return tuple(TensorSpec(shape, dtype) for shape, dtype in first)
        return tuple(
            TensorSpec(
                tuple(self._dim(dims) for dims in zip(*(call[index][0] for call in calls_by_pass), strict=True)), dtype
            )
            for index, (_, dtype) in enumerate(first)
        )

    def row(self, records: Sequence[Called | None]) -> tuple[_NamedCalls, _NamedCalls]:
        """The outputs and the inputs of one module or join, given as each pass saw it; see `calls`."""
        # Blocks that repeat share what they made: most rows are known by the ids of it.
        ids = tuple(
            [(*map(id, record.calls), 0, *map(id, record.inputs)) if record is not None else () for record in records]
        )
        if (named_calls := self._known_rows.get(ids)) is None:
            outputs = self.calls([record.calls if record is not None else () for record in records])
            inputs = self.calls([record.inputs if record is not None else () for record in records])
            named_calls = self._known_rows[ids] = outputs, inputs
        return named_calls

    def calls(self, calls_by_pass: Sequence[Sequence[tuple[ShapeDtype, ...]]]) -> _NamedCalls:
        """Every call of a module that has tensors, equal ones once; concrete when the passes differ in their number."""
        calls_key = tuple(map(tuple, calls_by_pass))
        if (named_calls := self._named_calls.get(calls_key)) is None:
            named_calls = self._named_calls[calls_key] = tuple([call for call in self._named(calls_by_pass) if call])
        return named_calls

    def _named(self, calls_by_pass: Sequence[Sequence[tuple[ShapeDtype, ...]]]) -> _NamedCalls:
        first = calls_by_pass[0]
        if any(
            len(calls_by_pass[position]) != len(first) for position in self.twins
        ):  # how often it is called depends on values
            return tuple(self._summed(calls_by_pass))
        if any(len(other) != len(first) for other in calls_by_pass):
            return tuple(dict.fromkeys(tuple(TensorSpec(*tensor) for tensor in call) for call in first))
        return tuple(dict.fromkeys(self.specs(call) for call in zip(*calls_by_pass, strict=True)))

    def _summed(self, calls_by_pass: Sequence[Sequence[tuple[ShapeDtype, ...]]]) -> Iterator[tuple[TensorSpec, ...]]:
        """One call for all of a kind (so many tensors, of such dtypes and ranks); what varies among them is open."""
        kinds: dict[tuple[tuple[int, str], ...], None] = dict.fromkeys(
            map(_call_kind, chain.from_iterable(calls_by_pass))
        )
        for kind in kinds:
            calls = [[call for call in calls if _call_kind(call) == kind] for calls in calls_by_pass]
            same_sizes = [calls[position] for position in (0, *self.twins)]
            yield tuple(
                TensorSpec(tuple(self._common(calls, same_sizes, index, axis) for axis in range(rank)), dtype)
                for index, (rank, dtype) in enumerate(kind)
            )

    def _common(self, calls: Sequence[_Calls], same_sizes: Sequence[_Calls], index: int, axis: int) -> Dim:
        """A dimension that all calls have, or None."""
        sizes_here = {call[index][0][axis] for pass_calls in same_sizes for call in pass_calls}
        if len(sizes_here) != 1:
            return None
        [size] = sizes_here
        sets = [{call[index][0][axis] for call in pass_calls} or {size} for pass_calls in calls]
        return self._dim(tuple(chain(*sets))) if all(len(sizes) == 1 for sizes in sets) else size

    def _dim(self, dims: tuple[int | None, ...]) -> Dim:
        if dims not in self._known_dims:
            known_dims = [dim for dim in dims if dim is not None]
            name, settled = name_dimension(self.sizes, known_dims) if len(known_dims) == len(dims) else (None, True)
            is_unexplained = isinstance(name, int) and len(set(dims)) > 1
            self._known_dims[dims] = None if is_unexplained and self.unexplained_open else name
            self.settled = self.settled and settled
        return self._known_dims[dims]


@dataclass(frozen=True, slots=True)
class NamedTrace:
    """What each call of a trace (by its position) got and gave, and what the model gave, with symbolic dimensions.

    `notes` name the symbols whose size could not be varied: dimensions that follow them are shown as numbers.
    """

    inputs: Sequence[Specs]
    calls: Sequence[Specs]
    outputs: Specs
    notes: Sequence[str]


def named_trace(base: RecordedPass, sizes: Sizes, run: Callable[[Sizes], RecordedPass]) -> NamedTrace:
    """Name the dimensions of `base`, a trace at `sizes`; one that moves as no formula says is open.

    `run` traces the same call at other sizes, and raises whatever it likes when the model does not take them. A trace
    where other calls were made counts for nothing.
    """
    form = base.form

    def alike(other: Sizes) -> RecordedPass | None:
        try:
            trace = run(other)
        except Exception:  # this size does not suit the model: a table ends, a division leaves a rest
            return None
        return trace if trace.form == form else None

    def name(
        passes: Sequence[tuple[Sizes, RecordedPass]],
    ) -> tuple[DimensionNaming, tuple[list[Specs], list[Specs], Specs]]:
        naming = DimensionNaming([at for at, _ in passes], unexplained_open=True)
        same_calls = list(zip(*(trace.calls for _, trace in passes), strict=True))
        inputs = [naming.specs([call.inputs for call in same]) for same in same_calls]
        outputs = [naming.specs([call.outputs for call in same]) for same in same_calls]
        return naming, (inputs, outputs, naming.specs([trace.outputs for _, trace in passes]))

    _, specs, passes = resolve([(sizes, base)], alike, name)
    return NamedTrace(*specs, fixed_symbol_notes(passes))


def _call_kind(call: tuple[ShapeDtype, ...]) -> tuple[tuple[int, str], ...]:
    """The rank and dtype of each tensor of a call."""
    return tuple((len(shape), dtype) for shape, dtype in call)
