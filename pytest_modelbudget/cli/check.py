"""`modelbudget check` and `modelbudget update`: the registered models against their snapshots and limits."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pytest_modelbudget.cli.parallel import chosen_engine
from pytest_modelbudget.cli.part import check_part, part_request
from pytest_modelbudget.cli.progress import progress
from pytest_modelbudget.cli.project import NO_MANIFEST, find_project, terminal_width
from pytest_modelbudget.cli.session import INTERRUPTED, based, check_models
from pytest_modelbudget.config import MANIFEST_NAMES
from pytest_modelbudget.reports import table, terminal
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.session import report_files
from pytest_modelbudget.session.finish import Wanted, finish
from pytest_modelbudget.system.escape import harmless, harmless_lines, harmless_output
from pytest_modelbudget.trackers import tracker

_MOST_ROWS = 40
NO_MODEL = 4


def run(options: Namespace) -> int:
    """Check, write what is to be written, and say how it came out: 0, 1, 2 when interrupted, or 4 without a model."""
    manifest_paths = [Path.cwd() / name for name in (options.file, *MANIFEST_NAMES) if name]
    part = part_request(options)
    reports = report_files.targets(options.report, Path.cwd(), protected=manifest_paths)
    report_files.prepare(reports, Path.cwd())
    sent_to = tracker("mlflow") if options.mlflow else None  # imported before the models' code runs
    project = find_project(options.file, Path.cwd())
    if not project.manifests:
        print(f"modelbudget: {NO_MANIFEST}", file=sys.stderr)
        return NO_MODEL

    def tell(result: Result, output: str, new: int) -> None:
        lines = result_lines(result, output, options.verbose, many_new=new > terminal.MOST_NEW)
        print("".join(f"{line}\n" for line in lines), end="", flush=True)

    engine = chosen_engine(options.jobs, options.on)
    with based(project, options.base) as base:
        check = partial(check_models, project, base, options.ids, accept=options.accept, tell=tell, engine=engine)
        if part is not None:
            return check_part(part, project, base, check, update=options.accept)
        check_run = check()
        if not check_run.results:
            names = ", ".join(path.name for path in project.manifests)
            print(f"modelbudget: {names} registers no model", file=sys.stderr)
            return NO_MODEL
        failed = any(result.state.failed for result in check_run.results)
        wanted = Wanted(options.accept, reports, sent_to)
        with progress("logging to MLflow" if sent_to else "writing reports"):
            finished = finish(check_run.results, wanted, base, check_run.collected, failed=failed)
    print("\n".join((*finished.closing(terminal_width()), *finished.annotations(project.root))))
    for problem in (*filter(None, [check_run.lost]), *finished.problems):
        print(f"ERROR {harmless_lines(problem)}", file=sys.stderr)
    return INTERRUPTED if check_run.interrupted else int(finished.failed or bool(finished.problems))


def result_lines(result: Result, output: str, verbose: int, *, many_new: bool) -> Iterator[str]:
    """Why a model failed, or with `-v` its table; a skipped one says why.

    Of many models that have no snapshot yet each gets one line, unless `verbose`.
    """
    rows, columns = None if verbose > 1 else _MOST_ROWS, terminal_width()
    short = many_new and not verbose and terminal.is_new(result)
    if short and result.state is State.NO_SNAPSHOT:
        yield terminal.new_model(result)
    elif result.state.failed:
        fold = sys.stdout.isatty()
        yield terminal.failure(result, width=columns, rows=0 if short else rows, explain=verbose > 1, fold=fold)
        if output.strip():
            yield "it printed:"
            yield harmless_output(output.strip())
        yield ""
    elif result.state is State.SKIPPED:
        yield harmless(f"{result.id}: skipped: {result.error}")
    elif verbose and result.summary is not None:
        yield table.summary_text(result.summary, width=columns, most=rows, explain=verbose > 1)
        yield ""
