"""pytest items for models: what runs, how a failure reads, and the result that travels to the controller."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any, cast

import pytest
from _pytest._code.code import ExceptionRepr, ReprEntryNative, ReprExceptionInfo, ReprFileLocation, ReprTraceback

from pytest_modelbudget import snapshot
from pytest_modelbudget.backends.quiet_start import without_noise
from pytest_modelbudget.budget import Budget
from pytest_modelbudget.engine.run import in_ci, run
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import Place
from pytest_modelbudget.isolation import YieldedBuilder
from pytest_modelbudget.plugin import MARKER, RESULTS
from pytest_modelbudget.plugin.base import BASE, ISOLATION, MODEL_ITEMS
from pytest_modelbudget.plugin.importing import user_module
from pytest_modelbudget.plugin.progress import terminal_width
from pytest_modelbudget.plugin.quiet import no_commands
from pytest_modelbudget.reports import terminal
from pytest_modelbudget.reports.text import number_text
from pytest_modelbudget.results import Result, State, codec
from pytest_modelbudget.session.registry import bad_config_result, obsolete_files_result, relative_posix
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import METRICS
from pytest_modelbudget.system.escape import harmless_output, without_commands
from pytest_modelbudget.system.intact import originals_restored

_MOST_OUTPUT = 20_000

_NEW: pytest.StashKey[int] = pytest.StashKey()
_TESTS: pytest.StashKey[list[pytest.Item]] = pytest.StashKey()
_FILE: pytest.StashKey[str] = pytest.StashKey()

_LETTERS = {
    State.CHANGED: "C",
    State.NO_SNAPSHOT: "N",
    State.OVER_BUDGET: "B",
    State.OBSOLETE: "O",
    State.CONFLICT: "C",
    State.BUILD_ERROR: "E",
    State.NOT_CHECKED: "E",
    State.BAD_CONFIG: "E",
}


class ModelCheckFailed(AssertionError):
    """A model failed its check; `result` says how."""

    __module__ = "pytest_modelbudget"  # shown to the user, who need not know our rooms

    def __init__(self, result: Result, text: str) -> None:
        super().__init__(text)
        self.result = result


@cache
def _marker() -> pytest.MarkDecorator:
    """Made once: pytest asks whether a name is that of a marker each time it is made of one."""
    return cast(pytest.MarkDecorator, getattr(pytest.mark, MARKER))


def node_id(item: pytest.Item) -> str:
    """The node id by which results, sums and parts name an item, as the registry of a manifest does.

    That of pytest is another for a file outside the root, and where xdist's `--dist loadgroup` appends `@group` to it.
    """
    names, node = [item.name], item.parent
    while node is not None and not isinstance(node, pytest.File):
        names.append(node.name)
        node = node.parent
    return item.nodeid if node is None else "::".join((_file_id(node), *reversed(names)))


def _file_id(file: pytest.File) -> str:
    if _FILE not in file.stash:  # once for all of its models, which may be very many
        file.stash[_FILE] = relative_posix(file.path, file.config.rootpath)
    return file.stash[_FILE]


class BudgetItem(pytest.Item):
    """An item that gives a `Result`; `outcome()` says which."""

    place: Place | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_marker(_marker())

    def outcome(self) -> Result:
        """Do the work."""
        raise NotImplementedError

    def runtest(self) -> None:
        """Come to a result, and fail when it is one to fail on."""
        self.stash[RESULTS] = []  # the item may have been run before, by a plugin that reruns failures
        with no_commands(self.config):
            result = record(self, self.outcome())
        if result.state is State.SKIPPED:
            pytest.skip(result.error)
        if result.state.failed:
            raise ModelCheckFailed(result, failure_text(self, result))

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        """Where the model is registered, so that annotations point there."""
        if self.place is None or self.place.line is None:
            return self.path, None, self.name
        return self.config.rootpath / self.place.file, self.place.line - 1, self.name

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str | ExceptionRepr:
        """Our own text for a failed check: no frame of this plugin says anything to the reader."""
        if not isinstance(excinfo.value, ModelCheckFailed):
            return str(super().repr_failure(excinfo))
        path, line, _ = self.reportinfo()
        crash = ReprFileLocation(str(path), (line or 0) + 1, terminal.short_reason(excinfo.value.result))
        entry = ReprEntryNative([f"{line}\n" for line in str(excinfo.value).splitlines()])
        return ReprExceptionInfo(reprtraceback=ReprTraceback([entry], None, "native"), reprcrash=crash)


class ModelItem(BudgetItem):
    """One registered model."""

    def __init__(self, *, entry: ModelEntry, limits_before: tuple[Budget, ...] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.entry = entry
        self.limits_before = limits_before
        self.place = entry.place
        self.clash = ""
        self.extra_keyword_matches.update(entry.tags)
        self.config.stash[MODEL_ITEMS].append(self)

    def outcome(self) -> Result:
        """Build, count, compare and decide."""
        if self.clash:
            return Result(id=self.entry.id, state=State.BAD_CONFIG, error=self.clash, place=self.place)
        return run(
            self.entry,
            self.config.rootpath,
            accept=bool(self.config.getoption("model_budget_update")),
            count=self._count(),
            base=self.config.stash[BASE],
            limits_before=self.limits_before,
        )

    def _count(self) -> Callable[[ModelEntry], Summary] | None:
        """How its model is counted: in a process of its own, which finds a decorated builder in its module."""
        isolation = self.config.stash[ISOLATION]
        if isolation is None:
            return None
        module = None if isinstance(self.entry.build, (str, YieldedBuilder)) else user_module(self.config, self.path)
        return partial(isolation.count, module=module)


class BadConfigItem(BudgetItem):
    """Mistakes of a manifest: of one model, of a source, or of the file as a whole."""

    def __init__(self, *, mistakes: Iterable[tuple[Place | None, str]], **options: Any) -> None:
        super().__init__(**options)
        self.mistakes = tuple(mistakes)
        self.place = self.mistakes[0][0]
        self.config.stash[MODEL_ITEMS].append(self)

    def outcome(self) -> Result:
        """All mistakes at once, each with its line."""
        return bad_config_result(self.name, self.mistakes)


class SnapshotFilesItem(BudgetItem):
    """Snapshot files that no registered model owns; an update-like run with prune has them deleted."""

    def __init__(self, *, files: Iterable[str], refused: str = "", declared: str, **options: Any) -> None:
        super().__init__(**options)
        self.files = tuple(files)
        self.refused = refused
        self.declared = declared

    def outcome(self) -> Result:
        """Name the files, and how to delete them."""
        prune = bool(self.config.getoption("model_budget_prune"))
        if self.refused:
            return Result(id=self.name, state=State.OBSOLETE, error=f"nothing is pruned: {self.refused}")
        if prune:
            return Result(id=self.name, state=State.OK, files=self.files, accepted=True)
        return obsolete_files_result(self.name, self.files, self.declared)


@originals_restored()
def failure_text(item: pytest.Item, result: Result) -> str:
    """Why a result failed, as wide as the terminal, with more rows the more verbose the run is.

    Of many models that have no snapshot yet each gets one line, unless the run is verbose.
    """
    reporter = item.config.pluginmanager.get_plugin("terminalreporter")
    width = terminal_width(item.config)
    verbosity = item.config.get_verbosity()
    rows = None if verbosity > 1 else 40 if verbosity >= 0 else 0
    if verbosity <= 0 and terminal.is_new(result) and _new_models(item.session) > terminal.MOST_NEW:
        if result.state is State.NO_SNAPSHOT:
            return terminal.new_model(result)
        rows = 0
    fold = reporter is not None and reporter.isatty
    return terminal.failure(result, width=width, rows=rows, explain=verbosity > 1, fold=fold)


def _new_models(session: pytest.Session) -> int:
    """How many models of the run have no snapshot yet; of those in ordinary tests, how many had none so far."""
    if _NEW not in session.stash:  # looked for once, not for each of very many that are new
        registered = [item.entry for item in session.items if isinstance(item, ModelItem)]
        session.stash[_NEW] = snapshot.count_missing(session.config.rootpath, registered)
        session.stash[_TESTS] = [item for item in session.items if not isinstance(item, BudgetItem)]
    in_tests = (result for item in session.stash[_TESTS] for result in item.stash.get(RESULTS, ()))
    return session.stash[_NEW] + sum(map(terminal.is_new, in_tests))


def record(item: pytest.Item, result: Result) -> Result:
    """Keep a result with its item, as node id, JUnit properties and data for the controller."""
    result = replace(result, nodeid=node_id(item))
    item.stash.setdefault(RESULTS, []).append(result)
    if result.summary is not None:
        item.user_properties += _properties(result.summary)
    return result


def _properties(summary: Summary) -> Iterator[tuple[str, str]]:
    """Every metric that is known, as a property of JUnit; FLOPs that are a lower bound are not."""
    for name, metric in METRICS.items():
        number = metric.get(summary)
        if number is not None and not (name == "flops" and summary.flops.is_lower_bound):
            yield f"model_budget.{name}", number_text(name, number)


def annotate(item: pytest.Item, report: pytest.TestReport, call: pytest.CallInfo[None], *, send: bool) -> None:
    """Put what an item came to on its report; `send` adds its results as plain data, which xdist carries on."""
    if isinstance(item, BudgetItem):  # a builder may print megabytes, which every later phase would repeat
        sections = ((name, harmless_output(_cut_middle(without_noise(content)))) for name, content in report.sections)
        report.sections = [(name, content) for name, content in sections if content.strip()]
    elif in_ci():  # a test that builds a model itself
        report.sections = [(name, without_commands(content)) for name, content in report.sections]
    if call.when != "call":
        return
    if send:
        vars(report)["modelbudget"] = [codec.pack(result) for result in item.stash[RESULTS]]
    if call.excinfo is not None and isinstance(call.excinfo.value, ModelCheckFailed):
        result = call.excinfo.value.result
        vars(report)["modelbudget_state"] = result.state.value
        if isinstance(report.longrepr, ExceptionRepr) and report.longrepr.reprcrash is not None:
            report.longrepr.reprcrash.message = terminal.short_reason(result)
    if not isinstance(item, BudgetItem):
        return
    if report.skipped:
        path, line, _ = item.reportinfo()
        report.longrepr = (str(path), (line or 0) + 1, item.stash[RESULTS][-1].error)
    if send:  # it is on the report: pytest keeps its items to the end
        item.stash[RESULTS] = []


def _cut_middle(content: str) -> str:
    """A builder may print megabytes."""
    if len(content) <= _MOST_OUTPUT:
        return content
    half = _MOST_OUTPUT // 2
    return f"{content[:half]}\n... {len(content) - 2 * half:,} characters cut ...\n{content[-half:]}"


def status(report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str]:
    """Our word for a failed model; the category stays pytest's own, so that counts and `-x` go on working."""
    state = State(vars(report)["modelbudget_state"])
    return "failed", _LETTERS[state], state.value
