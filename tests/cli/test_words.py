"""The command line itself: help, exit codes for wrong words, and what is imported when."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_modelbudget.cli import main
from pytest_modelbudget.cli.words import build_parser
from tests.cli.conftest import Command

HEAVY = {"torch", "tensorflow", "keras", "pydantic", "yaml", "rich", "jinja2", "pytest", "mlflow", "numpy"}
COMMANDS = ("show", "why", "plan", "diff", "check", "update", "merge", "init", "tighten", "schema", "mlflow")


def imported(code: str) -> set[str]:
    """The top-level modules that a fresh process has after `code`."""
    report = "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_imports_nothing_heavy() -> None:
    """It is there at once, and without any framework."""
    modules = imported("from pytest_modelbudget.cli import main; assert main(['--help']) == 0")
    assert "argparse" in modules
    assert not modules & HEAVY


def test_schema_imports_no_framework_and_no_pytest() -> None:
    """A command imports what it needs and no more."""
    modules = imported("from pytest_modelbudget.cli import main; main(['schema'])")
    assert "pydantic" in modules
    assert not modules & {"torch", "tensorflow", "keras", "pytest", "rich", "jinja2"}


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Each says what it is for; the codes of exit are in the main one."""
    assert main(["--help"]) == 0
    whole = capsys.readouterr().out
    assert "exit codes:" in whole
    for command in COMMANDS:
        assert f"\n    {command} " in whole
        assert main([command, "--help"]) == 0
        assert f"usage: modelbudget {command}" in capsys.readouterr().out


def test_commands_are_those_of_the_parser() -> None:
    """The list above has them all."""
    [commands] = [action for action in build_parser()._actions if isinstance(action.choices, dict)]
    assert tuple(commands.choices or ()) == COMMANDS


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["sh"], {"show"}, id="a command"),
        pytest.param(["show", "--kw"], {"--kwargs"}, id="an option"),
        pytest.param(["show", "--framework", "k"], {"keras"}, id="a choice"),
        pytest.param(["check", "--file", "modelb"], {"modelbudget.yaml"}, id="a file"),
    ],
)
def test_bash_completes_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: set[str]
) -> None:
    """What it offers when the printed script is loaded and the tab key is pressed."""
    pytest.importorskip("shtab")
    assert main(["--print-completion", "bash"]) == 0
    (tmp_path / "complete.sh").write_text(capsys.readouterr().out, encoding="utf-8")
    (tmp_path / "modelbudget.yaml").touch()
    press = (
        f"source complete.sh; COMP_WORDS=(modelbudget {' '.join(words)}); COMP_CWORD={len(words)}; "
        'function=$(complete -p modelbudget | sed "s/.*-F \\([^ ]*\\) .*/\\1/"); $function; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", press], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected


def test_completion_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "zsh"]) == 2
    assert "pip install 'pytest-modelbudget[completion]'" in capsys.readouterr().err


def test_the_reference_has_every_command() -> None:
    """In the order of the help."""
    text = (Path(__file__).parents[2] / "docs/reference/command.md").read_text(encoding="utf-8")
    assert tuple(re.findall(r"^\| `modelbudget (\w+)", text, re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], id="no command"),
        pytest.param(["shwo"], id="no such command"),
        pytest.param(["show"], id="no model"),
        pytest.param(["show", "net", "--inptus", "x"], id="no such option"),
        pytest.param(["show", "net", "--batch", "many"], id="not a number"),
    ],
)
def test_wrong_words_are_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With usage on standard error, and nothing on standard output."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: modelbudget" in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The installed one."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("modelbudget 0.")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_a_reader_that_leaves_early_is_no_error(modelbudget: Command) -> None:
    """As of `modelbudget schema | head -1`."""
    command = f"{sys.executable} -m pytest_modelbudget.cli schema | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_one_line_says_what_is_wrong(modelbudget: Command) -> None:
    """Never a traceback of this project's own."""
    done = modelbudget("show", "nothing")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "modelbudget: 'nothing' is no file, no id of the manifest and no module:name\n  registered: (no models)\n"
    )
