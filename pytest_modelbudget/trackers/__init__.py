"""Trackers: each is a package that satisfies `Tracker` and is listed in `TRACKERS`.

A tracker sends results away to where they become a history. Its failures never change what a run decided:
they come back as lines to print.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from pytest_modelbudget.results import Result

TRACKERS = {"mlflow": "pytest_modelbudget.trackers.mlflow"}
"""The trackers there are, by the name of their option."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How sending went: `lines` say where to look, or what went wrong and how to cure it; `links` are (name, address).

    Not `ok` means that something is kept or lost; that nothing was to be sent is `ok`, and so is what by design takes
    several runs, such as the first histories of very many models.
    """

    ok: bool
    lines: tuple[str, ...]
    links: tuple[tuple[str, str], ...] = ()


class Tracker(Protocol):
    """What a tracker's package has to offer."""

    def log(
        self, results: Sequence[Result], root: Path, *, exit_failed: bool, deadline: float | None = None
    ) -> Delivery:
        """Send `results` of a run in `root` away within `deadline` seconds; `exit_failed` says that the run failed.

        Without a deadline the tracker has its own. Called once a run, on the controller.
        Never raises for a failure of tracking.
        """
        ...


def tracker(name: str) -> Tracker:
    """The tracker of one name; imports it."""
    return cast(Tracker, import_module(TRACKERS[name]))
