"""`modelbudget merge`: the parts of a run, judged once, as the run would be that had checked all models itself."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from pytest_modelbudget.base import DEEPEN_HINT, Base, checkout_of
from pytest_modelbudget.cli.check import NO_MODEL, result_lines
from pytest_modelbudget.cli.progress import progress
from pytest_modelbudget.cli.project import find_project, terminal_width
from pytest_modelbudget.config import MANIFEST_NAMES
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.parts import Part, RunRegistry, file, times
from pytest_modelbudget.parts.merging import (
    PRODUCT,
    MergedRun,
    check_here,
    contradictions,
    merged,
    problems_of,
    seconds_by_node,
)
from pytest_modelbudget.parts.registering import manifest_digest
from pytest_modelbudget.reports import terminal
from pytest_modelbudget.results.store import ResultStore
from pytest_modelbudget.session import report_files
from pytest_modelbudget.session.finish import Collected, Finished, Wanted, finish, in_order
from pytest_modelbudget.session.registry import obsolete_files_result
from pytest_modelbudget.system.escape import harmless_lines, printable, without_commands
from pytest_modelbudget.trackers import tracker

T = TypeVar("T")


def run(options: Namespace) -> int:
    """Merge, judge, and say how it came out: 0, 1 when a model failed or the parts are not a run, 4 without a model."""
    paths, problems = _part_paths(options.parts)
    protected = [*(Path.cwd() / name for name in (options.file, *MANIFEST_NAMES) if name), *paths]
    reports = report_files.targets(options.report, Path.cwd(), protected=protected)
    report_files.prepare(reports, Path.cwd())
    sent_to = tracker("mlflow") if options.mlflow else None
    root = find_project(options.file, Path.cwd()).root
    parts, problems = ([], problems) if problems else _read_parts(paths)
    whole = MergedRun() if problems else merged(parts)
    with closing(Base(root, whole.base)) as base:
        if problems := problems or list(_problems_here(whole, base)):
            return _refuse(problems)
        if not whole.registry.nodes and not whole.obsolete:
            print("modelbudget: no part knows of any model: register one in modelbudget.yaml", file=sys.stderr)
            return NO_MODEL
        finished = _judge(whole, Wanted(whole.update, reports, sent_to), base, options.verbose)
    finished.problems += _times_problems(options.times, whole)
    lines = (*finished.closing(terminal_width()), *map(_whole_lines, whole.notes), *finished.annotations(root))
    print("\n".join(lines))
    for problem in finished.problems:
        print(f"ERROR {harmless_lines(problem)}", file=sys.stderr)
    return int(finished.failed or bool(finished.problems))


def _part_paths(names: Iterable[str]) -> tuple[list[Path], list[str]]:
    """The files that parts are in, and what is wrong with folders that should have some."""
    paths: list[Path] = []
    problems = []
    for name in names:
        path = Path(name)
        inside = sorted(path.glob(f"*{file.SUFFIX}")) if path.is_dir() else [path]
        paths += inside
        if not inside:
            problems.append(f"{name}: there is no *{file.SUFFIX} in this folder: give the parts that the runs wrote")
    return paths, problems


def _read_parts(paths: Sequence[Path]) -> tuple[list[Part], list[str]]:
    """All parts, or why they are not one run: the heads first, by which most of that shows at once."""
    registries: dict[str, RunRegistry] = {}
    heads, problems = _each(lambda path: file.read_head(path, registries), paths)
    if problems := problems or problems_of(heads, version(PRODUCT)):
        return [], problems
    store = ResultStore()
    parts, problems = _each(lambda head: file.with_results(head, store.add), heads)
    return parts, problems or contradictions(parts)


def _each(read: Callable[[T], Part], sources: Iterable[T]) -> tuple[list[Part], list[str]]:
    """What can be read of each source in turn, and why others cannot."""
    parts: list[Part] = []
    problems = []
    with progress("reading parts"):
        for source in sources:
            try:
                parts.append(read(source))
            except ModelBudgetError as problem:
                problems.append(str(problem))
    return parts, problems


def _refuse(problems: Iterable[str]) -> int:
    """Say all that is wrong; nothing is judged then."""
    for problem in problems:
        print(f"modelbudget: {_whole_lines(problem)}", file=sys.stderr)
    print("modelbudget: the parts are not a whole run, so nothing was judged", file=sys.stderr)
    return 1


def _whole_lines(text: str) -> str:
    """Text with names of others, none of its lines cut: the cure stands at the end."""
    return without_commands("\n".join(map(printable, text.splitlines())))


def _problems_here(whole: MergedRun, base: Base) -> Iterator[str]:
    """Why this checkout is not the one to merge in."""
    digests = {name: manifest_digest(base.root / name) for name in whole.registry.manifests}
    yield from check_here(whole, checkout_of(base.root), digests)
    try:
        _ = base.files
    except ModelBudgetError as problem:
        yield f"the base of the parts, {base.where.name}, cannot be read here: {problem}: {DEEPEN_HINT}"


def _judge(whole: MergedRun, wanted: Wanted, base: Base, verbose: int) -> Finished:
    """Show what failed, and end the run as one that was not in parts ends."""
    obsolete = (
        replace(obsolete_files_result("snapshot-files", item.files, item.declared), nodeid=item.nodeid)
        for item in whole.obsolete
    )
    results = in_order((*whole.results, *obsolete))
    many_new = sum(map(terminal.is_new, results)) > terminal.MOST_NEW
    for result in results:
        for line in result_lines(result, "", verbose, many_new=many_new):
            print(line)
    collected = Collected()
    collected.add(whole.registry.groups, whole.findings)
    with progress("logging to MLflow" if wanted.tracker else "writing reports"):
        return finish(results, wanted, base, collected, failed=whole.failed or bool(whole.obsolete))


def _times_problems(path: str | None, whole: MergedRun) -> list[str]:
    """Write the seconds that were measured, where they are wanted; what went wrong."""
    if path is None:
        return []
    try:
        times.write(Path(path), seconds_by_node(whole.results))
    except ModelBudgetError as problem:
        return [str(problem)]
    return []
