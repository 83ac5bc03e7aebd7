"""What was counted, as frozen plain data: `TensorSpec`, `Weight`, `Layer`, `Flops`, `Summary`, `Plan`, `Growth`.

No live module or tensor is ever held here, so a summary can be pickled, sent between processes and kept.
`None` means unknown, never zero.
"""

from pytest_modelbudget.summary.export import Export, ExportCause
from pytest_modelbudget.summary.file_facts import FileFacts
from pytest_modelbudget.summary.growth import Growth
from pytest_modelbudget.summary.model import FLOP_RULES, Flops, Input, Layer, Summary
from pytest_modelbudget.summary.plan import (
    BoundPart,
    CacheGroup,
    Fit,
    Kind,
    LargestSize,
    Lever,
    Margin,
    Part,
    Phase,
    Plan,
    Point,
    Role,
    ServingCache,
    TimeBound,
    Verdict,
    Way,
)
from pytest_modelbudget.summary.tensors import (
    ITEM_BYTES,
    Below,
    Dim,
    Fill,
    TensorSpec,
    Weight,
    parse_weight,
    weight_text,
)

__all__ = [
    "FLOP_RULES",
    "ITEM_BYTES",
    "Below",
    "BoundPart",
    "CacheGroup",
    "Dim",
    "Export",
    "ExportCause",
    "FileFacts",
    "Fill",
    "Fit",
    "Flops",
    "Growth",
    "Input",
    "Kind",
    "LargestSize",
    "Layer",
    "Lever",
    "Margin",
    "Part",
    "Phase",
    "Plan",
    "Point",
    "Role",
    "ServingCache",
    "Summary",
    "TensorSpec",
    "TimeBound",
    "Verdict",
    "Way",
    "Weight",
    "parse_weight",
    "weight_text",
]
