"""The one process that writes: snapshots, reports, trackers, and the lines at the end of a run."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pytest_modelbudget.budget import Finding
from pytest_modelbudget.engine.tracebacks import user_traceback
from pytest_modelbudget.plugin.base import conclude, take, tell
from pytest_modelbudget.plugin.collect import NO_MODEL, wants_models
from pytest_modelbudget.plugin.expected import Checklist, ChecklistFolder
from pytest_modelbudget.plugin.quiet import in_github
from pytest_modelbudget.plugin.reports import wanted
from pytest_modelbudget.reports import github, overall, table, terminal
from pytest_modelbudget.reports.text import Setting
from pytest_modelbudget.results import Result, State, codec
from pytest_modelbudget.results.groups import Overall
from pytest_modelbudget.session import finish, report_files
from pytest_modelbudget.summary import Summary


class Controller:
    """Gathers results from reports, local or from workers, and acts on them once at the end."""

    def __init__(self, config: pytest.Config, checklist: Checklist) -> None:
        self.config = config
        self.checklist = checklist
        self.checklists = ChecklistFolder()
        config.add_cleanup(self.checklists.close)
        self.not_collected: list[Finding] = []
        self.results: list[Result] = []
        self.latest: dict[tuple[str, str], Result] = {}
        self.overall = Overall()
        self.lines: list[str] = []
        self.problems: list[str] = []
        self.worker_models: list[int] = []
        self.reports = wanted(config)

    def pytest_report_header(self) -> str:
        """One line: what this run does with snapshots."""
        update, prune = (self.config.getoption(f"model_budget_{word}") for word in ("update", "prune"))
        doing = "writing changed snapshots" if update else "checking snapshots and budgets, writing none"
        return f"model-budget: {doing}{', pruning obsolete ones' if prune else ''}"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the results off a report; of a test that was run again, the last one counts."""
        packed = vars(report).pop("modelbudget", None)
        for result in map(codec.unpack, packed or ()):
            self.latest[result.nodeid, result.id] = result
        if not packed:
            self.checklist.note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Models in a file that cannot be collected are not known."""
        if report.failed:
            text = f"{report.nodeid or 'a test module'} could not be collected: models in it are not checked"
            self.not_collected.append(Finding("not collected", "", text))

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: object) -> None:
        """Tell a worker the base, so that all have the same, and where to write what it collects."""
        tell(self.config, vars(node)["workerinput"])
        self.checklists.tell(vars(node)["workerinput"])

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """How many models a worker found, and what its manifests said."""
        output = getattr(node, "workeroutput", {})
        self.worker_models.append(output.get("modelbudget_models", 1))
        take(self.config, output)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write what is to be written; a file that cannot be written fails the run."""
        nothing = self.worker_models and not any(self.worker_models)
        if nothing and not session.testsfailed and wants_models(self.config):
            self.problems.append(NO_MODEL)
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
            return
        if self.config.getoption("collectonly"):
            return
        self.checklists.read(self.checklist)
        missing = self.checklist.missing((nodeid for nodeid, _ in self.latest), _ending(session))
        self.results = sorted((*self.latest.values(), *missing), key=lambda result: (result.id, result.nodeid))
        finish.sweep(self.results, self.config.rootpath)
        self._write_snapshots()
        self._prune()
        self._conclude(session)
        self._write_reports()
        tracked = any(self.config.getoption(f"model_budget_mlflow{word}") for word in ("", "_required"))
        if tracked and self.results:
            self._log(session)
        self._finish()
        if self.problems and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _conclude(self, session: pytest.Session) -> None:
        """What only all results together tell; a group over its limit fails the run."""
        self.overall, over = conclude(self.config, self.results, self._left_out())
        lacking = any(result.state is State.NOT_CHECKED for result in self.results) or bool(self.not_collected)
        self.results += over
        if (over or lacking) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _left_out(self) -> list[Finding]:
        """What this run does not say anything of."""
        if not (self.checklist.complete or self.latest or self.not_collected):
            text = "the run ended before all models were collected: none was checked"
            self.not_collected.append(Finding("not collected", "", text))
        if not (deselected := len(self.checklist.deselected - self.checklist.expected.keys())):
            return self.not_collected
        text = f"{deselected} model{' was' if deselected == 1 else 's were'} left out by the options of this run"
        return [*self.not_collected, Finding("deselected", "", text)]

    def _finish(self) -> None:
        try:
            self.config.hook.pytest_modelbudget_finish(results=tuple(self.results), config=self.config)
        except (Exception, SystemExit, pytest.exit.Exception) as error:
            self.problems.append(f"pytest_modelbudget_finish failed:\n{user_traceback(error)}")

    def _write_snapshots(self) -> None:
        if not self.config.getoption("model_budget_update"):
            return
        line, problems = finish.write_snapshots(self.results, self.config.rootpath)
        self.lines.append(line)
        self.problems += problems

    def _prune(self) -> None:
        for result in self.results:
            for path in result.files if result.accepted else ():
                try:
                    (self.config.rootpath / path).unlink(missing_ok=True)  # another run may have pruned it
                    self.lines.append(f"pruned {path}")
                except OSError as error:
                    self.problems.append(f"{path}: cannot be deleted ({error.strerror})")

    def _write_reports(self) -> None:
        self.problems += report_files.write(self.reports, self.results, self.overall, self.config.rootpath)

    def _log(self, session: pytest.Session) -> None:
        from pytest_modelbudget.trackers import mlflow

        failed = session.exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        delivery = mlflow.log(self.results, self.config.rootpath, exit_failed=failed or bool(self.problems))
        self.lines += delivery.lines
        if not delivery.ok and self.config.getoption("model_budget_mlflow_required"):
            self.problems.append("not all was logged to MLflow, as --model-budget-mlflow-required demands")
        if delivery.links:
            report_files.append_links(delivery.links, self.reports)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table of all models, what was written, and what could not be."""
        if not self.results and not self.problems:
            return
        terminalreporter.section("model budgets", sep="-")
        width = max(40, terminalreporter._tw.fullwidth)
        if self.config.get_verbosity() > 0:
            for result in self._shown_in_full():
                text = table.summary_text(result, width=width, explain=self.config.get_verbosity() > 1)
                terminalreporter.line(text)
                terminalreporter.line("")
        lines = terminal.closing(self.results, width=width) if self.results else ()
        for line in (*lines, *overall.lines(self.overall, self.results), *self.lines):
            terminalreporter.line(line)
        for problem in self.problems:
            terminalreporter.line(f"ERROR {problem}", red=True)
        if in_github():
            annotated = self.config.pluginmanager.hasplugin("pytest_github_actions_annotate_failures")
            setting = Setting(folder=report_files.folder_in_repository(self.config.rootpath), overall=self.overall)
            for line in github.commands(self.results, setting, errors=not annotated):
                terminalreporter.line(line)

    def _shown_in_full(self) -> Iterable[Summary]:
        """Summaries for `-v`; a failed model's was shown with its failure."""
        return (result.summary for result in self.results if result.summary is not None and result.state is State.OK)


def _ending(session: pytest.Session) -> str:
    """Why models that have no result have none."""
    if stopped := session.shouldfail or session.shouldstop:
        return f"the run ended before it was checked: {stopped}"
    word = "was interrupted" if session.exitstatus == pytest.ExitCode.INTERRUPTED else "ended"
    return f"the run {word} before it was checked"
