"""A file of totals: a head, then a line for each model; what is damaged costs the models of those lines alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pytest_modelbudget.loading import UnreadableFile, read_bytes

FORMAT = 1
"""Version of the file's shape, and of the words of rows that its digests are over; see `text.FORMAT`."""

MOST_BYTES = 100 * 10**6
"""Bytes of such a file that are read: hosts of repositories refuse larger ones. A model's line has some 400."""

_MOST_LINES = 10**6
"""Lines of such a file: those that are read have a hundred bytes and more."""

_HEAD = (
    "# totals by pytest-modelbudget, a line for each model; accept a change with: pytest --model-budget-update\n"
    f"format: {FORMAT}\n"
    "totals:\n"
)
_LINE = re.compile(
    r"(?:- \{model: (?:\"(?P<quoted>[^\"\n]*)\"|(?P<plain>[^\",\n]*)),"
    r"|(?P<marker><{7}|={7}|>{7}|\|{7})(?= |$)"
    r"|(?P<head>#|totals:(?: \[\])?$|format: (?P<format>[0-9]{1,9})$|$))?.*\n?",
    re.MULTILINE,
)
_DECLARED = re.compile(r'declared: (?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[^,"]*)),')
_MOST_CACHED = 256


@dataclass(frozen=True, slots=True)
class TotalsFile:
    """The lines of a file by the id of their model, cut out of its `text` when they are asked for.

    `conflicts` say of models why their lines cannot be told, and where; `stray` are the numbers of lines that are of no
    model. `problem` says why no line can be told, `line` where; with `newer` a newer version wrote the file, so that
    it is not to be written over.
    """

    text: str
    starts: Mapping[str, int] = field(default_factory=dict)
    conflicts: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    stray: tuple[int, ...] = ()
    problem: str = ""
    line: int | None = None
    newer: bool = False

    @property
    def ids(self) -> Iterator[str]:
        """The models it has lines of, those in a conflict among them."""
        yield from self.starts
        yield from (model for model in self.conflicts if model not in self.starts)

    def get(self, model: str) -> str | None:
        """The line of a model, without its line end; None where there is none."""
        start = self.starts.get(model)
        return None if start is None else _line_at(self.text, start)

    def __contains__(self, model: str) -> bool:
        return model in self.starts or model in self.conflicts

    def number(self, model: str) -> int:
        """The number of a model's line."""
        return self.text.count("\n", 0, self.starts[model]) + 1


def _line_at(text: str, start: int) -> str:
    end = text.find("\n", start)
    return text[start:] if end < 0 else text[start:end]


def declared_by(line: str) -> str:
    """Where a line says that its model was declared; `?` when it does not say it."""
    match = _DECLARED.search(line)
    return (match["quoted"] or match["plain"] or "") if match else "?"


def render_file(lines: Iterable[tuple[str, str]]) -> str:
    """The file of lines by id, in their order."""
    body = "".join(f"{line}\n" for _, line in sorted(lines))
    return f"{_HEAD}{body}" if body else _HEAD.replace("totals:", "totals: []")


@lru_cache(_MOST_CACHED)
def parse(text: str) -> TotalsFile:
    """Find the lines of a text; none is read, and the base's file costs nothing where it is the same."""
    reader = _Reader(text)
    for match in _LINE.finditer(text):
        if match.end() > match.start():
            reader.take(match)
    return reader.file()


class _Reader:
    """Takes lines one after the other."""

    def __init__(self, text: str) -> None:
        self.text, self.number, self.format = text, 0, 0
        self.starts: dict[str, int] = {}
        self.conflicts: dict[str, tuple[int, str]] = {}
        self.stray: list[int] = []
        self.conflict_start = 0
        self.conflict_has_models = False
        self.marker_without_pair: int | None = None

    def take(self, match: re.Match[str]) -> None:
        self.number += 1
        model = match["quoted"] or match["plain"]
        if model:
            self._model(model, match.start())
        elif match["marker"]:
            self._marker(match["marker"])
        elif match["format"]:
            self.format = self.format or int(match["format"])
        elif match["head"] is None:
            self.stray.append(self.number)

    def _model(self, model: str, start: int) -> None:
        self.conflict_has_models = True
        if self.conflict_start:
            self.conflicts.setdefault(model, (self.conflict_start, "has a git conflict marker: both sides changed it"))
        earlier = self.starts.get(model)
        if earlier is None:
            self.starts[model] = start
        elif not self.conflict_start and _line_at(self.text, earlier) != _line_at(self.text, start):
            self.conflicts[model] = (self.number, "is a second line of this model: both sides of a merge changed it")

    def _marker(self, marker: str) -> None:
        begins, ends = marker[0] == "<", marker[0] == ">"
        if begins == bool(self.conflict_start):
            self.marker_without_pair = self.marker_without_pair or self.number
        if ends and not self.conflict_has_models:
            self.stray.append(self.conflict_start or self.number)
        if begins or ends:
            self.conflict_start, self.conflict_has_models = self.number if begins else 0, False

    def file(self) -> TotalsFile:
        problem, line = self._problem()
        newer = self.format > FORMAT
        return TotalsFile(self.text, self.starts, self.conflicts, tuple(self.stray), problem, line, newer)

    def _problem(self) -> tuple[str, int | None]:
        if self.format > FORMAT:
            return (
                f"it has format {self.format}, written by a newer pytest-modelbudget (this one reads up to {FORMAT}): "
                "upgrade pytest-modelbudget"
            ), None
        if not self.format:
            return "there is no 'format' line: the file is cut off or no file of totals", None
        if line := self.marker_without_pair or self.conflict_start:
            reason = "has a git conflict marker without the other of its pair: which models it is about cannot be told"
            return reason, line
        return "", None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a file of totals is neither read nor written."""

    reason: str


def read_file(root: Path, home: str, path: str) -> TotalsFile | Refusal | None:
    """The file at `path`, below `home`; None where there is none. It is read once while it stays the same."""
    file = f"{root}/{path}"  # each of a hundred thousand models asks, and a `Path` takes longer than the answer
    try:
        state = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return Refusal(f"cannot be read ({error.strerror or error})")
    return _read_once(file, f"{root}/{home}", (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))


@lru_cache(_MOST_CACHED)
def _read_once(file: str, home: str, _: tuple[int, ...]) -> TotalsFile | Refusal | None:
    return read_now(Path(file), Path(home))


def read_now(path: Path, home: Path) -> TotalsFile | Refusal | None:
    """The same, of what is there at this moment."""
    if leads_outside(path, home):
        return Refusal("is a link that leads out of the folder: remove it")
    try:
        data = read_bytes(path, MOST_BYTES)
    except FileNotFoundError:
        return None
    except UnreadableFile as error:
        return Refusal(str(error))
    return parse_bounded(_decode(data))


def parse_bounded(text: str) -> TotalsFile | Refusal:
    """The same as `parse` of a text that anybody may have written."""
    lines = text.count("\n")
    return Refusal(f"has {lines:,} lines: at most {_MOST_LINES:,} are read") if lines > _MOST_LINES else parse(text)


def _decode(data: bytes) -> str:
    """Text of any bytes: what is no UTF-8 stays as it is, and makes its own line alone unreadable."""
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def encode(text: str) -> bytes:
    """The bytes of `_decode`."""
    return text.encode("utf-8", "surrogateescape")


def leads_outside(path: Path, home: Path) -> bool:
    """Whether a link leads from `path` out of `home`."""
    try:
        return not path.resolve().is_relative_to(home.resolve())
    except RuntimeError:  # links that lead in a circle, before Python 3.13
        return True


def merged(file: TotalsFile | None, lines: Mapping[str, str], without: Iterable[str] = ()) -> str:
    """The text of a file with `lines` in place of, or beside, those it has; the lines of `without` go.

    A conflict over a model that is not among `lines` stays one: both its lines are kept. What is of no model goes.
    """
    gone = {*lines, *without}
    unchanged = [] if file is None else [item for item in _all_lines(file.text) if item[0] not in gone]
    return render_file(dict.fromkeys([*unchanged, *lines.items()]))


def _all_lines(text: str) -> Iterator[tuple[str, str]]:
    """Every line with the id of its model, without those that git says were there before both sides of a conflict."""
    in_ancestor = False
    for match in _LINE.finditer(text):
        if match["marker"]:
            in_ancestor = match["marker"][0] == "|"
        elif (model := match["quoted"] or match["plain"]) and not in_ancestor:
            yield model, match[0].removesuffix("\n")
