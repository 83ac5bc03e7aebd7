"""Plans of compiled models whose blocks are recomputed or compiled by themselves, and of compiled replicas."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import nn
from torch.utils.checkpoint import checkpoint

from pytest_modelbudget import plan
from pytest_modelbudget.backends.torch import compat
from pytest_modelbudget.backends.torch.compiled.capture import CompiledModel
from pytest_modelbudget.backends.torch.compiled.estimate import WORST, WORST_RECOMPUTED
from pytest_modelbudget.backends.torch.compiled.fusion import results_of
from pytest_modelbudget.planner.recipe import BLOCKS_COMPILED
from tests.backends.torch import real_compiled_ranks, real_ranks
from tests.backends.torch.rank_steps import WHOLE, on_real_ranks, sharded
from tests.real_steps import KERNELS, allocated, sgd

pytestmark = pytest.mark.skipif(not compat.KNOWN_COMPILED, reason="graphs of this torch were not looked at")

ROWS, WIDTH = 64, 16


def block(activation: type[nn.Module] = nn.GELU) -> nn.Module:
    """A product between two others."""
    return nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), activation(), nn.Dropout(0.1), nn.Linear(4 * WIDTH, WIDTH))


def test_like_blocks_share_their_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured are the first, whose input has no gradient, the one of another activation, and one for all others.

    What runs is told by the block it is of.
    """
    captured: list[Any] = []
    original = CompiledModel._captured
    monkeypatch.setattr(CompiledModel, "_captured", lambda *args: captured.append(args) or original(*args))
    model = nn.Sequential(block(), block(nn.SiLU), block(), block(), block())
    step = plan(model, f"float32[{ROWS}, {WIDTH}]", training={"optimizer": "sgd", "compile": BLOCKS_COMPILED})
    assert len(captured) == 3
    assert (step.phase, step.path.partition(".")[0]) == ("backward", "4")
    assert "repeated blocks" in step.notes[0]


def test_a_model_without_blocks_has_none_to_compile() -> None:
    """It is told what to write."""
    refused = plan(nn.Linear(4, 4), "float32[2, 4]", training={"compile": BLOCKS_COMPILED})
    assert "no repeated blocks" in refused.notes[0]
    assert "write compile: inductor" in refused.notes[0]


class Checkpointing(nn.Module):
    """Blocks that the model's own code has recomputed."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.blocks:
            x = checkpoint(part, x, use_reentrant=False)
        return x


@pytest.mark.parametrize("compiler", ["inductor", BLOCKS_COMPILED])
def test_a_model_that_recomputes_by_itself_is_planned_as_by_the_key(compiler: Any) -> None:
    """Its own calls are as good as the key of a recipe, with the same error; in inference nothing is computed anew.

    Around compiled blocks they are in no graph, so that Inductor's scheduler has nothing to decide there.
    """
    inputs, key_less = f"float32[{ROWS}, {WIDTH}]", {"compile": compiler}
    key = {"checkpointing": "blocks", **key_less}
    own = plan(Checkpointing, inputs, training=key_less)
    by_key = plan(nn.Sequential(block(), block()), inputs, training=key)
    assert own.notes[0].split(", what")[0] == by_key.notes[0].split(", what")[0]
    assert own.notes[1:] == by_key.notes[1:]
    assert "scheduler" in by_key.notes[0]
    assert ("scheduler" in own.notes[0]) == (compiler == "inductor")
    if compiler == "inductor":
        assert own.peak_bytes == by_key.peak_bytes
        assert f"within {WORST_RECOMPUTED} %" in own.notes[0]
        assert f"within {WORST} %" in plan(Checkpointing, inputs, inference=key_less).notes[0]


def test_a_compiled_block_lets_go_of_its_input() -> None:
    """By hand, in the second block: its input, the wide values and its result, beside weights and the model's input."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), block(), block(), block())
    weights = 4 * (WIDTH * WIDTH + WIDTH + 3 * (8 * WIDTH * WIDTH + 5 * WIDTH))
    step = plan(model, f"float32[{ROWS}, {WIDTH}]", inference={"kernels": "cpu", "compile": BLOCKS_COMPILED})
    assert step.peak_bytes == weights + 4 * ROWS * WIDTH * (1 + 1 + 4 + 1)


class Remembering(nn.Module):
    """Blocks that add what the one before left in an object that all are given."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = block()

        def forward(self, x: torch.Tensor, memory: SimpleNamespace) -> torch.Tensor:
            memory.last = self.body(x + memory.last)
            out: torch.Tensor = memory.last
            return out

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory = SimpleNamespace(last=x)
        for part in self.blocks:
            x = part(x, memory)
        return x


def test_blocks_that_leave_tensors_in_an_object_are_refused() -> None:
    """As those of transformers leave keys and values in a cache; the block is named, and the cure."""
    refused = plan(Remembering, f"float32[{ROWS}, {WIDTH}]", training={"compile": BLOCKS_COMPILED})
    assert "blocks.0 keeps tensors in an object that it is given" in refused.notes[0]
    assert "use_cache = False" in refused.notes[0]


@pytest.mark.slow
@pytest.mark.skipif(KERNELS is None or shutil.which("c++") is None, reason="needs a known CPU and a C++ compiler")
def test_a_compiled_step_that_recomputes_takes_what_was_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one on the CPU, whose blocks have dropout: kernels run as Inductor's scheduler has them."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = nn.Sequential(block(), block())
    shape = (32 * ROWS, WIDTH)
    recipe = {
        "optimizer": "sgd",
        "foreach": False,
        "kernels": KERNELS,
        "checkpointing": "blocks",
        "compile": "inductor",
    }
    planned = plan(model, f"float32{list(shape)}", training=recipe).peak_bytes
    for layer in model:
        layer.forward = _recomputed(layer.forward)
    data = torch.rand(shape)
    try:
        compiled = torch.compile(model)
        with torch._inductor.config.patch(cpp_cache_precompile_headers=False):
            compiled(data).sum().backward()
            compiled.zero_grad()
            assert planned == pytest.approx(allocated(compiled, data, sgd), rel=WORST_RECOMPUTED / 100)
    finally:
        torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
def test_what_is_saved_beside_recomputed_blocks_is_what_torch_compile_saves(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results of the forward graph of a real `torch.compile`, with Inductor's partition and no kernels."""
    ours: list[Any] = []
    original = CompiledModel._forward
    monkeypatch.setattr(
        CompiledModel, "_forward", lambda self, graph, inputs: ours.append(graph) or original(self, graph, inputs)
    )
    model = nn.Sequential(*(block() for _ in range(4)))
    recipe = {"optimizer": "sgd", "checkpointing": {"every": every}, "compile": "inductor"}
    assert plan(model, f"float32[{ROWS}, {WIDTH}]", training=recipe).peak_bytes
    for part in model[every - 1 :: every]:
        part.forward = _recomputed(part.forward)
    assert _results(ours[0]) == _results(_real_forward(model, torch.rand(ROWS, WIDTH)))


def _recomputed(original: Any) -> Any:
    return lambda x: checkpoint(original, x, use_reentrant=False)


def _real_forward(model: nn.Module, data: torch.Tensor) -> Any:
    """The graph of the forward pass that Dynamo, AOTAutograd and Inductor's partition make."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._guards import detect_fake_mode
    from torch._inductor.compile_fx import partition_fn
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.virtualized import V

    graphs: list[Any] = []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    make = aot_autograd(fw_compiler=keep, partition_fn=partition_fn, decompositions=select_decomp_table())

    def backend(graph: Any, inputs: Any) -> Any:
        with V.set_fake_mode(detect_fake_mode(inputs)):
            return make(graph, inputs)

    try:
        torch.compile(model, backend=backend)(data)
    finally:
        torch._dynamo.reset()
    return graphs[0]


def _results(graph: Any) -> Counter[Any]:
    values = (result.meta["val"] for result in results_of(graph.graph))
    return Counter((tuple(value.shape), value.dtype) for value in values)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_compiled_models_on_real_ranks() -> None:
    """Replicas of a compiled model take what is planned to the byte, FSDP2 with compiled blocks 2 per cent more."""
    cases = {"ddp": ({"ddp": 2}, "inductor", 0.0), "fsdp, blocks": ({"fsdp": 2}, BLOCKS_COMPILED, 0.03)}
    real = on_real_ranks(real_compiled_ranks, 2, list(cases))
    for case, (sharding, compiler, error) in cases.items():
        recipe: dict[str, Any] = {
            "kernels": "cpu",
            "foreach": False,
            "optimizer": "sgd",
            "compile": compiler,
        }
        inputs = f"int64[{real_compiled_ranks.BATCH}, {real_ranks.TOKENS}]"
        planned = sharded(real_ranks.Transformer, inputs, sharding, **recipe).memory_trace.peak()
        buckets = 4 * WHOLE if case == "ddp" else 0  # made before what is measured
        assert planned == pytest.approx(real[case] + buckets, rel=error), case
