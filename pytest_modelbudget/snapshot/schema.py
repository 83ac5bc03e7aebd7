"""The shape of a snapshot's data, checked by pydantic before anything is made of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pytest_modelbudget.loading import Tree
from pytest_modelbudget.summary import Kind

Count = Annotated[int, Field(ge=0, lt=10**30)]


class _SnapshotPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StoredFlopsSchema(_SnapshotPart):
    """Of one forward pass."""

    rules: Count
    value: Count | None
    uncounted: list[str] = []


class StoredFileSchema(_SnapshotPart):
    """Of an exported file; see `FileFacts`."""

    file_bytes: Count
    operators: Count | None = None
    delegated: Count | None = None
    arena_bytes: Count | None = None
    arena_kernels: str = ""
    unseen: str = ""


class EstimateSchema(_SnapshotPart):
    """What a planned run takes."""

    recipe: str
    peak_bytes: Count | None
    reserved_bytes: Count | None = None
    flops: Count | None = None
    bytes_moved: Count | None = None
    least_picoseconds: dict[str, Count] = {}
    least_time: dict[str, Count] = {}
    kv_cache_bytes: Count | None = None
    kv_bytes_per_token: Count | None = None


class RowSchema(_SnapshotPart):
    """One layer."""

    path: str
    type: str
    container: Literal[True] | None = None
    out: str | None = None
    sources: list[str] | list[list[str]] = Field(default=[], alias="from")
    calls: Count | None = 1
    params: Count | None = None
    weights: str | None = None


class RepeatSchema(_SnapshotPart):
    """Layers that stand once for each number of a range."""

    repeat: str
    layers: list[dict[str, Any]]


class SnapshotSchema(_SnapshotPart):
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
    flops: StoredFlopsSchema
    file: StoredFileSchema | None = None
    digest: str | int
    layers: list[dict[str, Any]]
    estimates: dict[Kind, EstimateSchema] = {}


_Fraction = Annotated[str, Field(pattern=r"^[0-9]{1,40}(/[1-9][0-9]{0,39})?$")]


class LineSchema(_SnapshotPart):
    """The line of a model in a file of totals; all other fields are numbers of metrics, of which releases add some."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Count | _Fraction | None]

    model: str
    declared: str
    framework: str
    inputs: list[str]
    outputs: list[str]
    flops: StoredFlopsSchema
    rows: str | int
    estimates: dict[Kind, EstimateSchema] = {}


def line_mistake(data: Any) -> str:
    """What is wrong with the shape of a line; empty when nothing is."""
    problem = _shape_mistake(Tree(data), LineSchema, data, ())
    return problem[0] if problem else ""


def mistake(tree: Tree) -> tuple[str, int | None]:
    """What is wrong with the shape of a snapshot, with the line; empty when nothing is."""
    return (
        _shape_mistake(tree, SnapshotSchema, tree.data, ())
        or _row_mistake(tree, tree.data["layers"], ("layers",))
        or ("", None)
    )


def _row_mistake(tree: Tree, rows: list[dict[str, Any]], keys: tuple[str | int, ...]) -> tuple[str, int | None] | None:
    for index, row in enumerate(rows):
        row_keys = (*keys, index)
        if problem := _shape_mistake(tree, RepeatSchema if "repeat" in row else RowSchema, row, row_keys):
            return problem
        if "repeat" in row and (problem := _row_mistake(tree, row["layers"], (*row_keys, "layers"))):
            return problem
    return None


def _shape_mistake(
    tree: Tree, shape: type[BaseModel], data: Any, keys: tuple[str | int, ...]
) -> tuple[str, int | None] | None:
    try:
        shape.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        path = (*keys, *problem["loc"])
        message = "is missing" if problem["type"] == "missing" else problem["msg"].lower()
        return f"{'.'.join(map(str, path))[:200]}: {message}", tree.line(path)
    return None
