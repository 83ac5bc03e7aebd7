"""Recurrent layers step by step, as torch runs them on the CPU (`FullLayer` in aten/src/ATen/native/RNN.cpp).

There the products with the input are made for all steps at once; on the meta device torch makes them step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear

_Step = Callable[..., tuple[torch.Tensor, ...]]


def stepwise(kind: str, args: tuple[Any, ...]) -> Any:
    """`torch.lstm`, `torch.gru`, `torch.rnn_tanh` or `torch.rnn_relu`; NotImplemented for packed sequences."""
    if len(args) != 9 or not isinstance(args[3], bool) or not args[0].is_meta or not args[0].numel():
        return NotImplemented
    input, states, weights, biased, layers, dropout, training, bidirectional, batch_first = args
    states = tuple(states) if kind == "lstm" else (states,)
    starts = list(zip(*(state.unbind(0) for state in states), strict=True))
    layer_weights = list(_weights_by_layer(weights, len(weights) // len(starts)))
    directions = 2 if bidirectional else 1
    out = input.transpose(0, 1) if batch_first else input
    ends: list[tuple[torch.Tensor, ...]] = []
    for layer in range(layers):
        directions_of_layer = slice(layer * directions, (layer + 1) * directions)
        out, last = _layer(_STEPS[kind], out, starts[directions_of_layer], layer_weights[directions_of_layer], biased)
        ends += last
        if dropout and training and layer < layers - 1:
            out = torch.dropout(out, dropout, True)
    stacked = [torch.stack(parts, 0) for parts in zip(*ends, strict=True)]
    return (out.transpose_(0, 1) if batch_first else out), *stacked


def gru_cell(
    input: torch.Tensor,
    state: torch.Tensor,
    to_input: torch.Tensor,
    to_hidden: torch.Tensor,
    of_input: torch.Tensor | None = None,
    of_hidden: torch.Tensor | None = None,
) -> Any:
    """`torch.gru_cell`, which is one step of a GRU; NotImplemented for tensors that have values."""
    if not input.is_meta:
        return NotImplemented
    (hidden,) = _gru(linear(input, to_input, of_input), (state,), partial(linear, weight=to_hidden, bias=of_hidden))
    return hidden


def _weights_by_layer(weights: Sequence[torch.Tensor], size: int) -> Iterator[Sequence[torch.Tensor]]:
    for start in range(0, len(weights), size):
        yield weights[start : start + size]


def _layer(
    step: _Step, input: Any, starts: Sequence[tuple[torch.Tensor, ...]], weights: Sequence[Any], biased: bool
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, ...]]]:
    """One layer in all its directions; what one direction made lives until the layer is done."""
    outputs_alive, stacks, ends = [], [], []
    for reverse, (states, direction_weights) in enumerate(zip(starts, weights, strict=True)):
        to_input, to_hidden, *others = direction_weights
        biases = (others.pop(0), others.pop(0)) if biased else (None, None)
        gates = linear(input, to_input, biases[0]).unbind(0)
        product = partial(linear, weight=to_hidden, bias=biases[1])
        outputs = []
        for gate in reversed(gates) if reverse else gates:
            states = step(gate, states, product, *others)
            outputs.append(states[0])
        outputs_alive.append(outputs)
        stacks.append(torch.stack(outputs[::-1] if reverse else outputs, 0))
        ends.append(states)
    return (torch.cat(stacks, -1) if len(stacks) > 1 else stacks[0]), ends


def _lstm(gate: Any, states: Any, product: Any, projection: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    enters, forgets, cell, leaves = product(states[0]).add_(gate).unsafe_chunk(4, 1)
    enters, forgets, cell, leaves = enters.sigmoid_(), forgets.sigmoid_(), cell.tanh_(), leaves.sigmoid_()
    cells = (forgets * states[1]).add_(enters * cell)
    hidden = leaves * cells.tanh()
    return (hidden if projection is None else torch.matmul(hidden, projection.t())), cells


def _gru(gate: Any, states: Any, product: Any) -> tuple[torch.Tensor, ...]:
    from_input = gate.unsafe_chunk(3, 1)
    from_state = product(states[0]).unsafe_chunk(3, 1)
    resets, updates = from_state[0].add_(from_input[0]).sigmoid_(), from_state[1].add_(from_input[1]).sigmoid_()
    new = from_input[2].add(from_state[2].mul_(resets)).tanh_()
    return ((states[0] - new).mul_(updates).add_(new),)


def _tanh(gate: Any, states: Any, product: Any) -> tuple[torch.Tensor, ...]:
    return (torch.tanh(product(states[0]).add_(gate)),)


def _relu(gate: Any, states: Any, product: Any) -> tuple[torch.Tensor, ...]:
    return (torch.relu(product(states[0]).add_(gate)),)


_STEPS: dict[str, _Step] = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _tanh, "rnn_relu": _relu}
