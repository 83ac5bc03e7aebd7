"""`modelbudget check` and `modelbudget update`: the registered models against their snapshots and limits."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from pytest_modelbudget.cli.project import NO_MANIFEST, find, width
from pytest_modelbudget.cli.session import Run, check_models
from pytest_modelbudget.config import MANIFEST_NAMES
from pytest_modelbudget.reports import github, overall, table, terminal, text
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.session import report_files
from pytest_modelbudget.session.finish import sweep, write_snapshots
from pytest_modelbudget.system.escape import captured, harmless, harmless_lines
from pytest_modelbudget.trackers import tracker

_ROWS = 40
NO_MODEL = 4
INTERRUPTED = 2
"""What pytest exits with then, too."""


def run(options: Namespace) -> int:
    """Check, write what is to be written, and say how it came out: 0, 1, 2 when interrupted, or 4 without a model."""
    held = [Path.cwd() / name for name in (options.file, *MANIFEST_NAMES) if name]
    wanted = report_files.targets(options.report, Path.cwd(), held=held)
    report_files.begin(wanted, Path.cwd())
    log = tracker("mlflow").log if options.mlflow else None  # imported before the models' code runs
    project = find(options.file, Path.cwd())
    if not project.manifests:
        print(f"modelbudget: {NO_MANIFEST}", file=sys.stderr)
        return NO_MODEL

    def tell(result: Result, said: str) -> None:
        print("".join(f"{line}\n" for line in _told(result, said, options.verbose)), end="", flush=True)

    done = check_models(project, options.ids, accept=options.accept, base=options.base, tell=tell)
    if not done.results:
        print(f"modelbudget: {', '.join(path.name for path in project.manifests)} registers no model", file=sys.stderr)
        return NO_MODEL
    sweep(done.results, project.root)
    lines, problems = _written(done, options.accept, project.root)
    problems += report_files.write(wanted, done.results, done.overall, project.root)
    failed = any(result.state.failed for result in done.results)
    if log is not None:
        delivery = log(done.results, project.root, exit_failed=failed or bool(problems))
        lines += delivery.lines
        if delivery.links:
            report_files.append_links(delivery.links, wanted)
    closing = terminal.closing(done.results, width=width())
    print("\n".join((*closing, *overall.lines(done.overall, done.results), *lines)))
    _annotate(done, project.root)
    for problem in problems:
        print(f"ERROR {harmless_lines(problem)}", file=sys.stderr)
    return INTERRUPTED if done.interrupted else int(failed or bool(problems))


def _told(result: Result, said: str, verbose: int) -> Iterator[str]:
    """Why a model failed, or with `-v` its table; a skipped one says why."""
    rows, columns = None if verbose > 1 else _ROWS, width()
    if result.state.failed:
        yield terminal.failure(result, width=columns, rows=rows, explain=verbose > 1)
        if said.strip():
            yield "it printed:"
            yield captured(said.strip())
        yield ""
    elif result.state is State.SKIPPED:
        yield harmless(f"{result.id}: skipped: {result.error}")
    elif verbose and result.summary is not None:
        yield table.summary_text(result.summary, width=columns, most=rows, explain=verbose > 1)
        yield ""


def _written(done: Run, accept: bool, root: Path) -> tuple[list[str], list[str]]:
    if not accept:
        return [], []
    line, problems = write_snapshots(done.results, root)
    return [line], problems


def _annotate(done: Run, root: Path) -> None:
    """Annotations, where GitHub reads the log."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        setting = text.Setting(folder=report_files.folder_in_repository(root), overall=done.overall)
        for line in github.commands(done.results, setting):
            print(line)
