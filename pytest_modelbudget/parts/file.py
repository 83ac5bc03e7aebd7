"""The file of a part: written whole or not at all, read within bounds, and known when a byte of it is not as written.

    modelbudget-part 1
    <gzip: one line of JSON for the head, one for each result, one that says how many these were>
    sha256:<of all bytes before this line>

The first line is plain, so that the file of a later version, whatever it has inside, is known for what it is.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from pytest_modelbudget import loading
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import InvalidText, UnreadableFile, open_file, read_json
from pytest_modelbudget.parts import schema
from pytest_modelbudget.parts.content import head_data, head_from, registry_from
from pytest_modelbudget.parts.part import Part, PartHead, RunRegistry
from pytest_modelbudget.results import Result, codec
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.system import writing

FORMAT = 1
"""Version of the format; a part of another is refused."""

SUFFIX = ".part"

MOST_LINE = 256 * 10**6
"""Bytes of one line, a result or the head, beyond which a part is not read; a model of 100,000 rows has a fifth."""

MOST_BYTES = 20 * 10**9
"""Bytes of all lines of a part beyond which it is not read on; 5,000 models of 100 rows have a hundredth."""

_MAGIC = re.compile(rb"modelbudget-part (\d{1,9})\n")
_FIRST_LINE = b"modelbudget-part %d\n" % FORMAT
_LAST_LINE = re.compile(rb"\nsha256:([0-9a-f]{64})\n")
_LAST_LINE_BYTES = len("\nsha256:\n") + 64
_CHUNK = 1 << 18
_GZIP = 31
_DAMAGED = "it was cut, edited or mixed with another: write it again, with the run that it is of"


class RefusedPart(ModelBudgetError):
    """A file that is no part, or not one that can be trusted; the message has its name and the cure."""


def write(path: Path, head: PartHead, packed: Iterable[bytes]) -> None:
    """Write a part with results as `codec.pack` gives them.

    Raises:
        OSError: it cannot be written; a file that was there is as it was.
    """
    content = bytearray(_FIRST_LINE)
    compressor = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
    for line in _lines_of(head, packed):
        content += compressor.compress(line + b"\n")
    content += compressor.flush()
    content += b"\n"
    content += b"sha256:%s\n" % hashlib.sha256(content[:-1]).hexdigest().encode()
    writing.write(path, bytes(content))


def _lines_of(head: PartHead, packed: Iterable[bytes]) -> Iterator[bytes]:
    yield codec.one_line(head_data(head))
    count = 0
    for result in packed:
        yield codec.packed_line(result)
        count += 1
    yield codec.one_line({"results": count})


def read_head(path: Path, registries: dict[str, RunRegistry] | None = None) -> Part:
    """The part in a file, without its results, which `with_results` reads.

    The file is opened once: one that is replaced meanwhile is read as it was. `registries` are those of other parts by
    their digests: the parts of a run share one, and a new one is added.

    Raises:
        RefusedPart: there is no such file, it is no part, of another version, or not as it was written.
    """
    with _opened(path) as (digest, lines):
        return Part(str(path), digest, _head(next(lines, b""), {} if registries is None else registries))


def with_results(part: Part, keep: Callable[[Result], Result] = lambda result: result) -> Part:
    """A part with its results; `keep` may put each of them away, and gives what stands for it.

    Raises:
        RefusedPart: see `read_head`; its file is no longer the one whose head was read.
    """
    with _opened(Path(part.name)) as (digest, lines):
        if digest != part.digest:
            raise _Refused("it was written again while it was read: merge again")
        next(lines, b"")
        return replace(part, results=tuple(_results(lines, keep)))


def read(path: Path) -> Part:
    """The whole part in a file; see `read_head` for what is raised."""
    return with_results(read_head(path))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The digest of a part and its lines, of which every byte is as it was written.

    Raises:
        RefusedPart: see `read_head`; whatever turns out inside is told with the name of the part.
    """
    try:
        with open_file(path) as file:
            digest, length = _checked_digest(file)
            yield digest, _bounded_lines(file, length)
    except FileNotFoundError:
        raise RefusedPart(f"{path}: there is no such file: give the parts that the runs wrote") from None
    except UnreadableFile as problem:
        raise RefusedPart(f"{path} {problem}") from None
    except _Refused as refused:
        raise RefusedPart(f"{path}: {refused}") from None
    except (OSError, zlib.error, EOFError):
        raise RefusedPart(f"{path}: {_DAMAGED}") from None


def forget(path: Path) -> None:
    """Remove the part of an earlier run, which must not be taken for that of a run which does not come to its end.

    Raises:
        RefusedPart: what lies there is no part, or cannot be removed.
    """
    if not writing.is_file(path):
        if path.is_dir():
            raise RefusedPart(f"{path} is a folder: name a file in it, such as {path / 'modelbudget-1.part'}")
        return
    try:
        if not _MAGIC.match(loading.read_head(path, 64)) and os.path.getsize(path):
            raise RefusedPart(f"{path} is there, and is no part: name another file")
        os.unlink(os.path.realpath(path))
    except FileNotFoundError:  # another run removed it
        return
    except UnreadableFile as problem:
        raise RefusedPart(f"{path} {problem}: name another file") from None
    except OSError as error:
        reason = error.strerror or error
        raise RefusedPart(
            f"{path}: the part of an earlier run cannot be removed ({reason}): name another file"
        ) from None


class _Refused(Exception):
    """Why the content of a file is no part."""


def _checked_digest(file: BinaryIO) -> tuple[str, int]:
    """The digest of an open part, and how many bytes its lines take, compressed; it is left at the first of these."""
    first = file.read(64)
    match = _MAGIC.match(first)
    if match is None:
        raise _Refused(
            "it is no part of a run: give the files that --model-budget-part or modelbudget check --part wrote"
        )
    version = int(match[1])
    if version != FORMAT or not first.startswith(_FIRST_LINE):
        age = "a newer" if version > FORMAT else "another"
        raise _Refused(
            f"it was written by {age} pytest-modelbudget (format {version}; this one reads {FORMAT}): "
            "use the same version in all jobs"
        )
    size = os.fstat(file.fileno()).st_size
    length = size - _LAST_LINE_BYTES
    if length <= len(_FIRST_LINE):
        raise _Refused(_DAMAGED)
    digest = hashlib.sha256(first[: min(len(first), length)])
    file.seek(min(len(first), length))
    remaining = length - file.tell()
    while remaining > 0 and (chunk := file.read(min(_CHUNK, remaining))):
        digest.update(chunk)
        remaining -= len(chunk)
    last = _LAST_LINE.fullmatch(file.read(_LAST_LINE_BYTES + 1))
    if last is None or last[1].decode() != digest.hexdigest():
        raise _Refused(_DAMAGED)
    file.seek(len(_FIRST_LINE))
    return digest.hexdigest(), length - len(_FIRST_LINE)


def _bounded_lines(file: BinaryIO, length: int) -> Iterator[bytes]:
    """The lines of what is compressed in the next `length` bytes; no more than a bound of it is ever held."""
    decompressor = zlib.decompressobj(_GZIP)
    buffer = bytearray()
    total = 0
    while length or decompressor.unconsumed_tail:
        data = decompressor.unconsumed_tail or file.read(min(_CHUNK, length))
        if not decompressor.unconsumed_tail:
            length -= len(data)
        text = decompressor.decompress(data, _CHUNK)
        total += len(text)
        buffer += text
        if len(buffer) > MOST_LINE or total > MOST_BYTES:
            raise _Refused("it is too large to be read: deal the models to more shards")
        if b"\n" in text:
            *lines, rest = bytes(buffer).split(b"\n")
            buffer = bytearray(rest)
            yield from lines
    if buffer or not decompressor.eof or decompressor.unused_data:
        raise _Refused(_DAMAGED)


def _results(lines: Iterator[bytes], keep: Callable[[Result], Result]) -> Iterator[Result]:
    """The results of a part, whose last line says how many they have to be."""
    count = 0
    end: Any = None
    for line in lines:
        if end is not None:
            raise _Refused(_DAMAGED)
        data = _data(line)
        if isinstance(data, dict) and "state" in data:
            count += 1
            yield keep(_result(data))
        else:
            end = _checked(schema.EndLine, data, "the last line")
    if end is None or end["results"] != count:
        raise _Refused(_DAMAGED)


def _head(line: bytes, registries: dict[str, RunRegistry]) -> PartHead:
    data = _checked(schema.HeadLine, _data(line), "the head")
    digest = data["registry"]
    if digest not in registries:
        registry: RunRegistry = _made(registry_from, data, "the head")
        if registry.digest != digest:
            raise _Refused(_DAMAGED)
        registries[digest] = registry
    head: PartHead = _made(partial(head_from, registries[digest]), data, "the head")
    return head


def _result(data: dict[str, Any]) -> Result:
    data = _checked(schema.ResultLine, data, "a result")
    where = f"the result of {str(data['nodeid'])[:200]!r}"
    summary = data["summary"] and _made(Summary.checked, data["summary"], where)
    earlier = {kind: _made(Summary.checked, content, where) for kind, content in data["earlier"].items()}
    result: Result = _made(codec.whole_result, {**data, "summary": None, "earlier": {}}, where)
    since = None if result.since is None else replace(result.since, before=earlier.get("since"))
    snapshot = replace(result.snapshot, before=earlier.get("snapshot"))
    return replace(result, summary=summary or None, since=since, snapshot=snapshot)


def _made(make: Any, data: Any, where: str) -> Any:
    """What `make` gives for data whose shape was checked.

    Raises:
        _Refused: a value of it cannot be.
    """
    try:
        return make(data)
    except (ModelBudgetError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise _Refused(f"{where} cannot be read ({str(error)[:300]}): {_DAMAGED}") from None


def _checked(shape: Any, data: Any, where: str) -> Any:
    if problem := schema.mistake(shape, data):
        raise _Refused(f"{where}: {problem}: {_DAMAGED}")
    return data


def _data(line: bytes) -> Any:
    try:
        return read_json(line.decode())
    except (InvalidText, UnicodeDecodeError) as problem:
        raise _Refused(f"{str(problem)[:300]}: {_DAMAGED}") from None
