"""What a project of very many models costs: `python tests/benchmarks/many_models.py 1000 4000 16000`.

A source yields N small configurations of one family; an update run writes their snapshots, then they are checked by
`modelbudget check` and by `pytest --model-budget` (`--doors` chooses, `xdist` is pytest with `-n 2`). For each N and each
door it prints the CPU seconds of collecting alone (for 10,000 models), CPU milliseconds a model with all children, the
peak of the controlling process' memory, and the sizes of the reports. `--family fake` counts nothing but this project's
own work; `--moved 1` changes one model in a hundred between update and check. It is no test: it takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
REPORTS = ("json", "md", "html", "openmetrics", "comment", "codequality")
FAKE = """
from pytest_modelbudget import ModelEntry, backends
from fakenet import Model

backends.BACKENDS["fakenet"] = "fakenet"


def net(width, depth):
    return Model({f"layer{n}": (width, width) for n in range(depth)})
"""
MLP = """
from pytest_modelbudget import ModelEntry
from torch import nn


def net(width, depth):
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())))
"""
SOURCE = """
import os

NUMBER, MOVED = {number}, int(os.environ.get("MOVED", "0"))


def models():
    for n in range(NUMBER):
        width, depth = 8 + n % 500, 1 + n % 3
        moved = MOVED and n % 100 < MOVED
        yield ModelEntry(
            f"family/w{{width}}/net-{{n:06}}",
            net,
            args=(width, depth + 1 if moved else depth),
            inputs=f"float32[B, {{width}}]",
            tags=("small",) if n % 2 else (),
        )
"""
MANIFEST = """
version: 1
defaults: {{budgets: {{params: {{max: 10M, warn: 95%}}}}{snapshot}}}
sources: [nets:models]
groups: {{wide: {{models: "family/w4*", budgets: {{weight_bytes: 100 MB}}}}}}
tags: {{small: {{budgets: {{flops: 1 GFLOPs}}}}}}
"""


def main() -> None:
    """Measure each size, and print a table."""
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", type=int, nargs="*", default=[1_000, 4_000, 16_000])
    parser.add_argument("--family", choices=("mlp", "fake"), default="mlp")
    parser.add_argument("--doors", default="check,pytest,xdist")
    parser.add_argument("--snapshot", choices=("layers", "totals"), default="layers")
    parser.add_argument("--moved", type=int, default=0, metavar="PERCENT")
    parser.add_argument("--reports", default=",".join(REPORTS))
    parser.add_argument("--collect-only", action="store_true")
    options = parser.parse_args()
    print("models  door    collect 10k  CPU ms/model  wall s  peak MB  ret  reports MB", flush=True)
    for number in options.numbers:
        folder = Path(tempfile.mkdtemp(prefix="many-models-"))
        try:
            measure(folder, number, options)
        finally:
            shutil.rmtree(folder)


def measure(folder: Path, number: int, options: argparse.Namespace) -> None:
    """Make a project of `number` models, and run it in each way."""
    write_project(folder, number, options.family, options.snapshot)
    doors = options.doors.split(",")
    if not options.collect_only:
        show(number, "update", None, run(folder, "check", ["--accept"], reports=()))
    reports = tuple(filter(None, options.reports.split(",")))
    for door in doors:
        collected = run(folder, door, ["--nothing"], reports=())
        checked = None if options.collect_only else run(folder, door, [], reports=reports, moved=options.moved)
        show(number, door, collected, checked)


def write_project(folder: Path, number: int, family: str, snapshot: str) -> None:
    """The manifest, and the module of its source."""
    family_code = {"fake": FAKE, "mlp": MLP}[family]
    shutil.copy(ROOT / "tests" / "fakes.py", folder / "fakenet.py")
    (folder / "nets.py").write_text(family_code + SOURCE.format(number=number))
    key = ", snapshot: totals" if snapshot == "totals" else ""
    (folder / "modelbudget.yaml").write_text(MANIFEST.format(snapshot=key))
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")


def run(folder: Path, door: str, words: list[str], *, reports: tuple[str, ...], moved: int = 0) -> dict[str, float]:
    """One run in a process of its own, with what it cost; `--nothing` stands for collecting alone."""
    targets = [f"{kind}:report.{kind}" for kind in reports]
    if door == "check":
        report_words = [word for target in targets for word in ("--report", target)]
        arguments = ["family/w8/net-000000"] if words == ["--nothing"] else [*words, *report_words]
        arguments = ["update", *report_words] if words == ["--accept"] else ["check", *arguments]
    else:
        report_words = [f"--model-budget-report={target}" for target in targets]
        arguments = ["--model-budget", "-q", *(["-n", "2"] if door == "xdist" else []), *report_words]
        arguments += ["--collect-only"] if words == ["--nothing"] else []
    command = [sys.executable, __file__, "--inside", "check" if door == "check" else "pytest", "cost.json", *arguments]
    path = os.pathsep.join((str(ROOT), str(folder)))
    environment = {**os.environ, "PYTHONPATH": path, "MOVED": str(moved)}
    with (folder / "output.txt").open("w") as output:
        subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output, check=False)
    cost = json.loads((folder / "cost.json").read_text())
    return {**cost, **{kind: (folder / f"report.{kind}").stat().st_size / 1e6 for kind in reports}}


def inside(door: str, cost: Path, arguments: list[str]) -> None:
    """What is measured: the run, and its own peak of memory."""
    begin = time.monotonic()
    if door == "check":
        from pytest_modelbudget.cli import main as command

        code = command(arguments)
    else:
        import pytest

        code = int(pytest.main(arguments))
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = sum((own.ru_utime, own.ru_stime, children.ru_utime, children.ru_stime))
    own_cpu = own.ru_utime + own.ru_stime
    seconds = time.monotonic() - begin
    content = {"cpu": cpu, "own": own_cpu, "seconds": seconds, "peak": own.ru_maxrss / 1024, "code": code}
    cost.write_text(json.dumps(content))


def show(number: int, door: str, collected: dict[str, float] | None, checked: dict[str, float] | None) -> None:
    """One line of the table."""
    collect = "-" if collected is None else f"{collected['cpu']:.2f} s for {number}"
    line = f"{number:>6}  {door:<7} {collect:>18}"
    if checked is not None:
        sizes = " ".join(f"{kind} {checked[kind]:.2f}" for kind in REPORTS if kind in checked)
        own = 1000 * checked["own"] / number
        line += f"  {1000 * checked['cpu'] / number:8.2f} (own {own:.2f})  {checked['seconds']:7.1f}"
        line += f"  {checked['peak']:6.0f}  {checked['code']:.0f}  {sizes}"
    print(line, flush=True)


if __name__ == "__main__":
    main()
