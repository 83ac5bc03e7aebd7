"""Models of a run, counted in turn or by an executor; what they are held against, and every decision, stays here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from pytest_modelbudget.cli.capture import captured_output
from pytest_modelbudget.cli.progress import progress
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.executors import Attempt, Completed, Pool, count_all
from pytest_modelbudget.executors.local import core_count, local_pool
from pytest_modelbudget.isolation import VARIABLE, Isolation, isolation_enabled, print_here
from pytest_modelbudget.results import Result
from pytest_modelbudget.session.registry import Registry
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.system.pace import Pace

Engine = Callable[[Path, Isolation, Sequence[ModelEntry]], AbstractContextManager[Pool]]
"""Opens a pool for models of a project's root; the isolated worker that is there already may be one of it."""

Count = Callable[[ModelEntry], Summary]
Selected = tuple[Registry, ModelEntry]
Decide = Callable[[Registry, ModelEntry, Count | None], Result]

_MOST_JOBS = 1024
_MOST_NAMED = 4
"""Models in flight that the line on the terminal names."""


def check_in_pool(
    pool: Pool, isolation: Isolation, models: Sequence[Selected], decide: Decide
) -> Iterator[tuple[Result, str]]:
    """Results as they come, with what the model's code printed.

    Models that are not to be isolated are counted here, after the others; so is one whose worker found that it has to
    be.

    Raises:
        Lost: the executor is gone; what was not yielded has no result.
    """
    isolated = [model for model in models if model[1].isolate is not False]
    done, pace = 0, Pace(len(models))

    def waiting(entries: Sequence[ModelEntry]) -> AbstractContextManager[None]:
        names = [entry.id for entry in entries[:_MOST_NAMED]]
        more = f" and {len(entries) - _MOST_NAMED} more" if len(entries) > _MOST_NAMED else ""
        return progress(f"{pace.text(done + 1)} {', '.join(names)}{more}", logged=pace.is_due())

    for completed in count_all(pool, [entry for _, entry in isolated], waiting):
        yield _decided(isolated[completed.index], completed, isolation, decide)
        done += 1
    here = [model for model in models if model[1].isolate is False]
    yield from check_in_turn(here, decide, isolation, pace, first=done + 1)


def check_in_turn(
    models: Sequence[Selected], decide: Decide, isolation: Isolation | None, pace: Pace, *, first: int = 1
) -> Iterator[tuple[Result, str]]:
    """Each result, with what the model's code printed; without `isolation` all is counted in this process."""
    for number, (registry, entry) in enumerate(models, first):
        alone = entry.isolate is not False and isolation is not None
        line = progress(f"{pace.text(number)} {entry.id}", alone=alone, logged=pace.is_due())
        with line, captured_output() as output:
            result = decide(registry, entry, None if isolation is None else isolation.count)
            printed = output()
        yield result, printed


def _decided(model: Selected, completed: Completed, isolation: Isolation, decide: Decide) -> tuple[Result, str]:
    registry, entry = model
    seconds = [0.0]
    with captured_output() as output:
        result = decide(registry, entry, partial(_summary, completed, isolation, entry, seconds))
        printed = output()
    return replace(result, seconds=result.seconds + seconds[0]), printed


def _summary(
    completed: Completed, isolation: Isolation, entry: ModelEntry, seconds: list[float], _: ModelEntry
) -> Summary:
    """What was counted, or why nothing was, as if it happened here and now; `seconds` gets how long it took there."""
    attempt = Attempt.unpack(completed.future.result())
    seconds[0] = attempt.seconds
    for printed in attempt.printed:
        print_here(printed)
    return isolation.summary(entry, attempt.answer)


def chosen_engine(jobs: str, on: str) -> Engine | None:
    """What `--jobs` and `--on` ask for; None for one worker here.

    Raises:
        ModelBudgetError: what they say is no number of jobs, or Dask is not installed.
    """
    number = _job_count(jobs)
    if (on or (number or 1) > 1) and not isolation_enabled():
        reason = f"{VARIABLE} is off, or a debugger is there"
        print(f"modelbudget: models are counted in this process, one after the other: {reason}", file=sys.stderr)
        return None
    if on:
        return _dask_engine(on, number)
    if number is None or number == 1:
        return None
    return lambda root, isolation, entries: local_pool(min(number, len(entries)), root, isolation)


def _dask_engine(on: str, number: int | None) -> Engine:
    try:
        from pytest_modelbudget.executors.dask import dask_pool
    except ImportError as error:
        raise ModelBudgetError(f"--on needs Dask ({error}): pip install 'pytest-modelbudget[dask]'") from None
    return lambda root, _, entries: dask_pool(on, number, root, entries)


def _job_count(text: str) -> int | None:
    """A number of models at a time; None where nothing is said."""
    if not text:
        return None
    if text == "auto":
        return core_count()
    if text.isdecimal() and 1 <= (number := int(text)) <= _MOST_JOBS:
        return number
    raise ModelBudgetError(f"--jobs: {text!r} is no number of models at a time: write --jobs 4, or --jobs auto")
