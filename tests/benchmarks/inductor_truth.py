"""Plans of compiled runs against real ones of Inductor on the CPU: `python tests/benchmarks/inductor_truth.py`.

The truth is that of `memory_truth.py`, of `torch.compile(model)` after a step that compiles. Beside it stand the plan
of the same step in eager mode, as a measure of what would be wrong without an estimate, and the CPU seconds of the plan.
The bars are the median and the worst error that a plan prints. Needs a C++ compiler and `pip install
torchvision transformers`; models and cases can be named: `... resnet18,gpt2 infer,sgd`.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
import warnings
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from pytest_modelbudget.backends.torch.compiled.estimate import MEDIAN, WORST, WORST_HALF_CONVOLUTIONS  # noqa: E402
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy  # noqa: E402
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel  # noqa: E402
from pytest_modelbudget.backends.torch.training.step import record_step  # noqa: E402
from pytest_modelbudget.inputs import parse  # noqa: E402
from pytest_modelbudget.planner import Inference, Training  # noqa: E402
from tests.benchmarks.memory_kinds import KINDS, Kind  # noqa: E402
from tests.benchmarks.memory_truth import KERNELS, MODELS, _made, _steps, truth  # noqa: E402

CASES = ("infer", "sgd", "adamw")


class Perceptron(nn.Module):
    """Layers of GELU with dropout."""

    def __init__(self) -> None:
        super().__init__()
        widths = (512, 2048, 2048, 2048, 512)
        layers = [
            part
            for rows, columns in pairwise(widths)
            for part in (nn.Linear(rows, columns), nn.GELU(), nn.Dropout(0.1))
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class Digits(nn.Sequential):
    """Layers of ReLU with a batch norm."""

    def __init__(self) -> None:
        first = (nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.BatchNorm1d(1024))
        super().__init__(*first, nn.ReLU(), nn.Linear(1024, 10))


IN_FLOAT32 = {
    "perceptron": Kind(Perceptron, "float32[1024, 512]"),
    **{name: MODELS[name] for name in ("gpt2", "resnet18", "bert", "transformer")},
    "unet": KINDS["unet"],
}
IN_AUTOCAST = {
    **IN_FLOAT32,
    "digits": Kind(Digits, "float32[512, 784]"),
    "llama": MODELS["llama"],
    "vit": MODELS["vit_b_16"],
}
NAMES = {
    **IN_FLOAT32,
    **{
        f"{name}-autocast": replace(kind, recipe={**kind.recipe, "precision": "bf16-mixed"})
        for name, kind in IN_AUTOCAST.items()
    },
}


@dataclass(frozen=True, slots=True)
class Row:
    """One case: bytes at the peak, compiled and planned, planned in eager mode, and CPU seconds of the plan."""

    model: str
    case: str
    truth: int
    planned: int
    eager: int
    seconds: float

    def error(self, peak: int) -> float:
        """Per cent of the truth."""
        return 100 * (peak / self.truth - 1)


def bar_of(name: str) -> int:
    """The worst error that a plan of this model prints, in per cent."""
    return WORST_HALF_CONVOLUTIONS if name in ("resnet18-autocast", "unet-autocast") else WORST


def planned(model: nn.Module, kind: Kind, case: str, compiler: Any) -> tuple[int, float]:
    """The planned peak and its CPU seconds."""
    runnable = RunnableModel("model", meta_copy(model), parse(kind.inputs))
    start = time.process_time()
    common: dict[str, Any] = {"kernels": KERNELS, "compile": compiler}
    if case == "infer":
        common["precision"] = kind.recipe.get("precision", "fp32")
    recipe = Inference(**common) if case == "infer" else Training(optimizer=case, **common, **kind.recipe)
    return record_step(runnable, {}, recipe).peak(), time.process_time() - start


def compiled_truth(model: nn.Module, kind: Kind, case: str) -> int:
    """Bytes at the peak of two real steps of the compiled model, after one that compiled it."""
    if kind.recipe.get("precision") == "bf16":
        model = model.to(torch.bfloat16)
    torch._dynamo.reset()
    compiled: Any = torch.compile(model)
    call, _ = _made(kind.inputs, "cpu")
    _steps(compiled, call, case, kind.recipe)()
    compiled.zero_grad()
    del call
    gc.collect()
    return truth(compiled, kind.inputs, case, kind.recipe)


def row(name: str, case: str) -> Row:
    """All of one model and case."""
    kind = NAMES[name]
    torch.manual_seed(0)
    model = kind.build()
    estimate, seconds = planned(model, kind, case, "inductor")
    eager, _ = planned(model, kind, case, "none")
    return Row(name, case, compiled_truth(model, kind, case), estimate, eager, seconds)


def main(models: list[str], cases: list[str]) -> int:
    """Print the table and the verdict; 1 when a bar is missed."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    planned(nn.Linear(4, 4), Kind(nn.Linear, "float32[2, 4]"), "sgd", "inductor")  # imports
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print("| model | case | true MiB | planned | error | as planned in eager mode | CPU s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    rows = []
    for name in models:
        for case in cases:
            one = row(name, case)
            rows.append(one)
            true, own = (f"{size / 2**20:.2f}" for size in (one.truth, one.planned))
            errors = [f"{one.error(peak):+.2f} %" for peak in (one.planned, one.eager)]
            print(f"| {name} | {case} | {true} | {own} | {errors[0]} | {errors[1]} | {one.seconds:.2f} |", flush=True)
    errors = [abs(one.error(one.planned)) for one in rows]
    median, worst = statistics.median(errors), max(errors)
    within = all(abs(one.error(one.planned)) <= bar_of(one.model) for one in rows)
    good = round(median, 1) <= MEDIAN and within
    print(f"median {median:.2f} %, worst {worst:.2f} %, of {len(rows)} runs: {'as printed' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    given = [part.split(",") for part in sys.argv[1:3]]
    sys.exit(main(given[0] if given else list(NAMES), given[1] if len(given) > 1 else list(CASES)))
