"""Code that asks for values which are not there, and swallows the refusal, counts as it does when it has them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pytest_modelbudget import summarize
from pytest_modelbudget.backends.torch.model import real_copy
from pytest_modelbudget.summary import Flops, Summary

Ask = Callable[[torch.Tensor], Any]

READS: dict[str, Ask] = {
    "float": lambda w: float(w.sum()),
    "item": lambda w: w.max().item(),
    "condition": lambda w: bool(w.any()),
    "list": lambda w: w.tolist(),
    "numpy": lambda w: w.detach().numpy(),
    "array": lambda w: numpy.asarray(w.detach()),
    "nonzero": lambda w: w.nonzero(),
    "where": lambda w: torch.where(w > 0),
    "unique": lambda w: w.unique(),
    "equal": lambda w: torch.equal(w, w),
    "allclose": lambda w: torch.allclose(w, w),
    "mask": lambda w: w[w > 0],
    "masked_select": lambda w: torch.masked_select(w, w > 0),
    "member": lambda w: 3.0 in w,
    "new tensor": lambda w: torch.tensor([w[0, 0], w[0, 1]]),
    "index": lambda w: "abc"[(w * 0).long().sum()],
    "text": lambda w: f"{w.sum():.3f}",
    "repeats": lambda w: torch.repeat_interleave(w[0], (w[0] > -9).long()),
}  # fmt: skip
"""What works on real tensors, whatever their values are."""


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class Built(nn.Module):
    """As wide as `width` says of its weight, and 1 where that fails."""

    def __init__(self, width: Callable[[nn.Parameter], int], scale: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(300 * scale, 300))
        self.layer = nn.Linear(4, width(self.weight))

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)


def _or_one(ask: Ask) -> Callable[[torch.Tensor], int]:
    def width(weight: torch.Tensor) -> int:
        with contextlib.suppress(Exception):
            ask(weight)
            return 5
        return 1

    return width


@pytest.mark.parametrize("ask", [pytest.param(ask, id=name) for name, ask in READS.items()])
def test_a_builder_that_swallows_a_refusal_is_built_with_memory(ask: Ask) -> None:
    """It has the params of a model that is built by hand, and a note names its line."""
    summary = summarize(lambda: Built(_or_one(ask)), "float32[B, 4]")
    assert summary.params == _params(Built(_or_one(ask))) == 300 * 300 + 5 * 4 + 5
    assert any("ran with real memory" in note and "test_swallowed.py:" in note for note in summary.notes)


def _by_bare_except(weight: torch.Tensor) -> int:
    try:
        return 5 if float(weight.sum()) else 2
    except:  # noqa: E722
        return 1


def _by_a_compiler(weight: torch.Tensor) -> int:
    try:
        torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2))
    except Exception:
        return 1
    return 5


def _by_a_copy(weight: torch.Tensor) -> int:
    small = torch.zeros(300)
    small.copy_(weight[0].detach() + 1)
    return 5 if small.sum() else 2


def _by_a_view_of_a_copy(weight: torch.Tensor) -> int:
    small = torch.zeros(2, 300)
    small[0].add_(weight[0].detach() + 1)
    return 5 if small.max() > 0 else 2


def _by_an_item(weight: torch.Tensor) -> int:
    small = torch.zeros(3)
    small[0] = weight[0, 0].detach() + 1
    return 5 if small.sum() else 2


def _by_a_mask(weight: torch.Tensor) -> int:
    small = torch.zeros(300)
    small[weight[0].detach() > -1] = 1
    return 5 if small.sum() else 2


def _by_an_output(weight: torch.Tensor) -> int:
    small = torch.zeros(300)
    torch.add(weight[0].detach(), 1, out=small)
    return 5 if small.sum() else 2


def _by_data(weight: torch.Tensor) -> int:
    small = nn.Parameter(torch.zeros(3))
    small.data = weight[0].detach()
    return len(small) // 60


@pytest.mark.parametrize(
    "width",
    [_by_bare_except, _by_a_compiler, _by_a_copy, _by_a_view_of_a_copy, _by_an_item, _by_a_mask, _by_an_output, _by_data],
)  # fmt: skip
def test_what_a_builder_makes_of_weights_is_not_known_either(width: Callable[[torch.Tensor], int]) -> None:
    """Small tensors with memory that weights were written to have no values to read."""
    summary = summarize(lambda: Built(width), "float32[B, 4]")
    assert summary.params == _params(Built(width)) == 300 * 300 + 5 * 4 + 5


def test_a_large_builder_that_swallows_a_refusal_has_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit it stays as it was built without memory, and the note says where, and what to write."""
    monkeypatch.setattr(real_copy, "REAL_LIMIT", 1_000)
    summary = summarize(lambda: Built(_or_one(READS["float"])), "float32[B, 4]")
    (note,) = summary.notes
    assert summary.params == 300 * 300 + 4 + 1
    assert "asks for values" in note
    assert "test_swallowed.py:" in note
    assert "`run: real`" in note


def test_a_builder_that_may_not_have_memory_has_a_note() -> None:
    """`run: abstract` builds without it whatever happens, and says what was refused."""
    summary = summarize(lambda: Built(_or_one(READS["float"])), "float32[B, 4]", run="abstract")
    assert summary.params == 300 * 300 + 4 + 1
    assert ["asks for values" in note and "`run: real`" in note for note in summary.notes] == [True]


class Deep(nn.Module):
    """As many of its six layers run as `depth` says of the input, and one where that fails."""

    def __init__(self, depth: Callable[[torch.Tensor], int]) -> None:
        super().__init__()
        self.depth = depth
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[: self.depth(x)]:
            x = layer(x)
        return x


def _counted_by_torch(model: nn.Module) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.rand(2, 4))
    return int(counter.get_total_flops())


def _of(build: Callable[[], nn.Module], kind: str, **options: Any) -> Summary:
    return summarize(build if kind == "built" else build(), "float32[2, 4]", name="m", **options)


_READ_IN_PASS = sorted(READS.keys() - {"condition", "index"})


@pytest.mark.parametrize(("name", "kind"), [*((name, "live") for name in _READ_IN_PASS), ("mask", "built")])
def test_a_pass_that_swallows_a_refusal_is_run_on_values(name: str, kind: str) -> None:
    """Its FLOPs are those that torch counts on real tensors, and never those of the branch that the refusal took."""
    summary = _of(lambda: Deep(_or_one(READS[name])), kind)
    assert summary.real_run
    assert summary.flops.value in (None, _counted_by_torch(Deep(_or_one(READS[name]))))


def test_a_pass_that_may_not_have_values_has_a_note() -> None:
    """`run: abstract` says that something was refused."""
    summary = _of(lambda: Deep(_or_one(READS["nonzero"])), "built", run="abstract")
    assert summary.flops == Flops(2 * 2 * 4 * 4)
    assert any("goes on without them" in note for note in summary.notes)


def test_a_pass_that_fails_on_sizes_is_not_run_on_values() -> None:
    """What it swallows is no refusal where real tensors do not fit each other either."""
    summary = _of(lambda: Deep(_or_one(lambda x: x @ x)), "built")
    assert not summary.real_run
    assert summary.flops == Flops(2 * 2 * 4 * 4)


LOOKS: dict[str, Callable[[torch.Tensor], bool]] = {
    "is_meta": lambda x: not x.is_meta,
    "is_cpu": lambda x: x.is_cpu,
    "device type": lambda x: x.device.type == "cpu",
    "device": lambda x: x.device == torch.device("cpu"),
    "device in words": lambda x: str(x.device) == "cpu",
    "by name": lambda x: bool(getattr(x, "is_cpu")),  # noqa: B009
    "type": lambda x: x.type() == "torch.FloatTensor",
    "another type": lambda x: x.half().type() == "torch.HalfTensor",
    "address": lambda x: x.data_ptr() != 0,
    "addresses of two": lambda x: x.data_ptr() != (x + 1).data_ptr(),
    "address of a part": lambda x: x[1].data_ptr() - x.data_ptr() == 4 * x.stride(0),
    "memory": lambda x: x.untyped_storage().data_ptr() != (x + 1).untyped_storage().data_ptr(),
    "one memory": lambda x: x.view(-1).untyped_storage().data_ptr() == x.untyped_storage().data_ptr(),
    "constant": lambda x: int(torch.tensor([5], device=x.device)) == 5,
}


def _wrong(x: torch.Tensor) -> list[str]:
    return [name for name, look in LOOKS.items() if not look(x)]


@pytest.mark.parametrize("kind", ["built", "live"])
def test_a_pass_sees_its_tensors_on_the_cpu(kind: str) -> None:
    """A model that asks where its tensors are runs as it does for its user, without being run on values."""
    wrong: list[str] = []

    def depth(x: torch.Tensor) -> int:
        wrong.extend(_wrong(x) + _wrong(x * 2))
        return 2 if wrong else 5

    summary = _of(lambda: Deep(depth), kind)
    assert wrong == []
    assert not summary.real_run
    assert summary.flops == Flops(_counted_by_torch(Deep(depth))) == Flops(5 * 2 * 2 * 4 * 4)


def test_a_builder_sees_its_tensors_on_the_cpu() -> None:
    """One that asks where its weights are builds what it builds for its user, without memory."""
    wrong: list[str] = []

    def width(weight: torch.Tensor) -> int:
        wrong.extend(_wrong(weight.detach()))
        return 2 if wrong else 5

    summary = summarize(lambda: Built(width), "float32[B, 4]")
    assert (wrong, summary.notes) == ([], ())
    assert summary.params == _params(Built(width)) == 300 * 300 + 5 * 4 + 5


@torch.library.custom_op("swallowed::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    """An operator of the user's own."""
    return x * 2


@twice.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@pytest.mark.parametrize("kind", ["built", "live"])
def test_kernels_for_meta_see_meta(kind: str) -> None:
    """What a user's operator gives on meta is on meta, though the model sees it on the CPU."""

    def depth(x: torch.Tensor) -> int:
        y = twice(x)
        return 5 if not y.is_meta and y.device.type == "cpu" else 2

    summary = _of(lambda: Deep(depth), kind, run="abstract")
    assert summary.flops.value == 5 * 2 * 2 * 4 * 4


def test_nothing_is_left_of_how_tensors_look() -> None:
    """After counting, a tensor on meta is on meta."""
    summarize(Deep(lambda x: 2), "float32[2, 4]", name="m")
    tensor = torch.empty(3, device="meta")
    assert (tensor.is_meta, tensor.is_cpu, tensor.device.type) == (True, False, "meta")
    assert (tensor.type(), tensor.data_ptr(), tensor.untyped_storage().data_ptr()) == ("torch.meta.FloatTensor", 0, 0)
    assert not {"device", "is_meta", "is_cpu", "type", "data_ptr"} & vars(torch.Tensor).keys()


DRAWS: dict[str, Callable[[], float]] = {
    "randint": lambda: torch.randint(1, 100, (1,)).item(),
    "rand": lambda: 100 * torch.rand(()).item(),
    "randn": lambda: abs(100 * float(torch.randn(3)[1])),
    "randperm": lambda: torch.randperm(90)[0].item(),
    "like": lambda: 100 * torch.rand_like(torch.zeros(2)).max().item(),
    "in place": lambda: torch.empty(1).uniform_(1, 100).item(),
    "whole in place": lambda: torch.zeros(3, dtype=torch.long).random_(0, 90).sum().item(),
    "init": lambda: 100 * nn.init.uniform_(torch.empty(2)).max().item(),
    "truncated": lambda: 100 * abs(nn.init.trunc_normal_(torch.empty(2))).max().item(),
    "data": lambda: 100 * nn.Parameter(torch.zeros(2)).data.uniform_()[1].item(),
    "bernoulli": lambda: torch.bernoulli(torch.full((9,), 0.5)).sum().item(),
    "multinomial": lambda: torch.multinomial(torch.ones(50), 1).item(),
    "normal": lambda: abs(100 * torch.normal(torch.zeros(2), torch.ones(2))[0]).item(),
    "dropout": lambda: nn.functional.dropout(torch.ones(40)).sum().item(),
    "written": lambda: torch.zeros(3).copy_(torch.rand(3)).mul_(50).sum().item(),
    "python seeded by torch": lambda: random.Random(torch.randint(0, 999, ()).item()).randint(1, 99),
}


@pytest.mark.parametrize("draw", [pytest.param(draw, id=name) for name, draw in DRAWS.items()])
def test_numbers_that_are_drawn_after_weights_are_those_of_the_user(draw: Callable[[], float]) -> None:
    """A builder that reads one is built with memory, and is the model that its user has by the same seed."""

    def build() -> nn.Module:
        torch.manual_seed(7)
        first = nn.Linear(4, 4)
        return nn.Sequential(first, nn.Linear(4, 1 + int(draw())))

    assert summarize(build, "float32[B, 4]").params == _params(build())


IN_STEP: dict[str, Callable[[], int]] = {
    "before any weight": lambda: torch.randint(1, 100, ()).item(),
    "after a seed": lambda: (nn.Linear(4, 4), torch.manual_seed(3), torch.randint(1, 100, ()).item())[-1],
    "in a state that was kept": lambda: (
        state := torch.get_rng_state(), nn.Linear(4, 4), torch.set_rng_state(state), torch.randint(1, 100, ()).item()
    )[-1],
    "by a generator": lambda: (
        nn.Linear(4, 4), torch.randint(1, 100, (), generator=torch.Generator().manual_seed(3)).item()
    )[-1],
    "by the seed that was set": lambda: (
        nn.Linear(4, 4),
        torch.randint(1, 100, (), generator=torch.Generator().manual_seed(torch.initial_seed())).item(),
    )[-1],
    "by Python": lambda: (random.seed(5), nn.Linear(4, 4), random.randint(1, 99))[-1],
    "after a small weight": lambda: (nn.Parameter(torch.randn(8)), torch.randint(1, 100, ()).item())[-1],
    "beside a layer, not read": lambda: (nn.Linear(4, 4), torch.rand(3) * 2, 6)[-1],
}  # fmt: skip


@pytest.mark.parametrize("width", [pytest.param(width, id=name) for name, width in IN_STEP.items()])
def test_numbers_that_are_drawn_in_step_need_no_memory(width: Callable[[], int]) -> None:
    """Where no weight was left out before, or a seed was set since, they are the user's already."""

    def build() -> nn.Module:
        torch.manual_seed(7)
        return nn.Linear(4, width())

    summary = summarize(build, "float32[B, 4]")
    assert summary.params == _params(build())
    assert summary.notes == ()


class Chosen(nn.Module):
    """Picks by a mask that was drawn when it was built."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first = nn.Linear(4, 64)
        self.register_buffer("mask", torch.zeros(64, dtype=torch.long).random_(0, 2))
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers[: int(self.mask.sum())]:
            x = layer(x)
        return x


def test_a_drawn_buffer_that_steers_the_pass_is_the_users() -> None:
    """A mask of integers that is drawn after weights has no values until the model is built with memory."""
    summary = summarize(Chosen, "float32[2, 4]")
    assert summary.real_run
    assert summary.flops.value in (None, _counted_by_torch(Chosen()))


class Cleared(nn.Module):
    """Reads a buffer that was filled with a constant after weights were made."""

    def __init__(self, fill: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.register_buffer("depth", torch.ones(2, dtype=torch.long))
        fill(self.depth)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[: 1 + int(self.depth.sum())]:
            x = layer(x)
        return x


@pytest.mark.parametrize("fill", [nn.init.zeros_, torch.Tensor.zero_, lambda held: nn.init.constant_(held, 1)])
def test_constants_that_are_filled_in_after_weights_are_known(fill: Callable[[torch.Tensor], object]) -> None:
    """A pass reads them without being run on values."""
    summary = summarize(lambda: Cleared(fill), "float32[2, 4]")
    assert not summary.real_run
    assert summary.flops == Flops(_counted_by_torch(Cleared(fill)))
