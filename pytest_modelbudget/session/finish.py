"""What a run comes to in the end and leaves behind, for pytest and the command alike: snapshots and sums."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pytest_modelbudget import snapshot
from pytest_modelbudget.base import Base
from pytest_modelbudget.budget import Finding
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.results import Result, Stored
from pytest_modelbudget.results.groups import Group, Overall, group_results, incomplete, ratchets, sums, unenforced
from pytest_modelbudget.session.baseline import deleted_snapshots
from pytest_modelbudget.system import writing


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
    with writing.Drafts() as drafts:
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
                written += snapshot.write(root, home, path, result.snapshot.text, drafts)
            except ModelBudgetError as error:
                problems.append(str(error))
    return f"snapshots: wrote {written}, {kept} unchanged", problems


def sweep(results: Iterable[Result], root: Path) -> None:
    """Remove what writes that were killed left beside the snapshots and manifests of `results`."""
    homes = {result.snapshot.path.partition(f"{snapshot.FOLDER}/")[0] for result in results if result.snapshot.path}
    for home in homes | {""}:
        writing.sweep(root / home)
        writing.sweep(root / home / snapshot.FOLDER)
