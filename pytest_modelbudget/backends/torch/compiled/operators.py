"""What Inductor does with each operator of a graph: calls it as it is, or computes it in a fused kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import getitem

import torch
from torch.fx import Node

from pytest_modelbudget.backends.torch.compat import OpOverload
from pytest_modelbudget.backends.torch.compiled.steps import StepKind

_IN_REGISTERS = """cat constant_pad_nd index _unsafe_index embedding gather index_select where full full_like empty
empty_like zeros zeros_like ones ones_like arange scalar_tensor new_zeros new_ones new_full new_empty eye tril triu
lift_fresh_copy clone copy _to_copy fill repeat flip roll rand randn bernoulli slice_scatter select_scatter
as_strided_scatter avg_pool2d avg_pool2d_backward max_pool2d_with_indices_backward upsample_nearest2d
upsample_bilinear2d convert_element_type iota broadcast_in_dim fma device_put inductor_random inductor_seeds
inductor_seed inductor_lookup_seed inductor_randint inductor_force_stride_order _inductor_bucketize
_unsafe_masked_index"""
"""Operators that Inductor computes in the kernel that needs them, beside those that torch tags as pointwise."""

_WITH_RESULT = """sum mean var var_mean std amax amin max min argmax argmin any all prod cumsum cumprod logcumsumexp
cummax cummin norm linalg_vector_norm prepare_softmax_online max_pool2d_with_indices _low_memory_max_pool_with_offsets
_low_memory_max_pool_offsets_to_indices"""
"""Operators whose operands are computed in their kernel, and whose results are in memory."""

_SCATTERS = """index_put _unsafe_index_put _unsafe_masked_index_put_accumulate scatter scatter_add scatter_reduce
index_add"""
"""Operators that change what another kernel made: zeros, or a copy of their first operand."""


def _names(written: str) -> frozenset[str]:
    return frozenset(f"{namespace}.{name}" for namespace in ("aten", "prims") for name in written.split())


_SCATTERING = _names(_SCATTERS)
_IN_MEMORY = _names(_WITH_RESULT) | _SCATTERING
_FUSED = _names(_IN_REGISTERS) | _IN_MEMORY


def kind_of(node: Node) -> StepKind:
    """What `node` does."""
    if node.op != "call_function":
        return "input"
    if node.target is getitem:
        return "view" if kind_of(node.all_input_nodes[0]) in ("view", "input") else "part"
    if not isinstance(node.target, OpOverload):
        return "kernel"
    name = _name(node)
    if name == "aten.copy_":
        return "write"
    if node.target.is_view:
        return "view"
    is_fused = torch.Tag.pointwise in node.target.tags or name in _FUSED
    return "fused" if is_fused else "kernel"


def has_result(node: Node) -> bool:
    """Whether what `node` computes is in memory, whoever needs it, though a fused kernel computes it."""
    return _name(node) in _IN_MEMORY


def is_scatter(node: Node) -> bool:
    """Whether `node` changes what another kernel made."""
    return _name(node) in _SCATTERING


def changed_by(node: Node) -> tuple[Node, ...]:
    """What nobody but a scatter reads, which it changes."""
    target = node.args[0] if _name(node) in _SCATTERING else None
    is_own = isinstance(target, Node) and kind_of(target) == "fused" and len(target.users) == 1
    return (target,) if is_own else ()


def with_changed(nodes: Iterable[Node]) -> Iterator[Node]:
    """`nodes`, and after a scatter what it changed, which is the same memory."""
    for node in nodes:
        yield node
        yield from changed_by(node)


def _name(node: Node) -> str:
    return f"{node.target.namespace}.{node.target._opname}" if isinstance(node.target, OpOverload) else ""
