"""Reports as files: where each may go, and how it gets there without taking another one down with it."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from pytest_modelbudget import snapshot
from pytest_modelbudget.base import tracked
from pytest_modelbudget.config import MANIFEST_NAMES
from pytest_modelbudget.engine.tracebacks import in_short
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.reports import MARKS, REPORTS, render, terminal, text, unfinished
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.results.groups import Overall
from pytest_modelbudget.system import writing
from pytest_modelbudget.system.intact import intact

_OURS = (snapshot.FOLDER, ".modelbudget", ".git")
"""Folders that no report goes to."""

_CONFIGURING = frozenset(
    name.casefold()
    for name in (
        *MANIFEST_NAMES, "pyproject.toml", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini",
        "setup.cfg", ".gitignore", ".gitattributes",
    )
)  # fmt: skip
_SOURCES = (".py", ".pyi", ".ipynb")
_HEAD = 8192
"""Bytes that tell what a file is."""


@dataclass(frozen=True, slots=True)
class ReportFile:
    """A report that was asked for: its kind, and the path as the user means it.

    `appended` says that others write there too, as to the summary page of a CI job.
    """

    kind: str
    path: Path
    appended: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it is a file of its own that is there already, rather than a pipe, a device or a shared one."""
        return not self.appended and writing.is_file(self.path)


def targets(texts: Iterable[str], folder: Path, *, held: Iterable[Path] = ()) -> list[ReportFile]:
    """Read each `KIND:PATH`, with the path relative to `folder`; `held` are files that are part of the run.

    Raises:
        ModelBudgetError: a report may not be written there, or two would be written to one place.
    """
    held = tuple(held)
    wanted = []
    for written in texts:
        target = _read(written, folder)
        if why := _refusal(target, written, held):
            raise ModelBudgetError(f"{written}: {why}: name another file")
        wanted.append(target)
    for one, other in combinations(wanted, 2):
        if _is_one_place(one, other):
            raise ModelBudgetError(
                f"{other.kind}:{other.path}: the {one.kind} report goes there too: name another file"
            )
    return wanted


def begin(wanted: Iterable[ReportFile], root: Path) -> None:
    """Load what reports need, before anybody's code runs, and take away those of an earlier run.

    A run that ends early leaves no report that could be taken for its own; a comment says that the run did not finish,
    since one that is not there would leave an older one standing.
    """
    with suppress(Exception):
        list(terminal.closing([Result("\u4e16", State.SKIPPED)]))  # rich loads their widths when it meets one
    for target in wanted:
        if target.is_file:
            with suppress(OSError):
                os.unlink(os.path.realpath(target.path))
        writing.sweep(Path(os.path.realpath(target.path)).parent)
        with suppress(Exception):  # what is wrong is told when the report is due
            render(target.kind, ())
            page = unfinished(target.kind, _setting(target, root, Overall()))
            if page and not target.appended and not _passes_on(target):
                writing.write(target.path, page)


@intact()
def write(wanted: Iterable[ReportFile], results: Sequence[Result], overall: Overall, root: Path) -> list[str]:
    """Write each report; returns a line for each that could not be rendered or written."""
    return [problem for target in wanted if (problem := _written(target, results, overall, root))]


def _written(target: ReportFile, results: Sequence[Result], overall: Overall, root: Path) -> str:
    """Why a report is not there; empty when it is."""
    name = f"report {target.kind}: {target.path}"
    try:
        page = render(target.kind, results, _setting(target, root, overall))
    except Exception as error:
        return f"{name} cannot be rendered ({in_short(error)})"
    try:
        (writing.append if target.appended else writing.write)(target.path, page)
    except OSError as error:
        return f"{name} cannot be written ({error.strerror or in_short(error)})"
    except Exception as error:
        return f"{name} cannot be written ({in_short(error)})"
    return ""


def append_links(links: Sequence[tuple[str, str]], wanted: Iterable[ReportFile]) -> None:
    """Add links to Markdown reports, which were written before, so that no tracker can keep them back."""
    line = " · ".join(f"[{name}](<{link}>)" for name, link in links)
    for target in wanted:
        if target.kind == "md" and not _passes_on(target):
            with suppress(OSError):
                writing.append(target.path, f"\nMLflow: {line}\n")


def folder_in_repository(root: Path) -> str:
    """The root's folder in the repository, as CI services name files; empty when it is the repository."""
    checkout = os.environ.get("GITHUB_WORKSPACE") or os.environ.get("CI_PROJECT_DIR")
    root = root.resolve()
    if not checkout or not root.is_relative_to(Path(checkout).resolve()):
        return ""
    folder = root.relative_to(Path(checkout).resolve()).as_posix()
    return "" if folder == "." else folder


def _setting(target: ReportFile, root: Path, overall: Overall) -> text.Setting:
    return text.Setting(target.path.stem, folder_in_repository(root), overall)


def _passes_on(target: ReportFile) -> bool:
    """Whether what is written there is read at once: a pipe, a device, the output of the run."""
    if writing.descriptor(target.path) is not None:
        return True
    with suppress(OSError):
        return not stat.S_ISREG(os.stat(target.path).st_mode)
    return False


def _read(written: str, folder: Path) -> ReportFile:
    kind, colon, path = written.partition(":")
    if not colon or not path.strip() or "\0" in path or kind not in REPORTS:
        raise ModelBudgetError(f"{written}: write KIND:PATH, with KIND one of {', '.join(REPORTS)}")
    shared = os.environ.get("GITHUB_STEP_SUMMARY")
    return ReportFile(kind, folder / path, appended=bool(shared) and _same(folder / path, folder / str(shared)))


def _refusal(target: ReportFile, written: str, held: Sequence[Path]) -> str:
    """Why no report may go there; empty when one may."""
    path = target.path
    if writing.descriptor(path) is not None:
        return ""
    if written.endswith(("/", os.sep)):
        return "it is a folder"
    with suppress(OSError):
        if stat.S_ISBLK(os.stat(path).st_mode):
            return "it is a disk"
    for place in (Path(os.path.abspath(path)), Path(os.path.realpath(path))):
        if why := _belongs(place):
            return why
    if any(_same(path, other) for other in held):
        return "the run reads it"
    return _holds_else(target) if target.is_file else ""


def _belongs(place: Path) -> str:
    """Whose place it is by its name, in any case; empty when it is free."""
    if ours := next((name for name in _OURS if name in map(str.casefold, place.parts)), None):
        return f"it lies in {ours}"
    if place.name.casefold() in _CONFIGURING:
        return f"{place.name} is no report"
    if place.suffix.casefold() in _SOURCES:
        return "it is a source file"
    return ""


def _holds_else(target: ReportFile) -> str:
    """What a file that is there holds, when it is worth more than an earlier report."""
    try:
        with open(target.path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return ""  # told when it is written
    if snapshot.declared_in(target.path) is not None:
        return "it is a snapshot"
    if b"\0" in head:
        return "what is there is no text"
    if not head.strip(b"[]\n") or MARKS[target.kind] in head.decode("utf-8", "replace"):
        return ""
    return "git tracks what is there, which is no report" if tracked(target.path) else ""


def _is_one_place(one: ReportFile, other: ReportFile) -> bool:
    if (one.appended and other.appended) or _takes_any(one.path):
        return False
    return _same(one.path, other.path)


def _takes_any(path: Path) -> bool:
    """Whether one thing after the other can be written there: the output of the run, a device."""
    if writing.descriptor(path) is not None:
        return True
    with suppress(OSError):
        return stat.S_ISCHR(os.stat(path).st_mode)
    return False


def _same(one: Path, other: Path) -> bool:
    """Whether two paths mean one file here or on a system that knows no case: by links, spelling or hard links."""
    with suppress(OSError):
        if os.path.samefile(one, other):
            return True
    return _spelled(one) == _spelled(other)


def _spelled(path: Path) -> str:
    return unicodedata.normalize("NFC", os.path.realpath(path)).casefold()
