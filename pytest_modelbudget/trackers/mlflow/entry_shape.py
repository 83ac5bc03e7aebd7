"""The shape of an entry, checked by pydantic: what is sent is only what this project writes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,64}$")]
_Name = Annotated[str, Field(max_length=500)]
_Tags = dict[_Name, Annotated[str, Field(max_length=5_000)]]
_Metrics = dict[_Name, Annotated[float, Field(allow_inf_nan=False)]]
_Time = Annotated[int, Field(ge=0, lt=10**15)]
_CommitTime = Annotated[int, Field(gt=-(10**15), lt=10**15)]
_Status = Literal["FINISHED", "FAILED"]
_Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=200)]


class _EntryPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _RunData(_EntryPart):
    key: _Key
    name: _Name
    status: _Status
    tags: _Tags
    metrics: _Metrics
    folder: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,50}$")]
    tables: list[_Name]
    took_ms: _Time


class _ModelData(_EntryPart):
    key: _Key
    name: _Name
    status: _Status
    tags: _Tags
    metrics: _Metrics
    digest: _Key
    slug: _Slug


class _TotalsData(_EntryPart):
    models: Annotated[int, Field(ge=0)]
    project: _Name
    unit: Literal["", "minutes"]
    tags: _Tags
    keys: _Key
    fingerprint: _Key
    slugs: dict[str, _Slug]
    history: bool


class _Entry(_EntryPart):
    target: str
    created_ms: _Time
    point_ms: _CommitTime
    step: _CommitTime
    experiment: Annotated[str, Field(pattern=r"^modelbudget/[A-Za-z0-9._-]{1,200}$")]
    job: _RunData
    history: list[_ModelData]
    totals: _TotalsData | None = None


def mistake(data: object) -> str:
    """What is wrong with an entry as data, without its `schema`; empty when nothing is."""
    try:
        _Entry.model_validate(data)
    except ValidationError as error:
        problem: Any = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, problem['loc']))[:200]}: {problem['msg']}"
    return ""
