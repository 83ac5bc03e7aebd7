"""Convolutions of complex numbers, which torch runs as three of real ones: by the rules they count as four.

    (a + bi) (c + di) = ac - bd + ((a + b) (c + d) - ac - bd) i

The operators do not tell them from three that a user wrote; what does is that one call made all of them.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch

Instruction = tuple[FrameType, int]
"""A running function, and where in its code it is."""


class ComplexConvolutions:
    """Follows the convolutions of one pass."""

    def __init__(self) -> None:
        self._place: Instruction | None = None  # holds the function: no other one is taken for it
        self._parts = 0  # convolutions of the real or imaginary parts that were made there

    def stands_for_two(self, data: torch.Tensor, weight: torch.Tensor) -> bool:
        """Whether a convolution is the third of a complex one, of the sums `a + b` and `c + d`."""
        place_before, parts_before = self._place, self._parts
        self._place, self._parts = None, 0
        if _is_part(data) and _is_part(weight):
            self._place = _instruction()
            self._parts = parts_before % 2 + 1 if self._place == place_before else 1
            return False
        return parts_before == 2 and _instruction() == place_before


def _is_part(tensor: torch.Tensor) -> bool:
    """Whether it is the real or imaginary part of a tensor; in inference mode views do not know of what they are."""
    if torch.is_inference_mode_enabled():
        return all(stride % 2 == 0 for stride in tensor.stride())
    base: Any = tensor._base
    return base is not None and base.is_complex() and not tensor.is_complex()


def _instruction() -> Instruction | None:
    """Where the function that called the operator is."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "__torch_dispatch__":
        frame = frame.f_back
    caller = None if frame is None else frame.f_back
    return None if caller is None else (caller, caller.f_lasti)
