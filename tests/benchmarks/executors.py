"""CPU seconds and reports of a zoo by each way to count it: `python tests/benchmarks/executors.py timm --count 60`.

The arms are `pytest -n 2`, `check --jobs 2`, `check --on dask --jobs 2`, and, with `--kill-every 50`, the last one with a
worker of Dask killed at every 50th model. Reports have to be the same bytes but for the seconds (and the models at
which a worker was killed, which have to be named). CPU seconds are those of all processes that were waited for, with
importing frameworks. `small` are MLPs, for which starting is all that counts; `timm` needs `pip install timm`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

BUILDERS = """
import os, signal, time

def mlp(name):
    from torch import nn
    return nn.Sequential(nn.Linear(64, int(name)), nn.ReLU(), nn.Linear(int(name), 10))

def timm(name):
    if name in os.environ.get("KILLED_AT", "").split(","):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    import timm
    return timm.create_model(name)
"""
ARMS = {
    "pytest -n 2": ("pytest", "-q", "--model-budget", "-n", "2", "-p", "no:cacheprovider"),
    "check --jobs 2": ("pytest_modelbudget.cli", "check", "--jobs", "2"),
    "check --on dask": ("pytest_modelbudget.cli", "check", "--on", "dask", "--jobs", "2"),
}


def small_models(count: int) -> Iterator[tuple[str, str, str]]:
    """Names, builders and inputs of MLPs."""
    for width in range(1, count + 1):
        yield f"{width}", "mlp", "float32[B, 64]"


def timm_models(count: int) -> Iterator[tuple[str, str, str]]:
    """So many registered names of timm, evenly spread."""
    import timm

    names = timm.list_models()
    for name in names[:: max(1, len(names) // count)][:count]:
        config = timm.get_pretrained_cfg(name)
        size = ", ".join(map(str, config.input_size if config else (3, 224, 224)))
        yield name, "timm", f"float32[B, {size}]"


def write_project(folder: Path, models: Sequence[tuple[str, str, str]]) -> None:
    """A manifest of the models, with their builders."""
    lines = [
        f'  "m{name}": {{build: "builders:{builder}", args: ["{name}"], inputs: "{spec}"}}'
        for name, builder, spec in models
    ]
    (folder / "modelbudget.yaml").write_text("\n".join(("version: 1", "models:", *lines, "")), encoding="utf-8")
    (folder / "builders.py").write_text(BUILDERS, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")


def run(folder: Path, words: Sequence[str], variables: Mapping[str, str]) -> tuple[float, dict[str, Any]]:
    """CPU seconds of a run, and its JSON report without times, by model."""
    before, module = cpu_seconds(), words[0]
    flag = "--report" if "check" in words else "--model-budget-report"
    code = f"import sys; from {module} import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", code, *words[1:], f"{flag}=json:report.json"]
    subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=False)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for model in report["models"]:
        model["seconds"] = 0
    return cpu_seconds() - before, report


def cpu_seconds() -> float:
    """Of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def without(report: Mapping[str, Any], ids: Sequence[str]) -> str:
    """The report's models but for some, as text."""
    return json.dumps([model for model in report["models"] if model["id"] not in ids])


def main() -> int:
    """Run all arms; 1 when a report differs, or a killed model is not named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoo", choices=("small", "timm"))
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--kill-every", type=int, default=0)
    options = parser.parse_args()
    models = list((timm_models if options.zoo == "timm" else small_models)(options.count))
    wrong, baseline = 0, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_project(folder, models)
        reports = {}
        for arm, words in ARMS.items():
            seconds, reports[arm] = run(folder, words, {})
            first = reports["pytest -n 2"]
            same = json.dumps(reports[arm]) == json.dumps(first)
            wrong += not same
            baseline = seconds if arm == "pytest -n 2" else baseline
            print(f"{arm:<18} {seconds:7.1f} CPU s  {seconds / baseline:.2f} x  {len(first['models'])} models, "
                  f"{'the same report' if same else 'ANOTHER REPORT'}", flush=True)  # fmt: skip
        if options.kill_every:
            killed = [name for name, *_ in models[options.kill_every - 1 :: options.kill_every]]
            _, report = run(folder, ARMS["check --on dask"], {"KILLED_AT": ",".join(killed)})
            ids = [f"m{name}" for name in killed]
            named = [item["id"] for item in report["models"] if "worker of the cluster died" in item["error"]]
            same = without(report, ids) == without(first, ids)
            wrong += named != sorted(ids) or not same
            print(f"workers killed at {len(ids)} models, named: {', '.join(named)}; "
                  f"all others {'the same' if same else 'DIFFER'}")  # fmt: skip
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
