"""What one run of a model takes of a device's memory, as it was planned: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from fractions import Fraction
from typing import Any, Literal

from pytest_modelbudget import units

Kind = Literal["training", "inference", "serving"]

Phase = Literal["forward", "loss", "backward", "optimizer", ""]
"""The part of a step that an operator belongs to; empty for what belongs to none (the end of a pass)."""

Role = Literal[
    "param",
    "buffer",
    "input",
    "other",
    "gradient",
    "optimizer",
    "cast",
    "activation",
    "temporary",
    "cache",
    "workspace",
    "gathered",
    "average",
    "output",
    "received",
]
"""What memory is for. `other` is a tensor that a model holds as a plain attribute, `cast` a copy of a weight in the
dtype of autocast, `activation` what the forward pass leaves for the backward pass, `cache` keys and values of earlier
tokens, `workspace` what a kernel takes inside itself, `gathered` what is whole on a rank for a while only: parameters
of many ranks, and gradients on their way to them; `average` an average of weights and buffers (EMA), `output` what
the model returned, where nothing else needs it, `received` what a stage of a pipeline has room for of other stages."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes alive at the peak: of one role, made by the module at `path` (empty: of the whole model)."""

    role: Role
    path: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the timeline: bytes alive after an operator of the module at `path`, in a part of the step."""

    phase: Phase
    path: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Lever:
    """What a change of the recipe would make of the peak; `name` says it as an order: `checkpointing: blocks`."""

    name: str
    peak_bytes: int
    note: str = ""


Verdict = Literal["fits", "tight", "does not fit"]
"""Whether a run fits: `tight` where that hangs on what is not known exactly."""


@dataclass(frozen=True, slots=True)
class Margin:
    """A part of what is not known exactly of a need: what it is, in words, and its bytes from the least to the most."""

    cause: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether the run fits a device: `needs` bytes of `capacity`, None when the need is not known.

    `needs` contains the caching allocator's reserve, the context of the device at its most and the libraries'
    workspace. The need is known as a range: it is at least `low`, and `margins` may come on top, up to `high`.
    """

    device: str
    capacity: int
    needs: int | None
    low: int | None = None
    margins: tuple[Margin, ...] = ()

    @property
    def room(self) -> int | None:
        """Bytes that are left for sure, negative where some may lack; None when the need is not known."""
        return None if self.high is None else self.capacity - self.high

    @property
    def high(self) -> int | None:
        """The most that the run needs; None when the need is not known."""
        return self.needs if self.low is None else self.low + sum(margin.bytes for margin in self.margins)

    @property
    def decisive(self) -> int | None:
        """The need that its verdict hangs on: the least where even that is not there, else the most."""
        return self.low if self.low is not None and self.low > self.capacity else self.high

    @property
    def verdict(self) -> Verdict | None:
        """`fits` where its most is there, `does not fit` where its least is not; None when the need is not known."""
        if self.needs is None or self.high is None:
            return None
        if self.high <= self.capacity:
            return "fits"
        low = self.needs if self.low is None else self.low
        return "does not fit" if low > self.capacity else "tight"

    @property
    def fits(self) -> bool | None:
        """Whether it does; None when that is not known, as where it is tight."""
        return None if self.verdict in (None, "tight") else self.verdict == "fits"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fit:
        """Read back what `Plan.to_dict` gave."""
        margins = tuple(Margin(**margin) for margin in data.get("margins", ()))
        return cls(data["device"], data["capacity"], data["needs"], data.get("low"), margins)


@dataclass(frozen=True, slots=True)
class LargestSize:
    """The largest size of a dimension (`B`, `T`) with which the run still fits `device`; 0: not even one."""

    dim: str
    size: int
    device: str


PICOSECONDS = 10**12
"""Picoseconds of a second."""

Limited = Literal["compute", "memory"]
"""What a time is bound by: FLOPs, or bytes that move through the memory."""


@dataclass(frozen=True, slots=True)
class BoundPart:
    """The share of a least time that the operators of the module at `path` have, of those that are bound alike."""

    path: str
    limited: Limited
    picoseconds: int


@dataclass(frozen=True, slots=True)
class TimeBound:
    """The least time of a run on `device`, None when it is not known, with the `reason`.

    `parts` are the times of modules, longest first; they add up to the least time, and to what the chip may hold from
    one pass to the next, which is taken off the whole alone.
    """

    device: str
    picoseconds: int | None
    parts: tuple[BoundPart, ...] = ()
    reason: str = ""

    @property
    def seconds(self) -> Fraction | None:
        """The least time in seconds, exactly; None when it is not known."""
        return None if self.picoseconds is None else Fraction(self.picoseconds, PICOSECONDS)


@dataclass(frozen=True, slots=True)
class Way:
    """The cheapest changes of a recipe with which the run fits `device`, and the whole recipe as a line of a manifest.

    An empty `recipe` says that none was found; `tried` plans were made to find it.
    """

    device: str
    recipe: str = ""
    changes: tuple[str, ...] = ()
    tried: int = 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Way:
        """Read back what `Plan.to_dict` gave."""
        return cls(data["device"], data["recipe"], tuple(data["changes"]), data["tried"])


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Tensors of a cache that keep as much as each other, `tensors` of them.

    `bytes_per_token` is what a token adds to them all, of which a request keeps the last `window` tokens (None: every
    one); 0 for states, which are the same for requests of any length. `bytes_per_request` is what a request takes in
    them, `shared_bytes` what is there once for all.
    """

    tensors: int
    bytes_per_token: int
    bytes_per_request: int
    window: int | None = None
    shared_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ServingCache:
    """What the requests of an engine keep between its passes: keys, values, latents, states.

    `bytes` are those of all requests in whole blocks, of which `waste_bytes` hold nothing. `bytes_per_token` is what a
    token adds while every layer keeps it, None for a cache that no token adds to.
    """

    bytes: int
    bytes_per_token: int | None
    waste_bytes: int = 0
    groups: tuple[CacheGroup, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ServingCache:
        """Read back what `Plan.to_dict` gave of it."""
        return cls(**{**data, "groups": tuple(CacheGroup(**group) for group in data.get("groups", ()))})


@dataclass(frozen=True, slots=True)
class Plan:
    """The memory of one training step, of one forward pass without gradients, or of an engine that serves requests.

    `recipe` says in words what is run. `peak_bytes` is the highest number of bytes alive at once in tensors
    (comparable with torch's `max_memory_allocated`), parameters, buffers and inputs among them, kernels' workspaces
    where a rule is known; None when it is not known, with the reason in `notes`. `reserved_bytes` is what the caching
    allocator takes of the device for it; `low_bytes` and `high_bytes` bound the peak where it depends on versions and
    kernels, or is not known. None of them contains the context of the device. `phase`, `path` and `op` say where the
    peak is; `parts` are what is alive there and add up to it. `timeline` leads through the measured step, thinned, with
    its peak kept. With `ranks` above 1 all numbers are of one rank; `communication_bytes` are what it sends in a step.
    `cache` is what a serving engine keeps of its requests, and may be known where the peak is not.

    `flops` are those of the whole run, `bytes_moved` what it reads and writes of the memory at least, however it is
    fused (see `planner.traffic`), and `time_bounds` the least time of it on devices; None and empty where the operators
    of the run are not recorded. With generation they are of the pass of one more token. `flops_at_least` says that
    there were operators without a FLOP rule.
    """

    kind: Kind
    recipe: str
    peak_bytes: int | None
    reserved_bytes: int | None = None
    low_bytes: int | None = None
    high_bytes: int | None = None
    phase: Phase = ""
    path: str = ""
    op: str = ""
    parts: tuple[Part, ...] = ()
    timeline: tuple[Point, ...] = ()
    levers: tuple[Lever, ...] = ()
    fits: tuple[Fit, ...] = ()
    largest: tuple[LargestSize, ...] = ()
    ways: tuple[Way, ...] = ()
    ranks: int = 1
    communication_bytes: int | None = None
    flops: int | None = None
    flops_at_least: bool = False
    bytes_moved: int | None = None
    time_bounds: tuple[TimeBound, ...] = ()
    notes: tuple[str, ...] = ()
    cache: ServingCache | None = None

    def __str__(self) -> str:
        from pytest_modelbudget.summary.show import plans  # what lays it out is imported by those who look alone

        return "\n".join(plans.lines(self))

    def __repr__(self) -> str:
        peak = "?" if self.peak_bytes is None else units.size(self.peak_bytes)
        recipe = f"{self.recipe!r:.60}".strip("'\"")
        return f"<Plan {self.kind} ({recipe}): peak {peak}{f' in {self.phase}' if self.phase else ''}>"

    def _repr_html_(self) -> str:
        from pytest_modelbudget.summary.show import notebook

        return notebook.plan_fragment(self)

    def by_role(self) -> dict[Role, int]:
        """Bytes alive at the peak by role, largest first."""
        sums: dict[Role, int] = {}
        for part in self.parts:
            sums[part.role] = sums.get(part.role, 0) + part.bytes
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` reads it back."""
        return {field.name: _to_json(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read back what `to_dict` gave."""
        field_names = {field.name for field in fields(cls)}
        lists = {"parts": Part, "timeline": Point, "levers": Lever, "largest": LargestSize}
        values = {name: value for name, value in data.items() if name in field_names}
        for name, kind in lists.items():
            values[name] = tuple(kind(**item) for item in data.get(name, ()))
        values["ways"] = tuple(map(Way.from_dict, data.get("ways", ())))
        values["fits"] = tuple(map(Fit.from_dict, data.get("fits", ())))
        values["time_bounds"] = tuple(_time_bound_from(item) for item in data.get("time_bounds", ()))
        cache = data.get("cache")
        values["cache"] = None if cache is None else ServingCache.from_dict(cache)
        return cls(**{**values, "notes": tuple(data.get("notes", ()))})


def _time_bound_from(data: Mapping[str, Any]) -> TimeBound:
    return TimeBound(**{**data, "parts": tuple(BoundPart(**part) for part in data.get("parts", ()))})


def _to_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    if is_dataclass(value):
        return {name: _to_json(getattr(value, name)) for name in value.__slots__}  # type: ignore[union-attr]
    return value
