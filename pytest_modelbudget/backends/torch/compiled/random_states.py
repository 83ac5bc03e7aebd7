"""Operators that draw random numbers and are recomputed, without the state of the generator that goes with them.

Attention with dropout is a kernel of its own, whose random numbers Inductor does not make anew: where it is recomputed,
the partitioner has the forward pass save the state of the generator, and the backward pass begin from it. Only the
operator is run here. The state is saved as it was on a CPU (5,056 bytes); that of a GPU's is no tensor of the graph.
"""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch.fx import Graph, Node


def leave_out_random_states(graph: Graph, *, cpu: bool) -> None:
    """Change `graph`: operators in it run by themselves, and what stands for states has the size of one."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is torch.ops.higher_order.run_and_save_rng_state:
            _without_saving(graph, node, cpu=cpu)
        elif node.target is torch.ops.higher_order.run_with_rng_state:
            _, operator, *args = node.args
            plain = _plain(graph, node, operator, args)
            node.replace_all_uses_with(plain)
            graph.erase_node(node)


def _without_saving(graph: Graph, node: Node, *, cpu: bool) -> None:
    operator, *args = node.args
    plain = _plain(graph, node, operator, args)
    for part in list(node.users):
        assert part.target is getitem
        if part.args[1] == 1:
            plain.meta = part.meta
            part.replace_all_uses_with(plain)
        else:
            state = part.meta["val"]
            state = state if cpu else state[:0].clone()
            with graph.inserting_before(node):
                room = graph.call_function(torch.ops.aten.empty.memory_format, (list(state.shape),))
            room.meta = {**part.meta, "val": state}
            part.replace_all_uses_with(room)
        graph.erase_node(part)
    graph.erase_node(node)


def _plain(graph: Graph, node: Node, operator: Any, args: list[Any]) -> Node:
    with graph.inserting_before(node):
        plain = graph.call_function(operator, tuple(args), dict(node.kwargs))
    plain.meta = dict(node.meta)
    return plain
