"""Our peaks against published ones: `python tests/benchmarks/published_peaks.py`.

The truth are the rows of class A (byte-exact) and B (fixed shapes, four digits) in `tests/data/memory/
peak_memory_published.csv` whose model can be built without a network and whose run can be planned. Each line shows the
published and the predicted bytes, the error, and why it deviates where that is known. Class A is to be within 1 %, class
B within 10 % or with a cause. Rows that are not planned are listed with the reason.
Needs `pip install transformers`.
"""

from __future__ import annotations

import csv
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from pytest_modelbudget.backends.torch.distributed.rank import record_sharded  # noqa: E402
from pytest_modelbudget.backends.torch.model.build import abstract  # noqa: E402
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel  # noqa: E402
from pytest_modelbudget.backends.torch.training.step import record_step  # noqa: E402
from pytest_modelbudget.inputs import Inputs, parse  # noqa: E402
from pytest_modelbudget.planner import InitialStorage, MemoryTrace, Training  # noqa: E402
from pytest_modelbudget.planner.allocator import Reserve, replay  # noqa: E402
from pytest_modelbudget.planner.devices import device_by_name  # noqa: E402
from pytest_modelbudget.planner.libraries import blas_workspaces, with_blas  # noqa: E402

TABLE = ROOT / "tests" / "data" / "memory" / "peak_memory_published.csv"
BARS = {"A": 0.01, "B": 0.10}
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Case:
    """How a row is planned: which number of which run; `cause` says what is known of its deviation."""

    run: Callable[[], Reserve]
    reserved: bool = False
    cause: str = ""


def bert() -> Reserve:
    """BertForMaskedLM by transformers' Trainer, 2 x 16 tokens; ROCm before its BLAS used torch's allocator."""
    import transformers

    with abstract():
        model = transformers.BertForMaskedLM(transformers.BertConfig())
    return trained(model, TEXT, {"B": 2, "T": 16}, Training(optimizer="adamw", foreach=True, zero_grad="after"))


def gpt2() -> Reserve:
    """GPT2LMHeadModel in the same run."""
    import transformers

    with abstract():
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    return trained(model, TEXT, {"B": 2, "T": 16}, Training(optimizer="adamw", foreach=True, zero_grad="after"))


TEXT = {"input_ids": "int64[B, T]", "attention_mask": "int64[B, T]", "labels": "int64[B, T]"}


def trained(model: nn.Module, inputs: object, sizes: dict[str, int], recipe: Training, on: str = "") -> Reserve:
    """The reserve of a training; with `on` a device whose BLAS takes workspaces from the allocator."""
    found = parse(inputs)
    assert isinstance(found, Inputs)
    runnable = RunnableModel(type(model).__name__, model, found)
    memory_trace = (
        record_sharded(runnable, sizes, recipe).memory_trace
        if recipe.sharding
        else record_step(runnable, sizes, recipe)
    )
    return replay(
        with_blas(memory_trace, blas_workspaces("2.4.0", device_by_name(on))) if on else memory_trace, repeats=3
    )


def loaded(model: nn.Module) -> Reserve:
    """A model that is moved to a device and does nothing."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return replay(
        MemoryTrace(
            tuple(InitialStorage(place, item.nbytes, "param") for place, item in enumerate(tensors.values())), ()
        )
    )


def bert_weights() -> Reserve:
    """BertModel with the vocabulary of bert-base-cased."""
    import transformers

    with abstract():
        return loaded(transformers.BertModel(transformers.BertConfig(vocab_size=28996)))


def llama_lora() -> Reserve:
    """Llama 2 7B in bfloat16 with pairs of rank 8 at q_proj and v_proj, as it is built."""
    import transformers

    with abstract():
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(dtype="bfloat16")).to(torch.bfloat16)
        for layer in model.model.layers:
            for place in (layer.self_attn.q_proj, layer.self_attn.v_proj):
                place.lora_a = nn.Linear(4096, 8, bias=False, dtype=torch.bfloat16)
                place.lora_b = nn.Linear(8, 4096, bias=False, dtype=torch.bfloat16)
    return loaded(model)


class Norm(nn.Module):
    """RMS norm, all of it in float32."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = x.float()
        normed = high * torch.rsqrt(torch.mean(high * high, dim=-1, keepdim=True) + 1e-5)
        return (normed * self.weight.float()).to(x.dtype)


class Block(nn.Module):
    """A block of TinyLlama: 32 heads of 64, 4 groups of keys and values, gated feed-forward of 5,632."""

    def __init__(self, size: int = 2048, heads: int = 32, groups: int = 4, inner: int = 5632) -> None:
        super().__init__()
        self.heads, self.groups, self.head = heads, groups, size // heads
        self.norm_1, self.norm_2 = Norm(size), Norm(size)
        self.attn = nn.Linear(size, (heads + 2 * groups) * self.head, bias=False)
        self.proj = nn.Linear(size, size, bias=False)
        self.fc_1, self.fc_2 = nn.Linear(size, inner, bias=False), nn.Linear(size, inner, bias=False)
        self.out = nn.Linear(inner, size, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = self.attend(self.norm_1(x), cos, sin) + x
        normed = self.norm_2(x)
        return self.out(functional.silu(self.fc_1(normed)) * self.fc_2(normed)) + x

    def attend(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Grouped attention with rotated queries and keys; keys and values are repeated for each head."""
        batch, length, size = x.shape
        each = self.heads // self.groups
        qkv = self.attn(x).view(batch, length, self.groups, each + 2, self.head).permute(0, 2, 3, 1, 4)
        q, k, v = qkv.split((each, 1, 1), dim=2)
        k = k.expand(batch, self.groups, each, length, self.head)
        v = v.expand(batch, self.groups, each, length, self.head)
        q, k, v = (item.reshape(batch, -1, length, self.head) for item in (q, k, v))
        y = functional.scaled_dot_product_attention(turned(q, cos, sin), turned(k, cos, sin), v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(batch, length, size))


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions: halves swapped, the second negated."""
    half = x.size(-1) // 2
    swapped = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos + swapped * sin).to(x.dtype)


class TinyLlama(nn.Module):
    """1,100,048,384 parameters, as litgpt has them: 22 blocks of 2,048, a vocabulary of 32,000, untied."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(32_000, 2048)
        self.blocks = nn.ModuleList(Block() for _ in range(22))
        self.ln_f = Norm(2048)
        self.lm_head = nn.Linear(2048, 32_000, bias=False)
        self.register_buffer("cos", torch.zeros(2048, 64), persistent=False)
        self.register_buffer("sin", torch.zeros(2048, 64), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.wte(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.lm_head(self.ln_f(x))


def tinyllama(sharding: Mapping[str, int] | None = None) -> Reserve:
    """One step of litgpt's pretraining on A100s: micro batch 4 of a global batch of 512, 2,048 tokens, bfloat16.

    Gradients are there from the second micro batch on, so two of them show the peak.
    """
    with abstract():
        model = TinyLlama()
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_100_048_384
    recipe = Training(
        optimizer="adamw", precision="bf16", loss="cross_entropy", zero_grad="after", gradient_accumulation=2,
        sharding=sharding,
    )  # fmt: skip
    return trained(model, "int64[B, T]", {"B": 4, "T": 2048}, recipe, "A100 40GB")


CASES = {
    "m001": Case(bert),
    "m002": Case(bert, reserved=True),
    "m003": Case(gpt2),
    "m004": Case(gpt2, reserved=True),
    "m044": Case(llama_lora, cause="0.47 GB above weights and pairs are not explained by the settings that are known"),
    "m154": Case(partial(tinyllama, {"fsdp": 8})),
    "m156": Case(partial(tinyllama, {"ddp": 8})),
    "m158": Case(tinyllama),
    "m186": Case(bert_weights),
}
UNPLANNED = {
    "m155": "compiled by thunder",
    "m157": "compiled by thunder",
    "m159": "compiled by thunder",
    "m160": "compiled by thunder",
    "m161": "other kernels (unsloth)",
}


def main() -> int:
    """Print a line for each row; the exit status says whether all are within their bars or have a cause."""
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, transformers {version('transformers')}")
    print(f"{'row':6}{'model':40}{'metric':26}{'published':>15}{'ours':>15}{'error':>9}{'CPU s':>7}  class")
    good = True
    for row in rows():
        name, kind = row["id"], row["precision_class"][0]
        if name not in CASES:
            print(f"{name:6}{row['model'][:38]:40}{row['mode'][:38]:40} not planned: {UNPLANNED[name]}")
            continue
        case, start = CASES[name], time.process_time()
        reserve = case.run()
        ours = reserve.peak_reserved if case.reserved else reserve.peak_allocated
        truth = published(row)
        error = (ours - truth) / truth
        within = abs(error) <= BARS[kind]
        good &= within or bool(case.cause)
        print(
            f"{name:6}{row['model'][:38]:40}{row['metric'][:24]:26}{truth:15,}{ours:15,}{error:>+9.2%}"
            f"{time.process_time() - start:7.2f}  {kind}{'' if within else ', outside'}"
            f"{': ' + case.cause if case.cause else ''}"
        )
    return 0 if good else 1


def rows() -> list[dict[str, str]]:
    """The published rows of class A and B."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [row for row in csv.DictReader(lines) if row["precision_class"][0] in BARS]


def published(row: dict[str, str]) -> int:
    """The published bytes; row m186 counts in MiB, which its own note shows."""
    return round(float(row["value"]) * MIB) if row["id"] == "m186" else int(row["value_bytes"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
