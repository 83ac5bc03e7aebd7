"""What `Summary.to_dict` gives, as pydantic checks it before anything is made of data that somebody else wrote."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pytest_modelbudget.summary.plan import Kind, Phase, Role

_Count = Annotated[int, Field(ge=0, lt=10**30)]
_Size = Annotated[int, Field(ge=0, lt=10**18)]
_Shape = Annotated[list[_Size], Field(max_length=64)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    """Keys that are not known here are left alone: a later version may have written them."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _Port(_Strict):
    name: str
    spec: str


class _Flops(_Strict):
    rules: _Count
    value: _Count | None
    uncounted: dict[str, _Count]


class _Weight(_Strict):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    shape: _Shape
    dtype: str = "float32"
    trainable: bool = True
    role: Literal["param", "buffer"] = "param"
    tied_to: str | None = None
    packed_bytes: _Count | None = None


class _Layer(_Strict):
    path: str
    type: str
    container: bool
    calls: _Count | None
    inputs: list[list[str]] = []
    outputs: list[list[str]]
    connected_to: list[list[str]]
    flops: _Count | None
    activation_bytes: _Count | None = None
    weights: list[_Weight]


class _Part(_Strict):
    role: Role
    path: str
    bytes: _Count


class _Point(_Strict):
    phase: Phase
    path: str
    bytes: _Count


class _Lever(_Strict):
    name: str
    peak_bytes: _Count
    note: str = ""


class _Fit(_Strict):
    device: str
    capacity: _Count
    needs: _Count | None


class _Largest(_Strict):
    dim: str
    size: _Count
    device: str


class _Plan(_Strict):
    kind: Kind
    recipe: str
    peak_bytes: _Count | None
    reserved_bytes: _Count | None = None
    low_bytes: _Count | None = None
    high_bytes: _Count | None = None
    phase: Phase = ""
    path: str = ""
    op: str = ""
    parts: list[_Part] = []
    timeline: list[_Point] = []
    levers: list[_Lever] = []
    fits: list[_Fit] = []
    largest: list[_Largest] = []
    ranks: _Count = 1
    communication_bytes: _Count | None = None
    notes: list[str] = []


class _Growth(_Strict):
    dim: str
    metric: str
    size: _Count
    points: list[Annotated[list[_Count], Field(min_length=2, max_length=2)]] = []
    degree: _Count | None = None
    exponent: _Finite | None = None
    per_unit: int | None = None
    curved_share: _Finite | None = None
    reason: str = ""


class _Summary(_Strict):
    model: str
    framework: str
    inputs: list[_Port]
    outputs: list[str]
    sizes: dict[str, _Count]
    flops: _Flops
    activation_bytes: _Count | None = None
    optimizer_bytes: _Count | None = None
    samples: _Count | None
    real_run: bool = False
    notes: list[str]
    plans: list[_Plan] = []
    growth: list[_Growth] = []
    layers: list[_Layer]


def mistake(data: Any) -> str:
    """What is wrong with the data of a summary, with its place (`layers.3.calls: ...`); empty when nothing is."""
    try:
        _Summary.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        message = "is missing" if problem["type"] == "missing" else problem["msg"].lower()
        return f"{'.'.join(map(str, problem['loc']))[:200] or 'it'}: {message}"
    return ""
