"""Changes of the whole process that are undone, in whatever order threads leave them, and also when leaving fails.

Near the limit of recursion not even `__exit__` can be called. What a thread has changed is therefore listed, and
whoever guards the process (`undo_since`) undoes what is still on the list, with frames to spare.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable
from typing import Any

_LOCK = threading.RLock()
_MISSING = object()
_LAYERS: dict[tuple[Any, str], list[Any]] = {}
"""What a patched name was, and the patches on it, each on top of the one before."""


class _Changes(threading.local):
    """What this thread has changed and not undone yet."""

    def __init__(self) -> None:
        self.made: list[Change] = []


_CHANGES = _Changes()


class Change:
    """A context that undoes something on leaving, or when a guard around it finds that it was not left."""

    def undo(self) -> None:
        """Undo it; called again when it failed half-way, for want of frames."""
        raise NotImplementedError

    def __enter__(self) -> None:
        _CHANGES.made.append(self)

    def __exit__(self, *_: object) -> None:
        made = _CHANGES.made
        for place in range(len(made) - 1, -1, -1):
            if made[place] is self:
                self.undo()
                del made[place]
                return


class Undoing(Change):
    """A change that the caller makes himself, with the function that undoes it."""

    def __init__(self, undo: Callable[[], object]) -> None:
        self._callback = undo

    def undo(self) -> None:
        """Call it."""
        self._callback()


class Patched(Change):
    """Inside, `owner.name` is `value`; threads that patch the same name may leave in any order."""

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._owner, self._name, self.value = owner, name, value

    def __enter__(self) -> None:
        super().__enter__()
        with _LOCK:
            own = vars(self._owner).get(self._name, _MISSING)
            _LAYERS.setdefault((self._owner, self._name), [own]).append(self)
            setattr(self._owner, self._name, self.value)

    def undo(self) -> None:
        """Set the name to the patch that is on top now, or to what it was."""
        key = self._owner, self._name
        with _LOCK:
            layers = _LAYERS.get(key, ())
            rest = [layer for layer in layers if layer is not self]
            if len(rest) == len(layers):
                return
            top = rest[-1].value if len(rest) > 1 else rest[0]
            if top is not _MISSING:
                setattr(self._owner, self._name, top)
            elif self._name in vars(self._owner):
                delattr(self._owner, self._name)
            if len(rest) > 1:
                _LAYERS[key] = rest
            else:
                del _LAYERS[key]


class Shared:
    """A change that serves all threads at once: `change` is called by the first to enter and gives what undoes it.

    The last to leave undoes it.
    """

    def __init__(self, change: Callable[[], Callable[[], object]]) -> None:
        self._change = change
        self._undo: Callable[[], object] = change
        self._users: list[Change] = []

    def inside(self) -> Change:
        """A context in which the change holds."""
        return _User(self)

    def enter(self, user: Change) -> None:
        """Change it, for one more user."""
        with _LOCK:
            if not self._users:
                self._undo = self._change()
            self._users.append(user)

    def leave(self, user: Change) -> None:
        """Undo it, when nobody else uses it."""
        with _LOCK:
            if self._users == [user]:
                self._undo()
            if user in self._users:
                self._users.remove(user)


class _User(Change):
    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def __enter__(self) -> None:
        super().__enter__()
        self._shared.enter(self)

    def undo(self) -> None:
        """Leave it."""
        self._shared.leave(self)


def patch_all(patches: Iterable[tuple[Any, str, Any]]) -> Callable[[], None]:
    """Patch each `(owner, name, value)` and give what undoes it; none stays patched when one fails."""
    originals: list[tuple[Any, str, Any]] = []

    def undo() -> None:
        for owner, name, original in reversed(originals):
            setattr(owner, name, original)

    try:
        for owner, name, value in patches:
            originals.append((owner, name, vars(owner)[name]))
            setattr(owner, name, value)
    except BaseException:
        undo()
        raise
    return undo


def mark() -> int:
    """Where the list of this thread's changes ends, for `undo_since`."""
    return len(_CHANGES.made)


def undo_since(place: int) -> None:
    """Undo what this thread changed since `mark` gave `place` and has not undone yet, the last change first.

    Raises:
        Exception: the first error of an `undo`; the others are called nevertheless.
    """
    first: Exception | None = None
    for change in reversed(_CHANGES.made[place:]):
        try:
            change.__exit__()
        except Exception as error:
            first = first or error
    del _CHANGES.made[place:]
    if first is not None:
        raise first


def gc_paused() -> Change:
    """Inside, cyclic garbage waits: models are many small objects that stay, and looking through them takes long."""
    return _GC_PAUSED.inside()


def _pause_gc() -> Callable[[], object]:
    if not gc.isenabled():
        return lambda: None
    gc.disable()
    return gc.enable


_GC_PAUSED = Shared(_pause_gc)
