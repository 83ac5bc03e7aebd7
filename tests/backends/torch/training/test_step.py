"""Whole steps of training: peaks against torch's own allocator in real runs, and what a recipe changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training import step
from pytest_modelbudget.backends.torch.training.checkpointing import repeated_blocks
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import Inference, MemoryTrace, Recipe, Training
from tests.real_steps import Real, allocated, inferred, sgd
from tests.versions import needs


def traced(model: nn.Module, shape: list[int], recipe: Recipe) -> MemoryTrace:
    """The memory trace of a model on meta that stands for `model`."""
    return record_step(RunnableModel("model", meta_copy(model), parse(shape)), {}, recipe)  # type: ignore[arg-type]


class Block(nn.Module):
    """A block with dropout, as the CPU has it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 128), nn.Linear(128, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + functional.dropout(
            self.down(functional.gelu(self.up(self.norm(x)))), 0.1, self.training
        )
        return out


class Blocks(nn.Module):
    """Three blocks, and a head whose weight may be that of the embedding."""

    def __init__(self, tied: bool = False, recomputed: bool = False) -> None:
        super().__init__()
        self.first, self.recomputed = nn.Linear(20, 32, bias=False), recomputed
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(32, 20, bias=False)
        if tied:
            self.head.weight = nn.Parameter(torch.rand(20, 32))
            self.first = nn.Linear(32, 20, bias=False)
            self.first.weight = self.head.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.linear(x, self.first.weight.t()) if x.shape[-1] == self.first.weight.shape[0] else self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recomputed else block(x)
        out: torch.Tensor = self.head(x)
        return out


SHAPE = [16, 24, 20]
FLOAT = 4
NUMBERS = 2 * FLOAT
"""Bytes of scalars that one of two loops has alive and the other has not."""


class Parts:
    """Muon for matrices, AdamW for the rest."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.parts = [
            torch.optim.Muon([one for one in params if one.dim() == 2], lr=1e-3),
            torch.optim.AdamW([one for one in params if one.dim() != 2], foreach=False),
        ]

    def step(self) -> None:
        for part in self.parts:
            part.step()


OPTIMIZERS: dict[str, tuple[dict[str, Any], Real]] = {
    "SGD": ({"optimizer": "sgd"}, lambda p: torch.optim.SGD(p, lr=0.1, foreach=False)),
    "momentum": (
        {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9}},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=False),
    ),
    "Adam": ({"optimizer": "adam"}, lambda p: torch.optim.Adam(p, foreach=False)),
    "AdamW": ({"optimizer": "adamw"}, lambda p: torch.optim.AdamW(p, foreach=False)),
    "AdamW, several tensors": (
        {"optimizer": "adamw", "foreach": True},
        lambda p: torch.optim.AdamW(p, foreach=True),
    ),
    "AMSGrad": (
        {"optimizer": "adam", "optimizer_options": {"amsgrad": True}},
        lambda p: torch.optim.Adam(p, amsgrad=True, foreach=False),
    ),
    "Adagrad": ({"optimizer": "adagrad"}, lambda p: torch.optim.Adagrad(p, foreach=False)),
    "RMSprop": ({"optimizer": "rmsprop"}, lambda p: torch.optim.RMSprop(p, foreach=False)),
    "Adafactor": ({"optimizer": "adafactor"}, lambda p: torch.optim.Adafactor(p, foreach=False)),
    "Muon": ({"optimizer": "muon"}, Parts),
    "RAdam": ({"optimizer": "radam"}, lambda p: torch.optim.RAdam(p, foreach=False)),
    "Adamax": ({"optimizer": "adamax"}, lambda p: torch.optim.Adamax(p, foreach=False)),
    "Adadelta": ({"optimizer": "adadelta"}, lambda p: torch.optim.Adadelta(p, foreach=False)),
    "Rprop": ({"optimizer": "rprop"}, lambda p: torch.optim.Rprop(p, foreach=False)),
    "ASGD": ({"optimizer": "asgd"}, lambda p: torch.optim.ASGD(p, foreach=False)),
    "NAdam": ({"optimizer": "nadam"}, lambda p: torch.optim.NAdam(p, foreach=False)),
    "a callable": ({"optimizer": torch.optim.NAdam, "optimizer_options": {"foreach": False}}, lambda p: torch.optim.NAdam(p, foreach=False)),
}  # fmt: skip


WIDE = frozenset(OPTIMIZERS) - {"SGD", "AdamW", "AdamW, several tensors", "RAdam"}


def marked(names: Iterable[str], wide: Collection[str]) -> list[Any]:
    """The names as cases, those of the `wide` sweep marked."""
    later = {"Muon": [needs(torch.optim, "Muon")]}
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in wide) + later.get(name, [])) for name in names]


@pytest.mark.parametrize("name", marked(OPTIMIZERS, WIDE))
def test_optimizers(name: str) -> None:
    """The peak of a step is that of torch's allocator, but for a number or two: states, temporaries, counters.

    ASGD reads its two factors of each parameter on the host, where a CPU makes no tensor of them.
    """
    given, real = OPTIMIZERS[name]
    model = Blocks()
    numbers = NUMBERS * len(list(model.parameters())) if name == "ASGD" else NUMBERS
    planned = traced(model, SHAPE, Training(kernels="cpu", **given)).peak()
    assert planned == pytest.approx(allocated(model, torch.rand(SHAPE), real), abs=numbers)


class Words(nn.Module):
    """A table of words, one hidden layer, and a head over the words; tied or apart."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 50, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.hidden(x + self.table.weight.sum()))
        return out


@needs(torch.optim, "Muon")
@pytest.mark.parametrize(("tied", "tables"), [(True, 1), (False, 2)], ids=["tied", "apart"])
def test_muon_leaves_tables_to_adamw(tied: bool, tables: int) -> None:
    """One state for each element of hidden matrices, two for tables, heads and biases, and a count for each of these."""
    memory_trace = traced(Words(tied), [2, 8], Training(kernels="cpu", optimizer="muon"))
    made = [(number, size) for event in memory_trace.events for number, size in event.made]
    states = sum(size for number, size in made if memory_trace.roles.get(number) == "optimizer")
    assert states == FLOAT * (8 * 8 + 2 * (tables * 50 * 8 + 8) + (tables + 1))


def test_no_optimizer() -> None:
    """Forward and backward alone; the gradients are there."""
    model = Blocks()
    memory_trace = traced(model, SHAPE, Training(kernels="cpu", optimizer="none"))
    assert memory_trace.peak() == allocated(model, torch.rand(SHAPE), None)
    assert {event.phase for event in memory_trace.events} - {""} == {"forward", "backward"}


def squared(out: torch.Tensor) -> torch.Tensor:
    """A loss of the user's, that keeps its operand."""
    return (out * out).sum()


LOOPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "accumulation": ({"gradient_accumulation": 3}, {"passes": 3}),
    "zeroed after": ({"zero_grad": "after"}, {"zero_grad": "after"}),
    "never zeroed": ({"zero_grad": "never"}, {"zero_grad": "never"}),
    "zeroed after, accumulation": (
        {"zero_grad": "after", "gradient_accumulation": 2},
        {"zero_grad": "after", "passes": 2},
    ),
    "own loss": ({"loss": squared}, {"loss": squared}),
}


@pytest.mark.parametrize("name", marked(LOOPS, ("zeroed after", "never zeroed", "zeroed after, accumulation")))
def test_loops(name: str) -> None:
    """Accumulation, where gradients are let go of, and losses, against the same real loop."""
    given, real = LOOPS[name]
    model = Blocks()
    planned = traced(model, SHAPE, Training(kernels="cpu", optimizer="sgd", **given)).peak()
    assert planned == pytest.approx(allocated(model, torch.rand(SHAPE), sgd, **real), abs=NUMBERS)


def test_accumulated_passes_that_are_alike_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak and work are those of a recording that runs each of them."""
    recipe = Training(optimizer="sgd", gradient_accumulation=5, precision="bf16-mixed")

    def planned() -> tuple[Any, ...]:
        trace = traced(Blocks(), SHAPE, recipe)
        assert trace.work is not None
        done: Counter[tuple[str, str, str]] = Counter()
        for item in trace.work:
            done["FLOPs", item.path, item.phase] += item.flops
            done["bytes", item.path, item.phase] += item.moved
        return done, trace.peak(), trace.uncounted

    shortened = planned()
    monkeypatch.setattr(step, "recorded_passes", lambda recipe: (1,) * recipe.gradient_accumulation)
    assert planned() == shortened


def test_cross_entropy_and_the_models_own_loss() -> None:
    """Targets are on the device like the inputs; a loss that the model returns, of one element, is taken by itself."""

    class Own(Blocks):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
            out = super().forward(x)
            return {"logits": out, "loss": squared(out)[None]}

    given = traced(Blocks(), SHAPE, Training(kernels="cpu", optimizer="sgd", loss="cross_entropy"))
    assert sum(event.op == "aten.nll_loss_forward" for event in given.events) == 2
    assert made(given, "input") == 16 * 24 * 8  # an index for each sample and place
    own = traced(Own(), SHAPE, Training(kernels="cpu", optimizer="sgd"))
    alone = traced(Blocks(), SHAPE, Training(kernels="cpu", optimizer="sgd", loss=squared))
    assert own.peak() == pytest.approx(alone.peak(), abs=NUMBERS)


def test_a_loss_may_ask_for_its_value() -> None:
    """To stop at nan, to log it, to count: what it finds is made up, and changes no memory."""

    def careful(out: torch.Tensor) -> torch.Tensor:
        loss = squared(out)
        assert loss == loss
        assert isinstance(loss.item() + float(loss) + int(loss), float)
        return loss if loss > 0 else loss * 2

    recipe = Training(kernels="cpu", optimizer="sgd")
    assert traced(Blocks(), SHAPE, replace(recipe, loss=careful)).peak() == pytest.approx(
        traced(Blocks(), SHAPE, replace(recipe, loss=squared)).peak(), abs=NUMBERS
    )


class Experts(nn.Module):
    """A list of blocks, each with a list of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))
        self.parts = nn.ModuleList(nn.TransformerEncoderLayer(4, 1, 4) for _ in range(2))


def test_blocks_are_those_of_the_outermost_lists() -> None:
    """What is inside of a block is a part of it, and lists in a list are no blocks."""
    model = nn.Sequential(nn.Linear(4, 4), Experts(), Experts(), nn.Linear(4, 4))
    assert repeated_blocks(model) == [model[1], model[2]]
    assert repeated_blocks(Experts()) != []
    assert all(isinstance(one, nn.TransformerEncoderLayer) for one in repeated_blocks(Experts()))
    plain = nn.Sequential(nn.Linear(2, 2), *(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(3)))
    assert repeated_blocks(plain) == [plain[1], plain[2], plain[3]]
    assert repeated_blocks(nn.Sequential(plain[1], nn.ReLU())) == []


def test_tied_weights_count_once() -> None:
    """One weight has one gradient and one pair of states."""
    model = Blocks(tied=True)
    memory_trace = traced(model, SHAPE, Training(kernels="cpu"))
    assert memory_trace.peak() == allocated(model, torch.rand(SHAPE), lambda p: torch.optim.AdamW(p, foreach=False))
    assert memory_trace.held_bytes("param") == sum(one.numel() for one in model.parameters()) * FLOAT


def test_a_sum_on_the_memory_of_its_first_gradient_is_a_gradient() -> None:
    """A head's gradient that autocast made, to which that of the table is added in place: no temporary."""
    model = Words(tied=True)
    memory_trace = traced(model, [2, 8], Training(kernels="cpu", precision="bf16-mixed"))
    assert made(memory_trace, "gradient") == sum(weight.numel() for weight in model.parameters()) * FLOAT


def test_frozen_parameters() -> None:
    """What is frozen has no gradient and no states, and autograd keeps nothing for it."""
    model = Blocks()
    planned = traced(model, SHAPE, Training(kernels="cpu", trainable=("head.*", "blocks.2.*")))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("head.", "blocks.2.")))
    trained = [one for one in model.parameters() if one.requires_grad]
    assert planned.peak() == allocated(model, torch.rand(SHAPE), lambda p: torch.optim.AdamW(p, foreach=False))
    assert made(planned, "gradient") == sum(one.numel() for one in trained) * FLOAT


def made(memory_trace: MemoryTrace, role: str) -> int:
    """The most bytes that were alive at once of the storages of a role."""
    alive: dict[int, int] = {}
    most = 0
    for event in memory_trace.events:
        for number in event.freed:
            alive.pop(number, None)
        alive.update((number, size) for number, size in event.made if memory_trace.roles.get(number) == role)
        most = max(most, sum(alive.values()))
    return most


def test_lora_by_hand() -> None:
    """Pairs of rank 4 beside three layers of 32 to 128: 3 * 4 * (32 + 128) numbers are trained, all else is frozen."""
    memory_trace = traced(Blocks(), SHAPE, Training(kernels="cpu", lora={"rank": 4, "targets": ["up"]}))
    pairs = 3 * 4 * (32 + 128) * FLOAT
    assert made(memory_trace, "gradient") == pairs
    assert made(memory_trace, "optimizer") == 2 * pairs + 6 * FLOAT  # and a counter for each matrix
    weights = sum(one.numel() for one in Blocks().parameters()) * FLOAT
    assert memory_trace.held_bytes("param") == weights + pairs


def test_recomputed_blocks() -> None:
    """Checkpointing by the recipe takes what torch's own takes in a real run, which is less than without.

    Real blocks keep the random state of the CPU, too, which is no tensor of the model's device in training.
    """
    random = 3 * torch.get_rng_state().nbytes
    plain = traced(Blocks(), SHAPE, Training(kernels="cpu", optimizer="sgd")).peak()
    planned = traced(Blocks(), SHAPE, Training(kernels="cpu", optimizer="sgd", checkpointing="blocks")).peak()
    itself = traced(Blocks(recomputed=True), SHAPE, Training(kernels="cpu", optimizer="sgd")).peak()
    assert planned == itself == allocated(Blocks(recomputed=True), torch.rand(SHAPE), sgd) - random
    assert planned < plain


def test_weights_in_half_precision() -> None:
    """Weights, inputs, gradients and what is between have two bytes an element."""
    model = nn.Sequential(nn.Linear(64, 32, bias=False), nn.Tanh())
    full, half = (
        traced(model, [8, 64], Training(kernels="cpu", optimizer="sgd", precision=precision)).peak()  # type: ignore[arg-type]
        for precision in ("fp32", "bf16")
    )
    assert half * 2 == full


def test_biases_are_added_in_place() -> None:
    """A layer of features whose input is turned around takes a product and a sum, but one result."""

    class Turned(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.transpose(0, 1))

    model = nn.Sequential(Turned(20, 512), nn.Tanh())
    planned = traced(model, SHAPE, Inference(kernels="cpu")).peak()
    assert planned == inferred(model, torch.rand(SHAPE))


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.SiLU(inplace=True), nn.Mish()], ids=str)
def test_gradients_of_activations_are_one_kernel(activation: nn.Module) -> None:
    """torch has a way to take those of SiLU and Mish apart, which devices do not go."""
    model, data = nn.Sequential(nn.Linear(8, 512), activation, nn.Linear(512, 8)), torch.rand(256, 8)
    assert traced(model, [256, 8], Training(optimizer="sgd", kernels="cpu")).peak() == allocated(model, data, sgd)


class Moved(nn.Module):
    """A frozen table that is sent to where the input lies, as peft's VeRA does with its shared matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 64)
        self.register_buffer("table", torch.rand(64, 700))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) @ self.table[:, :512].to(x.device)  # type: ignore[index]


def test_a_move_to_where_a_tensor_lies_copies_nothing() -> None:
    """Tensors without memory seem to be on the CPU, and stay where they are when they are sent there."""
    model = Moved()
    planned = traced(model, SHAPE, Training(kernels="cpu", optimizer="sgd"))
    assert planned.peak() == allocated(model, torch.rand(SHAPE), sgd)


def test_the_second_step_has_the_states() -> None:
    """The first step makes the states, the second is measured with them there."""
    model = nn.Linear(64, 64, bias=False)
    memory_trace = traced(model, [2, 64], Training(kernels="cpu", optimizer="adam"))
    alive = list(memory_trace.alive())
    weight = 64 * 64 * FLOAT
    first, second = memory_trace.steps
    assert (first, memory_trace.measured) == (0, second)
    assert made(memory_trace, "optimizer") == 2 * weight + FLOAT  # and its counter
    assert max(alive[second:]) == memory_trace.peak() > alive[0] + 2 * weight


def test_the_model_is_as_before() -> None:
    """Weights, gradients, flags, hooks, modes and torch's global state are those from before the recording."""
    model = meta_copy(Blocks())
    model.head.weight.grad = gradient = torch.zeros_like(model.head.weight)
    model.first.weight.requires_grad_(False)
    model.blocks[0].eval()

    def state() -> list[Any]:
        return [
            {name: id(one) for name, one in model.state_dict(keep_vars=True).items()},
            [(one.requires_grad, id(one.grad) if one.grad is not None else None) for one in model.parameters()],
            [(module.training, dict(module._forward_hooks), sorted(vars(module))) for module in model.modules()],
            torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled("cpu"),
            torch.get_rng_state().tolist(), nn.Module.__call__, functional.scaled_dot_product_attention,
        ]  # fmt: skip

    before = state()
    for recipe in (
        Training(checkpointing="blocks", lora={"rank": 2, "targets": ["up"]}, precision="bf16"),
        Training(trainable=("head.*",), precision="bf16-mixed", kernels="cpu"),
        Inference(precision="bf16-mixed"),
    ):
        record_step(RunnableModel("model", model, parse(SHAPE)), {}, recipe)  # type: ignore[arg-type]
        assert state() == before
    assert model.head.weight.grad is gradient


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        pytest.param(Training(optimizer="no.such:thing"), "training.optimizer: no.such:thing cannot be imported: ModuleNotFoundError", id="optimizer"),
        pytest.param(Training(loss="no.such:thing"), "training.loss: no.such:thing cannot be imported: ModuleNotFoundError", id="loss of no module"),
        pytest.param(Training(checkpointing="math:nothing"), "training.checkpointing: math:nothing cannot be imported: AttributeError", id="no function"),
        pytest.param(Training(loss="math:pi"), "training.loss: math:pi is a float, not something to call", id="a number"),
        pytest.param(Training(optimizer="sgd", optimizer_options={"speed": 1}), "training.optimizer: sgd cannot be made: TypeError", id="option"),
        pytest.param(Training(optimizer="novograd"), "training.optimizer: novograd is planned for JAX models", id="optimizer of JAX"),
        pytest.param(Training(fused=True, foreach=True), "training.foreach: torch takes fused or foreach, not both", id="two implementations"),
        pytest.param(Training(trainable=("body.*",)), "training.trainable: no parameter's name matches 'body.\\*'", id="glob"),
        pytest.param(Training(lora={"rank": 2, "targets": ["query"]}), "training.lora.targets: no Linear layer is called 'query'", id="LoRA"),
        pytest.param(Training(loss=lambda out: out.detach()), "nothing that the model returned depends on a trained", id="loss"),
    ],
)  # fmt: skip
def test_recipes_that_do_not_fit_say_so(recipe: Training, message: str) -> None:
    """The message names the key of the recipe, and the model is as before."""
    model = meta_copy(Blocks())
    with pytest.raises(ModelBudgetError, match=message):
        record_step(RunnableModel("model", model, parse(SHAPE)), {}, recipe)  # type: ignore[arg-type]
    assert all(one.requires_grad and one.grad is None for one in model.parameters())


def test_a_model_without_trained_parameters() -> None:
    """There is nothing to train: the model is named."""
    with pytest.raises(ModelBudgetError, match="model: training: no parameter is trained"):
        traced(nn.ReLU(), [2, 4], Training())
    with pytest.raises(ModelBudgetError, match=r"training\.checkpointing: the model has no repeated blocks"):
        traced(nn.Linear(4, 4), [2, 4], Training(checkpointing="blocks"))
