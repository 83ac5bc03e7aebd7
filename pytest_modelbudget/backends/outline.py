"""What can be told of a model before it is called, for guesses of what it may be called with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Outline:
    """A model's call, and its layers in order.

    A layer is named and has attributes as torch's layers do: `Conv2d` with `in_channels`, `Linear` with `in_features`,
    `Embedding`, `LayerNorm` with `normalized_shape`; None is a number that is not known. `batched` says that inputs
    have a batch.
    """

    function: Callable[..., Any]
    layers: Sequence[Any]
    channels_last: bool = True
    batched: bool = True


def layer(kind: str, **attributes: Any) -> Any:
    """An object of a class of that name with these attributes."""
    return type(kind, (), attributes)()
