"""Memory of tensors and lists of tensors, with how often it will still be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Storage:
    """Memory of one tensor or of several that share it: how many reads of it are still to come.

    A list has no bytes of its own; each of its `items` is read by it until it is let go of.
    """

    number: int
    bytes: int
    reads: int = 0
    fixed: bool = False
    """Whether it stays when nothing reads it any more: variables, constants, and what was handed over."""
    items: dict[int, Storage] | None = None


@dataclass(slots=True)
class Storages:
    """Makes storages, and says which are let go of."""

    next_number: int
    freed: list[int] = field(default_factory=list)

    def new(self, size: int) -> Storage:
        """New memory of `size` bytes."""
        self.next_number += 1
        return Storage(self.next_number - 1, size)

    def new_list(self, items: Iterable[tuple[int, Storage]] = ()) -> Storage:
        """A list of `items` by their places."""
        made = self.new(0)
        made.items = dict(items)
        for item in made.items.values():
            item.reads += 1
        return made

    def own(self, held: Storage) -> Storage:
        """The list itself where nothing else will read it, else a copy that has the same items."""
        return held if held.reads == 1 else self.new_list((held.items or {}).items())

    def put(self, held: Storage, place: int, item: Storage) -> None:
        """`item` is at `place` of the list, instead of what was there."""
        items = held.items if held.items is not None else {}
        before = items.get(place)
        item.reads += 1
        items[place] = item
        if before is not None:
            self.read(before)

    def take_last(self, held: Storage) -> Storage | None:
        """The last item, which is in the list no longer; still read once by whoever takes it: see `read`."""
        return held.items.popitem()[1] if held.items else None

    def read(self, storage: Storage) -> None:
        """One of the reads of `storage` is over."""
        storage.reads -= 1
        self.free_if_unread(storage)

    def free_if_unread(self, storage: Storage) -> None:
        """Let go of what nothing will read, and of its items."""
        if storage.fixed or storage.reads > 0:
            return
        if storage.bytes:
            self.freed.append(storage.number)
            storage.bytes = 0
        items, storage.items = storage.items, None
        for item in (items or {}).values():
            self.read(item)

    def take_freed(self) -> tuple[int, ...]:
        """What was let go of since this was asked last."""
        freed, self.freed = tuple(self.freed), []
        return freed


def sum_of_lists(lists: Iterable[Storage]) -> Iterator[tuple[int, list[Storage]]]:
    """By place, the items of several lists that are added up."""
    places: dict[int, list[Storage]] = {}
    for held in lists:
        for place, item in (held.items or {}).items():
            places.setdefault(place, []).append(item)
    yield from places.items()
