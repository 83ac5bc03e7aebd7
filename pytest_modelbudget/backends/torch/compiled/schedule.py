"""What Inductor's own scheduler makes of a graph: which values lie in memory, what is fused, and in which order.

The graph is lowered and scheduled as `torch.compile` does it for a CPU, and no code is written. A fused kernel may
compute parts of several recomputed blocks, beside each other, and so begin with one of them before it is its turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from pytest_modelbudget.backends.torch.compiled.steps import parts_of


@dataclass(frozen=True, slots=True)
class Schedule:
    """Kernels as they run: the place among them that makes each value, by names, and bytes `alive` at each.

    One kernel may make several values. Bytes are those that Inductor estimates, and decides by.
    """

    turns: Mapping[str, int]
    alive: tuple[int, ...]

    def turn(self, node: Node, otherwise: int) -> int:
        """The place of the kernel that makes `node`; `otherwise` where it is not there by this name."""
        turns = [self.turns[part.name] for part in (node, *parts_of(node)) if part.name in self.turns]
        return max(turns, default=otherwise)


def schedule_of(backward: GraphModule) -> Schedule | None:
    """How the graph of a `backward` pass is scheduled; None where Inductor does not take it."""
    try:
        return _scheduled(backward)
    except Exception:  # an operator that is not there on the CPU
        return None


def _scheduled(backward: GraphModule) -> Schedule:
    from torch._inductor.compile_fx import _recursive_post_grad_passes
    from torch._inductor.fx_passes.post_grad import view_to_reshape
    from torch._inductor.graph import GraphLowering
    from torch._inductor.memory import estimate_peak_memory, get_freeable_input_buf
    from torch._inductor.scheduler import Scheduler
    from torch._inductor.virtualized import V
    from torch.utils._ordered_set import OrderedSet

    module = GraphModule(backward, _copied(backward.graph))
    inputs = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    with _compiling(inputs):
        view_to_reshape(module)
        _recursive_post_grad_passes(module, is_inference=False)
        lowering = GraphLowering(module, example_inputs=inputs, is_backward=True)
        with V.set_graph_handler(lowering), V.set_extern_kernel_nodes([]):
            lowering.run(*inputs)
            kernels = Scheduler(lowering.operations).nodes
            freeable = get_freeable_input_buf(kernels, OrderedSet(lowering.graph_inputs))
            _, alive = estimate_peak_memory(kernels, freeable, OrderedSet(lowering.get_output_names()))
    return Schedule(_turns(kernels, backward.graph), tuple(alive))


@contextmanager
def _compiling(inputs: list[Any]) -> Iterator[None]:
    from torch._inductor.debug import DebugContext
    from torch._inductor.virtualized import V

    mode = next(tensor.fake_mode for tensor in inputs if isinstance(tensor, torch.Tensor))
    with V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        yield


def _copied(graph: Graph) -> Graph:
    """The same nodes, by the same names."""
    copy = Graph()
    copies: dict[Node, Node] = {}
    results = copy.graph_copy(graph, copies)
    for node, copied in copies.items():
        copied.meta = dict(node.meta)
    copy.output(results)
    return copy


def _turns(kernels: list[Any], graph: Graph) -> dict[str, int]:
    """The place of each value's kernel; a kernel's value is the last of the nodes that it computes."""
    from torch._inductor.ir import MultiOutput

    place = {node.name: index for index, node in enumerate(graph.nodes)}
    turns = {}
    for turn, kernel in enumerate(kernels):
        for part in kernel.get_nodes():
            if part.node is None or isinstance(part.node, MultiOutput):  # which is where its kernel is
                continue
            origins = [node.name for node in part.node.get_origins() if node.name in place]
            if origins:
                turns[max(origins, key=place.__getitem__)] = turn
    return turns
