"""What a loop of training does with the result of the model."""

from __future__ import annotations

from typing import Any

import torch

from pytest_modelbudget.backends.torch.compat import tree_map_only
from pytest_modelbudget.backends.torch.memory.recorder import Recorder


class LoopOutputs:
    """What the model returned, from the end of a pass until the next one returns, or until it is dropped.

    The storages that go with it, since nothing else holds them, are noted as outputs.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.value: Any = None
        self._recorder = recorder

    def returned(self, value: Any) -> None:
        """The model returned; what it returned before is let go of."""
        self.drop()
        self.value = value

    def drop(self) -> None:
        """Let go of it."""
        self._recorder.note_output(self._recorder.released_by(self._clear))

    def note_last(self) -> None:
        """The run is over while this is still there; that it goes now is no part of the run."""
        self._recorder.note_output(self._recorder.released_after(self._clear))

    def _clear(self) -> None:
        self.value = None


def in_float32(outputs: Any) -> Any:
    """`outputs` with floats of half precision copied, as `accelerate` gives back what ran under autocast."""

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

    return tree_map_only(torch.Tensor, copy, outputs)
