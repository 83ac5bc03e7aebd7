"""What the process of pytest and a worker say to each other: jobs one way, answers the other, in frames of bytes.

A job is pickled, since only its worker reads it. An answer is data, whoever wrote it: the user's code had the process
that it comes from.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from enum import Enum
from typing import IO, Any

from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import FrameworkMissing, ModelBudgetError

DEBUG = ".debug"
"""Suffix of the file beside the printed output in which a worker writes what `MODELBUDGET_DEBUG` asks for."""

_FRAME_HEAD = struct.Struct(">QI")
_MOST_BYTES = 1 << 31
"""Of one frame: the packed rows of the largest models are some megabytes."""


@dataclass(frozen=True, slots=True)
class EntrySource:
    """A source of a manifest, by its reference, and the entry that holds its place."""

    reference: str
    holder: ModelEntry


@dataclass(frozen=True, slots=True)
class UserModule:
    """A file of the user's that pytest imports, and how it does: a test module, or a conftest."""

    path: str
    root: str
    mode: str
    namespaces: bool = False


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The module search path, working directory and variables that a job is done with."""

    path: tuple[str, ...] = ()
    folder: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def current(cls) -> Surroundings:
        """Those of this process; without a folder when it is gone."""
        try:
            folder = os.getcwd()
        except OSError:
            folder = ""
        return cls(tuple(sys.path), folder, dict(os.environ))


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do for the worker: `count` an entry, call a source for its `entries`, or `call` a function.

    That function is named `module:function`, takes its `argument` and returns data, both as JSON. To `import` the
    module of an entry's builder ahead of time has no answer of its own.

    An entry of a `source` or of a `module` has its builder there, by its id. `conftests` are imported before, once.
    """

    kind: str
    entry: ModelEntry | None = None
    source: EntrySource | None = None
    module: UserModule | None = None
    function: str = ""
    argument: str = ""
    conftests: tuple[UserModule, ...] = ()
    surroundings: Surroundings = field(default_factory=Surroundings)


@dataclass(frozen=True, slots=True)
class Answer:
    """How a job came out.

    `kind` is `result` (packed, in `data`), `entries` (pickled there), `data` (JSON there), `failed` (with `text`),
    `interrupted`, `here` (it is to be done in the process that asked) or `ended` (made where the worker ended; `text`
    says how).
    `spoiled` says why the worker is not to be used again, `trace` what is found in it that may disturb the next model,
    `types` which default types its modules changed, `missing` which framework a source lacks, `short` is a short
    `text`, `warnings` what was warned of.
    """

    kind: str
    text: str = ""
    data: bytes = field(default=b"", repr=False)
    spoiled: str = ""
    trace: str = ""
    missing: str = ""
    short: str = ""
    warnings: tuple[tuple[str, str, str, int], ...] = ()
    types: str = ""

    def entries(self) -> tuple[ModelEntry, ...]:
        """The entries in `data`.

        Raises:
            ModelBudgetError: it is something else.
        """
        loaded = _EntriesUnpickler(io.BytesIO(self.data)).load()
        if not isinstance(loaded, tuple) or not all(isinstance(entry, ModelEntry) for entry in loaded):
            raise ModelBudgetError("the worker answered with something else than entries")
        return loaded

    def error(self) -> ModelBudgetError:
        """What a failed source raises where it is called."""
        return FrameworkMissing(self.missing, self.text) if self.missing else ModelBudgetError(self.text)


def without_builder(entry: ModelEntry) -> ModelEntry:
    """`entry` without its builder and what that takes, which stay in the process that has them."""
    return replace(entry, build="", args=(), kwargs={}, inputs=None)


class _EntriesUnpickler(pickle.Unpickler):
    """Makes the values that entries consist of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _VALUE_TYPES:
            return super().find_class(module, name)
        if module.partition(".")[0] == "pytest_modelbudget" and "." not in name:
            kind = super().find_class(module, name)
            if isinstance(kind, type) and kind.__module__ == module and _is_value(kind):
                return kind
        raise pickle.UnpicklingError(f"{module}.{name} is no part of an entry")


def _is_value(kind: type) -> bool:
    return is_dataclass(kind) or issubclass(kind, (Enum, dict))


_VALUE_TYPES = {
    ("fractions", "Fraction"), ("decimal", "Decimal"), ("datetime", "date"), ("builtins", "frozenset"),
    ("builtins", "set"), ("pathlib", "PosixPath"), ("pathlib", "WindowsPath"), ("pathlib", "Path"),
}  # fmt: skip


def write_job(stream: IO[bytes], number: int, job: Job) -> None:
    """Send a job; what cannot be pickled raises before anything is sent."""
    _write(stream, number, pickle.dumps(job))


def read_job(stream: IO[bytes]) -> tuple[int, Job] | None:
    """The next job with its number, None when there are no more."""
    frame = _read(stream)
    return None if frame is None else (frame[0], pickle.loads(frame[1]))


def write_answer(stream: IO[bytes], number: int, answer: Answer) -> None:
    """Send the answer to the job of that number."""
    _write(stream, number, pack_answer(answer))


def read_answer(stream: IO[bytes]) -> tuple[int, Answer] | None:
    """The next answer with the number of its job, None when there are no more.

    Raises:
        ValueError, TypeError: it is none.
    """
    frame = _read(stream)
    return None if frame is None else (frame[0], unpack_answer(frame[1]))


def pack_answer(answer: Answer) -> bytes:
    """An answer as it travels, without its `short` text."""
    texts = (answer.kind, answer.text, answer.spoiled, answer.trace, answer.missing, answer.types)
    return with_head([*texts, answer.warnings], answer.data)


def unpack_answer(body: bytes) -> Answer:
    """Read back what `pack_answer` gave.

    Raises:
        ValueError, TypeError: it is none.
    """
    (*texts, warnings), data = split_head(body)
    kind, text, spoiled, trace, missing, types = map(str, texts)
    recorded = tuple(_warning(*warning) for warning in warnings)
    return Answer(kind, text, data, spoiled, trace, missing, warnings=recorded, types=types)


def with_head(head: Any, data: bytes) -> bytes:
    """Plain JSON data before bytes."""
    text = json.dumps(head).encode()
    return struct.pack(">I", len(text)) + text + data


def split_head(body: bytes) -> tuple[Any, bytes]:
    """What `with_head` put together.

    Raises:
        ValueError: it is something else.
    """
    end = 4 + int.from_bytes(body[:4], "big")
    return json.loads(body[4:end]), body[end:]


def _warning(category: Any, message: Any, file: Any, line: Any) -> tuple[str, str, str, int]:
    return str(category), str(message), str(file), int(line)


def _write(stream: IO[bytes], number: int, body: bytes) -> None:
    stream.write(_FRAME_HEAD.pack(len(body), number) + body)
    stream.flush()


def _read(stream: IO[bytes]) -> tuple[int, bytes] | None:
    head = _read_exactly(stream, _FRAME_HEAD.size)
    if head is None:
        return None
    length, number = _FRAME_HEAD.unpack(head)
    if length > _MOST_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    body = _read_exactly(stream, length)
    return None if body is None else (number, body)


def _read_exactly(stream: IO[bytes], length: int) -> bytes | None:
    chunks: list[bytes] = []
    while length:
        chunk = stream.read(length)
        if not chunk:
            return None
        chunks.append(chunk)
        length -= len(chunk)
    return b"".join(chunks)
