"""Every operation with every fault at every moment: nothing is lost, and the next run is right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.faults.moments import FAULTS

ROOT = Path(__file__).parents[2]
LEFTOVER = re.compile(r"(^|/)\.[^/]*\.tmp(/|$)|^\.modelbudget/outbox/\.")
"""Files that were not finished: no run takes them for anything."""


@cache
def told(operation: str) -> dict[str, Any]:
    """What the program says of an operation."""
    with TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.moments", operation, folder],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer


def finished(files: dict[str, str]) -> dict[str, str]:
    """The files that count, with the times in reports as one."""
    return {
        name: re.sub(r'"seconds": [0-9.e-]+', '"seconds": 0', text)
        for name, text in files.items()
        if not LEFTOVER.search(name)
    }


def table() -> list[Any]:
    """The cheapest operation is in the fast suite."""
    return [
        pytest.param(operation, fault, marks=() if operation == "tighten" else pytest.mark.slow)
        for operation, faults in FAULTS.items()
        for fault in faults
    ]


@pytest.mark.parametrize(("operation", "fault"), table())
def test_nothing_is_lost_and_the_next_run_is_right(operation: str, fault: str) -> None:
    """Each file is the old or the new one, whole; run again, all is as if nothing had happened."""
    done = told(operation)
    before, after = finished(done["before"]), finished(done["after"])
    moments = [one for one in done["moments"] if one["fault"] == fault]
    assert moments
    for moment in moments:
        left = finished(moment["left"])
        for name, text in left.items():
            unfinished = name.startswith("out/") and "the run did not finish" in text
            assert unfinished or text in (before.get(name), after.get(name)), (moment["at"], name)
        gone = (before.keys() & after.keys()) - left.keys()
        lost = {name for name in gone if operation != "outbox" and not name.startswith("out/")}  # an old report may go
        assert not lost, (moment["at"], lost)
        assert "Traceback" not in moment["said"], moment["said"]
        assert moment["next_code"] == done["code"], (moment["at"], moment["next_said"])
        if operation != "outbox":
            assert finished(moment["final"]) == after, moment["at"]


@pytest.mark.parametrize(
    ("operation", "fault"), [case for case in table() if case.values[1] in ("full", "short", "read-only")]
)
def test_what_cannot_be_written_is_said(operation: str, fault: str) -> None:
    """A run that could not write fails with the file's name and the reason, or has done all it was to do."""
    done = told(operation)
    for moment in done["moments"]:
        if moment["fault"] == fault and operation != "outbox":
            whole = finished(moment["left"]) == finished(done["after"])
            reason = re.search(r"No space left on device|File too large|Read-only file system", moment["said"])
            assert whole or (moment["code"] in (1, 2) and reason), (moment["at"], moment["code"], moment["said"])
            assert whole or re.search(r"\b(yaml|report\.\w+)\b[^\n]* (cannot|could not) be", moment["said"]), moment[
                "said"
            ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "operations",
    [
        pytest.param(["update"] * 8, id="updates"),
        pytest.param(["update small of totals", "update other of totals"] * 4, id="lines of one file"),
        pytest.param(["update", "check", "prune", "update by pytest", "check", "reports", "prune", "update"], id="all kinds"),
        pytest.param(["tighten"] * 4 + ["check"] * 4, id="tighten and check"),
    ],
)  # fmt: skip
def test_eight_at_once(operations: list[str]) -> None:
    """None sees half a file, none ends in a traceback, and afterwards every model is as committed."""
    done = told("+".join(operations))
    for one in done["rounds"]:
        for name, code, said in one["ended"]:
            assert code in (0, 1), (name, said)
            assert "Traceback" not in said, (name, said)
            assert "CONFLICT" not in said, (name, said)
        assert not [name for name in one["left"] if LEFTOVER.search(name)]
        assert "1 obsolete" in one["said"] or one["check"] == 0, one["said"]
        assert "2 ok" in one["said"], one["said"]


@pytest.mark.slow
def test_eight_writers_of_one_outbox() -> None:
    """Entries that are written, trimmed and read at the same time are whole, and no process fails for another."""
    done = told("+".join(["busy outbox"] * 8))
    for one in done["rounds"]:
        assert {code for _, code, _ in one["ended"]} == {0}, one["ended"]
