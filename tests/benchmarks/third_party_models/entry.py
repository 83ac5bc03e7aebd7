"""What is said of each model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

IDS = "int64[B, 12]"
"""Token ids, as a spec."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A model: how it is built, and what it is called with.

    `inputs` are specs, or a function that makes example inputs. `plain` builds the same model before its weights were
    packed or quantised: params and FLOPs are those of that one. `by_values` says that shapes or FLOPs follow the values
    of weights and inputs, so that an unknown is right there too.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Any
    plain: Callable[[], nn.Module] | None = None
    by_values: bool = False


def ids(rows: int = 2, length: int = 12, below: int = 90) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(3, below, (rows, length))
