"""The shape of a manifest, checked by pydantic; what its values mean is read by `inputs` and `budget`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from pytest_modelbudget.entry import RunMode, SnapshotKind

Budgets = dict[str, Any]
Framework = Literal["torch", "jax", "keras", "tf_keras", "tensorflow"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Defaults(_Strict):
    """What holds for every model that does not say otherwise."""

    batch: PositiveInt | None = None
    dims: dict[str, PositiveInt] = Field(default_factory=dict)
    framework: Framework | None = None
    optional: bool = False
    run: RunMode | None = None
    limits: Any = Field(default_factory=dict)
    isolate: bool | None = None
    snapshot: SnapshotKind | None = None
    training: Any = None
    inference: Any = None
    serving: Any = None
    budgets: Budgets = Field(default_factory=dict)


class Model(_Strict):
    """One registered model."""

    build: str
    args: list[Any] = Field(default_factory=list)
    kwargs: dict[str, Any] = Field(default_factory=dict)
    inputs: Any = None
    batch: PositiveInt | None = None
    dims: dict[str, PositiveInt] = Field(default_factory=dict)
    tags: list[str] = Field(default_factory=list)
    samples: PositiveInt | None = None
    exported_from: str | None = None
    framework: Framework | None = None
    optional: bool | None = None
    run: RunMode | None = None
    limits: Any = Field(default_factory=dict)
    isolate: bool | None = None
    snapshot: SnapshotKind | None = None
    training: Any = None
    inference: Any = None
    serving: Any = None
    budgets: Budgets = Field(default_factory=dict)


class Tag(_Strict):
    """Budgets and recipes of every model that has a tag, and limits on their sum."""

    snapshot: SnapshotKind | None = None
    training: Any = None
    inference: Any = None
    serving: Any = None
    budgets: Budgets = Field(default_factory=dict)
    sum: Budgets = Field(default_factory=dict)


class Group(Tag):
    """The same for every model whose id one of the globs matches, or that has one of the tags."""

    models: str | list[str] = Field(default_factory=list)
    tags: list[str] = Field(default_factory=list)


class Manifest(_Strict):
    """A whole manifest."""

    version: Literal[1] = 1
    defaults: Defaults = Field(default_factory=Defaults)
    tags: dict[str, Tag] = Field(default_factory=dict)
    groups: dict[str, Group] = Field(default_factory=dict)
    models: dict[str, Any] = Field(default_factory=dict)
    sources: list[str] = Field(default_factory=list)
