"""Rows for joins: what a module's own code makes of the work of several layers, as the sum of a residual block.

A join is one of `_OPERATORS` that runs directly in the forward of a module that holds others, and reads tensors of
at least two different sources (layers, inputs, earlier joins). Weights and constants are no sources, nor are ids and
masks beside numbers: `x * 2`, `relu(x)`, `x + bias` and `x[ids]` are no joins, nor is the attention of q, k and v that
one layer made. In-place operators join, views never do. Writes of several layers into one buffer are one join, and so
is one place in the code that joins the same sources again and again, as a loop over time does.

What any other operator makes of several sources goes on under the first of them. So each tensor has one source, and
no list of them grows with the depth.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache, wraps
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pytest_modelbudget.backends.patching import patched

Shape = tuple[int | None, ...]
ShapeDtype = tuple[Shape, str]
"""Shape and dtype of one tensor."""

Source = int | str
"""What fed a tensor: the index of a module's or a join's record, or the name of an input."""

MAX_JOINS = 256
"""Joins of one kind that get a row of their own in one call of a module; the last row stands for all that follow."""

_OPERATORS = {
    "add": "",
    "sub": "rsub",
    "mul": "",
    "div": "",
    "maximum": "",
    "minimum": "",
    "lerp": "",
    "addcmul": "",
    "addcdiv": "",
    "where": "",
    "cat": "",
    "stack": "",
    "matmul": """mm bmm addmm baddbmm addbmm mv addmv dot vdot _int_mm _scaled_mm _grouped_mm _scaled_grouped_mm
        _scaled_addmm _addmm_activation""",
    "attention": """_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
        _scaled_dot_product_fused_attention_overrideable""",
    "einsum": "",
    "conv": "convolution _convolution convolution_overrideable mkldnn_convolution",
    "bilinear": "_trilinear",
    "cdist": "_cdist_forward _euclidean_dist",
    "copy": "",
    "index_put": "_index_put_impl",
    "index_add": "",
    "scatter": "",
    "scatter_add": "",
    "scatter_reduce": "",
}
"""The kinds of joins, which name their rows, each with the other operators that are of this kind."""

WRITING_KINDS = frozenset({"copy", "index_put", "index_add", "scatter", "scatter_add", "scatter_reduce"})
"""Those that put something into a part of their first operand."""

_KIND_OF_OPERATOR = {operator: kind for kind, others in _OPERATORS.items() for operator in (kind, *others.split())}


@cache
def join_kind(operator: str) -> str | None:
    """What a join by this operator is called: `aten.add_` is `add`, `aten.bmm` is `matmul`; None for no join."""
    space, _, base = operator.rpartition(".")
    return _KIND_OF_OPERATOR.get(base.rstrip("_")) if space == "aten" else None


def combined_operands(operands: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """The operands that are combined: those of floating point where there are any, without ids and masks."""
    floats = [tensor for tensor in operands if tensor.is_floating_point() or tensor.is_complex()]
    return floats or operands


@dataclass(slots=True)
class Join:
    """What was seen of one join, the `number`th of its `kind` in a call of `owner`.

    `after` is the module that had last been called by `owner` when it first ran.
    """

    owner: nn.Module
    kind: str
    number: int
    index: int
    after: nn.Module | None
    calls: list[tuple[ShapeDtype, ...]] = field(default_factory=list)
    inputs: list[tuple[ShapeDtype, ...]] = field(default_factory=list)
    fed_by: list[tuple[Source, ...]] = field(default_factory=list)
    flops: int = 0

    def extend(self, sources: tuple[Source, ...]) -> None:
        """More is written into what the last call made."""
        self.fed_by[-1] = tuple(
            dict.fromkeys(source for source in (*self.fed_by[-1], *sources) if source != self.index)
        )

    @property
    def key(self) -> tuple[int, str, int]:
        """The same in every pass of a model."""
        return id(self.owner), self.kind, self.number


@dataclass(slots=True)
class CallFrame:
    """One call of a module that is going on: how many joins of each kind it made, and whom it called last.

    `buffers` are its joins that are written into piece by piece, by their index; `repeated` those it may make again.
    """

    module: nn.Module
    join_counts: Counter[str] = field(default_factory=Counter)
    last_called: nn.Module | None = None
    buffers: dict[Source, Join] = field(default_factory=dict)
    repeated: dict[Hashable, Join] = field(default_factory=dict)

    def next_number(self, kind: str) -> int:
        """The number of the next join of this kind."""
        number = self.join_counts[kind]
        self.join_counts[kind] += 1
        return min(number, MAX_JOINS - 1)


def code_position(start: CodeType) -> tuple[tuple[CodeType, int], ...]:
    """Where in the running code this is, from the function of `start` inwards."""
    positions: list[tuple[CodeType, int]] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not start:
        positions.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(positions)


_ONE_OPERATOR_FUNCTIONS: tuple[tuple[Any, str, str], ...] = (
    (F, "scaled_dot_product_attention", "attention"),
    (torch, "einsum", "einsum"),
)
"""Functions that are one operator to their caller, and several to the dispatcher on some devices."""

RunAsOne = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def as_one_operator(run: RunAsOne) -> Iterator[None]:
    """Inside, calls of the functions that are one operator to their caller go through `run(kind, function, ...)`."""

    def through(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def whole(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return function(*args, **kwargs)
            return run(kind, function, args, kwargs)

        return whole

    thread = threading.get_ident()
    with ExitStack() as stack:
        for owner, name, kind in _ONE_OPERATOR_FUNCTIONS:
            stack.enter_context(patched(owner, name, through(kind, getattr(owner, name))))
        yield
