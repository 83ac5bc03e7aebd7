"""Plans with `compile: inductor`: torch's own graphs, with a rule for what their kernels fuse."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import nn

from pytest_modelbudget import plan
from pytest_modelbudget.backends.torch import compat
from pytest_modelbudget.backends.torch.compiled.estimate import compiled_note, error_of
from pytest_modelbudget.backends.torch.compiled.fusion import memory_steps
from pytest_modelbudget.backends.torch.compiled.order import Dataflow, best_order, peak_of
from pytest_modelbudget.backends.torch.compiled.outputs import taken_apart
from pytest_modelbudget.backends.torch.compiled.regions import Recomputation
from pytest_modelbudget.backends.torch.compiled.schedule import Schedule
from pytest_modelbudget.planner import Training
from tests.real_steps import KERNELS, allocated, sgd

pytestmark = pytest.mark.skipif(not compat.KNOWN_COMPILED, reason="graphs of this torch were not looked at")

BATCH, WIDTH, HIDDEN, FLOAT = 1024, 64, 256, 4


def perceptron() -> nn.Module:
    """GELU between two products."""
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))


def test_a_step_holds_what_the_partitioner_saves_and_no_pointwise_temporaries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, and what a real compiled step takes: GELU's operand and result (that of a product) are saved.

    The highest point is the second layer's gradients, that of its weight beside that of the hidden values: GELU's own
    temporaries are nowhere. Nothing is compiled, and torch is as before.
    """
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    training = {"optimizer": "sgd", "zero_grad": "before", "kernels": "cpu", "compile": "inductor"}
    step = plan(perceptron, f"float32[{BATCH}, {WIDTH}]", training=training)

    weights = FLOAT * (2 * WIDTH * HIDDEN + HIDDEN + WIDTH)
    hidden, ends = FLOAT * BATCH * HIDDEN, FLOAT * BATCH * WIDTH
    gradients = hidden + FLOAT * HIDDEN * WIDTH
    assert step.peak_bytes == weights + 2 * hidden + 3 * ends + gradients == 4_130_048  # input, output, its gradient
    assert (step.phase, step.path) == ("backward", "2")
    nothing = Recomputation()
    assert compiled_note(Training(), error_of(Training(), perceptron(), nothing), nothing) in step.notes
    assert not torch.compiler.is_compiling()
    assert list(tmp_path.iterdir()) == []


class Cache:
    """What transformers returns beside logits: an object of a class of its own, with lists of objects with tensors."""

    def __init__(self, keys: torch.Tensor) -> None:
        self.layers, self.seen = [SimpleNamespace(keys=keys)], 1


class WithCache(nn.Module):
    """Returns its hidden values, bare or in a cache."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.up, self.down, self.wrap = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH), wrap

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.up(x)
        return self.down(hidden.relu()), self.wrap(hidden)


def test_tensors_in_objects_are_outputs_of_the_graph() -> None:
    """A cache takes what a tuple of the same tensors takes; kept by the caller it is there to the end of the pass."""
    takes = [
        plan(
            lambda wrap=wrap: WithCache(wrap), f"float32[{BATCH}, {WIDTH}]", inference={"compile": "inductor"}
        ).peak_bytes
        for wrap in (Cache, lambda hidden: (hidden,))
    ]
    assert takes[0] == takes[1] is not None
    model = WithCache(Cache)
    tensors, rebuild = taken_apart(model(torch.ones(1, WIDTH)))
    out, cache = rebuild([tensor + 1 for tensor in tensors])
    assert out.equal(tensors[0] + 1)
    assert cache.layers[0].keys.equal(tensors[1] + 1)
    assert cache.seen == 1


def test_an_output_that_a_scatter_changes_is_added_to_another_out_of_place() -> None:
    """By hand, of a head tied to the embedding, under autocast.

    The gradient of the look-up (which Inductor never writes over), that of the head in bfloat16, and their sum.
    """
    rows, width, tokens, half = 4096, 64, 16, 2

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(rows, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.table(x), self.table.weight)

    training = {"optimizer": "sgd", "precision": "bf16-mixed", "kernels": "cpu", "compile": "inductor"}
    step = plan(Tied, f"int64[{tokens}]", training=training)
    tables, logits = (3 * FLOAT + half) * rows * width, half * tokens * rows
    assert step.peak_bytes == tables + 2 * logits + half * tokens * width + 8 * tokens


def test_autocast_of_a_compiled_model_is_that_of_its_device() -> None:
    """Softmax writes float32 on CUDA; on a CPU it writes bfloat16, over what the product gave."""
    model = nn.Sequential(nn.Linear(4, HIDDEN), nn.Softmax(-1))
    inference: dict[str, Any] = {"precision": "bf16-mixed", "compile": "inductor"}
    plans = [
        plan(model, f"float32[{BATCH}, 4]", inference={**inference, "kernels": kernels}) for kernels in ("cpu", "cuda")
    ]
    peaks = [sum(part.bytes for part in planned.parts if part.role != "workspace") for planned in plans]
    weights, data, product, half = 5 * HIDDEN, 4 * BATCH, BATCH * HIDDEN, 2
    there = FLOAT * (weights + data) + half * product
    assert peaks == [there + half * (weights + data), there + FLOAT * (product + 2 * BATCH)]  # maxima and sums of rows


def test_a_chain_of_pointwise_operators_takes_one_buffer() -> None:
    """Where eager mode has two at a time."""

    class Chain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 2 + 1).sin().cos().exp()

    inference = {"kernels": "cpu", "compile": "inductor"}
    step = plan(Chain, "float32[1024]", inference=inference)
    assert step.peak_bytes == 2 * FLOAT * 1024
    assert plan(Chain, "float32[1024]", inference={"kernels": "cpu"}).peak_bytes == 3 * FLOAT * 1024


@pytest.mark.parametrize(("between", "waits"), [(68, True), (69, False)])
def test_a_buffer_waits_for_the_next_of_its_size_where_the_peak_stays(between: int, waits: bool) -> None:
    """A product of 64 bytes that is summed up and gone, another kernel, and a product of 64 bytes: 132 is the peak."""
    graph = torch.fx.Graph()

    def node(target: Any, *args: Any, shape: tuple[int, ...]) -> torch.fx.Node:
        made = graph.placeholder("x") if target is None else graph.call_function(target, args)
        made.meta["val"] = torch.empty(shape, device="meta")
        return made

    aten = torch.ops.aten
    x = node(None, shape=(4, 4))
    first = node(aten.mm.default, x, x, shape=(4, 4))
    total = node(aten.sum.default, first, shape=())
    other = node(aten.mv.default, x, total, shape=(4,))
    last = node(aten.mm.default, x, x, shape=(4, 4))
    graph.output((total, other, last))
    turns = {made.name: turn for turn, made in enumerate((first, total, other, last))}
    *_, summed, _, end = memory_steps(graph, schedule=Schedule(turns, (64, 68, between, 132)))
    assert (summed.node, end.node) == (total, last)
    assert (first in summed.freed, end.written_over) == (not waits, (first,) if waits else ())


def test_kernels_run_in_the_order_that_needs_less() -> None:
    """First what ends the life of a saved tensor, then what makes another: at most 20 and 1, where it would be 31."""
    flow = Dataflow(
        kernels=("next", "last use", "end"),
        makes={"next": ("y",), "last use": ("w",), "end": ("z",)},
        reads={"next": ("x",), "last use": ("x", "saved"), "end": ("y",)},
        sizes={"x": 10, "saved": 10, "y": 10, "w": 1, "z": 10},
        kept=frozenset({"w", "z"}),
    )
    assert best_order(flow) == ("last use", "next", "end")
    assert (peak_of(flow, best_order(flow)), peak_of(flow, flow.kernels)) == (21, 31)


class Decides(nn.Linear):
    """Reads a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("build", "recipe", "message"),
    [
        pytest.param(perceptron, {"training": {"sharding": {"fsdp": 2}}}, "{inductor: blocks}", id="FSDP2 of a whole"),
        pytest.param(perceptron, {"training": {"sharding": {"tp": 2}}}, "ddp, zero1, fsdp", id="sharding"),
        pytest.param(perceptron, {"training": {"pipeline": {"ranks": 2}}}, "leave pipeline", id="pipeline"),
        pytest.param(perceptron, {"training": {"fp8": "tensorwise"}}, "leave fp8", id="fp8"),
        pytest.param(perceptron, {"inference": {"offload": ["params"]}}, "leave offload", id="weights on the host"),
        pytest.param(perceptron, {"training": {"offload": ["activations"]}}, "on the host", id="offload"),
        pytest.param(perceptron, {"training": {"loss": "liger"}}, "loss: liger", id="loss"),
        pytest.param(perceptron, {"inference": {"kv_cache": 8}}, "generation", id="generation"),
        pytest.param(lambda: nn.LSTM(WIDTH, WIDTH), {"inference": {}}, "layers as LSTM", id="recurrent layers"),
        pytest.param(lambda: Decides(WIDTH, WIDTH), {"inference": {}}, "decides by values", id="values"),
    ],
)
def test_what_is_not_planned_compiled_is_refused_by_name(build: Any, recipe: dict[str, Any], message: str) -> None:
    """With the key or the layer."""
    ((kind, keys),) = recipe.items()
    refused = plan(build, f"float32[{BATCH}, {WIDTH}]", **{kind: {**keys, "compile": "inductor"}})
    assert refused.peak_bytes is None
    assert "compile: inductor" in refused.notes[0]
    assert message in refused.notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
@pytest.mark.skipif(KERNELS is None or shutil.which("c++") is None, reason="needs a known CPU and a C++ compiler")
def test_a_step_that_inductor_compiled_takes_what_was_planned(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one on the CPU, with dropout, whose random numbers the compiler makes anew."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = nn.Sequential(perceptron(), nn.Dropout(0.1), nn.LayerNorm(WIDTH), perceptron())
    recipe = {"optimizer": "sgd", "foreach": False, "kernels": KERNELS, "compile": "inductor", "precision": precision}
    rows = 8 * BATCH  # oneDNN's products in bfloat16 take a quarter of a MiB of scratch, which is little beside these
    planned = plan(model, f"float32[{rows}, {WIDTH}]", training=recipe).peak_bytes
    data = torch.rand(rows, WIDTH)
    try:
        compiled = torch.compile(model)
        with (
            torch._inductor.config.patch(cpp_cache_precompile_headers=False),
            torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32"),
        ):
            compiled(data).sum().backward()
            compiled.zero_grad()
            assert planned == pytest.approx(allocated(compiled, data, sgd), rel=0.03)
    finally:
        torch._dynamo.reset()
