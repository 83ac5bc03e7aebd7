"""What to do about a forward pass that failed: the cure that fits the failure."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from pytest_modelbudget.backends.torch.meta.dispatch import NeedsValues
from pytest_modelbudget.backends.torch.meta.readings import assumed_value, cure
from pytest_modelbudget.backends.torch.model.unknown_values import TORCH, wants_more_than_meta, wants_values
from pytest_modelbudget.backends.torch.trace.arguments import ModelCall
from pytest_modelbudget.inputs import Inputs
from pytest_modelbudget.summary import ITEM_BYTES
from pytest_modelbudget.system.frames import frame_location, user_frame

_OUT_OF_RANGE = re.compile(r"index (-?\d+ is )?out of (range|bounds)")
_MISFIT_PATTERN = re.compile(
    r"\b(shape|size|dim|dtype)|scalar type|channel|mat1|must match|expected|broadcast|(positional|keyword) argument",
    re.I,
)


_MISFIT_TEXTS = (
    "positional argument", "unexpected keyword argument", "required keyword-only", "shapes cannot be multiplied",
    "Given groups=", "size mismatch", "must match the size of tensor", "to have the same dtype", "is invalid for input",
    "Given normalized_shape", "Expected more than 1 value per channel", "was expected to be", "must match except",
    "must have same reduction dim", "Invalid channel dimensions", "Attempting to broadcast", "Dimension out of range",
    "Number of dimensions of tensors must match", "must be equal to input_size", "was expecting embedding dimension",
    "to be divisible by", "first two dimensions of batch2", "stack expects each tensor", "one of the following scalar",
)  # fmt: skip
"""What torch says of inputs that do not fit a layer, on values as without."""


def hints(error: Exception, inputs: Inputs, call: ModelCall, *, real: bool, drawn: bool) -> Iterator[str]:
    """Sentences, the likeliest cause first; values that nobody gave were `drawn`, or else zeros."""
    if not real and needs_values(error):
        yield (
            "the model decides by the values of its activations, and weights without memory have none:\n"
            "  `run: real` runs it with memory, also above the limit of 1 GiB"
        )
        return
    read_ports = call.readings.read_inputs.values()
    for port in read_ports:
        yield f"the values of input {port.name} are read; {assumed_value(port, real=drawn)}: {cure(port)}"
    if _OUT_OF_RANGE.match(str(error)) and (ids := _ids_with_bound(inputs)):
        yield f"ids have to be below the size of the table they are looked up in: give a bound, as in {ids}"
    elif _MISFIT_PATTERN.search(str(error)) or (not read_ports and _raised_by_torch(error)):
        yield "check that `inputs:` fits what the model expects"
    elif not read_ports:
        yield "the model's own code raised it; if that is because of what it was called with, correct `inputs:`"


def needs_values(error: Exception) -> bool:
    """Whether a pass failed only because the meta device holds no values."""
    return isinstance(error, NeedsValues) or wants_values(error)


def may_run_on_values(error: Exception) -> bool:
    """Whether a run on values might go through where an abstract one failed: not when inputs do not fit a layer."""
    return is_for_want_of_values(error) or not any(text in str(error) for text in _MISFIT_TEXTS)


def is_for_want_of_values(error: BaseException | None) -> bool:
    """Whether a pass failed on something that the meta device cannot do; of other failures nobody knows."""
    return isinstance(error, Exception) and (isinstance(error, NeedsValues) or wants_more_than_meta(error))


def layer_text(layer: torch.nn.Module, error: Exception) -> str:
    """The layer that failed, where torch says that a size does not fit it and names none."""
    return f" of {layer}" if str(error) == "Invalid channel dimensions" else ""


def source_line(error: Exception) -> str:
    """`, at file:line` of the user, empty where none is known."""
    frame = user_frame(error, TORCH)
    return "" if frame is None else f", at {frame_location(frame)}"


def _ids_with_bound(inputs: Inputs) -> str | None:
    """How the first input of whole numbers is written with a bound."""
    specs = [port.spec for port in inputs.ports if port.spec.dtype in _INTEGRAL]
    return f'"{specs[0].without_values} < 32000"' if specs else None


_INTEGRAL = frozenset(name for name in ITEM_BYTES if name.startswith(("int", "uint")))


def _raised_by_torch(error: Exception) -> bool:
    *_, last = [None, *traceback.extract_tb(error.__traceback__)]
    return last is not None and Path(last.filename).is_relative_to(TORCH)
