"""Giving dimensions their names back: a model is run at a few sizes, and each output dimension is explained by them.

Recognised are `B`, `2*B`, `T+1`, `T-4`, `2*T+2`, `B*T`, `3*B*T` and `S+T`; any other dimension stays the number it
had at the declared sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from math import prod
from typing import TypeVar

from pytest_modelbudget.summary import Dim

T = TypeVar("T")

Sizes = Mapping[str, int]

_PROBE_STEPS = (7, 11, 13, 17, 19, 23, 29, 31)  # different primes: what grows by 7 follows B and by 11 follows T
_SECOND_PROBE_STEPS = (30, 43, 59, 73, 89, 101, 109, 131)


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
            return (fits[0], True) if len(fits) == 1 else (dims[0], False)
    linear = [text for text, value in _linear(varied, sizes, dims) if _fits(value, sizes, dims)]
    if len(linear) == 1 and len(set(dims)) > 2:  # through two points there is always a line
        return linear[0], True
    return dims[0], not linear


Formula = tuple[str, Callable[[Sizes], int]]


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


def probe_again(sizes: Sizes, varied: Sizes, run: Callable[[Sizes], T | None]) -> list[tuple[Sizes, T]]:
    """One more run, at sizes unlike those of `probe`, to decide between explanations; `varied` is a run that worked."""
    names = [name for name in sizes if sizes[name] != varied[name]]
    doubled = all(varied[name] == 2 * sizes[name] for name in names)
    other_sizes = (
        {**sizes, **{name: 3 * sizes[name] for name in names}}
        if doubled
        else _stepped_sizes(sizes, _SECOND_PROBE_STEPS)
    )
    result = run({name: other_sizes[name] if name in names else sizes[name] for name in sizes})
    return [] if result is None else [(other_sizes, result)]


def _stepped_sizes(sizes: Sizes, steps: Sequence[int]) -> dict[str, int]:
    return {
        name: size + steps[index % len(steps)] * (1 + index // len(steps))
        for index, (name, size) in enumerate(sizes.items())
    }
