"""With the option off the plugin is as good as not installed."""

from __future__ import annotations

import sys

from tests.project import WITHOUT_OTHERS, Project

OURS = {"pytest_modelbudget", "pytest_modelbudget.plugin", "pytest_modelbudget.plugin.hooks"}
START = "import sys, pytest; pytest.main(sys.argv[1:]); print('imported:', *sys.modules)"


def imported(project: Project, *args: str) -> set[str]:
    """Every module of a process that starts pytest (`-X importtime` misses what an entry point loads)."""
    result = project.pytester.run(
        sys.executable, "-c", START, "--co", "-q", "-p", "no:cacheprovider", *WITHOUT_OTHERS, *args
    )
    return set(result.outlines[-1].removeprefix("imported: ").split())


def test_nothing_is_imported_beyond_pytest(project: Project) -> None:
    """Of this package only the options and the hook's specification; of others nothing that pytest did not want."""
    for name in ("conftest.py", "zoo.py", "fakenet.py"):
        (project.path / name).unlink()
    project.write("test_plain.py", "def test_plain(): pass\n")
    on, off = imported(project), imported(project, "-p", "no:modelbudget")
    assert "pytest_modelbudget.plugin" not in off
    assert on - off == OURS


def test_a_conftest_with_our_hook_is_no_error_with_the_option_off(project: Project) -> None:
    """A team's own policy may stay in its conftest."""
    project.write("conftest.py", "def pytest_modelbudget_finish(results, config):\n    raise SystemError\n")
    project.write("test_plain.py", "def test_plain(): pass\n")
    project.plain().assert_outcomes(passed=1)


def test_a_fixture_that_nobody_asks_for_costs_nothing(project: Project) -> None:
    """Ordinary tests run as ever, with a broken manifest in the root."""
    project.write("modelbudget.yaml", "{{{")
    project.write("test_plain.py", "def test_plain(): pass\n")
    result = project.plain("-W", "error")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
