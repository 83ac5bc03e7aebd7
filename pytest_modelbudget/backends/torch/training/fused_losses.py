"""Cross entropy of a language model's hidden states, without whole logits: memory as published code takes it.

- `liger`: Liger Kernel 0.8.5, `ops/fused_linear_cross_entropy.py`: chunks of rows, whose logits have about as many
  elements as the hidden states; gradients of hidden states and weight are made in the forward pass.
- `cce`: Cut Cross Entropy (Wijmans et al. 2024, arXiv 2411.09009), apple/ml-cross-entropy of June 2025,
  `cut_cross_entropy/cce.py`: no logits at all; backward has buffers for both gradients, locks, and an order of words.
- `linear_cross_entropy`: torch's own with `LinearCrossEntropyOptions()`, on a GPU `acc_policy="compact"`.
- `chunked`: torchtune's `CEWithChunkedOutputLoss`: logits in 8 parts, each brought to float32 by itself.

All compute nothing; every row has a target. Kernels are those of a GPU, whatever `kernels` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from pytest_modelbudget.backends.torch.kernels.device import autocast_dtype
from pytest_modelbudget.backends.torch.training.head import Head
from pytest_modelbudget.backends.torch.training.losses import scores_of
from pytest_modelbudget.errors import ModelBudgetError

_HALF = (torch.float16, torch.bfloat16)
_LOCK_ROWS, _LOCK_FEATURES = 128, 64
_OUTPUT_CHUNKS = 8

Loss = Callable[[torch.Tensor, Head, torch.Tensor], torch.Tensor]


class FusedLoss:
    """The `loss` of a recipe for a model whose `head` is left out; targets are made with the first hidden states."""

    def __init__(self, loss: str, head: Head) -> None:
        if loss == "linear_cross_entropy" and not hasattr(functional, loss):
            raise ModelBudgetError(
                f"training.loss: torch {torch.__version__} has no {loss}: write liger, cce or chunked"
            )
        self._loss, self.head = FUSED_LOSSES[loss], head
        self.targets: torch.Tensor | None = None

    def __call__(self, out: Any) -> torch.Tensor:
        hidden = scores_of(out)
        if self.targets is None:
            self.targets = torch.empty(hidden.shape[:-1], dtype=torch.int64, device=hidden.device)
        return self._loss(hidden, self.head, self.targets)


def _liger(hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
    rows = hidden.reshape(-1, hidden.shape[-1])
    loss: torch.Tensor = _Liger.apply(rows, head.weight, head.bias, targets.reshape(-1))
    return loss


def chunk_rows(rows: int, features: int, classes: int) -> int:
    """Rows of a chunk whose logits have about as many elements as all hidden states: a power of two, of at most all."""
    target = -(-rows // -(-classes // features))
    return min(1 << (target - 1).bit_length(), rows)


class _Liger(torch.autograd.Function):  # type: ignore[misc]
    """See the head of the module."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: Any, targets: torch.Tensor) -> torch.Tensor:
        count, trains = hidden.shape[0], hidden.requires_grad
        size = chunk_rows(count, hidden.shape[1], weight.shape[0])
        gradients = [
            torch.zeros_like(hidden),
            torch.zeros_like(weight) if trains and weight.requires_grad else None,
            torch.zeros_like(bias) if trains and bias is not None else None,
        ]
        losses = torch.zeros(count, dtype=torch.float32, device=hidden.device)
        mask = targets != -100
        is_direct = hidden.dtype is weight.dtype and autocast_dtype() in (None, hidden.dtype)
        has_storage = is_direct and (bias is None or bias.dtype is hidden.dtype)
        storage = hidden.new_empty((size, weight.shape[0])) if has_storage else None
        for start in range(0, count, size):
            chunk = hidden[start : start + size]
            logits = _logits(chunk, weight, bias) if storage is None else storage[: chunk.shape[0]]
            if trains and not is_direct:
                gradients[0][start : start + size] = logits @ weight
            _add_weight_gradient(gradients[1], logits, chunk)
            if gradients[2] is not None:
                logits.sum(dim=0)
            del logits
        del storage, mask
        ctx.save_for_backward(*(None if gradient is None else gradient.detach() for gradient in gradients))
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *gradient: torch.Tensor) -> Any:
        to_hidden, to_weight, to_bias = ctx.saved_tensors
        return to_hidden, to_weight, to_bias, None


def _logits(chunk: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    logits = chunk @ weight.t()
    return logits if bias is None else logits + bias


def _add_weight_gradient(gradient: torch.Tensor | None, logits: torch.Tensor, chunk: torch.Tensor) -> None:
    """Into the `gradient` itself where logits have half precision, else by way of a float32 matrix of its size."""
    if gradient is None:
        return
    if logits.dtype in _HALF and gradient.dtype in (torch.float32, logits.dtype):
        chunk.to(logits.dtype)
    else:
        gradient += torch.mm(logits.t(), chunk).float()


def _cut(hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
    rows = hidden.contiguous().flatten(0, -2)
    loss: torch.Tensor = _Cut.apply(rows, head.weight, head.bias, targets.reshape(-1))
    return loss


class _Cut(torch.autograd.Function):  # type: ignore[misc]
    """See the head of the module."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: Any, targets: torch.Tensor) -> torch.Tensor:
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        if (half := autocast_dtype()) is not None:
            hidden, weight, bias = hidden.to(half), weight.to(half), None if bias is None else bias.to(half)
        count, classes = hidden.shape[0], weight.shape[0]
        log_sums = hidden.new_empty((count,), dtype=torch.float32)
        locks = hidden.new_empty((-(-count // _LOCK_ROWS),), dtype=torch.int32)
        averages = hidden.new_empty((classes,), dtype=torch.float32)
        losses = hidden.new_zeros((count,), dtype=torch.float32).add_(log_sums)
        del locks
        ctx.save_for_backward(hidden, weight, bias, log_sums, targets, averages)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, *gradient: torch.Tensor) -> Any:
        hidden, weight, bias, *_, averages = ctx.saved_tensors
        order = torch.argsort(averages).to(torch.int32)
        needed = ctx.needs_input_grad
        to_hidden = torch.zeros_like(hidden) if needed[0] else None
        to_weight = torch.zeros_like(weight) if needed[1] else None
        to_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needed[2] else None
        columns = -(-hidden.shape[1] // _LOCK_FEATURES)
        locks = [
            hidden.new_zeros((-(-rows.shape[0] // _LOCK_ROWS), columns), dtype=torch.int32) for rows in (hidden, weight)
        ]
        del locks, order
        results = zip((to_hidden, to_weight, to_bias), ctx.dtypes, strict=True)
        return (*(result if result is None else result.to(dtype) for result, dtype in results), None)


def _torch_chunked(hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
    rows = hidden.reshape(-1, hidden.shape[-1])
    return torch_linear_cross_entropy(rows, head.weight, targets.reshape(-1), head.bias)


def torch_linear_cross_entropy(
    rows: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None, size: int | None = None
) -> torch.Tensor:
    """`torch.nn.functional.linear_cross_entropy` in chunks; `size` is the rows of one (None: as torch chooses).

    Autocast changes nothing: products are written into buffers, which have the dtype of the operands.
    """
    loss: torch.Tensor = _TorchChunked.apply(rows, weight, bias, targets, size or _torch_chunk_rows(rows, weight))
    return loss


def loss_rules() -> dict[Any, Callable[..., Any]]:
    """What runs in place of torch's chunked loss, which a model may call itself: on meta it is one operator."""
    function = getattr(functional, "linear_cross_entropy", None)
    return {} if function is None else {function: _called_by_model}


def _called_by_model(input: Any, linear_weight: Any, target: Any, **options: Any) -> Any:
    """The default options in chunks of the user's size; all else is left to torch."""
    chunking = options.get("options")
    if chunking is None or input.dim() != 2 or not input.is_meta or target.dtype.is_floating_point:
        return NotImplemented
    is_default = chunking.acc_policy in ("auto", "compact") and chunking.acc_dtype is None
    is_default = is_default and chunking.chunking_method in ("auto", None) and not chunking.allow_retain_graph
    if not is_default or options.get("weight") is not None or options.get("reduction", "mean") == "none":
        return NotImplemented
    size = chunking.batch_chunk_size and min(chunking.batch_chunk_size, input.shape[0])
    return torch_linear_cross_entropy(input, linear_weight, target, options.get("linear_bias"), size)


def _torch_chunk_rows(rows: torch.Tensor, weight: torch.Tensor) -> int:
    """As `LinearCrossEntropyOptions`: never more than what keeps the peak below that of whole logits."""
    count, features, classes = rows.shape[0], rows.shape[1], weight.shape[0]
    largest = count * classes // (4 * features)
    return max(1, min(chunk_rows(count, features, classes), 1 << (largest.bit_length() - 1) if largest else 1))


class _TorchChunked(torch.autograd.Function):  # type: ignore[misc]
    """See the head of the module."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: Any, bias: Any, targets: Any, size: int) -> torch.Tensor:
        is_half, dtype = rows.dtype in _HALF, rows.dtype
        exact = torch.float32 if is_half else dtype
        logits_dtype = exact if dtype is not torch.float16 else dtype
        buffers = [
            rows.new_empty((size, weight.shape[0]), dtype=logits_dtype),
            rows.new_empty(size, dtype=logits_dtype),
        ]
        mask = targets == -100
        targets = torch.where(mask, 0, targets)
        weights = (~mask).to(exact)
        to_rows = torch.empty_like(rows) if rows.requires_grad else None
        to_weight = torch.zeros_like(weight) if weight.requires_grad else None
        to_bias = torch.zeros_like(bias) if bias is not None and bias.requires_grad else None
        if is_half and to_weight is not None:
            buffers.append(rows.new_empty((size, rows.shape[1]), dtype=exact))
        for start in range(0, rows.shape[0], size):
            count = min(size, rows.shape[0] - start)
            lowered = buffers[0][:count].to(dtype) if logits_dtype is not dtype else None
            if to_rows is not None:
                torch.index_select(weight, 0, targets[start : start + count])
            del lowered
        ctx.gradients = [to_rows, to_weight, to_bias]
        del buffers, weights, mask
        return rows.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradient: torch.Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, []
        return (*gradients, None, None)


def _in_parts(hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
    """torchtune's loss on logits that the model gives in parts."""
    dim = max(hidden.dim() - 2, 0)
    logits = [functional.linear(part, head.weight, head.bias) for part in hidden.chunk(_OUTPUT_CHUNKS, dim)]
    labels = targets.chunk(_OUTPUT_CHUNKS, dim)
    count, total = (targets != -100).sum(), torch.zeros((), device=hidden.device)
    for part, label in zip(logits, labels, strict=True):
        rows = part.reshape(-1, part.shape[-1]).float()
        total = total + functional.cross_entropy(rows, label.reshape(-1), reduction="sum")
        del rows
    return total / count


FUSED_LOSSES: dict[Any, Loss] = {
    "liger": _liger,
    "cce": _cut,
    "chunked": _in_parts,
    "linear_cross_entropy": _torch_chunked,
}
"""Losses of hidden states and a head, by their names in recipes."""
