"""Programs that torch made of modules: exported ones, and the weights of frozen scripts.

Those are no parameters any more, but constants of the program.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

from pytest_modelbudget.backends.torch.trees import dtype_name
from pytest_modelbudget.summary import Weight

_CONSTANTS = ("prim::Constant", "prim::ConstantMKLDNNTensor")
_ATTRIBUTE = "self."
"""What torch lets the name of a constant begin with that was an attribute of a module; others are its author's."""


def is_program(model: object) -> bool:
    """Whether `model` is an `ExportedProgram`; without `torch.export` imported nothing is."""
    exported = getattr(sys.modules.get("torch.export"), "ExportedProgram", None)
    return exported is not None and isinstance(model, exported)


def module_of(model: Any) -> Any:
    """What runs an exported program as a module; anything else as it is."""
    return model.module() if is_program(model) else model


def frozen_weights(module: Any) -> tuple[Weight, ...]:
    """The weights in the program of a frozen module, named as they were before; nothing for any other module.

    They are never trained. What freezing folds (a batch norm into a convolution) is counted as folded.
    """
    if not isinstance(module, torch.jit.ScriptModule) or hasattr(module, "training") or not hasattr(module, "graph"):
        return ()
    tensors = dict(_constants(module.graph))
    return tuple(
        Weight(name, tuple(tensor.shape), dtype_name(tensor.dtype), trainable=False) for name, tensor in tensors.items()
    )


def _constants(block: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for node in block.nodes():
        for inner in node.blocks():
            yield from _constants(inner)
        if node.kind() in _CONSTANTS:
            name, value = node.output().debugName(), node.output().toIValue()
            if name.startswith(_ATTRIBUTE) and isinstance(value, torch.Tensor):
                yield name.removeprefix(_ATTRIBUTE).removesuffix("_mkldnn"), value
