"""A model that is given no inputs: its rows, weights and ties, and nothing that only a run would tell."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.parameter import is_lazy

from pytest_modelbudget.backends.assemble import PartCalls, layer_of
from pytest_modelbudget.backends.torch.model import dtensors
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.model.modules import Node, all_modules, all_tensors, nodes, unwrap
from pytest_modelbudget.backends.torch.model.weights import weights_of
from pytest_modelbudget.backends.torch.rows import has_row
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Summary

EXAMPLE = 'inputs: "float32[B, 3, 224, 224]" for one image, or "int64[B, 128]" for token ids'

_NOTE = (
    "without inputs the model was not run: shapes, connections, calls, FLOPs and activation_bytes are not known, sums "
    f"and concatenations have no rows, and what a forward makes is not counted; write e.g. {EXAMPLE}"
)


def summarize(model: nn.Module, *, name: str, framework: str) -> Summary:
    """The modules of `model`, in the order of `named_modules()`, each with the weights that it holds itself.

    Nothing is run, and `model` is only read. Params, buffers, bytes and ties are exact; outputs, edges, calls, FLOPs
    and activations of every row are unknown.

    Raises:
        ModelBudgetError: a lazy layer, which has no weights before its first input; a model inside
            `FullyShardedDataParallel`.
    """
    model = unwrap(model)
    shards = dtensors.sharding_notes(model)
    model_nodes = nodes(meta_copy(model) if shards else model)
    _refuse_lazy(model_nodes, name)
    weights, unread_notes = weights_of(model_nodes, name)
    rows = [
        layer_of(node.path, node.type, PartCalls(), {}, own_weights, container=node.container)
        for node, own_weights in zip(model_nodes, weights, strict=True)
        if has_row(node, own_weights, called=False)
    ]
    return Summary(name, framework, tuple(rows), notes=(_NOTE, *shards, *unread_notes))


def _refuse_lazy(nodes: Sequence[Node], name: str) -> None:
    for node in nodes:
        if any(map(is_lazy, all_tensors(all_modules(node.module) if node.parts else [node.module]))):
            raise ModelBudgetError(
                f"{name}: the lazy layer {node.path!r} ({node.type}) has no weights before its first input, "
                f"so the params are not known: write e.g. {EXAMPLE}"
            )
