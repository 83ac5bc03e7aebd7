"""Results of very many models: put away as they come, and read again where somebody looks into one.

`ResultStore` holds of each result what all reports ask for, and writes the whole to a temporary file. What it gives are
results like any other: they equal, pickle and are replaced as those that were put in; rows, texts and changes are read
when they are asked for.
"""

from __future__ import annotations

import struct
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import IO, Any, TypeVar, overload

from pytest_modelbudget.results import codec
from pytest_modelbudget.results.result import BaseComparison, Result, Snapshot
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.system.intact import originals_restored

_MOST_UNSPILLED = 1 << 20
"""Packed bytes that stay in memory, so that small runs need no file."""

_MOST_LOADED = 4 << 20
"""Packed bytes of results that were read and are still at hand: some 500 of published models. In memory they take some
twenty times that."""

_MOST_SHARED = 10_000
"""Different limits, tags and places that are looked for; where each model has its own, nothing is gained by it."""

_LONGEST_ERROR = 1_000
_MOST_HELD = 4
"""Violations and findings of one model that are held."""

_HELD_TOTALS = ("params", "trainable_params", "buffers", "weight_bytes", "leaf_count", "largest_layer_share")
_READ_TOTAL = "non_embedding_params"
"""Properties of a summary that reports ask of each model: held from the first on, and held once it was read."""

_WHOLE, _SUMMARY = "whole", "summary"
"""What was read of a result."""

_LENGTH = struct.Struct(">I")

T = TypeVar("T")
V = TypeVar("V", Result, Summary, Snapshot, BaseComparison)

Reference = int | bytes
"""Where something was put: its place in the file, or itself."""


class ResultStore(Sequence[Result]):
    """Results in the order in which they came; one of the same node id and id takes the place of an earlier one."""

    def __init__(self) -> None:
        self._spill = _Spill()
        self._numbers: dict[tuple[str, str], int] = {}
        self._results: list[Result] = []
        self._references: list[Reference] = []
        self._loaded: OrderedDict[tuple[int, str], tuple[Any, int]] = OrderedDict()
        self._loaded_bytes = 0
        self._shared: dict[tuple[type, str], Any] = {}

    @originals_restored()
    def add(self, result: Result) -> Result:
        """Put a result away; returns it as it is held."""
        return self._put(result, codec.pack(result))

    @originals_restored()
    def add_packed(self, data: bytes) -> Result:
        """The same for what `codec.pack` gave."""
        return self._put(codec.unpack(data), data)

    def packed(self) -> Iterator[bytes]:
        """All results as `codec.pack` gives them, in the order in which they came."""
        return map(self._spill.read, self._references)

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Result]: ...
    def __getitem__(self, index: int | slice) -> Result | Sequence[Result]:
        return self._results[index]

    def whole(self, number: int) -> Result:
        """The result of that number with all that is in it, read again unless it was just now."""
        result: Result = self._read((number, _WHOLE), codec.unpack)
        return result

    def summary(self, number: int) -> Summary | None:
        """Its summary alone, which is what most ask for."""
        if (number, _WHOLE) in self._loaded:
            return self.whole(number).summary
        summary: Summary = self._read((number, _SUMMARY), codec.summary_of)
        return summary

    def snapshot_text(self, number: int) -> str:
        """The text of its snapshot, which an update run wants of each model and with nothing else."""
        if (number, _WHOLE) in self._loaded:
            return self.whole(number).snapshot.text
        return codec.snapshot_text(self._spill.read(self._references[number]))

    def shared(self, value: T) -> T:
        """One and the same object for all values that are written alike, as long as there are not too many."""
        key = type(value), repr(value)
        if len(self._shared) < _MOST_SHARED:
            self._shared.setdefault(key, value)
        shared: T = self._shared.get(key, value)
        return shared

    def _put(self, result: Result, data: bytes) -> Result:
        number = self._numbers.setdefault((result.nodeid, result.id), len(self._results))
        if number == len(self._results):
            self._results.append(result)
            self._references.append(b"")
        for part in (_WHOLE, _SUMMARY):
            self._loaded_bytes -= self._loaded.pop((number, part), (None, 0))[1]
        self._references[number] = self._spill.put(data)
        self._results[number] = _stored(result, self, number)
        self._keep_loaded((number, _WHOLE), result, len(data))
        return self._results[number]

    def _read(self, key: tuple[int, str], unpack: Callable[[bytes], Any]) -> Any:
        if key in self._loaded:
            self._loaded.move_to_end(key)
            return self._loaded[key][0]
        data = self._spill.read(self._references[key[0]])
        with originals_restored():
            value = unpack(data)
        self._keep_loaded(key, value, len(data))
        return value

    def _keep_loaded(self, key: tuple[int, str], value: Any, size: int) -> None:
        """Keep a value at hand, in place of those that were used last where there is no room.

        Reports go through all results one after the other: of more than have room the first are still there when the
        next report begins, while the last would each have gone before they are asked for.
        """
        while self._loaded and self._loaded_bytes + size > _MOST_LOADED:
            _, (_, last_size) = self._loaded.popitem()
            self._loaded_bytes -= last_size
        self._loaded[key] = value, size
        self._loaded_bytes += size


class _Spill:
    """Bytes in a temporary file, once they are many; what cannot be written there stays in memory."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._in_memory = self._end = 0

    def put(self, data: bytes) -> Reference:
        """Put bytes away; returns what `read` takes."""
        if self._in_memory + len(data) > _MOST_UNSPILLED:
            try:
                return self._write(data)
            except OSError:  # no room, or no folder for it: the run goes on
                pass
        self._in_memory += len(data)
        return data

    def _write(self, data: bytes) -> int:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="modelbudget-", buffering=0)  # noqa: SIM115  # as long as the results
            weakref.finalize(self, self._file.close)
        place, record = self._end, _LENGTH.pack(len(data)) + data
        self._file.seek(place)
        if self._file.write(record) != len(record):
            raise OSError("no room for all of it")
        self._end += len(record)
        return place

    def read(self, reference: Reference) -> bytes:
        """The bytes that were put there."""
        if isinstance(reference, bytes):
            return reference
        assert self._file is not None
        self._file.seek(reference)
        return self._file.read(_LENGTH.unpack(self._file.read(_LENGTH.size))[0])


class _Stored:
    """Mixed into a class of values: attributes that were not set are those of the `_whole` value in the store.

    It passes for the class it extends, by which dataclasses compare, copy and show.
    """

    __slots__ = ()
    _store: ResultStore
    _number: int

    def _whole(self) -> Any:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole(), name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self).__bases__[1]

    def __reduce__(self) -> str | tuple[Any, ...]:
        return self._whole().__reduce_ex__(4)  # type: ignore[no-any-return]


class _StoredResult(_Stored, Result):
    __slots__ = ("_number", "_store")

    def _whole(self) -> Result:
        return self._store.whole(self._number)


class _StoredSummary(_Stored, Summary):
    """Holds its totals too, in place of the properties that add up rows; one that costs more once it was asked for."""

    __slots__ = (*_HELD_TOTALS, _READ_TOTAL, "_number", "_store")

    def _whole(self) -> Summary | None:
        return self._store.summary(self._number)

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if name == _READ_TOTAL:
            object.__setattr__(self, name, value)
        return value


class _StoredSnapshot(_Stored, Snapshot):
    __slots__ = ("_number", "_store")

    def _whole(self) -> Snapshot:
        return self._store.whole(self._number).snapshot

    def __getattr__(self, name: str) -> Any:
        return self._store.snapshot_text(self._number) if name == "text" else super().__getattr__(name)


class _StoredComparison(_Stored, BaseComparison):
    __slots__ = ("_number", "_store")

    def _whole(self) -> BaseComparison | None:
        return self._store.whole(self._number).since


def _stored(result: Result, store: ResultStore, number: int) -> Result:
    """A result with what is small of it, and all else in the store."""
    many = [name for name in ("violations", "findings") if len(getattr(result, name)) > _MOST_HELD]
    long = ["error"] if len(result.error) > _LONGEST_ERROR else []
    return _filled(
        _StoredResult,
        result,
        store,
        number,
        left_out=(*many, *long, "changes", "files"),
        limits=store.shared(result.limits),
        tags=store.shared(result.tags),
        place=store.shared(result.place),
        seconds=round(result.seconds, 4),  # as it is read again
        summary=None if result.summary is None else _stored_summary(result.summary, store, number),
        snapshot=_stored_snapshot(result.snapshot, store, number),
        since=None if result.since is None else _stored_comparison(result.since, store, number),
    )


def _stored_summary(summary: Summary, store: ResultStore, number: int) -> Summary:
    return _filled(
        _StoredSummary,
        summary,
        store,
        number,
        left_out=("layers", "inputs", "outputs", "notes", "plans", "growth"),
        **{name: getattr(summary, name) for name in _HELD_TOTALS},
        framework=store.shared(summary.framework),
        sizes=store.shared(summary.sizes),
    )


def _stored_snapshot(snapshot: Snapshot, store: ResultStore, number: int) -> Snapshot:
    return _filled(_StoredSnapshot, snapshot, store, number, left_out=("text", "before", "problem"))


def _stored_comparison(since: BaseComparison, store: ResultStore, number: int) -> BaseComparison:
    if not (since.totals or since.changes or since.before):
        return store.shared(since)
    return _filled(
        _StoredComparison, since, store, number, left_out=("changes", "before"), name=store.shared(since.name)
    )


def _filled(kind: type[V], value: V, store: ResultStore, number: int, *, left_out: Sequence[str], **held: Any) -> V:
    """A `kind` that holds the fields of `value`, but for those that are `left_out` and not empty; `held` are others."""
    stored = object.__new__(kind)
    held |= {"_store": store, "_number": number}
    for name in (field.name for field in fields(kind)):
        if name in held or not (name in left_out and getattr(value, name)):
            held.setdefault(name, getattr(value, name))
    for name, held_value in held.items():
        object.__setattr__(stored, name, held_value)
    return stored
