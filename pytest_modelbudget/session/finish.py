"""The one end of a run, for pytest and the command alike: what it writes, sends away, and says of all results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pytest_modelbudget import snapshot
from pytest_modelbudget.base import Base
from pytest_modelbudget.budget import Finding
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.reports import github, overall, terminal
from pytest_modelbudget.reports.text import ReportSetting
from pytest_modelbudget.results import Result, SnapshotState, State
from pytest_modelbudget.results.groups import (
    ModelGroup,
    RunSummary,
    group_results,
    incomplete,
    ratchet_findings,
    sums,
    unenforced_growth,
)
from pytest_modelbudget.session import report_files
from pytest_modelbudget.session.addresses import folded_addresses
from pytest_modelbudget.session.baseline import deleted_snapshots
from pytest_modelbudget.session.report_files import ReportFile
from pytest_modelbudget.system import writing
from pytest_modelbudget.trackers import Tracker

NOT_COLLECTED: Final = "not collected"
"""The kind of a finding that says which models could not be known; it fails the run."""


@dataclass(slots=True)
class Collected:
    """What manifests, and the run itself, said that is not about one model."""

    groups: list[ModelGroup] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, groups: Iterable[ModelGroup] = (), findings: Iterable[Finding] = ()) -> None:
        """Add what is not there yet."""
        self.groups = list(dict.fromkeys((*self.groups, *groups)))
        self.findings = list(dict.fromkeys((*self.findings, *findings)))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user wants of the end of a run: accepted snapshots written, reports, results sent to a tracker.

    `must_arrive` says that the run fails when not all of them arrive there.
    """

    update: bool = False
    reports: Sequence[ReportFile] = ()
    tracker: Tracker | None = None
    must_arrive: bool = False


@dataclass(slots=True)
class Finished:
    """A run at its end: results sorted by id, then those of groups over a limit; what all of them together tell.

    `lines` say what was written, `problems` what could not be: these fail the run, as `failed` does. `written` is
    what is said of an accepted snapshot.
    """

    results: tuple[Result, ...] = ()
    overall: RunSummary = field(default_factory=RunSummary)
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    failed: bool = False
    written: str = "written"

    def closing(self, width: int) -> Iterator[str]:
        """The lines at the end: how all models came out, what all together tell, what was written."""
        if self.results:
            yield from terminal.closing_lines(self.results, width=width, written=self.written)
        yield from overall.lines(self.overall, self.results)
        yield from self.lines

    def annotations(self, root: Path, *, errors: bool = True) -> Iterator[str]:
        """Commands for GitHub, where it reads the log; without `errors` none for failed tests."""
        if github.reads_log():
            setting = ReportSetting(folder=report_files.folder_in_repository(root), overall=self.overall)
            yield from github.commands(self.results, setting, errors=errors)


def finish(results: Iterable[Result], wanted: Wanted, base: Base, collected: Collected, *, failed: bool) -> Finished:
    """Write and send what is wanted of a run over the project that `base` is of; says what came of it.

    `failed` is whether a result failed the run, which pytest knows: some failures are expected.
    """
    ordered = in_order(results)
    done = Finished()
    _sweep(ordered, base.root)
    if wanted.update:
        line, problems = write_snapshots(ordered, base.root)
        done.lines.append(line)
        done.problems += problems
    _prune(ordered, base.root, done)
    done.overall, over = finish_run(ordered, base, collected)
    done.results = (*ordered, *over)
    done.failed = failed or bool(over) or _lacks_models(ordered, collected)
    done.problems += report_files.write(wanted.reports, done.results, done.overall, base.root)
    if wanted.tracker is not None and done.results:
        _track(wanted.tracker, wanted, base.root, done)
    return done


def in_order(results: Iterable[Result]) -> list[Result]:
    """Results as they are shown, written and sent: by id, the same in every run."""
    return sorted(results, key=lambda result: (result.id, result.nodeid))


def finish_run(results: Sequence[Result], base: Base, collected: Collected) -> tuple[RunSummary, list[Result]]:
    """What a run says beside its results, and a result for each group that broke a limit on its sum."""
    judged_sums = tuple(sums(collected.groups, results))
    findings = (
        *collected.findings,
        *deleted_snapshots(base, base.root, results),
        *unenforced_growth(results),
        *incomplete(judged_sums),
        *ratchet_findings(results),
    )
    return RunSummary(str(base.where), findings, judged_sums), list(group_results(judged_sums))


def write_snapshots(results: Iterable[Result], root: Path) -> tuple[str, list[str]]:
    """Write the snapshots that an update run accepts; returns what to say, and what could not be written.

    A model that was stored elsewhere so far is not left there as well.
    """
    written_count = unchanged = 0
    problems: list[str] = []
    written: list[Result] = []
    owners: dict[str, str] = {}
    totals: dict[str, dict[str, str]] = {}
    with writing.DraftFolders() as drafts:
        for result in results:
            if not result.to_write:
                unchanged += result.snapshot.stored is SnapshotState.EQUAL
                continue
            path = result.snapshot.path
            own_path = snapshot.own_path_beside(path, result.id)
            if (owner := owners.setdefault(own_path.casefold(), result.nodeid)) != result.nodeid:
                problems.append(f"{path}: {owner} and {result.nodeid} both want to be here: rename one")
                continue
            written.append(result)
            if snapshot.is_totals(path):
                totals.setdefault(path, {})[result.id] = result.snapshot.text
                continue
            try:
                written_count += snapshot.write(root, snapshot.home_of(path), path, result.snapshot.text, drafts)
            except ModelBudgetError as error:
                problems.append(str(error))
        written_count += _write_totals(totals, root, drafts, problems)
    removed = 0 if problems else _remove_superseded(written, root, problems)
    moved = f", {removed} removed where they were stored before" if removed else ""
    return f"snapshots: wrote {written_count}, {unchanged} unchanged{moved}", problems


def _remove_superseded(written: Iterable[Result], root: Path, problems: list[str]) -> int:
    """Delete what is stored in another place of models that were just written; how many models that were."""
    removed = Finished(problems=problems)
    addresses = [
        address
        for result in written
        for address in snapshot.superseded(root, result.snapshot.path, result.id, result.snapshot.text)
    ]
    _delete_addresses(addresses, root, removed)
    return len(addresses)


def _write_totals(
    totals: Mapping[str, Mapping[str, str]], root: Path, drafts: writing.DraftFolders, problems: list[str]
) -> int:
    """Write each file of totals once, with all lines that are accepted; how many models that were."""
    written_count = 0
    for path, lines in totals.items():
        try:
            written_count += snapshot.write_lines(root, snapshot.home_of(path), path, lines, drafts)
        except ModelBudgetError as error:
            problems.append(str(error))
    return written_count


def _lacks_models(results: Iterable[Result], collected: Collected) -> bool:
    """Whether a model was not checked, or could not even be known: such a run is never green."""
    unknown = any(finding.kind == NOT_COLLECTED for finding in collected.findings)
    return unknown or any(result.state is State.NOT_CHECKED for result in results)


def _sweep(results: Iterable[Result], root: Path) -> None:
    """Remove what writes that were killed left beside the snapshots and manifests of `results`."""
    homes = {snapshot.home_of(result.snapshot.path) for result in results if result.snapshot.path}
    for home in homes | {"."}:
        writing.remove_drafts(root / home)
        writing.remove_drafts(root / home / snapshot.FOLDER)


def _prune(results: Iterable[Result], root: Path, done: Finished) -> None:
    """Delete the obsolete snapshots that a run accepts to lose."""
    _delete_addresses((address for result in results if result.accepted for address in result.files), root, done)


def _delete_addresses(addresses: Iterable[str], root: Path, done: Finished) -> None:
    """Delete snapshots: files, and lines of files of totals."""
    totals: dict[str, list[str]] = {}
    for address in addresses:
        path, is_line, model = address.partition("::")
        if is_line:
            totals.setdefault(path, []).append(model)
        else:
            _delete(root, path, done)
    _prune_totals(totals, root, done)


def _delete(root: Path, path: str, done: Finished) -> None:
    try:
        (root / path).unlink(missing_ok=True)  # another run may have pruned it
        done.lines.append(f"pruned {path}")
    except OSError as error:
        done.problems.append(f"{path}: cannot be deleted ({error.strerror})")


def _prune_totals(totals: Mapping[str, Sequence[str]], root: Path, done: Finished) -> None:
    for path, models in totals.items():
        try:
            snapshot.remove_lines(root, snapshot.home_of(path), path, models)
            done.lines += [f"pruned {line}" for line in folded_addresses(f"{path}::{model}" for model in models)]
        except ModelBudgetError as error:
            done.problems.append(str(error))


def _track(tracker: Tracker, wanted: Wanted, root: Path, done: Finished) -> None:
    """Send all results away; links to them go into the reports, which were written before."""
    delivery = tracker.log(done.results, root, exit_failed=done.failed or bool(done.problems))
    done.lines += delivery.lines
    if wanted.must_arrive and not delivery.ok:
        done.problems.append("not all was logged to MLflow, as --model-budget-mlflow-required demands")
    if delivery.links:
        report_files.append_links(delivery.links, wanted.reports)
