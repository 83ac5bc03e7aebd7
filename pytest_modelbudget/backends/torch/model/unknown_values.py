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

from pytest_modelbudget.backends.patching import Undoing
from pytest_modelbudget.backends.torch.model.pytree import storage_key
from pytest_modelbudget.system.frames import innermost, place

TORCH = Path(torch.__file__).parent

_VALUES = re.compile(
    r"Cannot copy out of meta|item\(\) cannot be called on meta|data[- ]dependent|nonzero|unallocated storage"
)


def wants_values(mistake: BaseException) -> bool:
    """Whether torch refused to do what only values could tell."""
    return _VALUES.search(str(mistake)) is not None


def wants_more_than_meta(mistake: BaseException) -> bool:
    """Whether torch refused to do what it cannot do on meta, or may not be able to."""
    return wants_values(mistake) or isinstance(mistake, NotImplementedError) or "meta" in str(mistake).lower()


_NOTED: dict[int, list[list[str]]] = {}
"""In each thread, the lines of the builders that run there, the innermost last."""


@contextmanager
def noting() -> Iterator[Sequence[str]]:
    """Inside, the lines of builders of this thread that asked for values in vain are noted in what this yields."""
    lines: list[str] = []
    me = threading.get_ident()
    _NOTED.setdefault(me, []).append(lines)
    with Undoing(lambda: _forget(me, lines)):
        yield lines


def _forget(thread: int, lines: list[str]) -> None:
    _NOTED[thread] = [other for other in _NOTED.get(thread, ()) if other is not lines]
    if not _NOTED[thread]:
        del _NOTED[thread]


def note_refusal() -> None:
    """A value was asked for in vain: note the line of the builder that did."""
    if not (noted := _NOTED.get(threading.get_ident())):
        return
    stack = traceback.StackSummary.extract(traceback.walk_stack(sys._getframe(1)), lookup_lines=False)
    frame = innermost(reversed(stack), TORCH)
    line = "" if frame is None else place(frame)
    if line not in noted[-1]:
        noted[-1].append(line)


_STORAGES: dict[int, StorageWeakRef] = {}
"""Storages of real tensors whose values are not known; a weak reference holds the address, not the memory."""


def mark(tensor: torch.Tensor) -> None:
    """The values of `tensor`, which has memory, are not known from now on, nor are those of what shares it."""
    for key in [key for key, storage in _STORAGES.items() if storage.expired()]:
        del _STORAGES[key]
    if (key := storage_key(tensor)) > 0:
        _STORAGES[key] = StorageWeakRef(tensor.untyped_storage())


def marks() -> set[int]:
    """The keys of the storages that are marked; see `storage_key`."""
    return set(_STORAGES)


def any_marked() -> bool:
    """Whether there may be any."""
    return bool(_STORAGES)


def is_marked(tensor: torch.Tensor) -> bool:
    """Whether the values of `tensor` are not known, though it has memory."""
    return bool(_STORAGES) and storage_key(tensor) in _STORAGES


_MARK = 1 << 62
"""A bit of the seed. Who sets a seed, or a state that was kept, is in step again: the bit goes with it."""


def skip_draws() -> None:
    """Random numbers that a builder with memory would have drawn were not: what comes next is not what it gets."""
    seed = torch.default_generator.initial_seed()
    if not seed & _MARK:
        torch.default_generator.manual_seed(seed | _MARK)


def in_step() -> bool:
    """Whether torch's random numbers are those that a builder with memory would draw."""
    return not torch.default_generator.initial_seed() & _MARK


def initial_seed() -> int:
    """The seed that was set, as `torch.initial_seed` gives it."""
    return int(torch.default_generator.initial_seed()) & ~_MARK
