"""Programs that torch made of modules: exported ones, and the weights of frozen scripts.

Those are no parameters any more, but constants of the program.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.model.pytree import dtype_name, storage_key
from pytest_modelbudget.summary import Weight

_CONSTANTS = ("prim::Constant", "prim::ConstantMKLDNNTensor")
_ATTRIBUTE = "self."
"""What torch lets the name of a constant begin with that was an attribute of a module; others are its author's."""


def is_program(model: object) -> bool:
    """Whether `model` is an `ExportedProgram`; without `torch.export` imported nothing is."""
    exported = getattr(sys.modules.get("torch.export"), "ExportedProgram", None)
    return exported is not None and isinstance(model, exported)


def are_models(model: object) -> bool:
    """Whether `model` is a dict of modules by name, as the models of one step are."""
    return isinstance(model, dict) and bool(model) and all(isinstance(part, nn.Module) for part in model.values())


def module_of(model: Any) -> Any:
    """What runs an exported program as a module, a dict of models as one; anything else as it is."""
    if are_models(model):
        return nn.ModuleDict(model)
    return model.module() if is_program(model) else model


def frozen_weights(module: Any) -> tuple[Weight, ...]:
    """The weights in the program of a frozen module, named as they were before; nothing for any other module.

    They are never trained. What freezing folds (a batch norm into a convolution) is counted as folded.
    """
    if not isinstance(module, torch.jit.ScriptModule) or hasattr(module, "training") or not hasattr(module, "graph"):
        return ()
    tensors = dict(_weight_constants(module.graph))
    return tuple(
        Weight(name, tuple(tensor.shape), dtype_name(tensor.dtype), False, packed_bytes=_packed_or_none(tensor))
        for name, tensor in tensors.items()
    )


def unpack_weights(packed: Sequence[torch.ScriptObject]) -> dict[str, torch.Tensor]:
    """The weights and biases in what packed weights are saved as; integers there say how they are packed."""
    by_name: dict[str, torch.Tensor] = {}
    for tensor in {storage_key(tensor): tensor for tensor in _tensors_in_state(list(packed))}.values():
        kind = "weight" if tensor.ndim > 1 else "bias"
        count = sum(name.startswith(kind) for name in by_name)
        by_name[f"{kind}_{count}" if count else kind] = tensor
    return by_name


def _tensors_in_state(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_quantized):
        yield value
    elif isinstance(value, torch.ScriptObject):
        yield from _tensors_in_state(value.__getstate__())
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors_in_state(item)


def packed_bytes(value: torch.Tensor) -> int:
    """Elements as stored, with the scales and zero points of each channel."""
    size = value.numel() * value.element_size()
    if value.is_quantized and value.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        for part in (value.q_per_channel_scales(), value.q_per_channel_zero_points()):
            size += part.numel() * part.element_size()
    return int(size)


def _packed_or_none(value: torch.Tensor) -> int | None:
    return packed_bytes(value) if value.is_quantized else None


def _weight_constants(block: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for node in block.nodes():
        for name_inside in node.blocks():
            yield from _weight_constants(name_inside)
        if node.kind() in _CONSTANTS:
            name, value = node.output().debugName(), node.output().toIValue()
            if name.startswith(_ATTRIBUTE) and isinstance(value, torch.Tensor):
                yield name.removeprefix(_ATTRIBUTE).removesuffix("_mkldnn"), value
            if isinstance(value, list) and name.startswith(_ATTRIBUTE):  # those of a recurrent layer
                named_items = [(f"{name.removeprefix(_ATTRIBUTE)}.{index}", item) for index, item in enumerate(value)]
                yield from ((path, item) for path, item in named_items if isinstance(item, torch.Tensor))
            if isinstance(value, torch.ScriptObject):
                layer = re.sub(r"(\._packed_params|\.param)+$", "", name).removeprefix(_ATTRIBUTE)
                yield from (
                    (f"{layer}.{name_inside}", tensor) for name_inside, tensor in unpack_weights([value]).items()
                )
