"""A mistake in the hook at the end of a run; that it is called, and with what, is told with the terminal's words."""

from __future__ import annotations

from tests.project import USE_FAKENET, Project


def test_a_hook_that_raises_fails_the_run_and_hides_nothing(small: Project) -> None:
    """The user's own line is shown, and so is the table."""
    small.write(
        "conftest.py", USE_FAKENET + "\n    def pytest_modelbudget_finish(results):\n        raise KeyError('page')\n"
    )
    result = small.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "1 model in * 1 ok",
            "ERROR pytest_modelbudget_finish failed:",
            "conftest.py:*in pytest_modelbudget_finish",
            "E   KeyError: 'page'",
        ]
    )
