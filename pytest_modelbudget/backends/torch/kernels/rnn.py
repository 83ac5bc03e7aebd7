"""Recurrent layers on the meta device, run as the one kernel that oneDNN or cuDNN has for them.

On meta, torch runs them step by step. On the CPU, oneDNN runs LSTMs of float32 without projections and not packed, one
layer and direction at a time; all else runs step by step there, too (`stepwise`). Its sizes are those of oneDNN 3.13
(`src/cpu/rnn/rnn_utils.hpp`: leading dimensions, spaces in pages) where the CPU has AVX-512; with AVX2 a pass
without gradients takes 160 bytes less.

On CUDA, cuDNN runs all layers at once, on weights that lie in one buffer. What it keeps for the backward pass and takes
meanwhile is its secret: the formulas here are an estimate. They give the sizes of the one pair that is published
(pytorch/pytorch issue 2895: an LSTM and a GRU, cuDNN 7), whose shape is inferred from its count of parameters: five
numbers for each element of the state and step (six for a GRU), and the output of each layer but the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch.autograd import Function

from pytest_modelbudget.backends.torch import compat
from pytest_modelbudget.backends.torch.kernels.rnn_reference import gru_cell, stepwise
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Role

CUDNN_NOTE = "what cuDNN's recurrent kernels keep and take is an estimate: cuDNN tells it only on a GPU"
"""What a plan with an event of `CUDNN` should say."""
CUDNN = "aten._cudnn_rnn"

_FLOAT, _PAGE = 4, 4096
_UNMERGED_FROM_BATCH = 128  # from this batch on the steps' products are not one
_DROPOUT_STATE = 2 << 20  # "slightly over 2 MB", RNN.cpp
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

Rules = Mapping[Any, Callable[..., Any]]


class KernelNotes(Protocol):
    """Who is told of kernels: a recorder."""

    def in_kernel(self, kernel: str) -> AbstractContextManager[None]:
        """Operators inside are parts of `kernel`."""

    def set_role(self, tensor: torch.Tensor, role: Role) -> None:
        """The memory of `tensor` is for `role`."""


def rules(notes: KernelNotes, cuda: bool, inside: AbstractContextManager[Any]) -> Rules:
    """Functions of torch with what runs in their place; that gives NotImplemented where torch's own way is right.

    On a CPU the parts of a layer run `inside` a mode: of a GRU, autocast casts the products and nothing else.
    """
    kinds = {torch.lstm: "lstm", torch.gru: "gru", torch.rnn_tanh: "rnn_tanh", torch.rnn_relu: "rnn_relu"}
    if not cuda and not compat.KNOWN_RECURRENT:
        return dict.fromkeys(kinds, _refuse_unknown)
    if not cuda:
        steps = {function: partial(_run_stepwise, kind) for function, kind in kinds.items()}
        in_parts: Rules = {**steps, torch.lstm: partial(_cpu_lstm, notes), torch.gru_cell: gru_cell}
        return {function: partial(_run_inside, inside, run) for function, run in in_parts.items()}
    cudnn = _Cudnn(notes)
    return {function: partial(cudnn.run, kind) for function, kind in kinds.items()}


def _refuse_unknown(*_: Any) -> Any:
    raise ModelBudgetError(
        f"what recurrent layers take on the CPU is known from torch 2.14 on, this is {torch.__version__}: "
        "upgrade torch, or plan with kernels: cuda"
    )


def _run_inside(inside: AbstractContextManager[Any], function: Callable[..., Any], *args: Any) -> Any:
    with inside:
        return function(*args)


def _run_stepwise(kind: str, *args: Any) -> Any:
    return stepwise(kind, args)


def _cpu_lstm(notes: KernelNotes, *args: Any) -> Any:
    out = _onednn_lstm(notes, *args)
    return stepwise("lstm", args) if out is NotImplemented else out


def _take_workspace(notes: KernelNotes, size: int) -> torch.Tensor:
    """Memory that a kernel takes inside itself, as long as the result is there."""
    memory = torch.empty(size, dtype=torch.uint8, device="meta")
    notes.set_role(memory, "workspace")
    return memory


@dataclass(frozen=True, slots=True)
class _LstmBytes:
    """Bytes that one layer of oneDNN's LSTM takes: `steps`, `batch`, features of the `input` and of the `state`."""

    steps: int
    batch: int
    input: int
    state: int

    @property
    def reserve(self) -> int:
        """The workspace of a forward pass with gradients, which the backward pass reads."""
        cells = self.steps * self.batch
        gates, hidden = cells * _leading_dimension(4 * self.state), cells * _leading_dimension(self.state)
        return sum(
            map(_bytes_in_pages, (gates, hidden, self._states, self._cells, self._states, self._states, self._cells))
        )

    @property
    def forward(self) -> int:
        """Reordered weights and scratch."""
        return self._ordered + self._scratch(self.steps if self.batch < _UNMERGED_FROM_BATCH else 1)

    @property
    def backward(self) -> int:
        """Reordered weights, gradients before they are in order, and scratch."""
        padded = sum(_leading_dimension(size) for size in (self.input, self.state) if _leading_dimension(size) != size)
        gradients = self._ordered + 4 * self.state * _FLOAT
        return padded * 4 * self.state * _FLOAT + gradients + self._scratch(self.steps)

    @property
    def inference(self) -> int:
        """Weights in blocks of 32 and scratch, of a pass without gradients."""
        weights = (self.input + self.state) * 4 * (-(-self.state // 32) * 32) * _FLOAT
        gates, hidden = (self.batch * _leading_dimension(size) for size in (4 * self.state, self.state))
        return weights + sum(map(_bytes_in_pages, (self._states, self._cells, gates, hidden))) + _PAGE + 1016

    @property
    def _states(self) -> int:
        return 2 * (self.steps + 1) * self.batch * _leading_dimension(max(self.input, self.state))

    @property
    def _cells(self) -> int:
        return 2 * (self.steps + 1) * self.batch * self.state

    @property
    def _ordered(self) -> int:
        return (self.input + self.state) * _leading_dimension(4 * self.state) * _FLOAT

    def _scratch(self, merged: int) -> int:
        gates, hidden = (
            merged * self.batch * _leading_dimension(4 * self.state),
            self.batch * _leading_dimension(self.state),
        )
        return _bytes_in_pages(gates) + 2 * _bytes_in_pages(hidden) + _PAGE + 568


def _leading_dimension(size: int) -> int:
    """Elements from row to row: a multiple of 16, but not of 256."""
    rounded = -(-size // 16) * 16
    return rounded + 16 if rounded % 256 == 0 else rounded


def _bytes_in_pages(elements: int) -> int:
    return -(-elements * _FLOAT // _PAGE) * _PAGE


def _onednn_lstm(
    notes: KernelNotes,
    input: Any,
    states: Any,
    weights: Any,
    biased: Any,
    layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
) -> Any:
    """`torch.lstm` as `mkldnn_rnn` (aten/src/ATen/native/mkldnn/RNN.cpp) runs it.

    Raises:
        ModelBudgetError: it runs in half precision, of which it is not known what oneDNN's kernel takes.
    """
    if not isinstance(biased, bool) or not input.is_meta or input.dtype not in _FLOATS or not input.numel():
        return NotImplemented  # packed sequences have their batch sizes in second place
    hidden, cells = (state.contiguous() for state in states)
    if hidden.shape[-1] != cells.shape[-1]:
        return NotImplemented
    if input.dtype is not torch.float32:
        raise ModelBudgetError(
            "what an LSTM in half precision takes on a CPU is not known: plan with precision: fp32, or kernels: cuda"
        )
    directions, per_direction = (2 if bidirectional else 1), (4 if biased else 2)
    first_input = out = (input.transpose(0, 1) if batch_first else input).contiguous()  # `first` lives to the end
    last_states: list[tuple[torch.Tensor, torch.Tensor]] = []
    layer_outputs = [first_input] * directions  # each output lives until the next layer's takes its place
    for layer in range(layers):
        for index in range(layer * directions, (layer + 1) * directions):
            direction_weights = list(weights[index * per_direction : (index + 1) * per_direction])
            if not biased:  # of the shape of the weights, and kept: so torch does it
                direction_weights += [
                    torch.zeros_like(direction_weights[0], requires_grad=False),
                    torch.zeros_like(direction_weights[1], requires_grad=False),
                ]
            with_gradients = torch.is_grad_enabled()
            result = _OnednnLayer.apply(
                notes, with_gradients, biased, out, *direction_weights, hidden[index], cells[index]
            )
            layer_outputs[index % directions] = result[0]
            last_states.append(result[1:])
            del result
        out = layer_outputs[0] if len(layer_outputs) == 1 else torch.cat(layer_outputs, -1)
        if dropout and training and layer < layers - 1:
            out = torch.dropout(out, dropout, True)
    stacked = tuple(torch.stack(states, 0) for states in zip(*last_states, strict=True))
    return out.transpose(0, 1) if batch_first else out, *stacked


class _OnednnLayer(Function):  # type: ignore[misc]
    """One layer in one direction: `mkldnn_rnn_layer` and its backward."""

    @staticmethod
    def forward(
        ctx: Any, notes: KernelNotes, with_gradients: bool, biased: bool, input: Any, *operands: torch.Tensor
    ) -> Any:
        hidden, cells = operands[4:]
        sizes = _LstmBytes(*map(int, (*input.shape, hidden.shape[-1])))
        with notes.in_kernel("aten.mkldnn_rnn_layer"):
            out = input.new_empty(sizes.steps, sizes.batch, sizes.state)
            states = torch.empty_like(hidden), torch.empty_like(cells)
            bias = input.new_empty(4 * sizes.state)
            workspace = torch.empty(sizes.reserve if with_gradients else 0, dtype=torch.uint8, device="meta")
            workspace_used = _take_workspace(notes, sizes.forward if with_gradients else sizes.inference)
        del bias, workspace_used
        ctx.notes, ctx.sizes = notes, sizes
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, *operands, out, *states, workspace)
        return out, *states

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        sizes = ctx.sizes
        input, *operands, out, _, _, _ = ctx.saved_tensors
        outputs_saved = out, operands[4], operands[5]
        with ctx.notes.in_kernel("aten.mkldnn_rnn_layer_backward"):
            gradients_in = [
                torch.zeros_like(like_tensor) if gradient is None else gradient.contiguous()
                for gradient, like_tensor in zip(gradients, outputs_saved, strict=True)
            ]
            bias = input.new_empty(4 * sizes.state)
            to_input, to_hidden, to_cells = (
                torch.empty_like(like_tensor) for like_tensor in (input, operands[4], operands[5])
            )
            to_weights = [torch.empty_like(weight) for weight in operands[:2]]
            to_bias = torch.empty_like(bias)
            workspace_used = _take_workspace(ctx.notes, sizes.backward)
            del workspace_used
            to_second_bias = to_bias.clone()
        del gradients_in, bias
        biases = (to_bias, to_second_bias) if operands[2].dim() == 1 else (None, None)
        return None, None, None, to_input, *to_weights, *biases, to_hidden, to_cells


@dataclass(frozen=True, slots=True)
class _CudnnSizes:
    """A whole recurrent layer of cuDNN's: `cells` is the number of steps times that of sequences."""

    kind: str
    cells: int
    batch: int
    state: int
    layers: int
    directions: int

    @property
    def reserve(self) -> int:
        """Elements of the reserve, which the backward pass reads."""
        per_element = {"lstm": 5, "gru": 6}.get(self.kind, 1)
        return self.cells * self.state * self.directions * (per_element * self.layers + self.layers - 1)

    @property
    def taken(self) -> int:
        """Elements taken while it runs, beside a second copy of the matrices."""
        gates, states = {"lstm": (4, 2), "gru": (3, 1)}.get(self.kind, (1, 1))
        return self.layers * self.directions * self.batch * self.state * (5 * gates + states)


class _Cudnn:
    """Recurrent layers as `_cudnn_rnn` (aten/src/ATen/native/cudnn/RNN.cpp) runs them."""

    def __init__(self, notes: KernelNotes) -> None:
        self._notes = notes
        self._dropout: torch.Tensor | None = None

    def run(self, kind: str, *args: Any) -> Any:
        """One call, of a batch or of packed sequences."""
        packed = len(args) > 3 and isinstance(args[3], (list, tuple))
        if packed:
            input, sizes, states, weights, _, layers, dropout, training, bidirectional = args
            batch_first = False
        else:
            input, states, weights, _, layers, dropout, training, bidirectional, batch_first = args
        if not input.is_meta or input.dtype not in _FLOATS or not input.numel() or (packed and sizes.is_meta):
            return NotImplemented
        states = tuple(states) if kind == "lstm" else (states,)
        cells = input.shape[0] if packed else input.shape[0] * input.shape[1]
        batch = int(sizes[0]) if packed else input.shape[0 if batch_first else 1]
        directions = 2 if bidirectional else 1
        stack = _CudnnSizes(kind, int(cells), int(batch), int(states[-1].shape[-1]), layers, directions)
        with self._notes.in_kernel(CUDNN):
            if dropout and training and self._dropout is None:
                self._dropout = _take_workspace(self._notes, _DROPOUT_STATE)
            width = int(states[0].shape[-1]) * directions
            results = _CudnnLayers.apply(
                self._notes, stack, training, batch_first, width, len(states), input, *states, *weights
            )
        return results if kind == "lstm" else (results[0], results[1])


class _CudnnLayers(Function):  # type: ignore[misc]
    """All layers at once: the gradients of the weights are views of one buffer, as the weights are."""

    @staticmethod
    def forward(
        ctx: Any,
        notes: KernelNotes,
        stack: _CudnnSizes,
        training: bool,
        batch_first: bool,
        width: int,
        count: int,
        *operands: Any,
    ) -> Any:
        input, states, weights = operands[0], operands[1 : 1 + count], operands[1 + count :]
        ctx.taken = _total_elements(weight for weight in weights if weight.dim() > 1) + stack.taken
        x = (input.transpose(0, 1) if batch_first else input).contiguous()
        out = x.new_empty(*x.shape[:-1], width)
        last_states = [torch.empty_like(state) for state in states]
        workspace_used = _take_workspace(notes, ctx.taken * input.element_size())
        reserve = input.new_empty(stack.reserve if training else 0)
        del workspace_used, x
        ctx.notes, ctx.batch_first, ctx.count = notes, batch_first, count
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands, out, reserve)
        return out.transpose(0, 1) if batch_first else out, *last_states

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        *operands, out, _ = ctx.saved_tensors
        input, states, weights = operands[0], operands[1 : 1 + ctx.count], operands[1 + ctx.count :]
        size = input.element_size()
        with ctx.notes.in_kernel(f"{CUDNN}_backward"):
            gradients_in = [
                torch.zeros_like(result) if gradient is None else gradient
                for gradient, result in zip(gradients, (out, *states), strict=True)
            ]
            x, first_gradient = (
                (input.transpose(0, 1), gradients_in[0].transpose(0, 1))
                if ctx.batch_first
                else (input, gradients_in[0])
            )
            parts = [x.contiguous(), first_gradient.contiguous()]
            to_input = torch.empty_like(parts[0])
            to_states = [torch.empty_like(state) for state in states]
            workspace_used = _take_workspace(ctx.notes, ctx.taken * size)
            del workspace_used, parts, first_gradient
            to_weights: Sequence[torch.Tensor | None] = [None] * len(weights)
            if any(ctx.needs_input_grad[7 + ctx.count :]):
                flat, input_copy = weights[0].new_zeros(_total_elements(weights)), x.contiguous()
                workspace_used = _take_workspace(ctx.notes, ctx.taken * size)
                to_weights = list(_views_of_buffer(flat, weights))
                del workspace_used, input_copy, flat
        del gradients_in
        to_input = to_input.transpose(0, 1) if ctx.batch_first else to_input
        return *[None] * 6, to_input, *to_states, *to_weights


def _total_elements(tensors: Any) -> int:
    return sum(int(tensor.numel()) for tensor in tensors)


def _views_of_buffer(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    offset = 0
    for tensor in like:
        yield flat[offset : offset + tensor.numel()].view(tensor.shape)
        offset += tensor.numel()
