"""The one process that writes: it gathers the results of all, and ends the run as `session.finish` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from pytest_modelbudget.budget import Finding
from pytest_modelbudget.engine.tracebacks import user_traceback
from pytest_modelbudget.plugin.base import BASE, COLLECTED, add_from_worker, tell_worker
from pytest_modelbudget.plugin.collect import NO_MODEL, wants_models
from pytest_modelbudget.plugin.expected import Checklist, ChecklistFolder
from pytest_modelbudget.plugin.parts import PART, add_from_workers
from pytest_modelbudget.plugin.parts import finish as finish_part
from pytest_modelbudget.plugin.progress import while_waiting
from pytest_modelbudget.plugin.reports import requested_reports
from pytest_modelbudget.reports import table
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.results.store import ResultStore
from pytest_modelbudget.session.finish import NOT_COLLECTED, Finished, Wanted, finish, in_order
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.trackers import tracker


class Controller:
    """Gathers results from reports, local or from workers, and acts on them once at the end."""

    def __init__(self, config: pytest.Config, checklist: Checklist) -> None:
        self.config = config
        self.checklist = checklist
        self.checklists = ChecklistFolder()
        config.add_cleanup(self.checklists.close)
        self.not_collected: list[Finding] = []
        self.results = ResultStore()
        self.finished = Finished()
        self.worker_models: list[int] = []
        self.reports = requested_reports(config)
        self.part = config.stash[PART]
        self.failed_nodes: set[str] = set()

    def pytest_report_header(self) -> str:
        """One line: what this run does with snapshots."""
        update, prune = (self.config.getoption(f"model_budget_{word}") for word in ("update", "prune"))
        action = "writing changed snapshots" if update else "checking snapshots and budgets, writing none"
        part = "" if self.part is None else ", writing a part of a run"
        return f"model-budget: {action}{', pruning obsolete ones' if prune else ''}{part}"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the results off a report; of a test that was run again, the last one counts."""
        packed = vars(report).pop("modelbudget", None)
        for data in packed or ():
            self.results.add_packed(data)
        if not packed:
            self.checklist.note(report)
        if report.failed and "modelbudget_state" not in vars(report):  # for another reason than its model
            self.failed_nodes.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Models in a file that cannot be collected are not known."""
        if report.failed:
            text = f"{report.nodeid or 'a test module'} could not be collected: models in it are not checked"
            self.not_collected.append(Finding(NOT_COLLECTED, "", text))

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: object) -> None:
        """Tell a worker the base, so that all have the same, and where to write what it collects."""
        tell_worker(self.config, vars(node)["workerinput"])
        self.checklists.tell(vars(node)["workerinput"])

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """How many models a worker found, and what its manifests said."""
        output = getattr(node, "workeroutput", {})
        self.worker_models.append(output.get("modelbudget_models", 1))
        add_from_worker(self.config, output)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write what is to be written; a file that cannot be written fails the run."""
        no_models = self.worker_models and not any(self.worker_models)
        if no_models and not session.testsfailed and wants_models(self.config):
            self.finished.problems.append(NO_MODEL)
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
            return
        if self.config.getoption("collectonly"):
            return
        self.checklists.read(self.checklist)
        add_from_workers(self.config, self.checklists.path)
        missing = self.checklist.missing((result.nodeid for result in self.results), _why_not_checked(session))
        results = (*self.results, *missing)
        self._note_uncollected()
        if self.part is None:
            self._finish(session, results)
        else:
            self._finish_part(session, results)
        if self.finished.failed or self.finished.problems:
            _fail(session)

    def _finish(self, session: pytest.Session, results: Sequence[Result]) -> None:
        base, collected = self.config.stash[BASE], self.config.stash[COLLECTED]
        collected.findings = [*self.not_collected, *self._left_out(), *collected.findings]
        wanted = self._wanted()
        with while_waiting(self.config, "logging to MLflow" if wanted.tracker else "writing reports"):
            self.finished = finish(results, wanted, base, collected, failed=_has_failed(session))
        self._call_hook()

    def _finish_part(self, session: pytest.Session, results: Sequence[Result]) -> None:
        """Write the part, which tells the merge that the hook failed too; that it has no model at all is no failure."""
        self.finished = Finished(tuple(in_order(results)))
        self._call_hook()
        hook_problems = self.finished.problems
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
            session.exitstatus = pytest.ExitCode.OK
        with while_waiting(self.config, "writing the part"):
            self.finished = finish_part(
                self.config,
                results,
                self.not_collected,
                exit_status=int(session.exitstatus) or int(bool(hook_problems)),
                failed_nodes=self.failed_nodes,
            )
        self.finished.problems[:0] = hook_problems

    def _wanted(self) -> Wanted:
        update, log, required = (
            bool(self.config.getoption(f"model_budget_{word}")) for word in ("update", "mlflow", "mlflow_required")
        )
        return Wanted(update, self.reports, tracker("mlflow") if log or required else None, must_arrive=required)

    def _note_uncollected(self) -> None:
        if not (self.checklist.complete or self.results or self.not_collected):
            text = "the run ended before all models were collected: none was checked"
            self.not_collected.append(Finding(NOT_COLLECTED, "", text))

    def _left_out(self) -> list[Finding]:
        """What this run does not say anything of."""
        deselected = len(self.checklist.deselected - self.checklist.expected.keys())
        text = f"{deselected} model{' was' if deselected == 1 else 's were'} left out by the options of this run"
        return [Finding("deselected", "", text)] if deselected else []

    def _call_hook(self) -> None:
        try:
            self.config.hook.pytest_modelbudget_finish(results=self.finished.results, config=self.config)
        except (Exception, SystemExit, pytest.exit.Exception) as error:
            self.finished.problems.append(f"pytest_modelbudget_finish failed:\n{user_traceback(error)}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table of all models, what was written, and what could not be."""
        finished = self.finished
        if not (finished.results or finished.problems or self.part):
            return
        terminalreporter.section("model budgets", sep="-")
        width = max(40, terminalreporter._tw.fullwidth)
        if self.config.get_verbosity() > 0:
            for summary in self._shown_in_full():
                text = table.summary_text(summary, width=width, explain=self.config.get_verbosity() > 1)
                terminalreporter.line(text)
                terminalreporter.line("")
        for line in finished.closing(width):
            terminalreporter.line(line)
        for problem in finished.problems:
            terminalreporter.line(f"ERROR {problem}", red=True)
        if self.part is not None:  # the merge annotates
            return
        annotated = self.config.pluginmanager.hasplugin("pytest_github_actions_annotate_failures")
        for line in finished.annotations(self.config.rootpath, errors=not annotated):
            terminalreporter.line(line)

    def _shown_in_full(self) -> Iterator[Summary]:
        """Summaries for `-v`; a failed model's was shown with its failure."""
        for result in self.finished.results:
            if result.summary is not None and result.state is State.OK:
                yield result.summary


def _has_failed(session: pytest.Session) -> bool:
    return session.exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


def _fail(session: pytest.Session) -> None:
    """The run is not green; what it failed by before stays."""
    if not _has_failed(session):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _why_not_checked(session: pytest.Session) -> str:
    """Why models that have no result have none."""
    if stopped := session.shouldfail or session.shouldstop:
        return f"the run ended before it was checked: {stopped}"
    word = "was interrupted" if session.exitstatus == pytest.ExitCode.INTERRUPTED else "ended"
    return f"the run {word} before it was checked"
