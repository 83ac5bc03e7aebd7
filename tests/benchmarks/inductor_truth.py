"""Plans of compiled runs against real ones of Inductor on the CPU: `python tests/benchmarks/inductor_truth.py`.

The truth is that of `memory_truth.py`, of `torch.compile(model)` after a step that compiles. Beside it stand the plan
of the same step in eager mode, as a measure of what would be wrong without an estimate, and the CPU seconds of the plan.
The bars are the worst error that a plan prints, and the median where nothing is recomputed. Needs a C++ compiler and `pip install
torchvision transformers`; models and cases can be named: `... resnet18,gpt2 infer,sgd`.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
import warnings
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts  # noqa: E402

from pytest_modelbudget.backends.torch.compiled.estimate import (  # noqa: E402
    MEDIAN,
    WORST,
    WORST_BLOCKS,
    WORST_HALF_CONVOLUTIONS,
    WORST_RECOMPUTED,
)
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy  # noqa: E402
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel  # noqa: E402
from pytest_modelbudget.backends.torch.training.step import record_step  # noqa: E402
from pytest_modelbudget.inputs import parse  # noqa: E402
from pytest_modelbudget.planner import Inference, Training  # noqa: E402
from pytest_modelbudget.planner.recipe import BLOCKS_COMPILED  # noqa: E402
from tests.benchmarks.memory_kinds import KINDS, Kind, UNet, transformers_model  # noqa: E402
from tests.benchmarks.memory_truth import KERNELS, MODELS, Twice, _made, _steps, truth  # noqa: E402

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

SMALL = {"vocab_size": 1000, "bos_token_id": 0, "eos_token_id": 0}
CHECKPOINTED = {
    "gpt2": Kind(
        transformers_model("GPT2LMHeadModel", "GPT2Config", n_layer=6, n_embd=256, n_head=4, use_cache=False, **SMALL),
        "int64[8, 128]",
    ),
    "transformer": Kind(Twice, "float32[16, 128, 256]"),
    "unet": KINDS["unet"],
    "resnet18": MODELS["resnet18"],
}
"""Models whose blocks are recomputed: small ones, so that what the blocks keep is a large part of the peak."""

WAYS: dict[str, Any] = {"blocks": "blocks", "second": {"every": 2}, "products": {"save": ["matmul", "convolution"]}}
"""How blocks are recomputed, by the ends of names."""

NAMES = {
    **IN_FLOAT32,
    **{
        f"{name}-autocast": replace(kind, recipe={**kind.recipe, "precision": "bf16-mixed"})
        for name, kind in IN_AUTOCAST.items()
    },
    **{
        f"{name}-{way}": replace(kind, recipe={**kind.recipe, "checkpointing": checkpointing})
        for name, kind in CHECKPOINTED.items()
        for way, checkpointing in WAYS.items()
    },
    "gpt2-blocks-autocast": replace(
        CHECKPOINTED["gpt2"], recipe={"checkpointing": "blocks", "precision": "bf16-mixed"}
    ),
}
EACH = {
    f"{name}-each{end}": replace(kind, recipe={**kind.recipe, **recipe})
    for name, kind in CHECKPOINTED.items()
    for end, recipe in {
        "": {},
        "-blocks": {"checkpointing": "blocks"},
        "-products": {"checkpointing": WAYS["products"]},
        "-autocast": {"checkpointing": "blocks", "precision": "bf16-mixed"},
    }.items()
}
"""Models whose blocks are compiled, each by itself."""

NAMES |= EACH


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
    if name.startswith(("unet", "resnet")) and name.endswith("-autocast"):
        return WORST_HALF_CONVOLUTIONS
    if name in EACH:
        return WORST_BLOCKS
    return WORST_RECOMPUTED if "checkpointing" in NAMES[name].recipe else WORST


def planned(model: nn.Module, kind: Kind, case: str, compiler: Any) -> tuple[int, float]:
    """The planned peak and its CPU seconds."""
    runnable = RunnableModel("model", meta_copy(model), parse(kind.inputs))
    start = time.process_time()
    common: dict[str, Any] = {"kernels": KERNELS, "compile": compiler}
    if case == "infer":
        common["precision"] = kind.recipe.get("precision", "fp32")
    recipe = Inference(**common) if case == "infer" else Training(optimizer=case, **common, **kind.recipe)
    return record_step(runnable, {}, recipe).peak(), time.process_time() - start


def compiled_truth(model: nn.Module, kind: Kind, case: str, *, each: bool) -> int:
    """Bytes at the peak of two real steps of the compiled model, or of `each` block, after one that compiled it."""
    if kind.recipe.get("precision") == "bf16":
        model = model.to(torch.bfloat16)
    torch._dynamo.reset()
    recompute_blocks(model, kind.recipe.get("checkpointing", "none"))
    for block in blocks_of(model) if each else ():
        block.compile(fullgraph=True)
    compiled: Any = model if each else torch.compile(model)
    call, _ = _made(kind.inputs, "cpu")
    _steps(compiled, call, case, kind.recipe)()
    compiled.zero_grad()
    del call
    gc.collect()
    return truth(compiled, kind.inputs, case, kind.recipe)


def recompute_blocks(model: nn.Module, written: Any) -> None:
    """What a recipe's `checkpointing` says, as a user writes it: blocks are members of the outermost lists."""
    options = written if isinstance(written, dict) else {}
    saved = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default]
    saved += [torch.ops.aten.baddbmm.default, torch.ops.aten.convolution.default]
    context = partial(create_selective_checkpoint_contexts, saved)
    how = {"context_fn": context} if "save" in options else {}

    def recomputed(original: Any) -> Any:
        return lambda *args, **kwargs: checkpoint(original, *args, use_reentrant=False, **how, **kwargs)

    if written != "none":
        for block in blocks_of(model)[options.get("every", 1) - 1 :: options.get("every", 1)]:
            block.forward = recomputed(block.forward)


def blocks_of(model: Any) -> list[Any]:
    """The repeated blocks of the models in `CHECKPOINTED`."""
    if isinstance(model, Twice):
        return [*model.transformer.encoder.layers, *model.transformer.decoder.layers]
    if isinstance(model, UNet):
        return [*model.down, *model.join]
    if hasattr(model, "layer1"):
        return [*model.layer1, *model.layer2, *model.layer3, *model.layer4]
    return list(model.transformer.h)


def row(name: str, case: str) -> Row:
    """All of one model and case."""
    kind = NAMES[name]
    torch.manual_seed(0)
    model = kind.build()
    estimate, seconds = planned(model, kind, case, BLOCKS_COMPILED if name in EACH else "inductor")
    eager, _ = planned(model, kind, case, "none")
    return Row(name, case, compiled_truth(model, kind, case, each=name in EACH), estimate, eager, seconds)


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
    plain = [abs(one.error(one.planned)) for one in rows if bar_of(one.model) in (WORST, WORST_HALF_CONVOLUTIONS)]
    good = within and (not plain or round(statistics.median(plain), 1) <= MEDIAN)
    print(f"median {median:.2f} %, worst {worst:.2f} %, of {len(rows)} runs: {'as printed' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    given = [part.split(",") for part in sys.argv[1:3]]
    sys.exit(main(given[0] if given else list(NAMES), given[1] if len(given) > 1 else list(CASES)))
