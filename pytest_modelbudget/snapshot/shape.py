"""The shape of a snapshot's data, checked by pydantic before anything is made of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pytest_modelbudget.loading import Tree
from pytest_modelbudget.summary import Kind

Count = Annotated[int, Field(ge=0, lt=10**30)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Flops(_Strict):
    """Of one forward pass."""

    rules: Count
    value: Count | None
    uncounted: list[str] = []


class Estimate(_Strict):
    """What a planned run takes."""

    recipe: str
    peak_bytes: Count | None
    reserved_bytes: Count | None = None


class Row(_Strict):
    """One layer."""

    path: str
    type: str
    container: Literal[True] | None = None
    out: str | None = None
    sources: list[str] | list[list[str]] = Field(default=[], alias="from")
    calls: Count | None = 1
    params: Count | None = None
    weights: str | None = None


class Repeat(_Strict):
    """Layers that stand once for each number of a range."""

    repeat: str
    layers: list[dict[str, Any]]


class Snapshot(_Strict):
    """A whole file; what is in `layers` is checked row by row."""

    format: Count
    model: str
    declared: str
    framework: str
    inputs: list[str]
    outputs: list[str]
    params: Count
    trainable_params: Count
    non_trainable_params: Count
    buffers: Count
    weight_bytes: Count
    flops: Flops
    digest: str | int
    layers: list[dict[str, Any]]
    estimates: dict[Kind, Estimate] = {}


def mistake(tree: Tree) -> tuple[str, int | None]:
    """What is wrong with the shape of a snapshot, with the line; empty when nothing is."""
    return _wrong(tree, Snapshot, tree.data, ()) or _wrong_row(tree, tree.data["layers"], ("layers",)) or ("", None)


def _wrong_row(tree: Tree, rows: list[dict[str, Any]], keys: tuple[str | int, ...]) -> tuple[str, int | None] | None:
    for index, row in enumerate(rows):
        here = (*keys, index)
        if found := _wrong(tree, Repeat if "repeat" in row else Row, row, here):
            return found
        if "repeat" in row and (found := _wrong_row(tree, row["layers"], (*here, "layers"))):
            return found
    return None


def _wrong(tree: Tree, shape: type[BaseModel], data: Any, keys: tuple[str | int, ...]) -> tuple[str, int | None] | None:
    try:
        shape.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        at = (*keys, *problem["loc"])
        what = "is missing" if problem["type"] == "missing" else problem["msg"].lower()
        return f"{'.'.join(map(str, at))[:200]}: {what}", tree.line(at)
    return None
