"""Limits on runs: `fits: "24 GB"`, and `growth_in: {T: {activation_bytes: linear}}`; how they are read and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction

from pytest_modelbudget import units
from pytest_modelbudget.budget.limits import FITS, Bound, Budget, Lifted, Rule
from pytest_modelbudget.budget.values import why_unplanned
from pytest_modelbudget.errors import ModelBudgetError, Place, did_you_mean
from pytest_modelbudget.planner.fitting import calibrated_device, device_capacity
from pytest_modelbudget.planner.growth import LAWS, allows
from pytest_modelbudget.summary import Fit, Growth, Plan, Summary
from pytest_modelbudget.summary.metrics import GROWING
from pytest_modelbudget.summary.numbers import Number
from pytest_modelbudget.summary.show.plans import lever_savings, need_text, way_text

RUN_SECTIONS = ("fits", "growth_in")
"""Keys beside the metrics that limit runs."""

PlaceOf = Callable[[tuple[str, ...]], Place | None]
Breach = tuple[Number | None, str]
"""What breaks a limit: the number (None: not known), and the sentence."""

_MOST_LEVERS = 3


def parse_fits(value: object, place: Place | None) -> Rule:
    """Read `fits`: a device or a list of them, each a name or a capacity; None lifts it.

    A mapping has the `device` (or several), or the capacity that `nvidia-smi` has `shown`; `calibrate`, a measurement
    of the one device; and `tight: fail`, for runs of which it is not sure that they fit.

    Raises:
        ModelBudgetError: no device, or one that is not known.
    """
    if isinstance(value, Mapping) and set(value) == {"max"}:
        value = value["max"]
    if value is None:
        return Lifted(FITS, "fits")
    options = value if isinstance(value, Mapping) else {"device": value}
    try:
        devices = tuple(dict.fromkeys(_devices_of(options)))
        smallest = min(map(device_capacity, devices))
    except ModelBudgetError as mistake:
        raise ModelBudgetError(f"budgets.fits: {mistake}") from None
    return Budget(FITS, "fits", smallest, None, place, devices=devices, strict=options.get("tight") == "fail")


_FITS_EXAMPLE = 'write "24 GB", the name of a device, or a list of these'
_FITS_KEYS = ("device", "shown", "calibrate", "tight")


def _devices_of(options: Mapping[str, object]) -> list[str]:
    """The devices of a `fits`, by name.

    Raises:
        ModelBudgetError: anything that is not as `parse_fits` says.
    """
    if unknown := [key for key in options if key not in _FITS_KEYS]:
        keys = ", ".join(_FITS_KEYS)
        raise ModelBudgetError(f"{dict(options)!r}: {_FITS_EXAMPLE}; a mapping has {keys}, no {unknown[0]!r}")
    if options.get("tight", "warn") not in ("warn", "fail"):
        raise ModelBudgetError(f"tight: {options['tight']!r}: write warn (runs that may or may not fit pass) or fail")
    if ("device" in options) == ("shown" in options):
        raise ModelBudgetError("write device, or shown: the capacity that nvidia-smi shows")
    value = options["device"] if "device" in options else _shown_device(options["shown"])
    devices = [value] if isinstance(value, str) else value
    if not isinstance(devices, (list, tuple)) or not devices or not all(isinstance(device, str) for device in devices):
        raise ModelBudgetError(f"{value!r}: {_FITS_EXAMPLE}")
    names = [" ".join(device.split()) for device in devices]
    if (reading := options.get("calibrate")) is None:
        return names
    if not isinstance(reading, Mapping) or set(reading) != {"reserved", "shown"} or len(names) != 1:
        raise ModelBudgetError(
            "calibrate: write {reserved: 5.1 GiB, shown: 6.5 GiB}, what torch.cuda.max_memory_reserved() and "
            "nvidia-smi said of one run, for one device"
        )
    return [calibrated_device(names[0], reading["reserved"], reading["shown"])]


def _shown_device(shown: object) -> str:
    """The name of a device whose memory `nvidia-smi` shows as so much."""
    try:
        units.parse(shown, "bytes")
    except ModelBudgetError as mistake:
        raise ModelBudgetError(f"shown: {mistake}; nvidia-smi has it as MiB: 24564 MiB") from None
    return f"{shown} shown"


def parse_laws(value: object, place_of: PlaceOf) -> Iterator[Rule]:
    """Read `growth_in`: for each dimension, a law for each of some metrics; None lifts what a wider level says.

    Raises:
        ModelBudgetError: the first mistake.
    """
    example = "write growth_in: {T: {activation_bytes: linear}}"
    if not isinstance(value, Mapping) or not value:
        raise ModelBudgetError(f"budgets.growth_in: {value!r}: {example}")
    for dim, laws in value.items():
        title = f"budgets.growth_in.{dim}"
        if not isinstance(dim, str) or not dim.isidentifier():
            raise ModelBudgetError(f"budgets.growth_in: {dim!r} is no name of a dimension: {example}")
        if laws is None:
            laws = dict.fromkeys(GROWING)
        if not isinstance(laws, Mapping) or not laws:
            raise ModelBudgetError(f"{title}: {laws!r}: {example}")
        for metric, law in laws.items():
            if metric not in GROWING:
                hint = did_you_mean(metric, GROWING)
                raise ModelBudgetError(
                    f"{title}: growth of {metric!r} cannot be limited{hint}; known are {', '.join(GROWING)}"
                )
            bound, limit = _parse_law(f"{title}.{metric}", law)
            yield Lifted(metric, bound, dim=dim).limited(limit, place_of(("growth_in", dim, metric)))


def _parse_law(title: str, law: object) -> tuple[Bound, Number | None]:
    if law is None:
        return "law", None
    if isinstance(law, str) and law in LAWS:
        return "law", LAWS[law]
    if isinstance(law, Mapping) and set(law) == {"max_exponent"}:
        try:
            return "exponent", Fraction(units.parse(law["max_exponent"], "ratio"))
        except ModelBudgetError as mistake:
            raise ModelBudgetError(f"{title}.max_exponent: {mistake}") from None
    raise ModelBudgetError(f"{title}: {law!r}: write {', '.join(LAWS)} or {{max_exponent: 1.2}}")


def device_shortfalls(summary: Summary, budget: Budget) -> Iterator[Breach]:
    """Each planned run that needs more than a device has, or of which that is not known; tight ones where they fail."""
    if not summary.plans:
        yield None, why_unplanned(summary, "training")
    for plan in summary.plans:
        fits_by_device = {fit.device: fit for fit in plan.fits}
        for device in budget.devices:
            fit = fits_by_device.get(device)
            if fit is None or fit.decisive is None:
                yield None, f"{plan.kind} on {device}: {why_unplanned(summary, plan.kind)}"
            elif fit.verdict == "does not fit":
                yield fit.decisive, _shortfall_text(plan, fit, fit.decisive)
    if budget.strict:
        yield from tight_fits(summary, budget)


def tight_fits(summary: Summary, budget: Budget) -> Iterator[Breach]:
    """Each planned run of which it is not sure that it fits a device: that hangs on what is not known exactly."""
    for plan in summary.plans:
        for fit in plan.fits:
            if fit.device in budget.devices and fit.verdict == "tight":
                ways = [way_text(way) for way in plan.ways if way.device == fit.device]
                yield fit.decisive, "; ".join([f"{plan.kind} is tight on {fit.device}: {need_text(fit)}", *ways])


def _shortfall_text(plan: Plan, fit: Fit, need: int) -> str:
    """`training needs at least 26.10 GiB of 22.35 GiB on 24 GB: short by 3.750 GiB; levers: ...`."""
    text = f"{plan.kind} {need_text(fit)} on {fit.device}: short by {units.size(need - fit.capacity)}"
    levers = list(lever_savings(plan))[:_MOST_LEVERS]
    ways = [way_text(way) for way in plan.ways if way.device == fit.device]
    return "; ".join([text, *([f"levers: {', '.join(levers)}"] if levers else []), *ways])


def excess_growth(summary: Summary, budget: Budget) -> Iterator[Breach]:
    """The growth of a number in a dimension, when it is not within its law."""
    growth = next(
        (candidate for candidate in summary.growth if (candidate.dim, candidate.metric) == (budget.dim, budget.metric)),
        None,
    )
    if growth is None:
        yield None, "unknown, so the limit cannot be checked"
        return
    within = allows(budget.limit, growth, named=budget.bound == "law")
    if within is None or growth.degree is None:
        yield None, f"unknown ({growth.reason})"
    elif not within:
        yield growth.degree, _growth_text(growth, budget)


def _growth_text(growth: Growth, budget: Budget) -> str:
    """`quadratic, and linear is allowed: 3.1 MiB at 128, ...; at T=128 a share of 9.5% grows with T^2`."""
    show = units.flops if growth.metric == "flops" else units.size
    points = ", ".join(f"{show(value)} at {size}" for size, value in growth.points)
    actual = growth.law if budget.bound == "law" else f"exponent {growth.exponent} ({growth.law})"
    curvature = ""
    if growth.curved_share:
        share = "<0.1%" if growth.curved_share < 0.001 else units.percent(growth.curved_share)
        curvature = f"; at {growth.dim}={growth.size} {share} of what grows does so with {growth.dim}^2"
    return f"{actual}, and {budget.text} is allowed: {points}{curvature}"
