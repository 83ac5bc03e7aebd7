"""What a model without inputs of its own may be called with, told from its first layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

_IMAGE_SIDES = (224, 32, 28, 64, 128, 256, 96, 299, 384, 512, 16)
"""Sides of images, the usual ones first; a net without adaptive pooling fits one of them."""

_SERIES_LENGTHS = (1024, 128, 16_000, 64, 512, 32)


@dataclass(frozen=True, slots=True)
class Guess:
    """Inputs as a manifest has them, and the sizes of the dimensions they name."""

    inputs: str
    dims: dict[str, int] = field(default_factory=dict)


def guesses(model: Any) -> tuple[tuple[Guess, ...], str]:
    """What to try, the likeliest first; when there is nothing to try, why."""
    if problem := _why_not_one_input(model):
        return (), problem
    for layer in _leaves(model):
        rule = _RULES.get(type(layer).__name__)
        if rule is not None:
            return tuple(rule(layer)), ""
    return (), "its inputs cannot be guessed from its layers: register it with inputs"


def _why_not_one_input(model: Any) -> str:
    """Why one input is not enough; empty when it may be."""
    forward = getattr(model, "forward", None)
    try:
        parameters = inspect.signature(forward).parameters.values() if callable(forward) else ()
    except (TypeError, ValueError):
        return ""
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(needed) < 2:
        return ""
    return f"takes {len(needed)} inputs ({', '.join(needed)}): register it with inputs"


def _leaves(model: Any) -> Iterator[Any]:
    modules = getattr(model, "modules", None)
    for module in modules() if callable(modules) else ():
        if not any(True for _ in module.children()):
            yield module


def _image_inputs(channels: str) -> Callable[[Any], Iterator[Guess]]:
    def rule(layer: Any) -> Iterator[Guess]:
        for side in _IMAGE_SIDES:
            yield Guess(f"float32[B, {getattr(layer, channels)}, {side}, {side}]")

    return rule


def _series_inputs(layer: Any) -> Iterator[Guess]:
    for length in _SERIES_LENGTHS:
        yield Guess(f"float32[B, {layer.in_channels}, {length}]")


def _volume_inputs(layer: Any) -> Iterator[Guess]:
    for depth, side in ((16, 112), (32, 32), (64, 64), (16, 224)):
        yield Guess(f"float32[B, {layer.in_channels}, {depth}, {side}, {side}]")


def _feature_inputs(layer: Any) -> Iterator[Guess]:
    yield Guess(f"float32[B, {layer.in_features}]")
    yield Guess(f"float32[B, T, {layer.in_features}]", {"T": 128})


def _id_inputs(layer: Any) -> Iterator[Guess]:
    for length in (128, 16):
        yield Guess("int64[B, T]", {"T": length})
    for length in (128, 64, 16):
        yield Guess(f"int64[B, {length}]")
    yield Guess("int64[B]")


def _sequence_inputs(layer: Any) -> Iterator[Guess]:
    order = "B, T" if getattr(layer, "batch_first", False) else "T, B"
    yield Guess(f"float32[{order}, {layer.input_size}]", {"T": 128})


def _norm_inputs(layer: Any) -> Iterator[Guess]:
    yield Guess(f"float32[B, {layer.num_features}]")


_RULES: dict[str, Callable[[Any], Iterator[Guess]]] = {
    "Conv1d": _series_inputs,
    "Conv2d": _image_inputs("in_channels"),
    "Conv3d": _volume_inputs,
    "BatchNorm1d": _norm_inputs,
    "BatchNorm2d": _image_inputs("num_features"),
    "Linear": _feature_inputs,
    "Embedding": _id_inputs,
    "LSTM": _sequence_inputs,
    "GRU": _sequence_inputs,
    "RNN": _sequence_inputs,
}
"""By the type of the first layer that says something of its input."""
