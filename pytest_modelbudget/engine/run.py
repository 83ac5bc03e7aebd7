"""Run one entry: resolve its builder, build without memory for weights, summarize, compare, decide."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pytest_modelbudget import backends, inputs, snapshot
from pytest_modelbudget.backends.coexistence import coexisting
from pytest_modelbudget.base import Base
from pytest_modelbudget.budget import Baseline, Budget
from pytest_modelbudget.diff.exports import export_of, sizes_of_export
from pytest_modelbudget.engine.building import described, from_builder, subject_of
from pytest_modelbudget.engine.counted import CountedModel
from pytest_modelbudget.engine.naming import import_callable, missing_framework
from pytest_modelbudget.engine.planning import with_plans
from pytest_modelbudget.engine.tracebacks import one_line, safe_text, user_traceback, with_cause
from pytest_modelbudget.entry import ModelEntry, names_file
from pytest_modelbudget.errors import FrameworkMissing, ModelBudgetError
from pytest_modelbudget.inputs import Example, Inputs
from pytest_modelbudget.results import Result, Snapshot, SnapshotState, State, check
from pytest_modelbudget.summary import Export, Summary, TensorSpec
from pytest_modelbudget.system.intact import originals_restored

T = TypeVar("T")


def run(
    entry: ModelEntry,
    root: Path,
    *,
    accept: bool = False,
    snapshots: bool = True,
    count: Callable[[ModelEntry], Summary] | None = None,
    base: Base | None = None,
    limits_before: tuple[Budget, ...] | None = None,
) -> Result:
    """Build and count one model, and decide; nothing is written and nothing but KeyboardInterrupt escapes.

    `accept` is an update run, `snapshots=False` checks budgets only, `count` replaces `summarize_entry`. `base` has
    the committed snapshots to hold growth against, and `limits_before` are the entry's limits there. A model that
    cannot be counted gives a BUILD ERROR with the user's own traceback; a missing framework gives SKIPPED, or a BUILD
    ERROR in CI.
    """
    start = time.perf_counter()
    try:
        summary = attempt(with_file_path(entry, root), count or summarize_entry)
        with originals_restored():
            text = snapshot.text_for(entry, summary) if snapshots or base else ""
            stored = snapshot.compare(root, entry, summary, text) if snapshots else Snapshot(SnapshotState.OFF)
            baseline = None if base is None else _baseline(base, entry, summary, text, limits_before)
            result = check(entry, summary, stored, accept=accept, base=baseline)
    except NotCounted as end:
        result = replace(end.result, id=entry.id, place=entry.place, tags=entry.tags)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        result = failure_result(entry, error)
    return replace(result, seconds=time.perf_counter() - start)


class NotCounted(Exception):
    """A model gave no summary; `result` says why."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.id)
        self.result = result


def attempt(entry: ModelEntry, count: Callable[[ModelEntry], Summary]) -> Summary:
    """What `count` gives for the entry.

    Raises:
        NotCounted: it raised, whatever it raised.
        KeyboardInterrupt: it raised that.
    """
    try:
        with coexisting():
            return count(entry)
    except (NotCounted, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise NotCounted(failure_result(entry, error)) from None


def failure_result(entry: ModelEntry, error: BaseException) -> Result:
    """How a model came out that could not be counted because of `error`."""
    match error:
        case FrameworkMissing():
            return _missing_framework_result(entry, error)
        case ModelBudgetError():
            return _build_error(entry, with_cause(error))
        case ModuleNotFoundError() if absent := missing_framework(error):  # a builder may import its framework itself
            return _missing_framework_result(entry, absent)
        case SystemExit():
            leaving = f"the builder called sys.exit({safe_text(error.code, repr)}): let it return a model"
            return _build_error(entry, f"{user_traceback(error)}\n{leaving}")
        case _:
            return _build_error(entry, user_traceback(error))


def with_file_path(entry: ModelEntry, root: Path) -> ModelEntry:
    """A model's file is looked for from the folder of what registers it."""
    original = None if entry.original is None else with_file_path(entry.original, root)
    if not isinstance(entry.build, str) or not names_file(entry.build):
        return entry if original is None else replace(entry, original=original)
    return replace(entry, build=str(root / entry.home / entry.build), original=original)


def _baseline(
    base: Base,
    entry: ModelEntry,
    summary: Summary,
    text: str,
    limits: tuple[Budget, ...] | None,
) -> Baseline:
    """What the base says of one model; that it says nothing is a state of its own."""
    if not base.where.commit:
        return Baseline(reason=f"there is no base ({base.where.reason})")
    return replace(snapshot.baseline_of(base, entry, summary, text, name=base.where.name), limits=limits)


def _build_error(entry: ModelEntry, error: str) -> Result:
    return Result(id=entry.id, state=State.BUILD_ERROR, error=error, place=entry.place, tags=entry.tags)


def _missing_framework_result(entry: ModelEntry, missing: FrameworkMissing) -> Result:
    skips = entry.optional or not in_ci()
    hint = "" if skips else "\nin CI a missing framework is a failure; to allow it, set optional: true for this model"
    result = _build_error(entry, f"{missing}{hint}")
    return replace(result, state=State.SKIPPED) if skips else result


def in_ci() -> bool:
    """Whether this is a CI job: `CI` set to anything but empty, 0 or false, or `TF_BUILD` set."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false") or bool(os.environ.get("TF_BUILD"))


def summary_with_plans(subject: CountedModel) -> Summary:
    """A model's summary, with what is planned of it."""
    return with_plans(subject, subject.summary(subject.sizes))


def summarize_entry(entry: ModelEntry, finish: Callable[[CountedModel], Summary] = summary_with_plans) -> Summary:
    """Build the entry's model and count it; `finish` makes the summary of a model that was built.

    Raises:
        ModelBudgetError: see `run`; anything the builder raises comes through as it is.
    """
    summary = replace(from_builder(entry, finish), samples=entry.samples)
    return summary if entry.exported_from is None else replace(summary, export=_export(entry, summary))


def _export(entry: ModelEntry, summary: Summary) -> Export:
    """How a file stands to the model that it was made from, or why that cannot be told."""
    assert entry.exported_from is not None
    if entry.original is None:
        return Export(entry.exported_from, {}, problem="it is not registered")
    try:
        with coexisting():
            original = from_builder(entry.original, lambda subject: _at_sizes_of(summary, subject))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Export(entry.exported_from, {}, problem=f"{entry.exported_from} cannot be counted: {one_line(error)}")
    return export_of(original, summary)


def _at_sizes_of(exported: Summary, subject: CountedModel) -> Summary:
    """The model of an exported file, counted where its dimensions are those of the file; at its own where none are."""
    own = subject.summary(subject.sizes)
    sizes = sizes_of_export(own, exported)
    return subject.summary({**subject.sizes, **sizes}) if sizes else own


def entries_from(reference: str, holder: ModelEntry) -> tuple[ModelEntry, ...]:
    """The entries that a source (`module:callable`) yields.

    Raises:
        FrameworkMissing: a framework that it needs is not installed.
        ModelBudgetError: it cannot be imported, or yields something else than `ModelEntry`.
    """
    try:
        with coexisting():
            returned = import_callable(reference, "sources", holder)()
            entries = tuple(returned) if isinstance(returned, Iterable) else None
    except ModuleNotFoundError as error:
        raise missing_framework(error) or error from None
    if entries is None:
        raise ModelBudgetError(
            f"{holder.place}: sources: {reference} returned a {type(returned).__name__}: yield ModelEntry values"
        )
    for entry in entries:
        if not isinstance(entry, ModelEntry):
            raise ModelBudgetError(
                f"{holder.place}: sources: {reference} yielded a {type(entry).__name__}, not a ModelEntry"
            )
    return tuple(replace(entry, place=entry.place or holder.place) for entry in entries)


def live_entry(name: str, model_or_builder: object, model_inputs: Any, **options: Any) -> ModelEntry:
    """An entry for a model that is already there, or for a builder; real tensors are accepted as inputs."""
    parsed = model_inputs if _is_grammar(model_inputs) else inputs.from_example(model_inputs)
    build = os.path.abspath(model_or_builder) if isinstance(model_or_builder, os.PathLike) else model_or_builder
    return ModelEntry(id=name, build=build, inputs=parsed, **options)  # type: ignore[arg-type]


def _is_grammar(value: Any) -> bool:
    """Whether `value` is written in the grammar, rather than real tensors."""
    if type(value) is dict:
        return all(map(_is_grammar, value.values()))
    if type(value) in (list, tuple):
        return all(map(_is_grammar, value))
    if isinstance(value, (str, int, float, bool, type(None), Inputs, Example, TensorSpec)):
        return True
    if type(value).__name__ in ("Size", "TensorShape"):
        return True
    return callable(value) and not any(True for _ in inputs.tensors_in(((value,), {})))


def summarize_live(model_or_builder: object, entry: ModelEntry) -> Summary:
    """Count a live model as it is, or what a builder (a function, a model class, a reference or a file) gives."""
    return replace(from_live(model_or_builder, entry, summary_with_plans), samples=entry.samples)


def from_live(model_or_builder: object, entry: ModelEntry, finish: Callable[[CountedModel], T]) -> T:
    """What `finish` gives for a live model, or for what a builder gives."""
    owner = backends.owner(model_or_builder)
    if owner is not None:
        with backends.global_state_restored(backends.loaded() if isinstance(entry.inputs, Example) else ()):
            subject = subject_of(owner, model_or_builder, entry, built_here=False)
        return finish(subject)
    if not callable(model_or_builder) and not _names_builder(entry.build):
        raise ModelBudgetError(f"{entry.id}: got {described(model_or_builder)}")
    return from_builder(entry, finish)


def _names_builder(build: object) -> bool:
    return isinstance(build, str) and (names_file(build) or ":" in build)
