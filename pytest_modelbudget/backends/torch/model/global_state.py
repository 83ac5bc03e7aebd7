"""The global state of a process that building or running a model may move, put back on leaving."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cache, partial
from types import FrameType, GeneratorType
from typing import Any

import torch

from pytest_modelbudget.backends import patching
from pytest_modelbudget.backends.torch.compat import no_dispatch
from pytest_modelbudget.backends.torch.model.settings import (
    OF_AUTOGRAD,
    OF_PASS,
    OF_PROCESS,
    OF_THREAD,
    Setting,
    dispatch_modes,
    read_all,
    write_all,
)

_FRAMES_TO_RESTORE = 40
"""What it takes to put state back, as calls within each other."""

MAX_WAIT = 60.0
"""Seconds that a thread waits for its turn."""


def global_state_restored() -> AbstractContextManager[None]:
    """On leaving, in whatever way, the process is as before, as far as torch and what it stands on can be set.

    These are the `settings` of this thread and those that all threads share (modes, hooks, defaults, random states,
    flags), and what this project patched; what other threads set meanwhile goes with them. Not undone: names that a
    model's own code patches, variables of the environment, process groups.

    Threads take turns, because what they share decides how models are built. When one waits for longer than
    `MAX_WAIT`, the other may be waiting for it: then both are inside, and what they share is put back by the last to
    leave, to what it was when the first came.
    """
    return _StateRestored(OF_PROCESS)


def global_state_restored_in_pass() -> AbstractContextManager[None]:
    """The same for one of several passes inside of it, quicker: most of what threads share waits for that."""
    return _StateRestored(OF_PASS)


class _StateRestored:
    """Whoever comes in near the limit of recursion gets out again: the way in is refused where the way out might fail.

    To raise the limit for the way out would not do: to lower it again kills the process when another thread is deep in
    a recursion just then.
    """

    __slots__ = ("_changes", "_has_turn", "_limit", "_of_thread", "_shared", "_values")

    def __init__(self, shared: Sequence[Setting]) -> None:
        self._shared = shared

    def __enter__(self) -> None:
        _reserve_frames(_FRAMES_TO_RESTORE)
        self._limit = sys.getrecursionlimit()
        self._changes = patching.change_count()
        self._has_turn = threading.get_ident() not in _INSIDE and _TURN.acquire(timeout=MAX_WAIT)
        try:
            self._look()
        except BaseException:
            patching.undo_since(self._changes)
            self._pass_on()
            raise

    def _look(self) -> None:
        of_autograd = read_all(OF_AUTOGRAD)
        with _LOCK:
            self._of_thread, self._values = read_all(OF_THREAD), read_all(self._shared)
            if threading.get_ident() not in _INSIDE and _INSIDE:  # what others found; they may have changed it since
                self._shared, self._values = next(iter(_INSIDE.values()))[0].found()
            _INFERENCE_TRACKED.inside().__enter__()
            autograd = torch._C._InferenceMode(torch.is_inference_mode_enabled())
            patching.UndoOnExit(partial(autograd.__exit__, None, None, None)).__enter__()
            autograd.__enter__()  # it knows the dispatch keys that are on, too
            write_all(OF_AUTOGRAD, of_autograd)
            thread = threading.get_ident()
            _INSIDE[thread] = [*_INSIDE.get(thread, ()), self]

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if sys.getrecursionlimit() < self._limit:
            sys.setrecursionlimit(self._limit)
        try:
            _close_failed_frames(error)
            self._put_back()
        except KeyboardInterrupt:  # pressed right here
            self._put_back()
            raise
        finally:
            self._pass_on()

    def found(self) -> tuple[Sequence[Setting], list[Any]]:
        """What all threads share, and how it was."""
        return self._shared, self._values

    def _pass_on(self) -> None:
        if self._has_turn:
            self._has_turn = False
            _TURN.release()

    def _put_back(self) -> None:
        with _LOCK:
            patching.undo_since(self._changes)
            write_all(OF_THREAD, self._of_thread)
            thread = threading.get_ident()
            if _INSIDE.keys() <= {thread}:
                write_all(self._shared, self._values)
            _INSIDE[thread] = [entered for entered in _INSIDE.get(thread, ()) if entered is not self]
            if not _INSIDE[thread]:
                del _INSIDE[thread]


def _reserve_frames(frames: int) -> None:
    if frames:
        _reserve_frames(frames - 1)


_TURN = threading.Lock()
_LOCK = threading.RLock()
_INSIDE: dict[int, list[_StateRestored]] = {}
"""What each thread is inside of, the outermost first."""


def _close_failed_frames(error: BaseException | None) -> None:
    """Clear the frames that failed with a context or a generator at hand.

    An error keeps its frames for as long as it is looked at; then they close, and set again what they found inside.
    """
    modes = dispatch_modes()  # torch 2.6 frees one that only its stack still holds before it has handed it out
    for frame in _frames_of_error(error):
        if any(isinstance(value, (AbstractContextManager, GeneratorType)) for value in frame.f_locals.values()):
            with suppress(RuntimeError):  # it is running
                frame.clear()
                dict(frame.f_locals)  # before Python 3.13 a copy, which holds them, too, until it is looked at again
    del modes


def _frames_of_error(error: BaseException | None) -> Iterator[FrameType]:
    """The frames through which an error and those before it came."""
    errors, visited = [error], set[int]()
    while errors:
        error = errors.pop()
        if error is None or id(error) in visited:
            continue
        visited.add(id(error))
        errors += error.__cause__, error.__context__
        traceback = error.__traceback__
        while traceback is not None:
            frame, traceback = traceback.tb_frame, traceback.tb_next
            if id(frame) not in visited:
                visited.add(id(frame))
                yield frame


def _track_inference_mode() -> Callable[[], object]:
    """A `torch.inference_mode` that is not left sets again what it found, whenever it goes: it is left for sure."""
    original: Callable[..., None] = torch.inference_mode.__enter__

    def enter(mode: Any) -> None:
        original(mode)
        if threading.get_ident() in _INSIDE:
            patching.UndoOnExit(partial(mode._inference_mode_context.__exit__, None, None, None)).__enter__()

    return patching.patch_all([(torch.inference_mode, "__enter__", enter)])


_INFERENCE_TRACKED = patching.SharedChange(_track_inference_mode)


def seed_everything(number: int = 0) -> None:
    """Fix the random states of torch, Python and numpy; call it inside `global_state_restored`."""
    random.seed(number)
    torch.default_generator.manual_seed(number)  # `torch.manual_seed` looks for GPUs, too, which takes a while
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(number)


def rng_moved_since(number: int) -> bool:
    """Whether random numbers were drawn since `seed(number)`."""
    return rng_states() != _after_seed(number, "numpy" in sys.modules)


def rng_states() -> Hashable:
    """The random states of torch, Python and numpy: equal as long as nothing was drawn."""
    with no_dispatch():
        rng_states = random.getstate(), _generator_bytes(torch.default_generator)
    numpy = sys.modules.get("numpy")
    return rng_states if numpy is None else (*rng_states, *_numpy_state(numpy.random.get_state()))


@cache
def _after_seed(number: int, with_numpy: bool) -> Hashable:
    """What `rng_states` gives right after `seed(number)`."""
    with no_dispatch():
        rng_states = random.Random(number).getstate(), _generator_bytes(torch.Generator().manual_seed(number))
    return (
        (*rng_states, *_numpy_state(sys.modules["numpy"].random.RandomState(number).get_state()))
        if with_numpy
        else rng_states
    )


def _generator_bytes(generator: torch.Generator) -> Hashable:
    state = generator.get_state()
    return state.numpy().tobytes() if "numpy" in sys.modules else tuple(state.tolist())


def _numpy_state(state: Any) -> tuple[Any, ...]:
    """A state of numpy's generator, in a form that can be compared."""
    kind, numbers, *rest = state
    return kind, numbers.tobytes(), *rest
