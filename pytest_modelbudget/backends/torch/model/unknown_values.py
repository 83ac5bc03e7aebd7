"""What a builder without memory cannot know: the values of weights, and the random numbers that are drawn after them.

A value that is asked for is refused with an error. Code may swallow it and go on otherwise than it would with memory,
so the lines that asked are noted. What is computed from unknown values is on meta; where these are written to a small
tensor that has memory, its storage is marked, and it is used as if it were on meta.
"""

from __future__ import annotations

import re
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_modelbudget.backends.patching import UndoOnExit
from pytest_modelbudget.backends.torch.model.pytree import storage_key
from pytest_modelbudget.system.frames import frame_location, innermost_user_frame

TORCH = Path(torch.__file__).parent

_NEEDS_VALUES = re.compile(
    r"Cannot copy out of meta|item\(\) cannot be called on meta|data[- ]dependent|nonzero|unallocated storage"
)


def wants_values(error: BaseException) -> bool:
    """Whether torch refused to do what only values could tell."""
    return _NEEDS_VALUES.search(str(error)) is not None


def wants_more_than_meta(error: BaseException) -> bool:
    """Whether torch refused to do what it cannot do on meta, or may not be able to."""
    return wants_values(error) or isinstance(error, NotImplementedError) or "meta" in str(error).lower()


_REFUSED_LINES: dict[int, list[list[str]]] = {}
"""In each thread, the lines of the builders that run there, the innermost last."""


@contextmanager
def refusals_noted() -> Iterator[Sequence[str]]:
    """Inside, the lines of builders of this thread that asked for values in vain are noted in what this yields."""
    lines: list[str] = []
    thread = threading.get_ident()
    _REFUSED_LINES.setdefault(thread, []).append(lines)
    with UndoOnExit(lambda: _forget_lines(thread, lines)):
        yield lines


def _forget_lines(thread: int, lines: list[str]) -> None:
    _REFUSED_LINES[thread] = [other for other in _REFUSED_LINES.get(thread, ()) if other is not lines]
    if not _REFUSED_LINES[thread]:
        del _REFUSED_LINES[thread]


def note_refusal() -> None:
    """A value was asked for in vain: note the line of the builder that did."""
    if not (line_lists := _REFUSED_LINES.get(threading.get_ident())):
        return
    stack = traceback.StackSummary.extract(traceback.walk_stack(sys._getframe(1)), lookup_lines=False)
    frame = innermost_user_frame(reversed(stack), TORCH)
    line = "" if frame is None else frame_location(frame)
    if line not in line_lists[-1]:
        line_lists[-1].append(line)


_UNKNOWN_STORAGES: dict[int, StorageWeakRef] = {}
"""Storages of real tensors whose values are not known; a weak reference holds the address, not the memory."""


def mark_unknown(tensor: torch.Tensor) -> None:
    """The values of `tensor`, which has memory, are not known from now on, nor are those of what shares it."""
    for key in [key for key, storage in _UNKNOWN_STORAGES.items() if storage.expired()]:
        del _UNKNOWN_STORAGES[key]
    if (key := storage_key(tensor)) > 0:
        _UNKNOWN_STORAGES[key] = StorageWeakRef(tensor.untyped_storage())


def unknown_storages() -> set[int]:
    """The keys of the storages that are marked; see `storage_key`."""
    return set(_UNKNOWN_STORAGES)


def any_unknown() -> bool:
    """Whether there may be any."""
    return bool(_UNKNOWN_STORAGES)


def is_unknown(tensor: torch.Tensor) -> bool:
    """Whether the values of `tensor` are not known, though it has memory."""
    return bool(_UNKNOWN_STORAGES) and storage_key(tensor) in _UNKNOWN_STORAGES


_OUT_OF_STEP = 1 << 62
"""A bit of the seed. Who sets a seed, or a state that was kept, is in step again: the bit goes with it."""


def skip_draws() -> None:
    """Random numbers that a builder with memory would have drawn were not: what comes next is not what it gets."""
    seed = torch.default_generator.initial_seed()
    if not seed & _OUT_OF_STEP:
        torch.default_generator.manual_seed(seed | _OUT_OF_STEP)


def rng_in_step() -> bool:
    """Whether torch's random numbers are those that a builder with memory would draw."""
    return not torch.default_generator.initial_seed() & _OUT_OF_STEP


def initial_seed() -> int:
    """The seed that was set, as `torch.initial_seed` gives it."""
    return int(torch.default_generator.initial_seed()) & ~_OUT_OF_STEP
