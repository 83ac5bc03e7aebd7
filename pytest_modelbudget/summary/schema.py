"""What `Summary.to_dict` gives, as pydantic checks it before anything is made of data that somebody else wrote."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pytest_modelbudget.summary.plan import Kind, Limited, Phase, Role

_Count = Annotated[int, Field(ge=0, lt=10**30)]
_Size = Annotated[int, Field(ge=0, lt=10**18)]
_Shape = Annotated[list[_Size], Field(max_length=64)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _SummaryPart(BaseModel):
    """Keys that are not known here are left alone: a later version may have written them."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _PortSchema(_SummaryPart):
    name: str
    spec: str


class _FlopsSchema(_SummaryPart):
    rules: _Count
    value: _Count | None
    uncounted: dict[str, _Count]


class _WeightSchema(_SummaryPart):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    shape: _Shape
    dtype: str = "float32"
    trainable: bool = True
    role: Literal["param", "buffer"] = "param"
    tied_to: str | None = None
    packed_bytes: _Count | None = None


class _LayerSchema(_SummaryPart):
    path: str
    type: str
    container: bool
    calls: _Count | None
    inputs: list[list[str]] = []
    outputs: list[list[str]]
    connected_to: list[list[str]]
    flops: _Count | None
    activation_bytes: _Count | None = None
    weights: list[_WeightSchema]


class _PartSchema(_SummaryPart):
    role: Role
    path: str
    bytes: _Count


class _PointSchema(_SummaryPart):
    phase: Phase
    path: str
    bytes: _Count


class _LeverSchema(_SummaryPart):
    name: str
    peak_bytes: _Count
    note: str = ""


class _MarginSchema(_SummaryPart):
    cause: str
    bytes: _Count


class _FitSchema(_SummaryPart):
    device: str
    capacity: _Count
    needs: _Count | None
    low: _Count | None = None
    margins: list[_MarginSchema] = []


class _LargestFitSchema(_SummaryPart):
    dim: str
    size: _Count
    device: str


class _WaySchema(_SummaryPart):
    device: str
    recipe: str
    changes: list[str]
    tried: _Count


class _BoundPartSchema(_SummaryPart):
    path: str
    limited: Limited
    picoseconds: _Count


class _TimeBoundSchema(_SummaryPart):
    device: str
    picoseconds: _Count | None
    parts: list[_BoundPartSchema] = []
    reason: str = ""


class _CacheGroupSchema(_SummaryPart):
    tensors: _Count
    bytes_per_token: _Count
    bytes_per_request: _Count
    window: _Count | None = None
    shared_bytes: _Count = 0


class _CacheSchema(_SummaryPart):
    bytes: _Count
    bytes_per_token: _Count | None
    waste_bytes: _Count = 0
    groups: list[_CacheGroupSchema] = []


class _PlanSchema(_SummaryPart):
    kind: Kind
    recipe: str
    peak_bytes: _Count | None
    reserved_bytes: _Count | None = None
    low_bytes: _Count | None = None
    high_bytes: _Count | None = None
    phase: Phase = ""
    path: str = ""
    op: str = ""
    parts: list[_PartSchema] = []
    timeline: list[_PointSchema] = []
    levers: list[_LeverSchema] = []
    fits: list[_FitSchema] = []
    largest: list[_LargestFitSchema] = []
    ways: list[_WaySchema] = []
    ranks: _Count = 1
    communication_bytes: _Count | None = None
    flops: _Count | None = None
    flops_at_least: bool = False
    bytes_moved: _Count | None = None
    time_bounds: list[_TimeBoundSchema] = []
    notes: list[str] = []
    cache: _CacheSchema | None = None


class _GrowthSchema(_SummaryPart):
    dim: str
    metric: str
    size: _Count
    points: list[Annotated[list[_Count], Field(min_length=2, max_length=2)]] = []
    degree: _Count | None = None
    exponent: _Finite | None = None
    per_unit: int | None = None
    curved_share: _Finite | None = None
    reason: str = ""


class _ExportCauseSchema(_SummaryPart):
    metric: str
    label: str
    amount: int


class _ExportSchema(_SummaryPart):
    original: str
    numbers: dict[str, _Count | None]
    causes: list[_ExportCauseSchema]
    notes: list[str]
    problem: str


class FileSchema(_SummaryPart):
    """What `FileFacts.to_dict` gives."""

    file_bytes: _Count
    operators: _Count | None = None
    delegated: _Count | None = None
    arena_bytes: _Count | None = None
    arena_kernels: str = ""
    unseen: str = ""


class _SummarySchema(_SummaryPart):
    model: str
    framework: str
    inputs: list[_PortSchema]
    outputs: list[str]
    sizes: dict[str, _Count]
    flops: _FlopsSchema
    activation_bytes: _Count | None = None
    optimizer_bytes: _Count | None = None
    samples: _Count | None
    real_run: bool = False
    notes: list[str]
    plans: list[_PlanSchema] = []
    growth: list[_GrowthSchema] = []
    file: FileSchema | None = None
    export: _ExportSchema | None = None
    layers: list[_LayerSchema]


def mistake(data: Any) -> str:
    """What is wrong with the data of a summary, with its place (`layers.3.calls: ...`); empty when nothing is."""
    try:
        _SummarySchema.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        message = "is missing" if problem["type"] == "missing" else problem["msg"].lower()
        return f"{'.'.join(map(str, problem['loc']))[:200] or 'it'}: {message}"
    return ""
