"""Planned runs in words, as rows and as a curve."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count

from pytest_modelbudget import units
from pytest_modelbudget.summary.growth import Growth
from pytest_modelbudget.summary.model import Summary
from pytest_modelbudget.summary.plan import CacheGroup, Fit, Kind, Limited, Plan, Role, ServingCache, TimeBound, Way
from pytest_modelbudget.summary.show.cells import UNKNOWN
from pytest_modelbudget.system.escape import harmless

ROLES: dict[Role, str] = {
    "param": "weights",
    "buffer": "buffers",
    "input": "inputs",
    "other": "other tensors of the model",
    "gradient": "gradients",
    "optimizer": "optimizer",
    "cast": "autocast copies",
    "activation": "activations",
    "temporary": "temporaries",
    "cache": "cache of keys and values",
    "workspace": "workspaces of kernels",
    "gathered": "gathered parameters and gradients on their way",
    "average": "averages of weights",
    "output": "outputs of the model",
    "received": "activations and gradients of other stages",
}
"""What memory is for, in words."""

RUNS: dict[Kind, str] = {
    "training": "one training step",
    "inference": "one forward pass",
    "serving": "serving, in its largest pass",
}
"""What is planned, in words."""

_MOST_LEVERS = 3
_MOST_PLACES = 12
_LONGEST = 800
_LEAST_SHARE = 1000
"""What all requests share is told of where it is more than one part in so many of a cache."""
_HELD: tuple[Role, ...] = ("param", "buffer", "optimizer", "other", "cache", "average")
"""Roles of what is held all the time."""


def summary_lines(summary: Summary) -> Iterator[str]:
    """All that was planned of a model, a few lines for each run, and the laws that were measured."""
    for plan in summary.plans:
        yield from lines(plan)
    for growth in summary.growth:
        yield harmless(growth_text(growth))


def lines(plan: Plan, *, levers: int = _MOST_LEVERS) -> Iterator[str]:
    """One run: its peak, where it is and of what; what would save memory; devices; notes."""
    yield harmless(peak_text(plan), longest=_LONGEST)
    if plan.cache is not None:
        yield harmless(f"  {cache_text(plan.cache)}", longest=_LONGEST)
    for saved in list(lever_savings(plan))[:levers]:
        yield harmless(f"  {saved}")
    if plan.fits:
        yield harmless(f"  {'; '.join(map(fit_text, plan.fits))}")
    for way in plan.ways:
        yield harmless(f"  {way_text(way)}", longest=_LONGEST)
    yield from map(harmless, time_texts(plan))
    for largest_size in plan.largest:
        size = (
            f"largest {largest_size.dim} on {largest_size.device}: {largest_size.size:,}"
            if largest_size.size
            else f"not even {largest_size.dim}=1 fits {largest_size.device}"
        )
        yield harmless(f"  {size}")
    for note in plan.notes if plan.peak_bytes is not None else plan.notes[1:]:
        yield harmless(f"  {note}")


def peak_text(plan: Plan) -> str:
    """`training (batch 32, adamw): peak 41.20 GiB in backward of layers.30.mlp; weights 14.90 GiB, ...`."""
    title = f"{plan.kind} ({plan.recipe}){f', one of {plan.ranks} ranks' if plan.ranks > 1 else ''}"
    role_texts = [", ".join(f"{ROLES[role]} {units.size(size)}" for role, size in plan.by_role().items())]
    if plan.peak_bytes is None:
        reasons = "; ".join(filter(None, [_bounds_text(plan), *plan.notes[:1]]))
        reason = f" ({reasons})" if reasons else ""
        return "; ".join([f"{title}: peak {UNKNOWN}{reason}", *(f"known are {part}" for part in role_texts if part)])
    bounds = f" ({text})" if (text := _bounds_text(plan)) else ""
    sentences = [
        f"{title}: peak {units.size(plan.peak_bytes)}{bounds}{peak_place_text(plan)}",
        *filter(None, role_texts),
    ]
    if plan.reserved_bytes is not None:
        sentences.append(f"reserved {units.size(plan.reserved_bytes)}")
    if plan.communication_bytes is not None:
        sentences.append(f"sends {units.size(plan.communication_bytes)} a step")
    return "; ".join(sentences)


def cache_text(cache: ServingCache) -> str:
    """`cache 8.000 GiB, 128.0 KiB a token, 8 MiB of it in blocks that are not full: 64 tensors keep every token`."""
    per_token = "" if cache.bytes_per_token is None else f", {units.size(cache.bytes_per_token)} a token"
    waste = f", {units.size(cache.waste_bytes)} of it in blocks that are not full" if cache.waste_bytes else ""
    groups = [group for group in cache.groups if group.bytes_per_request or _is_large(group.shared_bytes, cache)]
    return f"cache {units.size(cache.bytes)}{per_token}{waste}: {'; '.join(map(_group_text, groups))}"


def _is_large(size: int, cache: ServingCache) -> bool:
    return _LEAST_SHARE * size >= cache.bytes


def _group_text(group: CacheGroup) -> str:
    tensors = f"{group.tensors} tensor{'s' if group.tensors > 1 else ''}"
    verb = "keep" if group.tensors > 1 else "keeps"
    if not group.bytes_per_request:
        return f"{tensors} once for all requests, {units.size(group.shared_bytes)}"
    each = f"{units.size(group.bytes_per_request)} a request"
    if not group.bytes_per_token:
        return f"{tensors} {verb} the same for any number of tokens, {each}"
    kept = "every token" if group.window is None else f"the last {group.window:,} tokens"
    return f"{tensors} {verb} {kept}, {each}"


def _bounds_text(plan: Plan) -> str:
    """`12.00 MiB to 80.00 MiB`; empty where one of them is not known, or where both are the same."""
    if plan.low_bytes is None or plan.high_bytes is None or plan.low_bytes >= plan.high_bytes:
        return ""
    return f"{units.size(plan.low_bytes)} to {units.size(plan.high_bytes)}"


def peak_place_text(plan: Plan) -> str:
    """` in backward of layers.30.mlp`; empty when the peak has no place."""
    phase = f" in {'the step of the optimizer' if plan.phase == 'optimizer' else plan.phase}" if plan.phase else ""
    return f"{phase} {'of' if phase else 'in'} {plan.path}" if plan.path else phase


def lever_savings(plan: Plan) -> Iterator[str]:
    """What each lever would save, most first: `checkpointing: blocks would save 17.90 GiB`."""
    if plan.peak_bytes is None:
        return
    for lever in sorted(plan.levers, key=lambda lever: lever.peak_bytes):
        if (saved := plan.peak_bytes - lever.peak_bytes) > 0:
            yield f"{lever.name} would save {units.size(saved)}"


def fit_text(fit: Fit) -> str:
    """`fits A100 80GB (needs up to 44.00 GiB of 79.15 GiB)`; where it is tight, from what to what, and by what."""
    if fit.verdict is None:
        return f"not known whether it fits {fit.device}"
    verdict = f"tight on {fit.device}" if fit.verdict == "tight" else f"{fit.verdict} {fit.device}"
    return f"{verdict} ({need_text(fit)})"


def need_text(fit: Fit) -> str:
    """What a run needs, by its verdict: `needs up to 22.10 GiB of 23.51 GiB`, or `at least 26.10 GiB`, or the range.

    `needs 22.80 GiB to 24.10 GiB of 23.51 GiB: the context of the device 381.0 MiB, fragmentation 600.0 MiB`.
    """
    low, high, decisive = fit.low or 0, fit.high or 0, fit.decisive or 0
    if fit.verdict == "tight":
        margins = ", ".join(f"{margin.cause} {units.size(margin.bytes)}" for margin in fit.margins)
        return f"needs {units.size(low)} to {units.size(high)} of {units.size(fit.capacity)}: {margins}"
    bound = "" if low == high or fit.low is None else "at least " if decisive == low else "up to "
    return f"needs {bound}{units.size(decisive)} of {units.size(fit.capacity)}"


def way_text(way: Way) -> str:
    """`cheapest way to fit 24 GB: training: {batch: 8, fused: true}`."""
    if not way.recipe:
        return f"nothing that was tried fits {way.device} ({way.tried} {'plan' if way.tried == 1 else 'plans'})"
    return f"cheapest way to fit {way.device}: {way.recipe}"


ABOVE_BOUND = "published runs of language models took 1.2 to 4.4 times as long, of images 1.5 to 24"
"""What a least time is worth, measured by `tests/benchmarks/published_times.py`."""


def time_texts(plan: Plan) -> Iterator[str]:
    """What a run moves, and its least time on each device: what it is bound by, and where."""
    if plan.bytes_moved is None or plan.flops is None:
        return
    at_least = "at least " if plan.flops_at_least else ""
    intensity = (
        f", {_intensity_text(Fraction(plan.flops, plan.bytes_moved))} FLOPs for each byte"
        if plan.bytes_moved and not plan.flops_at_least
        else ""
    )
    yield (
        f"  computes {at_least}{units.flops(plan.flops)}; its products read and write "
        f"{units.size(plan.bytes_moved)}{intensity}"
    )
    for bound in plan.time_bounds:
        yield f"  {time_text(bound)}"


def _intensity_text(intensity: Fraction) -> str:
    """FLOPs for each byte, whole from 10 on; below two digits that say something, `0.34` or `0.0012`."""
    if intensity >= 10 or not intensity:
        return f"{float(intensity):,.0f}"
    places = next(places for places in count(1) if intensity * 10**places >= 10)
    return f"{float(intensity):.{places}f}"


def time_text(bound: TimeBound) -> str:
    """`takes at least 12.30 ms on A100 80GB (a bound, ...): 91.2% of it for compute, most in lm_head; ...`."""
    if bound.seconds is None:
        return f"least time on {bound.device}: {UNKNOWN} ({bound.reason})"
    times: dict[Limited, int] = {"compute": 0, "memory": 0}
    for part in bound.parts:
        times[part.limited] += part.picoseconds
    total = sum(times.values()) or 1
    shares = "; ".join(
        f"{units.percent(Fraction(time, total))} bound by {limited}{_longest_part(bound, limited)}"
        for limited, time in times.items()
        if time
    )
    least = units.seconds(bound.seconds)
    return f"takes at least {least} on {bound.device} (a bound, no estimate: {ABOVE_BOUND}): {shares}"


def _longest_part(bound: TimeBound, limited: Limited) -> str:
    part = next(part for part in bound.parts if part.limited == limited)
    return f", most in {part.path}" if part.path else ""


def layer_times(summary: Summary, path: str) -> Iterator[tuple[str, str]]:
    """The share of the least time of each run that the layer at `path` and all inside it have, and what bounds them.

    The shares of all operators add up to the whole. They are of the times before what the chip may hold is taken off
    the whole, so that a layer alone has a share, and no least time.
    """
    for kind, bound in ((plan.kind, bound) for plan in summary.plans for bound in plan.time_bounds):
        times: dict[Limited, int] = {}
        for part in bound.parts:
            if part.path == path or part.path.startswith(f"{path}."):
                times[part.limited] = times.get(part.limited, 0) + part.picoseconds
        if times and bound.seconds is not None:
            total = sum(part.picoseconds for part in bound.parts)
            shares = (f"{units.percent(Fraction(time, total))} bound by {limited}" for limited, time in times.items())
            yield f"{kind} on {bound.device}", f"{' and '.join(shares)}, of at least {units.seconds(bound.seconds)}"


def growth_text(growth: Growth) -> str:
    """`activation_bytes in T: linear (12.38 KiB for each; 1.547 MiB at 128, ...)`."""
    if growth.degree is None:
        return f"{growth.metric} in {growth.dim}: {UNKNOWN} ({growth.reason})"
    show = units.flops if growth.metric == "flops" else units.size
    points = ", ".join(f"{show(value)} at {size:,}" for size, value in growth.points)
    per_unit_text = f"{show(growth.per_unit)} for each; " if growth.per_unit and growth.per_unit > 0 else ""
    return f"{growth.metric} in {growth.dim}: {growth.law} ({per_unit_text}{points})"


def peak_parts(plan: Plan) -> Iterator[tuple[str, str, int]]:
    """What is alive at the peak as (role, module, bytes), most first; what is too small to be listed as one row."""
    ranked = sorted(plan.parts, key=lambda part: -part.bytes)
    for part in ranked[:_MOST_PLACES]:
        yield ROLES[part.role], harmless(part.path), part.bytes
    if small := ranked[_MOST_PLACES:]:
        yield f"{len(small)} more", "", sum(part.bytes for part in small)


@dataclass(frozen=True, slots=True)
class Band:
    """A part of the step on the curve: from `left`, `width` wide."""

    phase: str
    left: float
    width: float


@dataclass(frozen=True, slots=True)
class Curve:
    """The memory of a step as a drawing of `width` x `height`: a line, its area, bands of phases, levels, the peak.

    `levels` are (y, text) of round amounts of memory, `held` is the y of what is held all the time.
    """

    width: int
    height: int
    line: str
    area: str
    bands: tuple[Band, ...]
    levels: tuple[tuple[float, str], ...]
    peak: tuple[float, float]
    held: float | None
    label: str
    words: str


WIDTH, HEIGHT = 720, 200
_LEVELS = 4
_MOST_POINTS = 300


def memory_curve(plan: Plan) -> Curve | None:
    """The timeline of a plan, drawn; None without one."""
    if not plan.timeline or plan.peak_bytes is None:
        return None
    points = _highest_points(plan)
    top = Fraction(max(max(size for _, size in points), 1) * 6, 5)
    step = WIDTH / len(points)

    def y(size: int) -> float:
        return round(float(HEIGHT - HEIGHT * size / top), 1)

    first_size, last_size, peak_size = (units.size(size) for size in (points[0][1], points[-1][1], plan.peak_bytes))
    highest = max(range(len(points)), key=lambda index: points[index][1])
    line = " ".join(f"{round(step * (index + 0.5), 1)},{y(size)}" for index, (_, size) in enumerate(points))
    held_bytes = sum(part.bytes for part in plan.parts if part.role in _HELD)
    return Curve(
        WIDTH,
        HEIGHT,
        line,
        f"{round(step / 2, 1)},{HEIGHT} {line} {round(WIDTH - step / 2, 1)},{HEIGHT}",
        tuple(_bands([phase for phase, _ in points], step)),
        tuple((y(size), units.size(size)) for size in _round_levels(top)),
        (round(step * (highest + 0.5), 1), y(points[highest][1])),
        y(held_bytes) if held_bytes else None,
        peak_size,
        harmless(
            f"Memory alive in {RUNS[plan.kind]}, operator by operator: from {first_size} it rises to a peak of "
            f"{peak_size}{peak_place_text(plan)} and ends with {last_size}."
        ),
    )


def _highest_points(plan: Plan) -> list[tuple[str, int]]:
    """The highest point of each stretch, in at most so many stretches."""
    stretch = -(-len(plan.timeline) // _MOST_POINTS)
    stretches = [plan.timeline[start : start + stretch] for start in range(0, len(plan.timeline), stretch)]
    tops = [max(points, key=lambda point: point.bytes) for points in stretches]
    return [(top.phase, top.bytes) for top in tops]


def _bands(phases: list[str], step: float) -> Iterator[Band]:
    start = 0
    for index in range(1, len(phases) + 1):
        if index == len(phases) or phases[index] != phases[start]:
            yield Band(phases[start], round(start * step, 1), round((index - start) * step, 1))
            start = index


def _round_levels(top: Fraction) -> Iterator[int]:
    """Amounts at equal distances of a power of two, below `top`."""
    step = 1
    while top > _LEVELS * step:
        step *= 2
    yield from range(step, int(top), step)
