"""How long logging to MLflow takes at the end of a run of many models: `python -m tests.benchmarks.mlflow_speed`.

    python -m tests.benchmarks.mlflow_speed [MODELS] [URI]

Three runs of pytest at three commits: all models are new, none changed, ten changed. Without URI the embedded store.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pytest_modelbudget.results import Result, State
from pytest_modelbudget.trackers import mlflow
from tests.builders import gpt


def main(models: int, uri: str) -> None:
    """Print the seconds of each run, and of what is left to do after the first one."""
    os.environ |= {"MLFLOW_TRACKING_URI": uri} if uri else {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        _git("init", "-q", "-b", "main", ".")
        narrow, wide = gpt(depth=30), gpt(depth=30, width=9)
        print(f"{models} models of {len(narrow.layers)} rows, {uri or 'embedded store'}")
        for number, changed in enumerate((0, 0, 10)):
            _git("commit", "-q", "--allow-empty", "-m", "x")
            results = [
                Result(f"m{index}", State.OK, wide if index < changed else narrow, nodeid=f"a::m{index}")
                for index in range(models)
            ]
            start, used = time.perf_counter(), os.times()
            delivery = mlflow.log(results, Path.cwd(), exit_failed=False, deadline=1200)
            now = os.times()
            cpu = now.user - used.user + now.children_user - used.children_user
            print(f"run {number + 1}: {time.perf_counter() - start:.2f} s ({cpu:.1f} s of processor time)")
            print("\n".join(delivery.lines))


def _git(*arguments: str) -> None:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
    subprocess.run(["git", *identity, *arguments], check=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1300, sys.argv[2] if len(sys.argv) > 2 else "")
