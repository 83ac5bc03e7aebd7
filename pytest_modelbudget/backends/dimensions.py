"""Giving dimensions their names back: a model is run at a few sizes, and each output dimension is explained by them.

Recognised are `B`, `2*B`, `T+1`, `T-4`, `2*T+2`, `B*T`, `3*B*T`, `S+T`, `T//2`, `(T+1)//2` and `2*(T//2)`; any other
dimension stays the number it had at the declared sizes, or is left open. The frameworks run the models, `resolve` says
at which sizes, and `Naming` makes specs of what they saw.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, islice
from math import gcd, prod
from typing import Protocol, TypeVar

from pytest_modelbudget.backends.calls import Output, Trace, ranks
from pytest_modelbudget.summary import Dim, TensorSpec

T = TypeVar("T")
R = TypeVar("R")

Sizes = Mapping[str, int]

_STEPS = (7, 11, 13, 17, 19, 23, 29, 31)  # different primes: what grows by 7 follows B and by 11 follows T
_OTHER_STEPS = (30, 43, 59, 73, 89, 101, 109, 131)
_LAST_STEPS = (53, 77, 103, 127, 139, 151, 163, 179)
_LARGEST_FACTOR = 64
_FEW = 8
"""So many explanations of one dimension are worth one more run."""


def explain(sizes: Sequence[Sizes], dims: Sequence[int]) -> tuple[Dim, bool]:
    """The name of a dimension that had `dims[i]` at `sizes[i]`, and whether more runs could change the answer.

    The first entry is the declared one; its number is the answer when no formula fits all runs, or more than one does.
    None is the answer when two runs at the same sizes differed: then the dimension depends on values.

    >>> explain([{"B": 1, "T": 10}, {"B": 8, "T": 21}], [9, 20])
    ('T-1', True)
    """
    if len(set(dims)) == 1:
        return dims[0], True
    if any(run == sizes[0] and dim != dims[0] for run, dim in zip(sizes, dims, strict=True)):
        return None, True
    moved = [name for name in sizes[0] if len({run[name] for run in sizes}) > 1]
    for family in (_same, _simple, _joint):
        fits = [text for text, value in family(moved, sizes, dims) if _fits(value, sizes, dims)]
        if fits:
            is_clear = len(fits) == 1 and not (_has_offset(fits[0]) and any(_halves(moved, sizes, dims)))
            return (fits[0], True) if is_clear else (dims[0], False)
    linear = [text for text, value in _linear(moved, sizes, dims) if _fits(value, sizes, dims)]
    fits = [*linear, *islice(_floors(moved, sizes, dims), _FEW + 1)]
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


def _same(moved: Sequence[str], sizes: Sequence[Sizes], dims: Sequence[int]) -> Iterator[Formula]:
    for name in moved:
        yield name, lambda run, name=name: run[name]  # type: ignore[misc]


def _simple(moved: Sequence[str], sizes: Sequence[Sizes], dims: Sequence[int]) -> Iterator[Formula]:
    for name in moved:
        times, rest = divmod(dims[0], sizes[0][name]) if sizes[0][name] else (0, 1)
        if rest == 0:
            yield f"{times}*{name}", lambda run, name=name, times=times: times * run[name]  # type: ignore[misc]
        offset = dims[0] - sizes[0][name]
        yield f"{name}{offset:+d}", lambda run, name=name, offset=offset: run[name] + offset  # type: ignore[misc]


def _joint(moved: Sequence[str], sizes: Sequence[Sizes], dims: Sequence[int]) -> Iterator[Formula]:
    for count in range(2, len(moved) + 1):
        for names in combinations(moved, count):
            whole = prod(sizes[0][name] for name in names)
            times, rest = divmod(dims[0], whole) if whole else (0, 1)
            if rest == 0 and times:
                text = "*".join(names) if times == 1 else f"{times}*{'*'.join(names)}"
                yield text, lambda run, names=names, times=times: times * prod(run[name] for name in names)  # type: ignore[misc]
            offset = dims[0] - sum(sizes[0][name] for name in names)
            text = "+".join(names) + (f"{offset:+d}" if offset else "")
            yield text, lambda run, names=names, offset=offset: offset + sum(run[name] for name in names)  # type: ignore[misc]


def _linear(moved: Sequence[str], sizes: Sequence[Sizes], dims: Sequence[int]) -> Iterator[Formula]:
    for name in moved:
        other = next(index for index, run in enumerate(sizes) if run[name] != sizes[0][name])
        times, rest = divmod(dims[other] - dims[0], sizes[other][name] - sizes[0][name])
        offset = dims[0] - times * sizes[0][name]
        if rest == 0 and times > 0:
            yield (
                f"{times}*{name}{offset:+d}",
                lambda run, name=name, times=times, offset=offset: times * run[name] + offset,  # type: ignore[misc]
            )


def _floors(moved: Sequence[str], sizes: Sequence[Sizes], dims: Sequence[int]) -> Iterator[str]:
    """`(T+1)//2` and multiples of such: all that fit."""
    common = gcd(*dims)
    for factor in (factor for factor in range(1, min(common, _LARGEST_FACTOR) + 1) if common % factor == 0):
        for text in _halves(moved, sizes, [dim // factor for dim in dims]):
            yield text if factor == 1 else f"{factor}*({text})"


def _halves(moved: Sequence[str], sizes: Sequence[Sizes], dims: Sequence[int]) -> Iterator[str]:
    """`(T+offset)//divisor` for every offset and divisor that fit.

    From `dim <= (size + offset) / divisor < dim + 1` at each size follow the smallest and the largest offset.
    """
    for name in moved:
        points = [(run[name], dim) for run, dim in zip(sizes, dims, strict=True)]
        (low, smallest), (high, largest) = min(points), max(points)
        for divisor in range(2, (high - low) // (largest - smallest - 1) + 1 if largest - smallest > 1 else 2):
            least = max(dim * divisor - size for size, dim in points)
            most = min(dim * divisor - size for size, dim in points) + divisor - 1
            for offset in range(least, most + 1):
                yield f"({name}{offset:+d})//{divisor}" if offset else f"{name}//{divisor}"


def vary(sizes: Sizes, run: Callable[[Sizes], T | None]) -> list[tuple[Sizes, T]]:
    """Run at other sizes until every symbol has moved; `run` returns None when the model does not take them.

    First all symbols together, larger, then doubled; when neither works, one symbol at a time. A symbol that never
    moved is missing from the differences of the result, and no dimension is named after it.
    """
    if not sizes:
        return []
    for other in (_stepped(sizes, _STEPS), {name: 2 * size for name, size in sizes.items()}):
        if (seen := run(other)) is not None:
            return [(other, seen)]
    found: list[tuple[Sizes, T]] = []
    if len(sizes) == 1:
        return _alone(next(iter(sizes)), sizes, run)
    for name in sizes:
        found += _alone(name, sizes, run, steps=_STEPS)
    return found


def _alone(
    name: str, sizes: Sizes, run: Callable[[Sizes], T | None], steps: Sequence[int] = ()
) -> list[tuple[Sizes, T]]:
    size = sizes[name]
    tries = [size + step for step in steps[:1]] + ([2 * size] if steps else [])
    tries += [size - 1, size // 2, size + 1, 3 * size]
    for other in dict.fromkeys(tries):
        if other > 0 and other != size and (seen := run({**sizes, name: other})) is not None:
            return [({**sizes, name: other}, seen)]
    return []


def vary_again(
    sizes: Sizes, moved: Sizes, run: Callable[[Sizes], T | None], steps: Sequence[int] = _OTHER_STEPS
) -> list[tuple[Sizes, T]]:
    """One more run, at sizes unlike those of `vary`, to decide between explanations; `moved` is a run that worked."""
    names = [name for name in sizes if sizes[name] != moved[name]]
    doubled = all(moved[name] == 2 * sizes[name] for name in names)
    other = {**sizes, **{name: 3 * sizes[name] for name in names}} if doubled else _stepped(sizes, steps)
    other = {name: other[name] if name in names else sizes[name] for name in sizes}
    return [] if (seen := run(other)) is None else [(other, seen)]


def _vary_last(sizes: Sizes, moved: Sizes, run: Callable[[Sizes], T | None]) -> list[tuple[Sizes, T]]:
    """Once more, or one symbol at a time where all moved by the same factor: then nothing else tells them apart."""
    if any(moved[name] != 2 * sizes[name] for name in sizes):
        return vary_again(sizes, moved, run, _LAST_STEPS)
    others = [{**sizes, name: 2 * size} for name, size in sizes.items()] if len(sizes) > 1 else []
    return [(other, seen) for other in others if (seen := run(other)) is not None]


def resolve(
    seen: Sequence[tuple[Sizes, T]],
    run: Callable[[Sizes], T | None],
    name: Callable[[Sequence[tuple[Sizes, T]]], tuple[Naming, R]],
) -> tuple[Naming, R, list[tuple[Sizes, T]]]:
    """What `name` makes of the passes in `seen`, the one at the declared sizes first, and of as many more as it needs.

    `run` makes a pass at other sizes, and returns None when the model does not take them. All passes are returned, too.
    """
    sizes = seen[0][0]
    others = vary(sizes, run)
    passes = [*seen, *others]
    naming, result = name(passes)
    for vary_further in (vary_again, _vary_last) if len(others) == 1 else ():
        if naming.settled or not (further := vary_further(sizes, others[0][0], run)):
            continue
        passes += further
        naming, result = name(passes)
    return naming, result, passes


def fixed(passes: Sequence[tuple[Sizes, T]]) -> list[str]:
    """The symbols that no pass could move: what follows them shows numbers."""
    sizes = passes[0][0]
    return [symbol for symbol in sizes if all(other[symbol] == sizes[symbol] for other, _ in passes)]


def _stepped(sizes: Sizes, steps: Sequence[int]) -> dict[str, int]:
    return {
        name: size + steps[index % len(steps)] * (1 + index // len(steps))
        for index, (name, size) in enumerate(sizes.items())
    }


class Called(Protocol):
    """A part of a model as one pass saw it."""

    @property
    def calls(self) -> Sequence[tuple[Output, ...]]:
        """The tensors that each call of it made."""
        ...

    @property
    def given(self) -> Sequence[tuple[Output, ...]]:
        """The tensors that each call of it was given."""
        ...


Specs = tuple[TensorSpec, ...]
_Calls = Sequence[tuple[Output, ...]]
_Named = tuple[Specs, ...]


@dataclass(slots=True)
class Naming:
    """Names the dimensions seen in several passes at different sizes; remembers what it could not settle."""

    sizes: Sequence[Sizes]
    settled: bool = True
    unexplained_open: bool = False
    """Whether a dimension that moves as no formula says is open, not the number it had at the declared sizes."""
    twins: tuple[int, ...] = field(init=False)
    _known: dict[tuple[int | None, ...], Dim] = field(default_factory=dict)
    _rows: dict[tuple[tuple[int, ...], ...], tuple[_Named, _Named]] = field(default_factory=dict)
    _said: dict[Hashable, _Named] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """`twins` are the places of the other passes at the first one's sizes."""
        first, *others = self.sizes
        self.twins = tuple(place for place, other in enumerate(others, 1) if other == first)

    def specs(self, seen: Sequence[tuple[Output, ...]]) -> tuple[TensorSpec, ...]:
        """The tensors of one call, given as each pass saw them, the declared one first."""
        first, *others = seen
        alike = all(ranks(other) == ranks(first) for other in others)
        if any(ranks(seen[place]) != ranks(first) for place in self.twins):
            return tuple(TensorSpec((None,) * len(shape), dtype) for shape, dtype in first)
        if not alike:
            return tuple(TensorSpec(shape, dtype) for shape, dtype in first)
        return tuple(
            TensorSpec(tuple(self._dim(dims) for dims in zip(*(one[index][0] for one in seen), strict=True)), dtype)
            for index, (_, dtype) in enumerate(first)
        )

    def row(self, records: Sequence[Called | None]) -> tuple[_Named, _Named]:
        """The outputs and the inputs of one module or join, given as each pass saw it; see `calls`."""
        # Blocks that repeat share what they made: most rows are known by the ids of it.
        ids = tuple([(*map(id, one.calls), 0, *map(id, one.given)) if one is not None else () for one in records])
        if (known := self._rows.get(ids)) is None:
            outputs = self.calls([one.calls if one is not None else () for one in records])
            inputs = self.calls([one.given if one is not None else () for one in records])
            known = self._rows[ids] = outputs, inputs
        return known

    def calls(self, seen: Sequence[Sequence[tuple[Output, ...]]]) -> _Named:
        """Every call of a module that has tensors, equal ones once; concrete when the passes differ in their number."""
        said = tuple(map(tuple, seen))
        if (known := self._said.get(said)) is None:
            known = self._said[said] = tuple([call for call in self._named(seen) if call])
        return known

    def _named(self, seen: Sequence[Sequence[tuple[Output, ...]]]) -> _Named:
        first = seen[0]
        if any(len(seen[place]) != len(first) for place in self.twins):  # how often it is called depends on values
            return tuple(self._summed_up(seen))
        if any(len(other) != len(first) for other in seen):
            return tuple(dict.fromkeys(tuple(TensorSpec(*one) for one in call) for call in first))
        return tuple(dict.fromkeys(self.specs(call) for call in zip(*seen, strict=True)))

    def _summed_up(self, seen: Sequence[Sequence[tuple[Output, ...]]]) -> Iterator[tuple[TensorSpec, ...]]:
        """One call for all of a kind (so many tensors, of such dtypes and ranks); what varies among them is open."""
        kinds: dict[tuple[tuple[int, str], ...], None] = dict.fromkeys(map(_kind, chain.from_iterable(seen)))
        for kind in kinds:
            calls = [[call for call in calls if _kind(call) == kind] for calls in seen]
            same_sizes = [calls[place] for place in (0, *self.twins)]
            yield tuple(
                TensorSpec(tuple(self._common(calls, same_sizes, index, axis) for axis in range(rank)), dtype)
                for index, (rank, dtype) in enumerate(kind)
            )

    def _common(self, calls: Sequence[_Calls], same_sizes: Sequence[_Calls], index: int, axis: int) -> Dim:
        """A dimension that all calls have, or None."""
        here = {call[index][0][axis] for alike in same_sizes for call in alike}
        if len(here) != 1:
            return None
        [size] = here
        sets = [{call[index][0][axis] for call in alike} or {size} for alike in calls]
        return self._dim(tuple(chain(*sets))) if all(len(sizes) == 1 for sizes in sets) else size

    def _dim(self, dims: tuple[int | None, ...]) -> Dim:
        if dims not in self._known:
            known = [dim for dim in dims if dim is not None]
            name, settled = explain(self.sizes, known) if len(known) == len(dims) else (None, True)
            is_unexplained = isinstance(name, int) and len(set(dims)) > 1
            self._known[dims] = None if is_unexplained and self.unexplained_open else name
            self.settled = self.settled and settled
        return self._known[dims]


@dataclass(frozen=True, slots=True)
class NamedTrace:
    """What each call of a trace (by its position) got and gave, and what the model gave, with symbolic dimensions.

    `notes` name the symbols whose size could not be varied: dimensions that follow them are shown as numbers.
    """

    given: Sequence[Specs]
    calls: Sequence[Specs]
    outputs: Specs
    notes: Sequence[str]


def named_trace(base: Trace, sizes: Sizes, run: Callable[[Sizes], Trace]) -> NamedTrace:
    """Name the dimensions of `base`, a trace at `sizes`; one that moves as no formula says is open.

    `run` traces the same call at other sizes, and raises whatever it likes when the model does not take them. A trace
    where other calls were made counts for nothing.
    """
    form = base.form

    def alike(other: Sizes) -> Trace | None:
        try:
            trace = run(other)
        except Exception:  # this size does not suit the model: a table ends, a division leaves a rest
            return None
        return trace if trace.form == form else None

    def name(passes: Sequence[tuple[Sizes, Trace]]) -> tuple[Naming, tuple[list[Specs], list[Specs], Specs]]:
        naming = Naming([at for at, _ in passes], unexplained_open=True)
        same_calls = list(zip(*(trace.calls for _, trace in passes), strict=True))
        given = [naming.specs([call.given for call in same]) for same in same_calls]
        outputs = [naming.specs([call.outputs for call in same]) for same in same_calls]
        return naming, (given, outputs, naming.specs([trace.outputs for _, trace in passes]))

    _, specs, passes = resolve([(sizes, base)], alike, name)
    notes = [f"{name} is shown as {sizes[name]}: the model takes no other size of it" for name in fixed(passes)]
    return NamedTrace(*specs, notes)


def _kind(call: tuple[Output, ...]) -> tuple[tuple[int, str], ...]:
    """The rank and dtype of each tensor of a call."""
    return tuple((len(shape), dtype) for shape, dtype in call)
