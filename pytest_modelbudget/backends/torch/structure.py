"""A model that is given no inputs: its rows, weights and ties, and nothing that only a run would tell."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.parameter import is_lazy

from pytest_modelbudget.backends.torch.model import dtensors
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.model.modules import ROOT, Node, all_modules, all_tensors, nodes, unwrap
from pytest_modelbudget.backends.torch.model.weights import weights_of
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Layer, Summary, Weight

EXAMPLE = 'inputs: "float32[B, 3, 224, 224]" for one image, or "int64[B, T]" for token ids'

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
        _row(node, own_weights)
        for node, own_weights in zip(model_nodes, weights, strict=True)
        if _has_row(node, own_weights)
    ]
    return Summary(name, framework, tuple(rows), notes=(_NOTE, *shards, *unread_notes))


def _refuse_lazy(nodes: Sequence[Node], name: str) -> None:
    for node in nodes:
        if any(map(is_lazy, all_tensors(all_modules(node.module) if node.parts else [node.module]))):
            raise ModelBudgetError(
                f"{name}: the lazy layer {node.path!r} ({node.type}) has no weights before its first input, "
                f"so the params are not known: write e.g. {EXAMPLE}"
            )


def _has_row(node: Node, own_weights: tuple[Weight, ...]) -> bool:
    """As in a summary with inputs, where lists and dicts of modules are not called either."""
    if own_weights:
        return True
    return not node.container if node.path == ROOT else not isinstance(node.module, (nn.ModuleList, nn.ModuleDict))


def _row(node: Node, own_weights: tuple[Weight, ...]) -> Layer:
    return Layer(node.path, node.type, weights=own_weights, calls=None, container=node.container)
