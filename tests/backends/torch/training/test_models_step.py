"""Steps of several models: a user's own functions, run in reality on the CPU and recorded as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_modelbudget import plan
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.models_step import ModelsStep
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.engine.run import summarize_entry
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import MemoryTrace, Training
from tests.real_steps import held, measured


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with a GELU behind each but the last."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def gan() -> nn.ModuleDict:
    """From noise of 16 numbers to samples of 64, and a critic of those."""
    return nn.ModuleDict({"generator": mlp(16, 128, 64), "discriminator": mlp(64, 256, 1)})


def gan_step(models: Any, real: torch.Tensor, optimizers: Any) -> None:
    """The discriminator learns from real and made samples, then the generator from what the discriminator says."""
    noise = torch.randn(real.shape[0], 16, device=real.device)
    made = models["generator"](noise)
    optimizers["discriminator"].zero_grad()
    score_real, score_made = models["discriminator"](real), models["discriminator"](made.detach())
    loss = functional.softplus(-score_real).mean() + functional.softplus(score_made).mean()
    loss.backward()
    optimizers["discriminator"].step()
    optimizers["generator"].zero_grad()
    loss = functional.softplus(-models["discriminator"](made)).mean()
    loss.backward()
    if float(loss.detach()) > 1e9:  # as loops do that look at their losses
        raise RuntimeError("diverged")
    optimizers["generator"].step()


def distilled() -> nn.ModuleDict:
    """A frozen teacher and a smaller student."""
    return nn.ModuleDict({"teacher": mlp(64, 512, 100).requires_grad_(False), "student": mlp(64, 96, 100)})


def distillation_step(models: Any, x: torch.Tensor, optimizers: Any) -> None:
    """The student learns the teacher's distribution."""
    with torch.no_grad():
        targets = functional.softmax(models["teacher"](x), -1)
    student = functional.log_softmax(models["student"](x), -1)
    optimizers["student"].zero_grad()
    functional.kl_div(student, targets, reduction="batchmean").backward()
    optimizers["student"].step()


def preferred() -> nn.ModuleDict:
    """A policy over 50 words, and the frozen one that it started from."""
    policy = nn.Sequential(nn.Embedding(50, 64), *mlp(64, 128, 50))
    return nn.ModuleDict({"policy": policy, "reference": copy.deepcopy(policy).requires_grad_(False)})


def log_probability(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Of the next words, by sequence."""
    words = functional.log_softmax(model(ids[:, :-1]), -1)
    return words.gather(-1, ids[:, 1:, None]).squeeze(-1).sum(-1)


def dpo_step(models: Any, chosen: torch.Tensor, rejected: torch.Tensor, optimizers: Any) -> None:
    """Direct preference optimization (Rafailov et al. 2023)."""
    with torch.no_grad():
        base = log_probability(models["reference"], chosen) - log_probability(models["reference"], rejected)
    margin = log_probability(models["policy"], chosen) - log_probability(models["policy"], rejected)
    optimizers["policy"].zero_grad()
    loss = -functional.logsigmoid(0.1 * (margin - base)).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(models["policy"].parameters(), 1.0, foreach=False)
    optimizers["policy"].step()


def actor_and_critic() -> nn.ModuleDict:
    """Of 32 numbers that are seen, eight actions and a value."""
    return nn.ModuleDict({"actor": mlp(32, 128, 8), "critic": mlp(32, 192, 1)})


def actor_critic_step(models: Any, seen: torch.Tensor, returns: torch.Tensor, optimizers: Any) -> None:
    """Both learn from one backward pass."""
    logits, values = models["actor"](seen), models["critic"](seen).squeeze(-1)
    log_probabilities = functional.log_softmax(logits, -1)
    advantage = returns - values
    policy_loss = -(log_probabilities.amax(-1) * advantage.detach()).mean()
    for optimizer in optimizers.values():
        optimizer.zero_grad()
    (policy_loss + 0.5 * advantage.pow(2).mean()).backward()
    for optimizer in optimizers.values():
        optimizer.step()


def gradient_penalty_step(models: Any, real: torch.Tensor, optimizers: Any) -> None:
    """The critic of a Wasserstein GAN, whose gradient is pulled towards length one (Gulrajani et al. 2017)."""
    made = models["generator"](torch.randn(real.shape[0], 16, device=real.device)).detach()
    between = (0.5 * real + 0.5 * made).requires_grad_(True)
    score = models["discriminator"](between)
    [slope] = torch.autograd.grad(score, between, torch.ones_like(score), create_graph=True)
    optimizers["discriminator"].zero_grad()
    penalty = 10 * ((slope.norm(2, dim=1) - 1) ** 2).mean()
    (models["discriminator"](made).mean() - models["discriminator"](real).mean() + penalty).backward()
    optimizers["discriminator"].step()


IDS = "int64[16, 24]"
STEPS: dict[str, tuple[Callable[[], nn.ModuleDict], Callable[..., None], Any]] = {
    "a GAN": (gan, gan_step, "float32[48, 64]"),
    "a gradient of a gradient": (gan, gradient_penalty_step, "float32[48, 64]"),
    "distillation": (distilled, distillation_step, "float32[48, 64]"),
    "preferences": (preferred, dpo_step, {"chosen": IDS, "rejected": IDS}),
    "actor and critic": (actor_and_critic, actor_critic_step, {"seen": "float32[200, 32]", "returns": "float32[200]"}),
}
SCALARS = 64
"""Bytes of counters of steps and of losses that one loop has alive at its peak and the other has not."""


def traced(models: nn.Module, inputs: Any, **recipe: Any) -> MemoryTrace:
    """The memory trace of a step of models on meta that stand for `models`."""
    runnable = RunnableModel("models", meta_copy(models), parse(inputs))
    recipe = {"kernels": "cpu", "foreach": False, **recipe}
    return record_step(runnable, {}, Training(**recipe), recording=ModelsStep)


def real_peak(models: nn.ModuleDict, step: Callable[..., None], inputs: Any) -> int:
    """Bytes at the peak of real steps, with an AdamW for each model that is trained."""
    ports = [port.spec for port in parse(inputs).ports]
    data = [torch.zeros(*spec.shape, dtype=getattr(torch, spec.dtype)) for spec in ports]
    trained = {
        name: [parameter for parameter in model.parameters() if parameter.requires_grad]
        for name, model in models.items()
    }
    optimizers: dict[str, Any] = {}

    def run() -> None:
        if not optimizers:
            made = {name: torch.optim.AdamW(params, foreach=False) for name, params in trained.items() if params}
            optimizers.update(made)
        step(models, *data, optimizers=optimizers)

    return measured(run, 3) + held(models, data[0]) + sum(tensor.nbytes for tensor in data[1:])


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "a GAN")) for name in STEPS])
def test_steps_of_several_models(name: str) -> None:
    """The peak is that of the same function on the CPU, to the counters."""
    build, step, inputs = STEPS[name]
    assert traced(build(), inputs, steps=step).peak() == pytest.approx(real_peak(build(), step, inputs), abs=SCALARS)


def test_a_plan_tells_whose_memory_it_is() -> None:
    """Weights, gradients and states are told by model, and add up to the peak."""
    planned = plan(gan, "float32[B, 64]", training={"batch": 48, "steps": gan_step, "kernels": "cpu", "foreach": False})
    sizes = {name: 4 * sum(one.numel() for one in model.parameters()) for name, model in gan().items()}
    told = {(part.role, part.path): part.bytes for part in planned.parts}
    assert planned.phase == "backward"  # of the discriminator, while the generator has its last gradients
    assert told["gradient", "generator"] == sizes["generator"]
    for name, size in sizes.items():
        assert told["param", name] == size
        assert told["optimizer", name] == pytest.approx(2 * size, abs=SCALARS)
    assert sum(part.bytes for part in planned.parts) == planned.peak_bytes
    [note] = [note for note in planned.notes if note.startswith("by model: ")]
    assert "generator" in note
    assert "discriminator" in note


def own_step(model: Any, x: torch.Tensor, optimizer: Any) -> None:
    """The common loop, written out."""
    optimizer.zero_grad()
    out = model(x)
    out.backward(torch.ones_like(out))
    optimizer.step()


def test_a_step_of_one_model() -> None:
    """A step of one model gets one optimizer, and the common loop, written out, has the peak of the common loop."""
    runnable = RunnableModel("model", meta_copy(mlp(64, 256, 64)), parse("float32[48, 64]"))
    common = record_step(runnable, {}, Training(kernels="cpu"))
    assert traced(mlp(64, 256, 64), "float32[48, 64]", steps=own_step).peak() == common.peak()


def make_optimizers(models: Any, lr: float) -> dict[str, Any]:
    """As a user makes them."""
    return {name: torch.optim.SGD(model.parameters(), lr=lr) for name, model in models.items()}


def test_a_callable_makes_the_optimizers() -> None:
    """`optimizer: module:callable` is called with the models, and what it gives is what the step gets."""
    options = {"optimizer": make_optimizers, "optimizer_options": {"lr": 0.1}}
    with_states, without = (
        traced(gan(), "float32[48, 64]", steps=gan_step),
        traced(gan(), "float32[48, 64]", steps=gan_step, **options),
    )
    assert without.peak() < with_states.peak()


def test_what_optimizers_leave_out_is_told() -> None:
    """Paged states, which are in no number, are told as in the common loop."""

    def build() -> nn.ModuleDict:
        return nn.ModuleDict({name: nn.Linear(400, 400, bias=False) for name in ("first", "second")})

    def step(models: Any, x: torch.Tensor, optimizers: Any) -> None:
        models["second"](models["first"](x)).sum().backward()
        for optimizer in optimizers.values():
            optimizer.step()

    paged = 2 * 2 * 400 * 400  # two states of a byte for each element
    trace = traced(build(), "float32[1, 400]", steps=step, optimizer="paged-adamw-8bit", kernels="cuda", foreach=None)
    assert trace.notes[-1].startswith(f"{paged / 2**10:.1f} KiB of paged optimizer states are in unified memory")


def test_a_pipeline_of_models_at_inference() -> None:
    """A pipeline is called without gradients: weights of all, and what is alive between them."""

    def pipeline(models: Any, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = models["denoiser"](x)
        out: torch.Tensor = models["decoder"](x)
        return out

    def build() -> nn.ModuleDict:
        return nn.ModuleDict({"denoiser": nn.Linear(64, 64, bias=False), "decoder": nn.Linear(64, 512, bias=False)})

    planned = plan(build, "float32[B, 64]", inference={"batch": 8, "steps": pipeline, "kernels": "cpu"})
    assert planned.peak_bytes == 4 * (64 * 64 + 64 * 512 + 8 * (64 + 64 + 512))
    missing = plan(build, "float32[B, 64]", inference={"batch": 8, "steps": "math:nothing"})
    assert missing.notes[0].startswith("not planned: inference.steps: math:nothing cannot be imported")


@pytest.mark.parametrize("key", [{"zero_grad": "never"}, {"gradient_accumulation": 2}, {"loss": "none"}])
def test_what_the_step_does_itself_is_refused(key: dict[str, Any]) -> None:
    """A key of the common loop would change nothing, without a word."""
    with pytest.raises(ModelBudgetError, match="does this itself"):
        traced(gan(), "float32[48, 64]", steps=gan_step, **key)


def test_a_dict_of_models_is_counted_and_planned() -> None:
    """A builder may return a dict: params are counted, nothing is run by itself, and the step is planned."""
    recipe: dict[str, Any] = {"batch": 48, "steps": gan_step}
    entry = ModelEntry("gan", lambda: dict(gan().items()), inputs="float32[B, 64]", training=recipe)
    summary = summarize_entry(entry)
    assert summary.params == sum(parameter.numel() for parameter in gan().parameters())
    assert summary.flops.value is None
    assert summary.plans[0].peak_bytes == plan(gan, "float32[B, 64]", training=recipe).peak_bytes
    without = plan(gan, "float32[B, 64]", training={"batch": 48})
    assert without.notes == ("not planned: gan: several models: name the function of a step, steps: module:callable",)
