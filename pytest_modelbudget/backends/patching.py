"""Changes of the whole process that are undone, in whatever order threads leave them, and also when leaving fails.

What belongs to others is replaced by `patched` and what stands on it, and in no other way.

Near the limit of recursion not even `__exit__` can be called. What a thread has changed is therefore listed, and
whoever guards the process (`undo_since`) undoes what is still on the list, with frames to spare.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

_len = len
"""The builtin as it was at first: what is undone may be a builder's that has replaced it."""
_LOCK = threading.RLock()
_MISSING = object()
_PATCHES_BY_NAME: dict[tuple[int, str], list[Any]] = {}
"""What a patched name was, and the patches on it, each on top of the one before; by the `id` of its owner."""


class _ThreadChanges(threading.local):
    """What this thread has changed and not undone yet."""

    def __init__(self) -> None:
        self.pending: list[ProcessChange] = []


_CHANGES = _ThreadChanges()


class ProcessChange:
    """A context that undoes something on leaving, or when a guard around it finds that it was not left."""

    def undo(self) -> None:
        """Undo it; called again when it failed half-way, for want of frames."""
        raise NotImplementedError

    def __enter__(self) -> None:
        _CHANGES.pending.append(self)

    def __exit__(self, *_: object) -> None:
        changes = _CHANGES.pending
        for index in range(_len(changes) - 1, -1, -1):
            if changes[index] is self:
                self.undo()
                del changes[index]
                return


class UndoOnExit(ProcessChange):
    """A change that the caller makes himself, with the function that undoes it."""

    def __init__(self, undo: Callable[[], object]) -> None:
        self._callback = undo

    def undo(self) -> None:
        """Call it."""
        self._callback()


def patched(owner: Any, name: str, value: Any) -> ProcessChange:
    """Inside, `owner.name` is `value`; whoever patches the same name, in whichever thread, may leave in any order.

    A name that `owner` inherits, or lacks, is its own inside, and gone again on leaving.
    """
    return _Patch(owner, name, value)


@contextmanager
def all_patched(patches: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Inside, each `(owner, name, value)` is `patched`."""
    with ExitStack() as stack:
        for owner, name, value in patches:
            stack.enter_context(patched(owner, name, value))
        yield


class _Patch(ProcessChange):
    """See `patched`."""

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._owner, self._name, self.value = owner, name, value

    def __enter__(self) -> None:
        super().__enter__()
        self.apply()

    def apply(self) -> None:
        """Set the name, for somebody who sees to `undo`."""
        with _LOCK:
            own = vars(self._owner).get(self._name, _MISSING)
            _PATCHES_BY_NAME.setdefault((id(self._owner), self._name), [own]).append(self)
            setattr(self._owner, self._name, self.value)

    def undo(self) -> None:
        """Set the name to the patch that is on top now, or to what it was."""
        key = id(self._owner), self._name
        with _LOCK:
            layers = _PATCHES_BY_NAME.get(key, ())
            rest = [layer for layer in layers if layer is not self]
            if _len(rest) == _len(layers):
                return
            top = rest[-1].value if _len(rest) > 1 else rest[0]
            if top is not _MISSING:
                setattr(self._owner, self._name, top)
            elif self._name in vars(self._owner):
                delattr(self._owner, self._name)
            if _len(rest) > 1:
                _PATCHES_BY_NAME[key] = rest
            else:
                del _PATCHES_BY_NAME[key]


class SharedChange:
    """A change that serves all threads at once: `change` is called by the first to enter and gives what undoes it.

    The last to leave undoes it.
    """

    def __init__(self, change: Callable[[], Callable[[], object]]) -> None:
        self._change = change
        self._undo: Callable[[], object] = change
        self._users: list[ProcessChange] = []

    def inside(self) -> ProcessChange:
        """A context in which the change holds."""
        return _User(self)

    def enter(self, user: ProcessChange) -> None:
        """Change it, for one more user."""
        with _LOCK:
            if not self._users:
                self._undo = self._change()
            self._users.append(user)

    def leave(self, user: ProcessChange) -> None:
        """Undo it, when nobody else uses it."""
        with _LOCK:
            if self._users == [user]:
                self._undo()
            if user in self._users:
                self._users.remove(user)


class _User(ProcessChange):
    def __init__(self, shared: SharedChange) -> None:
        self._shared = shared

    def __enter__(self) -> None:
        super().__enter__()
        self._shared.enter(self)

    def undo(self) -> None:
        """Leave it."""
        self._shared.leave(self)


def patch_all(patches: Iterable[tuple[Any, str, Any]]) -> Callable[[], None]:
    """Patch each `(owner, name, value)`, for `SharedChange`, and give what undoes it; none stays when one fails."""
    pending: list[_Patch] = []

    def undo() -> None:
        for patch in reversed(pending):
            patch.undo()

    try:
        for owner, name, value in patches:
            pending.append(_Patch(owner, name, value))
            pending[-1].apply()
    except BaseException:
        undo()
        raise
    return undo


@contextmanager
def exchanged(package: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[None]:
    """Inside, each module of a package has the `new` content of a name where it had the `old`, None for none.

    Modules imported meanwhile take over what they find; they have the old content on leaving, too.
    """
    with UndoOnExit(partial(_exchange, package, new, old)):
        _exchange(package, old, new)
        yield


def _exchange(package: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for module in [module for name, module in list(sys.modules.items()) if name.startswith(package)]:
        for name, value in old.items():
            if value is not None and vars(module).get(name) is value:
                setattr(module, name, new[name])


def change_count() -> int:
    """Where the list of this thread's changes ends, for `undo_since`."""
    return _len(_CHANGES.pending)


def undo_since(position: int) -> None:
    """Undo what this thread changed since `change_count` gave `position` and has not undone yet, the last change first.

    Raises:
        Exception: the first error of an `undo`; the others are called nevertheless.
    """
    first_error: Exception | None = None
    for change in reversed(_CHANGES.pending[position:]):
        try:
            change.__exit__()
        except Exception as error:
            first_error = first_error or error
    del _CHANGES.pending[position:]
    if first_error is not None:
        raise first_error


def gc_paused() -> ProcessChange:
    """Inside, cyclic garbage waits: models are many small objects that stay, and looking through them takes long."""
    return _GC_PAUSED.inside()


def _pause_gc() -> Callable[[], object]:
    if not gc.isenabled():
        return lambda: None
    gc.disable()
    return gc.enable


_GC_PAUSED = SharedChange(_pause_gc)
