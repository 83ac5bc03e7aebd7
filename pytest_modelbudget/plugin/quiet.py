"""What a model's code prints while it is built cannot give commands to a CI service."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pytest_modelbudget.reports import github


@contextmanager
def no_commands(config: pytest.Config) -> Iterator[None]:
    """Commands are off inside, in a job of GitHub Actions whose log gets output directly.

    Captured output needs no such thing: it is made harmless before it is shown. The word that turns commands on
    again is made up anew each time, so that what is printed inside cannot contain it.
    """
    if not github.reads_log() or config.getoption("capture") == "fd" or sys.__stdout__ is None:
        yield
        return
    token = secrets.token_hex(16)
    _print(f"::stop-commands::{token}")
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        _print(f"::{token}::")


def _print(command: str) -> None:
    """On a line of its own: pytest, or the model, may have left one unfinished."""
    assert sys.__stdout__ is not None
    sys.__stdout__.write(f"\n{command}\n")
    sys.__stdout__.flush()
