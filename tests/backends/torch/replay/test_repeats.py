"""Blocks that repeat are told again, and only where that says exactly what running them says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pytest_modelbudget.backends import torch as backend
from pytest_modelbudget.backends.torch import compat
from pytest_modelbudget.backends.torch.costs.rules import Cost
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.replay.cache import BlockCache, Replay
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel, call_of, observed
from pytest_modelbudget.backends.torch.trace.observer import Observer
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.summary import Summary

WIDTH, MANY = 16, 6


class Plain(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(self.down(self.up(self.norm(x)).relu()))


class Stack(nn.Module):
    """One block after the other."""

    def __init__(self, block: Callable[[], nn.Module], many: int = MANY) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(many))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The types of the blocks that were told again."""
    seen: list[str] = []
    tell = Replay._replay

    def telling(self: Replay, recorded: Any, call: Any) -> Any:
        seen.append(type(call.modules[0]).__name__)
        return tell(self, recorded, call)

    monkeypatch.setattr(Replay, "_replay", telling)
    return seen


@contextmanager
def everything_runs() -> Iterator[None]:
    """Inside, nothing is told again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockCache, "start", lambda self, log: None)
        yield


def counted(model: nn.Module, inputs: str = f"float32[B, T, {WIDTH}]") -> Summary:
    sizes = {name: size for name, size in (("B", 2), ("T", 5)) if name in inputs}
    return backend.summarize(model, name="model", inputs=parse(inputs), sizes=sizes, built_here=False)


class Attention(nn.Module):
    """A block whose operators are calls of functions, with a mask that all blocks share."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (one.unflatten(-1, (4, -1)).transpose(1, 2) for one in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + self.out(y.transpose(1, 2).flatten(2))


class Masked(Stack):
    """Blocks of attention under one mask."""

    def __init__(self) -> None:
        super().__init__(Attention)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        for block in self.blocks:
            x = block(x, mask)
        return x


class Two(nn.Module):
    """A block that takes two tensors and gives two, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"a": self.left(x["a"]) + x["b"], "b": torch.cat((self.right(x["b"]), x["a"]), 1)[:, : x["a"].shape[1]]}


class Pairs(Stack):
    """Blocks that hand on pairs."""

    def __init__(self) -> None:
        super().__init__(Two)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = {"a": x, "b": x * 2}
        for block in self.blocks:
            both = block(both)
        return both["a"] - both["b"]


class Loop(nn.Module):
    """One block, called again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Plain()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(MANY):
            x = self.block(x)
        return x


class LoopFirst(Loop):
    """One block, called again and again, and then another one like it for the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.late, self.between = Plain(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in (*[self.block] * MANY, self.late):
            x = block(self.between(x))
        return x


def _shared_activation() -> nn.Module:
    act = nn.GELU()
    return Stack(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), act, nn.Linear(WIDTH, WIDTH)))


class Position(nn.Module):
    """A module with a join of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.move = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.move(x)


def _shared_position() -> nn.Module:
    position = Position()
    return Stack(lambda: nn.Sequential(position, nn.Linear(WIDTH, WIDTH)))


def _images() -> nn.Module:
    def block() -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))

    return Stack(block)


class Nested(Stack):
    """Stacks in a stack."""

    def __init__(self) -> None:
        super().__init__(lambda: Stack(Plain, 3), 4)


TOLD = {
    "residual": (lambda: Stack(Plain), None),
    "attention under a shared mask": (Masked, None),
    "two inputs and two outputs": (Pairs, None),
    "one block in a loop": (Loop, None),
    "one block in a loop, and then one like it": (LoopFirst, None),
    "one activation for all": (_shared_activation, None),
    "one module with a join for all": (_shared_position, None),
    "convolutions": (_images, "float32[B, 8, 6, 6]"),
    "stacks in stacks": (Nested, None),
    "encoder layers": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=True), MANY),
        None,
    ),
}


@pytest.mark.parametrize("case", TOLD)
def test_a_repeated_block_reads_as_if_it_had_run(case: str, told: list[str]) -> None:
    """Rows, edges, FLOPs, activations and notes are those of a summary for which every block ran."""
    build, inputs = TOLD[case]
    model = build()
    with everything_runs():
        run = counted(model, *([inputs] if inputs else []))
    assert not told
    assert counted(model, *([inputs] if inputs else [])) == run
    assert len(told) > MANY


def test_most_blocks_of_a_deep_model_are_told_again(told: list[str]) -> None:
    """Of 50 equal blocks two run in the first pass and one in each later one; the first in training has no gradient.

    Where torch does not tell which hooks save tensors, all run in training.
    """
    counted(Stack(Plain, 50))
    assert told.count("Plain") == 48 + 49 + (48 if compat.KNOWS_SAVING_HOOKS else 0)


class Trap(Plain):
    """A block that does something no other call of it shows."""

    seen: list[torch.Tensor]
    other: nn.Module

    def __init__(self, does: Callable[[Trap, torch.Tensor], Any]) -> None:
        super().__init__()
        self.does = does

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.does(self, x)
        return super().forward(x if made is None else made)


LEFT: list[torch.Tensor] = []
OUTSIDE = nn.Linear(WIDTH, WIDTH)


def _leaves_a_tensor(block: Trap, x: torch.Tensor) -> None:
    LEFT.append(x * 2)


def _draws(block: Trap, x: torch.Tensor) -> torch.Tensor:
    return x @ torch.empty(WIDTH, WIDTH, device=x.device) if random.random() < 0.5 else x


def _draws_from_torch(block: Trap, x: torch.Tensor) -> None:
    torch.randint(0, 5, (3,), device="cpu")


def _writes_to_its_input(block: Trap, x: torch.Tensor) -> None:
    x.add_(1)


def _counts_its_calls(block: Trap, x: torch.Tensor) -> None:
    block.calls = getattr(block, "calls", 0) + 1


def _calls_another_module(block: Trap, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = OUTSIDE.to(x.device)(x)
    return result


TRAPS = {
    "leaves a tensor behind": _leaves_a_tensor,
    "draws random numbers": _draws,
    "draws from torch": _draws_from_torch,
    "writes to its input": _writes_to_its_input,
    "counts its calls": _counts_its_calls,
    "calls a module that is not its own": _calls_another_module,
}


@pytest.mark.parametrize("case", TRAPS)
def test_a_block_with_a_life_of_its_own_always_runs(case: str, told: list[str]) -> None:
    """What a block does beside returning its result happens in every call of every block."""
    counted(Stack(lambda: Trap(TRAPS[case])))
    LEFT.clear()
    assert "Trap" not in told


def test_blocks_that_differ_in_one_attribute_all_run(told: list[str]) -> None:
    """A number that forward may look at makes two blocks different."""
    model = Stack(Plain)
    for number, block in enumerate(model.blocks):
        block.number = number
    counted(model)
    assert "Plain" not in told


def test_blocks_with_hooks_all_run(told: list[str]) -> None:
    """A user's hook is called for every block."""
    model, calls = Stack(Plain), []
    for block in model.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    counted(model)
    assert not told
    assert len(calls) >= 2 * MANY


def test_a_global_hook_sees_every_block(told: list[str]) -> None:
    """Who wants to see all calls sees them."""
    with torch.nn.modules.module.register_module_forward_hook(lambda *_: None):
        counted(Stack(Plain))
    assert not told


def test_what_the_model_does_between_its_blocks_counts() -> None:
    """An attribute set from outside between two calls makes the next block another one."""

    class Sized(Plain):
        size = 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).repeat(1, self.size, 1)

    class Setting(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for number, block in enumerate(self.blocks):
                block.size = 2 if number == 4 else 1
                x = block(x)
            return x

    shapes = {row.path: row.output_text for row in counted(Setting(Sized)).layers}
    assert shapes["blocks.3"] == "[B, T, 16]"
    assert shapes["blocks.4"] == "[B, 2*T, 16]"


@pytest.mark.parametrize("name", ["new", "norm"])
def test_what_a_pass_stores_in_modules_is_undone(name: str) -> None:
    """A new attribute, a layer in place of another, items in dicts and lists: a later pass finds none of them."""

    class Storing(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []
            self.table = {"calls": 0}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x)
            found.append((hasattr(self, "new"), type(self.norm), list(self.seen), dict(self.table)))
            setattr(self, name, nn.Identity())
            self.seen.append(1)
            self.table["calls"] += 1
            return y

    found: list[Any] = []
    counted(Stack(Storing, 3))
    first_pass, later = found[:3], found[3:]
    assert first_pass == [(False, nn.LayerNorm, [], {"calls": 0})] * 3
    assert later
    assert all(seen == later[0] for seen in later)


def test_checkpointed_blocks_hold_only_what_goes_in() -> None:
    """Under checkpointing each block holds its input, which is the output of the one before: float32[2, 5, 16] each."""

    class Checkpointed(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * 2  # the first input that is not the model's own
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False)
            return x

    assert counted(Checkpointed(Plain)).activation_bytes == MANY * 2 * 5 * WIDTH * 4


def test_what_no_gradient_leads_to_is_not_held() -> None:
    """A chain of blocks whose result is cut off from the graph holds nothing at the end."""

    class Cut(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + super().forward(x).detach()

    assert counted(Cut(Plain)).activation_bytes == 0


def test_a_model_that_asks_for_gradients_gets_them() -> None:
    """A gradient through blocks that would be told again: then all of them run."""

    class Scored(Stack):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                point = x.detach().requires_grad_()
                (slope,) = torch.autograd.grad(super().forward(point).sum(), point, create_graph=self.training)
            return slope

    with everything_runs():
        run = counted(Scored(Plain))
    assert counted(Scored(Plain)) == run
    assert run.activation_bytes is not None


class OperatorsByModule(Observer):
    """A new observer: which operators each module runs, and nothing about replay."""

    def operator(self, cost: Cost, view: bool, operands: Any, args: Any, kwargs: Any, out: Any) -> None:
        super().operator(cost, view, operands, args, kwargs, out)
        if self.stack:
            self.note((cost.name, id(self.stack[-1]), (), (len(operands),)))


def test_a_new_observer_need_not_know_of_replay(told: list[str]) -> None:
    """What it noted of each module is the same, whether blocks ran or were replayed."""
    runnable = RunnableModel("model", meta_copy(Stack(Nested, 4)), parse("float32[2, 5, 16]"))
    assert runnable.block_cache is not None
    ran, replayed = OperatorsByModule(), OperatorsByModule()
    for observer in (ran, replayed):
        if observer is replayed:
            observer.replay = runnable.block_cache.start(observer)
        with observed(runnable, call_of(runnable, {}), observer):
            pass
    assert told
    assert [event for event in ran.events if event[0] == "aten.addmm"]
    assert replayed.events == ran.events


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_published_models_read_as_if_every_block_had_run(part: int, told: list[str]) -> None:
    """Every torchvision classifier and every 40th model of timm, with and without."""
    timm, torchvision = pytest.importorskip("timm"), pytest.importorskip("torchvision")
    names = [("torchvision", name) for name in torchvision.models.list_models(module=torchvision.models)]
    names += [("timm", name) for name in timm.list_models()[::40]]
    repeated = 0
    for library, name in names[part::8]:
        with backend.global_state_restored(), backend.abstract():
            model = timm.create_model(name) if library == "timm" else torchvision.models.get_model(name, weights=None)
        config = model.pretrained_cfg if library == "timm" else {}
        side = config.get("input_size", (3, 518 if "518" in name else 299 if name == "inception_v3" else 224))[-1]
        told.clear()
        seen = counted(model, f"float32[B, 3, {side}, {side}]")
        repeated += bool(told)
        with everything_runs():
            assert counted(model, f"float32[B, 3, {side}, {side}]") == seen, name
    assert repeated
