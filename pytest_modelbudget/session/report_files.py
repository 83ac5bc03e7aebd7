"""Reports as files: where each may go, and how it gets there without taking another one down with it."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from pytest_modelbudget import snapshot
from pytest_modelbudget.base import is_tracked
from pytest_modelbudget.config import MANIFEST_NAMES
from pytest_modelbudget.engine.tracebacks import one_line
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.reports import REPORT_MARKS, REPORTS, pieces, render, terminal, text, unfinished
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.results.groups import RunSummary
from pytest_modelbudget.system import writing
from pytest_modelbudget.system.intact import originals_restored

_RESERVED_FOLDERS = (snapshot.FOLDER, ".modelbudget", ".git")
"""Folders that no report goes to."""

_CONFIGURATION_FILES = frozenset(
    name.casefold()
    for name in (
        *MANIFEST_NAMES, "pyproject.toml", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini",
        "setup.cfg", ".gitignore", ".gitattributes",
    )
)  # fmt: skip
_SOURCE_SUFFIXES = (".py", ".pyi", ".ipynb")
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


def targets(texts: Iterable[str], folder: Path, *, protected: Iterable[Path] = ()) -> list[ReportFile]:
    """Read each `KIND:PATH`, with the path relative to `folder`; `protected` are files that are part of the run.

    Raises:
        ModelBudgetError: a report may not be written there, or two would be written to one place.
    """
    protected = tuple(protected)
    report_targets = []
    for option in texts:
        target = _parse_target(option, folder)
        if reason := _why_refused(target, option, protected):
            raise ModelBudgetError(f"{option}: {reason}: name another file")
        report_targets.append(target)
    for first, second in combinations(report_targets, 2):
        if _collide(first, second):
            raise ModelBudgetError(
                f"{second.kind}:{second.path}: the {first.kind} report goes there too: name another file"
            )
    return report_targets


def prepare(report_targets: Iterable[ReportFile], root: Path) -> None:
    """Load what reports need, before anybody's code runs, and take away those of an earlier run.

    A run that ends early leaves no report that could be taken for its own; a comment says that the run did not finish,
    since one that is not there would leave an older one standing.
    """
    with suppress(Exception):
        list(terminal.closing_lines([Result("\u4e16", State.SKIPPED)]))  # rich loads their widths when it meets one
    for target in report_targets:
        if target.is_file:
            with suppress(OSError):
                os.unlink(os.path.realpath(target.path))
        writing.remove_drafts(Path(os.path.realpath(target.path)).parent)
        with suppress(Exception):  # what is wrong is told when the report is due
            render(target.kind, ())
            page = unfinished(target.kind, _setting_for(target, root, RunSummary()))
            if page and not target.appended and not _is_consumed_at_once(target):
                writing.write(target.path, page)


@originals_restored()
def write(
    report_targets: Iterable[ReportFile], results: Sequence[Result], overall: RunSummary, root: Path
) -> list[str]:
    """Write each report; returns a line for each that could not be rendered or written."""
    return [problem for target in report_targets if (problem := _write_report(target, results, overall, root))]


def _write_report(target: ReportFile, results: Sequence[Result], overall: RunSummary, root: Path) -> str:
    """Why a report is not there; empty when it is."""
    name = f"report {target.kind}: {target.path}"
    page = _rendered(target.kind, results, _setting_for(target, root, overall))
    try:
        if target.appended:
            writing.append(target.path, "".join(page))
        else:
            writing.write(target.path, page)
    except _NotRendered as error:
        return f"{name} cannot be rendered ({error})"
    except OSError as error:
        return f"{name} cannot be written ({error.strerror or one_line(error)})"
    except Exception as error:
        return f"{name} cannot be written ({one_line(error)})"
    return ""


class _NotRendered(Exception):
    """A report could not be made of the results; the message says why."""


def _rendered(kind: str, results: Sequence[Result], setting: text.ReportSetting) -> Iterator[str]:
    """A report in pieces.

    Raises:
        _NotRendered: it cannot be made.
    """
    try:
        yield from pieces(kind, results, setting)
    except Exception as error:
        raise _NotRendered(one_line(error)) from error


def append_links(links: Sequence[tuple[str, str]], report_targets: Iterable[ReportFile]) -> None:
    """Add links to Markdown reports, which were written before, so that no tracker can keep them back."""
    line = " · ".join(f"[{name}](<{link}>)" for name, link in links)
    for target in report_targets:
        if target.kind == "md" and not _is_consumed_at_once(target):
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


def _setting_for(target: ReportFile, root: Path, overall: RunSummary) -> text.ReportSetting:
    return text.ReportSetting(target.path.stem, folder_in_repository(root), overall)


def _is_consumed_at_once(target: ReportFile) -> bool:
    """Whether what is written there is read at once: a pipe, a device, the output of the run."""
    if writing.descriptor_of(target.path) is not None:
        return True
    with suppress(OSError):
        return not stat.S_ISREG(os.stat(target.path).st_mode)
    return False


def _parse_target(option: str, folder: Path) -> ReportFile:
    kind, colon, path = option.partition(":")
    if not colon or not path.strip() or "\0" in path or kind not in REPORTS:
        raise ModelBudgetError(f"{option}: write KIND:PATH, with KIND one of {', '.join(REPORTS)}")
    summary_path = os.environ.get("GITHUB_STEP_SUMMARY")
    return ReportFile(
        kind, folder / path, appended=bool(summary_path) and _same_file(folder / path, folder / str(summary_path))
    )


def _why_refused(target: ReportFile, option: str, protected: Sequence[Path]) -> str:
    """Why no report may go there; empty when one may."""
    path = target.path
    if writing.descriptor_of(path) is not None:
        return ""
    if option.endswith(("/", os.sep)):
        return "it is a folder"
    with suppress(OSError):
        if stat.S_ISBLK(os.stat(path).st_mode):
            return "it is a disk"
    for candidate in (Path(os.path.abspath(path)), Path(os.path.realpath(path))):
        if reason := _why_reserved(candidate):
            return reason
    if any(_same_file(path, protected_path) for protected_path in protected):
        return "the run reads it"
    return _why_valuable(target) if target.is_file else ""


def _why_reserved(path: Path) -> str:
    """Whose place it is by its name, in any case; empty when it is free."""
    if reserved := next((name for name in _RESERVED_FOLDERS if name in map(str.casefold, path.parts)), None):
        return f"it lies in {reserved}"
    if path.name.casefold() in _CONFIGURATION_FILES:
        return f"{path.name} is no report"
    if path.suffix.casefold() in _SOURCE_SUFFIXES:
        return "it is a source file"
    return ""


def _why_valuable(target: ReportFile) -> str:
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
    if not head.strip(b"[]\n") or REPORT_MARKS[target.kind] in head.decode("utf-8", "replace"):
        return ""
    return "git tracks what is there, which is no report" if is_tracked(target.path) else ""


def _collide(first: ReportFile, second: ReportFile) -> bool:
    if (first.appended and second.appended) or _accepts_many_writers(first.path):
        return False
    return _same_file(first.path, second.path)


def _accepts_many_writers(path: Path) -> bool:
    """Whether one thing after the other can be written there: the output of the run, a device."""
    if writing.descriptor_of(path) is not None:
        return True
    with suppress(OSError):
        return stat.S_ISCHR(os.stat(path).st_mode)
    return False


def _same_file(first: Path, second: Path) -> bool:
    """Whether two paths mean one file here or on a system that knows no case: by links, spelling or hard links."""
    with suppress(OSError):
        if os.path.samefile(first, second):
            return True
    return _normalized(first) == _normalized(second)


def _normalized(path: Path) -> str:
    return unicodedata.normalize("NFC", os.path.realpath(path)).casefold()
