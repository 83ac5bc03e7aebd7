"""Optimizers of other libraries, and those that run in the backward pass: peaks of real steps, states by their code."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.optimizers import optimizer_of
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import MemoryTrace, Training
from tests.real_steps import held, measured

SHAPE = [2, 64]
SCALARS = 32
"""Bytes of numbers, such as norms and counters, that one loop has alive at its peak and the other has not."""


class Named(nn.Module):
    """Layers by names that optimizers go by, large beside the batch, so that the peak is in the optimizer's step."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed, self.q_proj = nn.Linear(64, 96, dtype=dtype), nn.Linear(96, 96, bias=False, dtype=dtype)
        self.v_proj, self.attn_out = nn.Linear(96, 96, dtype=dtype), nn.Linear(96, 192, dtype=dtype)
        self.norm, self.mlp = nn.LayerNorm(192, dtype=dtype), nn.Linear(192, 48, dtype=dtype)
        self.other = nn.Linear(48, 300, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = layer(x)
        return x


def traced(model: nn.Module, dtype: str, **recipe: Any) -> MemoryTrace:
    """The memory trace of a model on meta that stands for `model`."""
    inputs = parse(f"{dtype}[{SHAPE[0]}, {SHAPE[1]}]")
    return record_step(RunnableModel("model", meta_copy(model), inputs), {}, Training(kernels="cpu", **recipe))


def real_peak(
    model: nn.Module, step_of: Callable[[nn.Module], Callable[[torch.Tensor], object]], steps: int = 4
) -> int:
    """Bytes at the peak of real steps; `step_of` gives what follows the forward pass."""
    data, alive = torch.rand(SHAPE, dtype=next(model.parameters()).dtype), dict[str, Any]()

    def step() -> None:
        if not alive:
            alive["step"] = step_of(model)
        model.zero_grad()
        alive["out"] = model(data)
        alive["step"](alive["out"])

    return measured(step, steps) + held(model, data)


def usual(make: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Callable[[torch.Tensor], object]]:
    """Backward, then a step of the optimizer that `make` makes."""

    def step_of(model: nn.Module) -> Callable[[torch.Tensor], object]:
        optimizer = make(model)

        def step(out: torch.Tensor) -> None:
            out.backward(torch.rand_like(out))
            optimizer.step()

        return step

    return step_of


def by_rank(kind: Callable[..., Any], **extra: Any) -> Callable[[nn.Module], Any]:
    """With the matrices of attention and MLP as a group of low rank, which is how the published scripts do it."""

    def make(model: nn.Module) -> Any:
        projected = [layer.weight for name, layer in model.named_children() if name in ("attn_out", "mlp")]
        others = [one for one in model.parameters() if not any(one is weight for weight in projected)]
        options = {"update_proj_gap": 1, "proj_type": "std", **extra}
        return kind([{"params": others}, {"params": projected, **options}])

    return make


def published(module: str, name: str) -> Any:
    """A class of a library that is there."""
    pytest.importorskip(module)
    return getattr(import_module(module), name)


HEADS = {"dim": 96, "n_heads": 4}
RANDOM = {"proj": "random", "scale": 1.0}
PEAKS: dict[str, tuple[dict[str, Any], Callable[[], Callable[[nn.Module], Any]]]] = {
    "lion": ({}, lambda: lambda model: published("lion_pytorch", "Lion")(model.parameters())),
    "adam-mini": (HEADS, lambda: lambda model: published("adam_mini", "Adam_mini")(model.named_parameters(), verbose=False, **HEADS)),
    "apollo": ({"rank": 8}, lambda: by_rank(published("apollo_torch", "APOLLOAdamW"), rank=8, scale_type="channel", **RANDOM)),
    "apollo-mini": ({}, lambda: by_rank(published("apollo_torch", "APOLLOAdamW"), rank=1, scale_type="tensor", **RANDOM)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PEAKS)
def test_peaks_of_published_optimizers(name: str) -> None:
    """The peak of a step is that of the published code: states, temporaries, and how long its loop holds them."""
    options, make = PEAKS[name]
    peak = traced(Named(), "float32", optimizer=name, optimizer_options=options).peak()
    assert peak == pytest.approx(real_peak(Named(), usual(make())), abs=SCALARS)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_galore(dtype: torch.dtype) -> None:
    """But for LAPACK's workspace, the peak is that of a published step that renews its projections."""
    make = by_rank(published("galore_torch", "GaLoreAdamW"), rank=8, scale=0.25)
    trace = traced(Named(dtype), str(dtype)[6:], optimizer="galore", optimizer_options={"rank": 8})
    matrix = torch.rand(192, 96)
    made = sum(part.nbytes for part in torch.linalg.svd(matrix, full_matrices=False)) + matrix.nbytes
    workspace = measured(lambda: torch.linalg.svd(matrix, full_matrices=False), 1) - made
    assert 0 <= real_peak(Named(dtype), usual(make)) - trace.peak() <= workspace
    assert "SVD" in trace.notes[-1]


WIDTH = 128


@pytest.mark.parametrize(
    ("recipe", "temporaries"),
    [
        pytest.param({"optimizer": "sophia"}, 3 + 1, id="sophia: |m|, rho h + eps and their ratio, and the last ratio"),
        pytest.param({"optimizer": "adopt", "foreach": False}, 3, id="adopt: root, clamped root, and the first one"),
        pytest.param({"optimizer": "adopt", "foreach": True}, 4, id="adopt, two lists of two tensors"),
        pytest.param(
            {"optimizer": "adopt", "foreach": False, "optimizer_options": {"weight_decay": 0.1}},
            3 + 1,
            id="adopt with decay: one more",
        ),
    ],
)
def test_temporaries_by_hand(recipe: dict[str, Any], temporaries: int) -> None:
    """Two states and the temporaries that the authors' code has alive at once, of two matrices of the same size."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False))
    runnable = RunnableModel("model", meta_copy(model), parse(f"float32[1, {WIDTH}]"))
    trace = record_step(runnable, {}, Training(kernels="cpu", **recipe))
    matrix, rows = 4 * WIDTH * WIDTH, 2 * 4 * WIDTH
    assert trace.peak() == pytest.approx(2 * 4 * matrix + temporaries * matrix + rows, abs=SCALARS)


def state_bytes(optimizer: Any) -> int:
    """Bytes of all tensors of its state, each once."""
    found = {id(tensor): tensor for state in optimizer.state.values() for tensor in tensors(state)}
    return sum(tensor.nbytes for tensor in found.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw-8bit", "AdamW8bit"),
        ("adam-8bit", "Adam8bit"),
        ("lion-8bit", "Lion8bit"),
        ("ademamix-8bit", "AdEMAMix8bit"),
        ("paged-adamw-8bit", "PagedAdamW8bit"),
        ("paged-lion", "PagedLion"),
        ("paged-adamw", "PagedAdamW"),
        ("ademamix", "AdEMAMix"),
    ],
)
def test_states_of_bitsandbytes(name: str, kind: str) -> None:
    """On the CPU, which has no paged states, states are those of the library to the byte."""
    model = Named()
    real = published("bitsandbytes.optim", kind)(model.parameters())
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    real.step()
    planned = optimizer_of(Training(optimizer=name, kernels="cpu"), list(model.parameters()), model)
    planned.step()
    assert state_bytes(planned) == state_bytes(real)


@pytest.mark.slow
def test_states_of_4_bits() -> None:
    """States of 4 bits are torchao's to the byte, its counters of steps among them."""
    model = Named()
    real = published("torchao.optim", "AdamW4bit")(model.parameters())
    made = [real._new_buffer(param, signed) for param in model.parameters() for signed in (True, False)]
    parts = [[getattr(state, name) for name in getattr(state, "tensor_attrs", ())] or [state] for state in made]
    planned = optimizer_of(Training(optimizer="adamw-4bit"), list(model.parameters()), model)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    planned.step()
    counters = 4 * len(list(model.parameters()))
    assert state_bytes(planned) == sum(part.nbytes for state in parts for part in state) + counters


@pytest.mark.parametrize(
    ("name", "states"),
    [
        pytest.param(
            "adamw-8bit", 2 * (512 * 512 + 4 * (512 * 2 + 256)), id="8 bits, scales and a table for each state"
        ),
        pytest.param(
            "adamw-4bit", 2 * (512 * 256 + 4 * (512 * 4 + 16)), id="4 bits, scales and a table for each state"
        ),
    ],
)
def test_states_of_few_bits_are_on_the_device(name: str, states: int) -> None:
    """Codes of a matrix of any size are memory of a GPU, though they are whole numbers."""
    runnable = RunnableModel("model", meta_copy(nn.Linear(512, 512, bias=False)), parse("float32[1, 512]"))
    trace = record_step(runnable, {}, Training(optimizer=name))
    sizes = {number: size for event in trace.events for number, size in event.made}
    assert sum(size for number, size in sizes.items() if trace.roles.get(number) == "optimizer") == states


@pytest.mark.parametrize(
    ("name", "tables_and_scales", "unified"),
    [
        pytest.param("paged-adamw-8bit", 2 * 4 * (256 + 160_000 // 256), "312.5 KiB", id="two bytes an element"),
        pytest.param("paged-ademamix", 0, "1.831 MiB", id="three float32 an element"),
    ],
)
def test_paged_states_are_not_the_device_s(name: str, tables_and_scales: int, unified: str) -> None:
    """States of 100,000 elements and more are in unified memory: in no number, but in the plan's words."""
    model = nn.Linear(400, 400, bias=False)
    runnable = RunnableModel("model", meta_copy(model), parse("float32[1, 400]"))
    trace = record_step(runnable, {}, Training(optimizer=name))
    assert trace.peak() == 2 * 4 * 160_000 + tables_and_scales + 3 * 4 * 400
    assert trace.notes[-1].startswith(f"{unified} of paged optimizer states are in unified memory")


def hooked(make: Callable[[list[nn.Parameter]], Any]) -> Callable[[nn.Module], Callable[[torch.Tensor], object]]:
    """torch's recipe: an optimizer for each parameter, run by a hook."""

    def step_of(model: nn.Module) -> Callable[[torch.Tensor], object]:
        optimizers = {parameter: make([parameter]) for parameter in model.parameters()}

        def run(parameter: nn.Parameter) -> None:
            optimizers[parameter].step()
            optimizers[parameter].zero_grad()

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(run)
        return lambda out: out.backward(torch.rand_like(out))

    return step_of


def lomo(model: nn.Module) -> Callable[[torch.Tensor], object]:
    """LOMO, as its authors call it."""
    optimizer = published("lomo_optim", "Lomo")(model)
    return lambda out: optimizer.fused_backward(out.sum(), 1e-3)


@pytest.mark.parametrize(
    ("recipe", "real"),
    [
        pytest.param({"optimizer": "adamw"}, hooked(lambda p: torch.optim.AdamW(p, foreach=False)), id="AdamW"),
        pytest.param(
            {"optimizer": "sgd"}, hooked(lambda p: torch.optim.SGD(p, foreach=False)), id="SGD", marks=pytest.mark.slow
        ),
        pytest.param(
            {"optimizer": "adafactor"},
            hooked(lambda p: torch.optim.Adafactor(p, foreach=False)),
            id="Adafactor",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_optimizers_in_the_backward_pass(recipe: dict[str, Any], real: Any) -> None:
    """Gradients are never all alive, as in torch's own recipe, and hooks are gone when the plan is made."""
    model = Named()
    runnable = RunnableModel("model", meta_copy(model), parse(f"float32[{SHAPE[0]}, {SHAPE[1]}]"))
    usual_peak = record_step(runnable, {}, Training(kernels="cpu", **recipe)).peak()
    peak = record_step(runnable, {}, Training(kernels="cpu", in_backward=True, **recipe)).peak()
    assert peak == pytest.approx(real_peak(Named(), real), abs=SCALARS)
    assert record_step(runnable, {}, Training(kernels="cpu", **recipe)).peak() == usual_peak > peak


def test_nothing_is_projected() -> None:
    """A model without layers of such names is trained by the plain AdamW of the published code, and the plan says so."""
    model, kind = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 300)), published("galore_torch", "GaLoreAdamW")
    trace = traced(model, "float32", optimizer="galore")
    real = real_peak(model, usual(lambda model: kind(model.parameters())))
    assert trace.peak() == pytest.approx(real, abs=SCALARS)
    assert [note for note in trace.notes if "no Linear layer's name contains attn or mlp" in note]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lomo(dtype: torch.dtype) -> None:
    """A gradient lives until the next one is there, and is copied in float32 where it is not."""
    peak = traced(Named(dtype), str(dtype)[6:], optimizer="lomo", loss=torch.sum).peak()
    assert peak == pytest.approx(real_peak(Named(dtype), lomo), abs=SCALARS)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        pytest.param({"in_backward": True, "gradient_accumulation": 2}, "are not accumulated", id="accumulation"),
        pytest.param({"in_backward": True, "optimizer": "none"}, "there is nothing to run", id="none in the backward"),
        pytest.param({"optimizer": "lomo", "precision": "fp16"}, "scales its loss", id="lomo in fp16"),
        pytest.param(
            {"optimizer": "lomo", "optimizer_options": {"clip_grad_norm": 1.0}}, "lomo cannot be made", id="clipping"
        ),
        pytest.param(
            {"optimizer": "galore", "optimizer_options": {"targets": ["conv"]}}, "targets: [...]", id="no target"
        ),
        pytest.param(
            {"optimizer": "lion-8bit", "optimizer_options": {"speed": 1}}, "has no option 'speed'", id="unknown option"
        ),
        pytest.param(
            {"optimizer": "apollo", "optimizer_options": {"scale_type": "chanel"}}, "channel and tensor", id="scale"
        ),
        pytest.param({"optimizer": "adam-mini"}, "dim: ..., n_heads: ...", id="heads that do not fit"),
        pytest.param({"optimizer": "lion", "fused": True}, "training.fused: the published lion", id="fused"),
        pytest.param({"optimizer": "rmsprop", "fused": True}, "training.fused: torch's rmsprop", id="fused of torch"),
        pytest.param({"optimizer": "lamb"}, "planned for Keras models", id="of Keras alone"),
    ],
)
def test_what_does_not_go_together(recipe: dict[str, Any], message: str) -> None:
    """One clear error."""
    with pytest.raises(ModelBudgetError) as caught:
        traced(Named(), "float32", **recipe)
    assert message in str(caught.value)


@pytest.mark.slow
def test_published_savings_of_llama_2() -> None:
    """Llama 2 7B in bfloat16 took 51.6 GiB with torch's fused AdamW, 39.3 with 8 bits, 33.2 with 4: a GiB is 2^30.

    From torchao's `optim/README.md`, which does not tell the batch; what it takes is in all three.
    """
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(use_cache=False))  # by default of Llama 2 7B
    runnable = RunnableModel("llama", model, parse("int64[2, 256]"))

    def peak_gib(**recipe: Any) -> float:
        trace = record_step(runnable, {}, Training(precision="bf16", checkpointing="blocks", **recipe))
        return trace.peak() / 2**30

    fused = peak_gib(fused=True)
    assert fused - peak_gib(optimizer="adamw-8bit") == pytest.approx(51.6 - 39.3, abs=0.1)
    assert fused - peak_gib(optimizer="adamw-4bit") == pytest.approx(51.6 - 33.2, abs=0.1)
