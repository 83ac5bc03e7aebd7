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
from pytest_modelbudget.backends.torch.kernels.rnn_reference import stepwise
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Role

CUDNN_NOTE = "what cuDNN's recurrent kernels keep and take is an estimate: cuDNN tells it only on a GPU"
"""What a plan with an event of `CUDNN` should say."""
CUDNN = "aten._cudnn_rnn"

_FLOAT, _PAGE = 4, 4096
_MERGED = 128  # from this batch on the steps' products are not one
_DROPOUT_STATE = 2 << 20  # "slightly over 2 MB", RNN.cpp
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

Rules = Mapping[Any, Callable[..., Any]]


class Notes(Protocol):
    """Who is told of kernels: a recorder."""

    def inside(self, kernel: str) -> AbstractContextManager[None]:
        """Operators inside are parts of `kernel`."""

    def lasting(self, tensor: torch.Tensor, role: Role) -> None:
        """The memory of `tensor` is for `role`."""


def rules(notes: Notes, cuda: bool) -> Rules:
    """Functions of torch with what runs in their place; that gives NotImplemented where torch's own way is right."""
    kinds = {torch.lstm: "lstm", torch.gru: "gru", torch.rnn_tanh: "rnn_tanh", torch.rnn_relu: "rnn_relu"}
    if not cuda and not compat.KNOWN_RECURRENT:
        return dict.fromkeys(kinds, _unknown)
    if not cuda:
        steps = {function: partial(_of_steps, kind) for function, kind in kinds.items()}
        return {**steps, torch.lstm: partial(_cpu_lstm, notes)}
    cudnn = _Cudnn(notes)
    return {function: partial(cudnn.run, kind) for function, kind in kinds.items()}


def _unknown(*_: Any) -> Any:
    raise ModelBudgetError(
        f"what recurrent layers take on the CPU is known from torch 2.14 on, this is {torch.__version__}: "
        "upgrade torch, or plan with kernels: cuda"
    )


def _of_steps(kind: str, *args: Any) -> Any:
    return stepwise(kind, args)


def _cpu_lstm(notes: Notes, *args: Any) -> Any:
    out = _onednn(notes, *args)
    return stepwise("lstm", args) if out is NotImplemented else out


def _taken(notes: Notes, size: int) -> torch.Tensor:
    """Memory that a kernel takes inside itself, as long as the result is there."""
    taken = torch.empty(size, dtype=torch.uint8, device="meta")
    notes.lasting(taken, "workspace")
    return taken


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Bytes that one layer of oneDNN's LSTM takes: `steps`, `batch`, features of the `input` and of the `state`."""

    steps: int
    batch: int
    input: int
    state: int

    @property
    def kept(self) -> int:
        """The workspace of a forward pass with gradients, which the backward pass reads."""
        cells = self.steps * self.batch
        gates, hidden = cells * _leading(4 * self.state), cells * _leading(self.state)
        return sum(map(_pages, (gates, hidden, self._states, self._cells, self._states, self._states, self._cells)))

    @property
    def forward(self) -> int:
        """Reordered weights and scratch."""
        return self._ordered + self._scratch(self.steps if self.batch < _MERGED else 1)

    @property
    def backward(self) -> int:
        """Reordered weights, gradients before they are in order, and scratch."""
        padded = sum(_leading(size) for size in (self.input, self.state) if _leading(size) != size)
        gradients = self._ordered + 4 * self.state * _FLOAT
        return padded * 4 * self.state * _FLOAT + gradients + self._scratch(self.steps)

    @property
    def inference(self) -> int:
        """Weights in blocks of 32 and scratch, of a pass without gradients."""
        weights = (self.input + self.state) * 4 * (-(-self.state // 32) * 32) * _FLOAT
        gates, hidden = (self.batch * _leading(size) for size in (4 * self.state, self.state))
        return weights + sum(map(_pages, (self._states, self._cells, gates, hidden))) + _PAGE + 1016

    @property
    def _states(self) -> int:
        return 2 * (self.steps + 1) * self.batch * _leading(max(self.input, self.state))

    @property
    def _cells(self) -> int:
        return 2 * (self.steps + 1) * self.batch * self.state

    @property
    def _ordered(self) -> int:
        return (self.input + self.state) * _leading(4 * self.state) * _FLOAT

    def _scratch(self, merged: int) -> int:
        gates, hidden = merged * self.batch * _leading(4 * self.state), self.batch * _leading(self.state)
        return _pages(gates) + 2 * _pages(hidden) + _PAGE + 568


def _leading(size: int) -> int:
    """Elements from row to row: a multiple of 16, but not of 256."""
    rounded = -(-size // 16) * 16
    return rounded + 16 if rounded % 256 == 0 else rounded


def _pages(elements: int) -> int:
    return -(-elements * _FLOAT // _PAGE) * _PAGE


def _onednn(
    notes: Notes,
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
    """`torch.lstm` as `mkldnn_rnn` (aten/src/ATen/native/mkldnn/RNN.cpp) runs it."""
    if not isinstance(biased, bool) or not input.is_meta or input.dtype is not torch.float32 or not input.numel():
        return NotImplemented  # packed sequences have their batch sizes in second place
    hidden, cells = (state.contiguous() for state in states)
    if hidden.shape[-1] != cells.shape[-1]:
        return NotImplemented
    directions, each = (2 if bidirectional else 1), (4 if biased else 2)
    first = out = (input.transpose(0, 1) if batch_first else input).contiguous()  # `first` lives to the end
    last: list[tuple[torch.Tensor, torch.Tensor]] = []
    made = [first] * directions  # each output lives until the next layer's takes its place
    for layer in range(layers):
        for index in range(layer * directions, (layer + 1) * directions):
            own = list(weights[index * each : (index + 1) * each])
            if not biased:  # of the shape of the weights, and kept: so torch does it
                own += [torch.zeros_like(own[0], requires_grad=False), torch.zeros_like(own[1], requires_grad=False)]
            with_gradients = torch.is_grad_enabled()
            result = _Layer.apply(notes, with_gradients, biased, out, *own, hidden[index], cells[index])
            made[index % directions] = result[0]
            last.append(result[1:])
            del result
        out = made[0] if len(made) == 1 else torch.cat(made, -1)
        if dropout and training and layer < layers - 1:
            out = torch.dropout(out, dropout, True)
    stacked = tuple(torch.stack(states, 0) for states in zip(*last, strict=True))
    return out.transpose(0, 1) if batch_first else out, *stacked


class _Layer(Function):  # type: ignore[misc]
    """One layer in one direction: `mkldnn_rnn_layer` and its backward."""

    @staticmethod
    def forward(ctx: Any, notes: Notes, kept: bool, biased: bool, input: Any, *given: torch.Tensor) -> Any:
        hidden, cells = given[4:]
        sizes = _Sizes(*map(int, (*input.shape, hidden.shape[-1])))
        with notes.inside("aten.mkldnn_rnn_layer"):
            out = input.new_empty(sizes.steps, sizes.batch, sizes.state)
            states = torch.empty_like(hidden), torch.empty_like(cells)
            bias = input.new_empty(4 * sizes.state)
            workspace = torch.empty(sizes.kept if kept else 0, dtype=torch.uint8, device="meta")
            taken = _taken(notes, sizes.forward if kept else sizes.inference)
        del bias, taken
        ctx.notes, ctx.sizes = notes, sizes
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, *given, out, *states, workspace)
        return out, *states

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        sizes = ctx.sizes
        input, *given, out, _, _, _ = ctx.saved_tensors
        like = out, given[4], given[5]
        with ctx.notes.inside("aten.mkldnn_rnn_layer_backward"):
            read = [
                torch.zeros_like(one) if gradient is None else gradient.contiguous()
                for gradient, one in zip(gradients, like, strict=True)
            ]
            bias = input.new_empty(4 * sizes.state)
            to_input, to_hidden, to_cells = (torch.empty_like(one) for one in (input, given[4], given[5]))
            to_weights = [torch.empty_like(weight) for weight in given[:2]]
            to_bias = torch.empty_like(bias)
            taken = _taken(ctx.notes, sizes.backward)
            del taken
            to_other = to_bias.clone()
        del read, bias
        biases = (to_bias, to_other) if given[2].dim() == 1 else (None, None)
        return None, None, None, to_input, *to_weights, *biases, to_hidden, to_cells


@dataclass(frozen=True, slots=True)
class _Stack:
    """A whole recurrent layer of cuDNN's: `cells` is the number of steps times that of sequences."""

    kind: str
    cells: int
    batch: int
    state: int
    layers: int
    directions: int

    @property
    def kept(self) -> int:
        """Elements of the reserve, which the backward pass reads."""
        own = {"lstm": 5, "gru": 6}.get(self.kind, 1)
        return self.cells * self.state * self.directions * (own * self.layers + self.layers - 1)

    @property
    def taken(self) -> int:
        """Elements taken while it runs, beside a second copy of the matrices."""
        gates, states = {"lstm": (4, 2), "gru": (3, 1)}.get(self.kind, (1, 1))
        return self.layers * self.directions * self.batch * self.state * (5 * gates + states)


class _Cudnn:
    """Recurrent layers as `_cudnn_rnn` (aten/src/ATen/native/cudnn/RNN.cpp) runs them."""

    def __init__(self, notes: Notes) -> None:
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
        stack = _Stack(kind, int(cells), int(batch), int(states[-1].shape[-1]), layers, directions)
        with self._notes.inside(CUDNN):
            if dropout and training and self._dropout is None:
                self._dropout = _taken(self._notes, _DROPOUT_STATE)
            width = int(states[0].shape[-1]) * directions
            made = _All.apply(self._notes, stack, training, batch_first, width, len(states), input, *states, *weights)
        return made if kind == "lstm" else (made[0], made[1])


class _All(Function):  # type: ignore[misc]
    """All layers at once: the gradients of the weights are views of one buffer, as the weights are."""

    @staticmethod
    def forward(
        ctx: Any, notes: Notes, stack: _Stack, training: bool, batch_first: bool, width: int, count: int, *given: Any
    ) -> Any:
        input, states, weights = given[0], given[1 : 1 + count], given[1 + count :]
        ctx.taken = _elements(one for one in weights if one.dim() > 1) + stack.taken
        x = (input.transpose(0, 1) if batch_first else input).contiguous()
        out = x.new_empty(*x.shape[:-1], width)
        last = [torch.empty_like(state) for state in states]
        taken = _taken(notes, ctx.taken * input.element_size())
        reserve = input.new_empty(stack.kept if training else 0)
        del taken, x
        ctx.notes, ctx.batch_first, ctx.count = notes, batch_first, count
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*given, out, reserve)
        return out.transpose(0, 1) if batch_first else out, *last

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        *given, out, _ = ctx.saved_tensors
        input, states, weights = given[0], given[1 : 1 + ctx.count], given[1 + ctx.count :]
        size = input.element_size()
        with ctx.notes.inside(f"{CUDNN}_backward"):
            read = [
                torch.zeros_like(one) if gradient is None else gradient
                for gradient, one in zip(gradients, (out, *states), strict=True)
            ]
            x, first = (input.transpose(0, 1), read[0].transpose(0, 1)) if ctx.batch_first else (input, read[0])
            parts = [x.contiguous(), first.contiguous()]
            to_input = torch.empty_like(parts[0])
            to_states = [torch.empty_like(state) for state in states]
            taken = _taken(ctx.notes, ctx.taken * size)
            del taken, parts, first
            to_weights: Sequence[torch.Tensor | None] = [None] * len(weights)
            if any(ctx.needs_input_grad[7 + ctx.count :]):
                flat, again = weights[0].new_zeros(_elements(weights)), x.contiguous()
                taken = _taken(ctx.notes, ctx.taken * size)
                to_weights = list(_views(flat, weights))
                del taken, again, flat
        del read
        to_input = to_input.transpose(0, 1) if ctx.batch_first else to_input
        return *[None] * 6, to_input, *to_states, *to_weights


def _elements(found: Any) -> int:
    return sum(int(tensor.numel()) for tensor in found)


def _views(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    at = 0
    for tensor in like:
        yield flat[at : at + tensor.numel()].view(tensor.shape)
        at += tensor.numel()
