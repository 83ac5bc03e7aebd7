"""Planned against measured on a real GPU: `python -m tests.benchmarks.gpu_truth [--device cpu] [NAME ...]`.

Each case is run for real, three steps in a fresh process, with `max_memory_allocated` and `max_memory_reserved`, and
planned without the GPU; the table says both, with the versions of the software. On the CPU the steps run, so that the
script can be tried, but nothing is measured. All cases take about five minutes on one GPU.
Needs `pip install torchvision transformers`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.planning import make_plans
from pytest_modelbudget.backends.torch.training.optimizers import optimizer_of
from pytest_modelbudget.backends.torch.training.recipe import recipe_patches
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import Inference, Recipe, Training

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}


@dataclass(frozen=True, slots=True)
class Case:
    """A model, its inputs, and how it is run."""

    build: Callable[[], nn.Module]
    inputs: str
    recipe: Recipe


def _resnet50() -> nn.Module:
    import torchvision

    return torchvision.models.resnet50()


def _vit() -> nn.Module:
    import torchvision

    return torchvision.models.vit_b_16()


def _convnext() -> nn.Module:
    import torchvision

    return torchvision.models.convnext_tiny()


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(use_cache=False))


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig())


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    return LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=8, vocab_size=128256, use_cache=False))


class _Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.out = nn.LSTM(512, 1024, 2, batch_first=True), nn.Linear(1024, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.out(self.layers(x)[0])
        return result


IMAGES, TOKENS = "float32[32, 3, 224, 224]", "int64[8, 512]"
ADAMW = Training(loss="none")
CASES: dict[str, Case] = {
    "resnet50 inference": Case(_resnet50, IMAGES, Inference()),
    "resnet50 sgd": Case(_resnet50, IMAGES, replace(ADAMW, optimizer="sgd", optimizer_options={"momentum": 0.9})),
    "resnet50 adamw bf16-mixed": Case(_resnet50, IMAGES, replace(ADAMW, precision="bf16-mixed")),
    "vit_b_16 adamw": Case(_vit, IMAGES, ADAMW),
    "vit_b_16 adamw bf16-mixed": Case(_vit, IMAGES, replace(ADAMW, precision="bf16-mixed")),
    "vit_b_16 adamw checkpointing": Case(_vit, IMAGES, replace(ADAMW, checkpointing="blocks")),
    "convnext_tiny adamw": Case(_convnext, IMAGES, ADAMW),
    "gpt2 inference bf16": Case(_gpt2, TOKENS, Inference(precision="bf16")),
    "gpt2 adamw": Case(_gpt2, TOKENS, ADAMW),
    "gpt2 adam fused bf16-mixed": Case(
        _gpt2, TOKENS, replace(ADAMW, optimizer="adam", fused=True, precision="bf16-mixed")
    ),
    "gpt2 adamw fp16-mixed": Case(_gpt2, TOKENS, replace(ADAMW, precision="fp16-mixed")),
    "gpt2 adafactor": Case(_gpt2, TOKENS, replace(ADAMW, optimizer="adafactor")),
    "gpt2 4 accumulated": Case(_gpt2, TOKENS, replace(ADAMW, gradient_accumulation=4)),
    "bert adamw": Case(_bert, TOKENS, ADAMW),
    "llama 1B bf16 adamw": Case(_llama, TOKENS, replace(ADAMW, precision="bf16")),
    "llama 1B bf16 adamw checkpointing": Case(_llama, TOKENS, replace(ADAMW, precision="bf16", checkpointing="blocks")),
    "llama 1B bf16 lora": Case(_llama, TOKENS, replace(ADAMW, precision="bf16", lora={"rank": 16})),
    "lstm adam": Case(_Lstm, "float32[32, 256, 512]", replace(ADAMW, optimizer="adam")),
}


def measure(case: Case, device: str) -> dict[str, float]:
    """Run a case for real: three steps (or passes), and what torch's allocator says of them."""
    recipe, half = case.recipe, case.recipe.precision in ("bf16", "fp16")
    dtype = _DTYPES.get(recipe.precision)
    model = case.build().to(device, dtype if half else None)

    def make(name: str, spec: Any) -> torch.Tensor:
        kind = getattr(torch, spec.dtype)
        if not kind.is_floating_point:
            return torch.zeros(spec.shape, dtype=kind, device=device)
        return torch.rand(spec.shape, device=device, dtype=dtype if half else kind)

    args, kwargs = parse(case.inputs).build(make)  # type: ignore[union-attr]
    autocast = torch.autocast(device, dtype) if dtype is not None and not half else nullcontext()
    if isinstance(recipe, Inference):
        model.eval()
        for _ in range(3):
            with torch.no_grad(), autocast:
                out = model(*args, **kwargs)
        return _peaks(device)
    scaler = torch.amp.GradScaler(device, enabled=recipe.precision == "fp16-mixed" and device == "cuda")
    with ExitStack() as stack:
        stack.enter_context(recipe_patches(model.train(), recipe))
        params = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = optimizer_of(recipe, params, model)
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(recipe.gradient_accumulation):
                with autocast:
                    out = model(*args, **kwargs)
                scores = out if isinstance(out, torch.Tensor) else out.logits
                torch.autograd.backward([scaler.scale(scores)], [torch.empty_like(scores)])
            scaler.step(optimizer)
            scaler.update()
        return _peaks(device)


def _peaks(device: str) -> dict[str, float]:
    if device != "cuda":
        return {"allocated": 0, "reserved": 0}
    torch.cuda.synchronize()
    return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}


def main() -> None:
    """Print a row for each case, each measured in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names of cases; all without")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--measure", help="only run this case and print what was measured")
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(CASES[given.measure], given.device)))
        return
    where = torch.cuda.get_device_name() if given.device == "cuda" else "the CPU: nothing is measured"
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {where}; MiB")
    print(f"{'case':36} {'allocated':>10} {'planned':>10} {'':>8} {'reserved':>10} {'planned':>10} {'':>8}  CPU s")
    for name, case in CASES.items():
        if not given.names or any(part in name for part in given.names):
            _row(name, case, given.device)


def _row(name: str, case: Case, device: str) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.gpu_truth", "--device", device, "--measure", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name:36} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return
    found = json.loads(done.stdout.splitlines()[-1])
    model, start = case.build(), time.process_time()
    inputs = parse(case.inputs)
    [plan] = make_plans(model, name=name, inputs=inputs, sizes={}, recipes=[case.recipe], built_here=False)  # type: ignore[arg-type]
    seconds = time.process_time() - start
    print(
        f"{name:36} {_pair(found['allocated'], plan.peak_bytes)} "
        f"{_pair(found['reserved'], plan.reserved_bytes)} {seconds:6.2f}",
        flush=True,
    )


def _pair(measured: float, planned: int | None) -> str:
    error = "?" if planned is None or not measured else f"{100 * (planned / measured - 1):+.2f}%"
    return f"{measured / 2**20:10.1f} {'?' if planned is None else f'{planned / 2**20:.1f}':>10} {error:>8}"


if __name__ == "__main__":
    main()
