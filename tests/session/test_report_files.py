"""Where reports may go, what becomes of those of an earlier run, and that none takes another one with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_modelbudget import reports
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.reports import REPORT_MARKS, REPORTS, render
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.results.groups import RunSummary
from pytest_modelbudget.session import report_files
from pytest_modelbudget.session.report_files import ReportFile, targets
from pytest_modelbudget.trackers.mlflow import outbox
from tests.reports.test_reports import result

posix = pytest.mark.skipif(sys.platform == "win32", reason="pipes and links of POSIX")
SNAPSHOT = "version: 1\nmodel: a\ndeclared: modelbudget.yaml\n"


def lay_out(folder: Path) -> None:
    """A project with a manifest, a snapshot, sources, and links to all of them."""
    (folder / "__model_budget__").mkdir()
    (folder / "__model_budget__" / "a.yaml").write_text(SNAPSHOT)
    for name in ("modelbudget.yaml", "chosen.yaml", "nets.py"):
        (folder / name).write_text("models: {}\n")
    (folder / "weights.bin").write_bytes(b"PK\x03\x04\x00\x00")
    (folder / "to-manifest").symlink_to("modelbudget.yaml")
    (folder / "to-snapshots").symlink_to("__model_budget__")
    os.link(folder / "modelbudget.yaml", folder / "hard.json")
    os.link(folder / "__model_budget__" / "a.yaml", folder / "hard-snapshot.json")
    (folder / "sub").mkdir()


@posix
@pytest.mark.parametrize(
    ("path", "why"),
    [
        pytest.param("modelbudget.yaml", "modelbudget.yaml is no report", id="a manifest"),
        pytest.param("sub/../modelbudget.yaml", "modelbudget.yaml is no report", id="spelled otherwise"),
        pytest.param("ModelBudget.YAML", "ModelBudget.YAML is no report", id="in other case"),
        pytest.param("sub/modelbudget.yml", "is no report", id="where a manifest would be"),
        pytest.param("to-manifest", "modelbudget.yaml is no report", id="a link to it"),
        pytest.param("hard.json", "the run reads it", id="a hard link to it"),
        pytest.param("chosen.yaml", "the run reads it", id="a manifest of another name"),
        pytest.param("pyproject.toml", "is no report", id="pyproject"),
        pytest.param("setup.cfg", "is no report", id="configuration of pytest"),
        pytest.param("__model_budget__/a.yaml", "lies in __model_budget__", id="a snapshot"),
        pytest.param("__model_budget__/new/r.json", "lies in __model_budget__", id="beside snapshots"),
        pytest.param("__Model_Budget__/r.json", "lies in __model_budget__", id="beside them in other case"),
        pytest.param("to-snapshots/r.json", "lies in __model_budget__", id="beside them by a link"),
        pytest.param("hard-snapshot.json", "is a snapshot", id="a hard link to a snapshot"),
        pytest.param(".modelbudget/outbox/x", "lies in .modelbudget", id="the outbox"),
        pytest.param(".git/index", "lies in .git", id="git's own"),
        pytest.param("nets.py", "is a source file", id="a source"),
        pytest.param("weights.bin", "is no text", id="weights"),
        pytest.param("reports/", "is a folder", id="a folder"),
    ],
)
def test_no_report_goes_over_what_is_worth_more(tmp_path: Path, path: str, why: str) -> None:
    """The message names the path as it was written, and the cure; nothing is touched."""
    lay_out(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ModelBudgetError) as refused:
        targets([f"json:{path}"], tmp_path, protected=[tmp_path / "modelbudget.yaml", tmp_path / "chosen.yaml"])
    assert str(refused.value).startswith(f"json:{path}: ")
    assert why in str(refused.value)
    assert str(refused.value).endswith("name another file")
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("text", ["json", "json:", "json: ", "csv:x", ":x", "json:a\0b"])
def test_what_names_no_report(tmp_path: Path, text: str) -> None:
    """The kinds that there are, are told."""
    with pytest.raises(ModelBudgetError, match="write KIND:PATH, with KIND one of json, md, html"):
        targets([text], tmp_path)


@posix
@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("r.json", "r.json", id="the same"),
        pytest.param("r.json", "sub/../r.json", id="spelled otherwise"),
        pytest.param("r.json", "R.json", id="in other case"),
        pytest.param("caf\u00e9", "cafe\u0301", id="in other characters"),
        pytest.param("r.json", "link", id="a link"),
        pytest.param("link", "second", id="two links to what is not there"),
        pytest.param("sub/r.json", "to-sub/r.json", id="through a linked folder"),
        pytest.param("old", "hard", id="a hard link"),
        pytest.param("pipe", "pipe", id="a pipe"),
    ],
)
def test_two_reports_never_share_a_place(tmp_path: Path, one: str, other: str) -> None:
    """On systems that know no case and no other spelling of a character either."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "to-sub").symlink_to("sub")
    (tmp_path / "link").symlink_to("r.json")
    (tmp_path / "second").symlink_to("r.json")
    (tmp_path / "old").write_text("")
    os.link(tmp_path / "old", tmp_path / "hard")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelBudgetError, match="the json report goes there too"):
        targets([f"json:{one}", f"md:{other}"], tmp_path)
    assert len(targets([f"json:{one}", "md:sub/other.md"], tmp_path)) == 2


def test_the_step_summary_and_outputs_take_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is appended to or printed is shared."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    both = targets([f"md:{tmp_path / 'summary.md'}", "comment:summary.md"], tmp_path)
    assert [target.appended for target in both] == [True, True]
    assert len(targets(["json:/dev/stdout", "md:/dev/stdout", "html:/dev/null", "comment:/dev/null"], tmp_path)) == 4


def test_an_earlier_report_may_be_tracked_and_a_page_of_the_users_may_not(tmp_path: Path) -> None:
    """Whoever commits reports goes on doing so; a README that git has is not written over by mistake."""
    for kind in REPORTS:
        (tmp_path / kind).write_text(render(kind, [result({"params": 1})]), encoding="utf-8")
    (tmp_path / "README.md").write_text("# Nets\n")
    (tmp_path / "empty").write_text("")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    (tmp_path / "untracked").write_text("notes")
    assert targets([f"{kind}:{kind}" for kind in REPORTS], tmp_path)
    assert targets(["md:empty", "json:untracked"], tmp_path)
    with pytest.raises(ModelBudgetError, match="git tracks what is there, which is no report"):
        targets(["md:README.md"], tmp_path)


@pytest.mark.parametrize("kind", REPORTS)
def test_a_report_is_known_by_its_mark(kind: str) -> None:
    """Within what is read to tell."""
    assert REPORT_MARKS[kind] in render(kind, [result({"params": 1})])[:8192]


def test_the_folders_of_this_project_are_named() -> None:
    """The outbox's folder goes by the name that it is made with."""
    assert outbox.FOLDER in report_files._RESERVED_FOLDERS


@posix
def test_reports_of_an_earlier_run_are_gone_when_a_run_begins(tmp_path: Path) -> None:
    """What is left by a run that dies is nobody's verdict: files go, and a comment says that the run did not finish."""
    (tmp_path / "far.json").write_text("yesterday")
    (tmp_path / "link").symlink_to("far.json")
    for name in ("r.md", "c.md"):
        (tmp_path / name).write_text("yesterday")
    os.mkfifo(tmp_path / "pipe")
    wanted = targets(["json:link", "md:r.md", "comment:c.md", "html:pipe", "openmetrics:/dev/null"], tmp_path)
    report_files.prepare(wanted, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.md", "link", "pipe"]
    first, *lines = (tmp_path / "c.md").read_text().splitlines()
    assert first == "<!-- modelbudget:c -->"
    assert lines[0] == "### Model budget: the run did not finish"


def test_a_shared_summary_is_left_alone_when_a_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other steps of the job wrote it."""
    path = tmp_path / "summary.md"
    path.write_text("other step\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    wanted = targets([f"md:{path}", f"comment:{path}"], tmp_path)
    report_files.prepare(wanted, tmp_path)
    assert path.read_text() == "other step\n"
    assert not report_files.write(wanted[:1], [result()], RunSummary(), tmp_path)
    assert path.read_text().startswith("other step\n### Model budget: 1 ok")


class Unspeakable(Exception):
    """An error that cannot be shown."""

    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    "error", [RecursionError("too deep"), MemoryError(), Unspeakable(), OSError(5, "I/O"), ImportError("gone")]
)
def test_a_report_that_cannot_be_rendered_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The others are written."""

    def page(*_: object) -> str:
        raise error

    def loaded(name: str) -> object:
        return SimpleNamespace(page=page) if name.endswith("html") else sys.modules[name]

    monkeypatch.setattr(reports, "import_module", loaded)
    wanted = targets(["html:r.html", "json:r.json", "md:r.md"], tmp_path)
    (problem,) = report_files.write(wanted, [result()], RunSummary(), tmp_path)
    assert problem.startswith(f"report html: {tmp_path / 'r.html'} cannot be rendered ({type(error).__name__}")
    assert "\n" not in problem
    assert json.loads((tmp_path / "r.json").read_text())["models"]
    assert (tmp_path / "r.md").exists()


@posix
def test_a_report_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """A file where a folder should be, a folder where a file should be, a disk that is full, a name that is too long."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    paths = ["file/r.json", "folder", "/dev/full", "n" * 300]
    wanted = [*targets([f"json:{path}" for path in paths], tmp_path), ReportFile("md", tmp_path / "ok.md")]
    report_files.prepare(wanted, tmp_path)
    problems = report_files.write(wanted, [result()], RunSummary(), tmp_path)
    assert [problem.rpartition("(")[2] for problem in problems] == [
        "Not a directory)", "Is a directory)", "No space left on device)", "File name too long)",
    ]  # fmt: skip
    assert (tmp_path / "ok.md").exists()
    assert (tmp_path / "file").read_text() == "x"


@posix
def test_links_are_added_to_files_alone(tmp_path: Path) -> None:
    """What went into a pipe is read already."""
    os.mkfifo(tmp_path / "pipe")
    wanted = targets(["md:r.md", "md:pipe", "json:r.json"], tmp_path)
    for target in (wanted[0], wanted[2]):
        report_files.write([target], [result()], RunSummary(), tmp_path)
    before = (tmp_path / "r.json").read_text()
    report_files.append_links([("this run", "http://a/b")], wanted)
    assert (tmp_path / "r.md").read_text().endswith("\nMLflow: [this run](<http://a/b>)\n")
    assert (tmp_path / "r.json").read_text() == before


def test_names_that_are_half_a_character_are_written(tmp_path: Path) -> None:
    """As an escape: the encoding of files has no such thing."""
    wanted = targets([f"{kind}:{kind}.out" for kind in REPORTS], tmp_path)
    odd = Result("a\udc80", State.BUILD_ERROR, error="E   \udc80")
    assert not report_files.write(wanted, [odd], RunSummary("base \udc80"), tmp_path)
