"""A compiled graph, run on meta under a recorder: kernels as they are, of fused ones what they leave."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from pytest_modelbudget.backends.torch.compat import tree_map_only
from pytest_modelbudget.backends.torch.compiled.fusion import memory_steps, results_of
from pytest_modelbudget.backends.torch.compiled.schedule import Schedule
from pytest_modelbudget.backends.torch.compiled.steps import MemoryStep, parts_of
from pytest_modelbudget.backends.torch.model.meta_tensors import META

Run = Callable[[list[Any]], list[Any]]
"""How AOTAutograd calls what was compiled."""

Layout = Callable[[torch.Tensor], torch.Tensor]
"""From a traced value, one that lies in memory as it does in the run."""

At = Callable[[str, str], AbstractContextManager[Any]]
"""Enters the place of a kernel: the path of its module, and its name where it is a fused one."""

PATH = "modelbudget_path"
"""Where a node keeps the path of the module that called it, among its custom metadata."""


def runner(
    module: GraphModule,
    donated: Collection[str],
    at: At,
    *,
    cpu: bool,
    reordered: Layout | None = None,
    fixed: Collection[str] = (),
    schedule: Schedule | None = None,
) -> Run:
    """What runs `module` on meta, as AOTAutograd calls what was compiled: it empties the list that it is given.

    It runs on a `cpu` or a GPU. What fused kernels leave is `reordered`, but for nodes of the names `fixed`.
    """
    steps = memory_steps(module.graph, donated, cpu=cpu, schedule=schedule)
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    constants = [node for node in module.graph.nodes if node.op == "get_attr"]
    results = results_of(module.graph)
    fused_parts = {part for step in steps if step.kind == "fused" for part in parts_of(step.node)}
    layout = reordered or _unchanged
    traced = {part: part.meta["val"] if part.name in fixed else layout(part.meta["val"]) for part in fused_parts}

    def run(args: list[Any]) -> list[Any]:
        values: dict[Node, Any] = dict(zip(inputs, args, strict=True))
        args.clear()
        for node in constants:
            values[node] = _like(getattr(module, str(node.target)), META)
        for step in steps:
            for base in step.written_over:
                values.pop(base, None)
            with at(_path(step.node), _kernel(step)):
                _run(step, values, traced)
            for base in step.freed:
                values.pop(base, None)
        return [values[result] if isinstance(result, Node) else result for result in results]

    vars(run)["_boxed_call"] = True  # so torch knows that it empties its list
    return run


def traced_results(graph: Graph) -> list[Any]:
    """What `graph` gave back when it was traced."""
    return [_like(result.meta["val"]) if isinstance(result, Node) else result for result in results_of(graph)]


def _run(step: MemoryStep, values: dict[Node, Any], traced: Mapping[Node, Any]) -> None:
    node = step.node
    if step.kind == "write":
        values[node] = values[node.all_input_nodes[0]]
    elif step.kind == "fused":
        for part in parts_of(node):
            values[part] = _like(traced[part], META)
    else:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda operand: values[operand])
        target = torch.ops.aten.reshape.default if node.target is torch.ops.aten.view.default else node.target
        out = target(*args, **kwargs)
        for part in parts_of(node) if step.kind == "kernel" else (node,):
            values[part] = out if part is node else out[part.args[1]]


def _like(traced: Any, device: Any = None) -> Any:
    """Tensors like those of a traced value, on its device or on `device`."""
    return tree_map_only(
        torch.Tensor,
        lambda tensor: torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device or tensor.device
        ),
        traced,
    )


def _unchanged(value: torch.Tensor) -> torch.Tensor:
    return value


def _path(node: Node) -> str:
    custom: Mapping[str, Any] = node.meta.get("custom") or {}
    return str(custom.get(PATH, ""))


def _kernel(step: MemoryStep) -> str:
    return f"fused {step.node.target}".removesuffix(".default") if step.kind == "fused" else ""
