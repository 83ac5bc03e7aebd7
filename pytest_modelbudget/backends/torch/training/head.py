"""The head of a language model, found in its real forward pass: the product whose result the model returns.

A loss that multiplies with the head's weight itself takes hidden states instead of logits. So the model is run once to
see which product of hidden states and one weight its first output is; in the step that product is left out, and the
model returns the hidden states in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pytest_modelbudget.backends.torch.model.pytree import storage_key, tensors
from pytest_modelbudget.backends.torch.training.losses import own_loss, scores_of
from pytest_modelbudget.errors import ModelBudgetError

_MATMULS = frozenset((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__))
_CURE = "return the logits just as the head gives them, or write a loss as module:callable"


@dataclass(frozen=True, slots=True)
class Head:
    """The weight (vocabulary, features) and bias of a head."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The weight, and the bias where there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Inside, products with the head's weight give their input."""
        with _LeftOut(self):
            yield


def find_head(run: Callable[[], Any], loss: str) -> Head:
    """The head of the model that `run` runs, for the `loss` of a recipe.

    Raises:
        ModelBudgetError: the first output is no plain product with one weight, the model does more with it, or it
            computes a loss of its own; with what is to be done.
    """
    with torch.no_grad(), _Search() as search:
        out = run()
    if own_loss(out) is not None:
        raise ModelBudgetError(
            f"training.loss: {loss} takes the place of the model's own loss: leave the targets out of its inputs"
        )
    logits = storage_key(scores_of(out))
    head: Head | None = search.heads.get(logits)
    if head is None:
        raise ModelBudgetError(
            f"training.loss: {loss}: the model's head is not clear: its first output is not the plain product of "
            f"hidden states and one weight: {_CURE}"
        )
    if (use := search.uses.get(logits)) is not None:
        raise ModelBudgetError(
            f"training.loss: {loss} makes no logits, and the model does more with them than to return them ({use}): "
            f"{_CURE}"
        )
    return head


def _head_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Head | None:
    """The weight and bias of a product with a parameter, None for any other call."""
    if func is functional.linear:
        operands = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs)
        weight, bias = operands["weight"], operands.get("bias")
        return Head(weight, bias) if isinstance(weight, nn.Parameter) and weight.dim() == 2 else None
    if func in _MATMULS and len(args) == 2 and isinstance(args[1], torch.Tensor) and args[1].dim() == 2:
        base = args[1]._base
        is_transposed = (
            isinstance(base, nn.Parameter) and base.shape == args[1].shape[::-1] and not args[1].is_contiguous()
        )
        return Head(base, None) if is_transposed else None
    return None


def _is_reading(func: Any) -> bool:
    """Whether a function only asks what a tensor is like: attributes, sizes."""
    return getattr(func, "__name__", "") in ("__get__", "size", "dim", "numel", "is_floating_point", "is_complex")


class _Search(TorchFunctionMode):  # type: ignore[misc]
    """Notes the products with parameters by the storage of their results, and the first function that reads one."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: dict[int, Head] = {}
        self.uses: dict[int, str] = {}
        self._results: list[torch.Tensor] = []  # kept, so that no other gets the storage of one

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _is_reading(func):
            self._note_use(func, tensors((args, kwargs)))
        out = func(*args, **kwargs)
        if (head := _head_of(func, args, kwargs)) is not None and isinstance(out, torch.Tensor):
            self.heads[storage_key(out)] = head
            self._results.append(out)
        return out

    def _note_use(self, func: Any, operands: list[torch.Tensor]) -> None:
        for operand in operands:
            if operand.is_meta and (key := storage_key(operand)) in self.heads:
                self.uses.setdefault(key, str(getattr(func, "__name__", func)))


class _LeftOut(TorchFunctionMode):  # type: ignore[misc]
    """See `Head.left_out`."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self._head = head

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        head = _head_of(func, args, kwargs)
        if head is not None and head.weight is self._head.weight:
            return args[0] if args else kwargs["input"]
        return func(*args, **kwargs)
