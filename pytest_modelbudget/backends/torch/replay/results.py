"""What a call of a block returned, as a template from which a replay makes it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pytest_modelbudget.backends.torch.compat import no_dispatch, tree_map_only
from pytest_modelbudget.backends.torch.model.meta_tensors import META
from pytest_modelbudget.backends.torch.model.pytree import storage_key
from pytest_modelbudget.backends.torch.replay.fingerprint import CallSignature, NotComparable


@dataclass(frozen=True, slots=True)
class _NewTensor:
    """A tensor that a call made: the `storage`th new one, of so many bytes."""

    storage: int
    bytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    trained: bool


@dataclass(frozen=True, slots=True)
class _ArgumentTensor:
    """A tensor that a call was given, and returns."""

    position: int


def result_template(out: Any, results: list[torch.Tensor], signature: CallSignature) -> Any:
    """`out` with each tensor replaced by how to make it again.

    Raises:
        NotComparable: it holds what cannot be made again, or not apart from the rest.
    """
    storages: dict[int, int] = {}
    if torch.is_grad_enabled() and sum(tensor.requires_grad for tensor in results) > 1:
        # Each would have to keep its own part of what is held.
        raise NotComparable("several of its results need gradients")
    if len({id(tensor) for tensor in results}) != len(results):
        raise NotComparable("it returns a tensor twice")
    argument_positions = {id(tensor): position for position, tensor in enumerate(signature.tensors)}

    def describe(tensor: torch.Tensor) -> _NewTensor | _ArgumentTensor:
        if id(tensor) in argument_positions:
            return _ArgumentTensor(argument_positions[id(tensor)])
        key = storage_key(tensor)
        is_plain = type(tensor) is torch.Tensor and tensor.is_meta and tensor.layout == torch.strided
        if not is_plain or key in signature.storages or tensor.is_complex() or tensor.is_neg():
            raise NotComparable("it returns a view of an argument, or a tensor that is not plain")
        return _NewTensor(
            storages.setdefault(key, len(storages)),
            tensor.untyped_storage().nbytes(),
            tuple(tensor.shape),
            tensor.stride(),
            tensor.storage_offset(),
            tensor.dtype,
            tensor.requires_grad,
        )

    template = tree_map_only(torch.Tensor, describe, out)
    if torch.is_grad_enabled() and len(storages) < sum(1 for tensor in results if id(tensor) not in argument_positions):
        raise NotComparable("it returns views of one tensor")  # which autograd would have to know
    _refuse_objects(template)
    return template


def _refuse_objects(value: Any) -> None:
    if type(value) in (tuple, list, torch.Size):
        for item in value:
            _refuse_objects(item)
    elif type(value) is dict:
        for item in value.values():
            _refuse_objects(item)
    elif not (value is None or type(value) in (_NewTensor, _ArgumentTensor, int, float, bool, str)):
        raise NotComparable(f"it returns an object of {type(value).__name__}")


def result_from_template(
    template: Any, arguments: list[torch.Tensor], train: Callable[[torch.Tensor], torch.Tensor]
) -> Any:
    """What a call returned, made again: from its own `arguments`, and new tensors, which `train` gives a gradient."""
    storages: dict[int, torch.Tensor] = {}

    def make(part: _NewTensor | _ArgumentTensor) -> torch.Tensor:
        if isinstance(part, _ArgumentTensor):
            return arguments[part.position]
        return train(make_new(part)) if part.trained else make_new(part)

    def make_new(part: _NewTensor) -> torch.Tensor:
        base = storages.get(part.storage)
        if base is None:
            tensor = torch.empty_strided(part.shape, part.strides, dtype=part.dtype, device=META)
            storages[part.storage] = tensor
            if part.offset == 0 and tensor.untyped_storage().nbytes() == part.bytes:
                return tensor
            base = storages[part.storage] = torch.empty(part.bytes, dtype=torch.uint8, device=META)
        view = torch.empty(0, dtype=part.dtype, device=META)
        return view.set_(base.untyped_storage(), part.offset, part.shape, part.strides)

    with no_dispatch():
        return (
            make(template)
            if isinstance(template, (_NewTensor, _ArgumentTensor))
            else tree_map_only((_NewTensor, _ArgumentTensor), make, template)
        )
