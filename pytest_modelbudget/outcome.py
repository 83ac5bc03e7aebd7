"""What a run comes to in the end and leaves behind, for pytest and the command alike: snapshots, sums, reports."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pytest_modelbudget import snapshot
from pytest_modelbudget.base import Base
from pytest_modelbudget.budget import Finding
from pytest_modelbudget.check import Result, Stored
from pytest_modelbudget.earlier import deleted_snapshots
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.overall import Group, Overall, group_results, incomplete, ratchets, sums, unenforced
from pytest_modelbudget.reports import REPORTS, render
from pytest_modelbudget.reports.text import Setting

Target = tuple[str, Path]
"""A kind of report, and the file it goes to."""


def conclude(
    results: Sequence[Result], base: Base, *, groups: Iterable[Group], findings: Iterable[Finding]
) -> tuple[Overall, list[Result]]:
    """What a run says beside its results, and a result for each group that broke a limit on its sum.

    `findings` are those of the manifests.
    """
    judged = tuple(sums(groups, results))
    said = (
        *findings,
        *deleted_snapshots(base, base.root, results),
        *unenforced(results),
        *incomplete(judged),
        *ratchets(results),
    )
    return Overall(str(base.where), said, judged), list(group_results(judged))


def write_snapshots(results: Iterable[Result], root: Path) -> tuple[str, list[str]]:
    """Write the snapshots that an update run accepts; returns what to say, and what could not be written."""
    written = kept = 0
    problems: list[str] = []
    owners: dict[str, str] = {}
    for result in results:
        if not result.to_write:
            kept += result.snapshot.stored is Stored.EQUAL
            continue
        path = result.snapshot.path
        if (owner := owners.setdefault(path.casefold(), result.nodeid)) != result.nodeid:
            problems.append(f"{path}: {owner} and {result.nodeid} both want to be here: rename one")
            continue
        try:
            home = path.partition(f"{snapshot.FOLDER}/")[0] or "."
            written += snapshot.write(root, home, path, result.snapshot.text)
        except ModelBudgetError as error:
            problems.append(str(error))
    return f"snapshots: wrote {written}, {kept} unchanged", problems


def report_target(text: str, folder: Path) -> Target:
    """Read `KIND:PATH`, with the path relative to `folder`.

    Raises:
        ModelBudgetError: it is not that, with what it should be.
    """
    kind, colon, path = text.partition(":")
    if not colon or not path or kind not in REPORTS:
        raise ModelBudgetError(f"{text}: write KIND:PATH, with KIND one of {', '.join(REPORTS)}")
    return kind, folder / path


def write_reports(targets: Iterable[Target], results: Sequence[Result], overall: Overall, root: Path) -> list[str]:
    """Write each report; returns what could not be written."""
    problems = []
    folder = folder_in_repository(root)
    for kind, path in targets:
        try:
            _write(path, render(kind, results, Setting(path.stem, folder, overall)))
        except OSError as error:
            problems.append(f"report {kind}: {path} cannot be written ({error.strerror})")
    return problems


def append_links(links: Sequence[tuple[str, str]], reports: Iterable[Path]) -> None:
    """Add links to Markdown reports, which were written before, so that no tracker can keep them back."""
    line = " · ".join(f"[{name}](<{link}>)" for name, link in links)
    for path in reports:
        with suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write(f"\nMLflow: {line}\n")


def folder_in_repository(root: Path) -> str:
    """The root's folder in the repository, as CI services name files; empty when it is the repository."""
    checkout = os.environ.get("GITHUB_WORKSPACE") or os.environ.get("CI_PROJECT_DIR")
    root = root.resolve()
    if not checkout or not root.is_relative_to(Path(checkout).resolve()):
        return ""
    folder = root.relative_to(Path(checkout).resolve()).as_posix()
    return "" if folder == "." else folder


def _write(path: Path, text: str) -> None:
    """Write a report atomically; a CI job's step summary is shared with other steps, so it is appended to."""
    if str(path) == os.environ.get("GITHUB_STEP_SUMMARY"):
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
