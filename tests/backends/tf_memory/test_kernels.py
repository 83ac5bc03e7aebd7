"""The tables of kernels, each held against a real run of the kernel on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("tensorflow")

from pytest_modelbudget.backends.tf_memory import kernels
from tests.backends.tf_memory.kernel_calls import CALLS

NOT_CALLED = {
    *["Enter", "Exit", "LoopCond", "Merge", "NextIteration", "Switch", "_Retval"],  # tested in loops
    *["Assign", "AssignAdd", "DestroyTemporaryVariable", "TemporaryVariable"],  # variables of the first TensorFlow
    *["ResourceGather", "ResourceGatherNd", "RngReadAndSkip", "StatefulUniform"],  # read variables
}


@pytest.mark.slow
def test_every_kernel_does_what_its_rule_says() -> None:
    """What it makes and what it takes besides, whichever of its inputs may be written over, without oneDNN."""
    command = [sys.executable, "-m", "tests.backends.tf_memory.kernels_for_real"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert report["wrong"] == []
    assert report["runs"] > len(CALLS)


def test_every_kernel_of_the_tables_is_called() -> None:
    """But those that need more than a call."""
    tables = {*kernels.VIEWS, *kernels.WRITES_OVER, *kernels.SECOND_OUTPUT_OVER, *kernels.FRESH}
    assert {call.kind for call in CALLS} == tables - NOT_CALLED
