"""Hooks that this plugin calls; a tracker or a team's own policy implements them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_modelbudget.results import Result


@pytest.hookspec
def pytest_modelbudget_finish(results: Sequence[Result], config: pytest.Config) -> None:
    """Called once, on the controller, after all models were checked and all files written; results are sorted by id."""
