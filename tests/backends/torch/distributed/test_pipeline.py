"""Steps of the ranks of a pipeline, worked out by hand, and against runs in which each microbatch runs itself."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget import units
from pytest_modelbudget.backends.torch.distributed.pipeline import RankStep, record_ranks
from pytest_modelbudget.backends.torch.model.build import abstract
from pytest_modelbudget.backends.torch.planning import make_plans
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import MemoryTrace, Training
from tests.backends.torch import real_experts
from tests.backends.torch.rank_steps import BLOCK, FLOAT, TABLE, lasting
from tests.backends.torch.real_ranks import TOKENS, VOCABULARY, WIDTH, Block, Transformer
from tests.versions import since

pytestmark = since("torch", "2.14", "stages of earlier releases were not looked at")

BATCH = 8
ROWS = FLOAT * BATCH * TOKENS * WIDTH
"""What all microbatches hand on, from one stage to the next."""


class Deep(Transformer):
    """Six blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(6))


class Tied(Deep):
    """The head is the table of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head.weight = self.embed_tokens.weight


class Skipping(Deep):
    """The embedding goes past all blocks."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out = first = self.embed_tokens(ids)
        for layer in self.layers:
            out = layer(out)
        return self.lm_head(self.norm(out + first))


class Residual(Deep):
    """What a block is called with is added by the code around it."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out = self.embed_tokens(ids)
        for layer in self.layers:
            out = out + layer(out)
        return self.lm_head(self.norm(out))


class Noting(Block):
    """A block that leaves what it made in a list."""

    def forward(self, x: torch.Tensor, notes: list[torch.Tensor]) -> torch.Tensor:
        notes.append(self.norm1(x))
        return super().forward(x)


class Leaving(Deep):
    """The code after all blocks reads what they left in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Noting() for _ in range(6))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out, notes = self.embed_tokens(ids), list[torch.Tensor]()
        for layer in self.layers:
            out = layer(out, notes)
        return self.lm_head(self.norm(sum(notes, out)))


class Failing(Deep):
    """Its code fails in the second microbatch."""

    calls = 0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        type(self).calls += 1
        if self.calls > 2:
            raise ValueError("no more")
        return super().forward(ids)


def ranks_of(pipeline: dict[str, Any], build: Any = Deep, *, repeats: bool = True, **recipe: Any) -> list[RankStep]:
    with abstract():
        model = build()
    training = Training(pipeline=pipeline, **{"loss": "cross_entropy", **recipe})
    inputs = parse(f"int64[{BATCH}, {TOKENS}]")
    return record_ranks(RunnableModel("model", model, inputs), {}, training, repeats=repeats)


def test_states_and_bytes_sent() -> None:
    """Each rank has its blocks' parameters, gradients and two states; it sends activations on, and gradients back."""
    first, middle, last = ranks_of({"ranks": 3, "microbatches": 4})
    for step, parameters in (
        (first, TABLE + 2 * BLOCK),
        (middle, 3 * BLOCK),
        (last, BLOCK + 2 * WIDTH + TABLE),
    ):
        sums = lasting(step.memory_trace)
        assert sums["param"] == sums["gradient"] == FLOAT * parameters
        assert sums["optimizer"] == pytest.approx(2 * FLOAT * parameters, abs=1000)  # and a counter for each
    assert [step.communication for step in (first, middle, last)] == [{"send": rows} for rows in (ROWS, 2 * ROWS, ROWS)]
    assert [lasting(step.memory_trace)["input"] for step in (first, last)] == [8 * BATCH * TOKENS] * 2
    assert "input" not in lasting(middle.memory_trace)
    # room for what each microbatch gets of the stage before, and of the one after
    received = [lasting(step.memory_trace).get("received", 0) for step in (first, middle, last)]
    assert received == [ROWS, 2 * ROWS, ROWS]


@pytest.mark.parametrize(("build", "count"), [(Skipping, 2), (Residual, 1)])
def test_what_stages_hand_on(build: Any, count: int) -> None:
    """All that later stages read of earlier ones, and the gradients of it: what is read twice goes once."""
    steps = ranks_of({"ranks": 3, "microbatches": 4}, build)
    rows = [count * ROWS, 2 * count * ROWS, count * ROWS]
    assert [step.communication["send"] for step in steps] == rows
    assert [lasting(step.memory_trace).get("received", 0) for step in steps] == rows


def test_what_is_kept_beside() -> None:
    """An average has a copy of what is on a rank; states of an offloaded optimizer stay for small parameters alone."""
    pipeline = {"ranks": 2, "microbatches": 2, "split": ["layers.1"]}
    step, _ = ranks_of(pipeline, ema=True, offload=("optimizer",))
    sums, parameters, norms = lasting(step.memory_trace), TABLE + BLOCK, 4 * WIDTH
    assert sums["average"] == sums["param"] == sums["gradient"] == FLOAT * parameters
    assert sums["optimizer"] == pytest.approx(2 * FLOAT * norms, abs=100)  # and their counters
    [note] = [note for note in step.memory_trace.notes if note.startswith("offloaded")]
    assert note.startswith(f"offloaded: {units.size(4 * FLOAT * (parameters - norms))}")
    sharded, _ = ranks_of(pipeline, ema=True, sharding={"fsdp": 2})
    assert lasting(sharded.memory_trace)["average"] == FLOAT * parameters // 2


def test_experts_of_a_stage() -> None:
    """Rows go to the ranks of their experts and back in each microbatch, and so do their gradients."""
    pipeline = {"ranks": 2, "microbatches": 4, "split": ["layers.1"]}
    step, _ = ranks_of(pipeline, real_experts.Mixture, sharding={"fsdp": 2, "ep": 2})
    rows = BATCH * TOKENS * real_experts.CHOSEN
    exchanged = FLOAT * (4 * rows * WIDTH + 4 * real_experts.EXPERTS)  # and how many for each expert, in each forward
    assert step.communication["all_to_all"] == exchanged // 2
    experts = 2 * real_experts.EXPERTS * real_experts.INNER * WIDTH
    others = TABLE + 2 * WIDTH + real_experts.EXPERTS * WIDTH
    sums = lasting(step.memory_trace)
    assert sums["param"] == sums["gradient"] == FLOAT * (experts + others) // 2
    assert any("each of 8 experts is assumed to get as many" in note for note in step.memory_trace.notes)


def test_a_loss_in_place_of_the_head() -> None:
    """It is on the last stage, with the weight of the head and its gradient; nobody makes logits."""
    _, last = ranks_of({"ranks": 2, "microbatches": 4, "split": ["layers.5"]}, loss="liger")
    sums = lasting(last.memory_trace)
    assert sums["param"] == sums["gradient"] == FLOAT * (BLOCK + 2 * WIDTH + TABLE)
    assert sums["input"] == 8 * BATCH * TOKENS
    assert not any(event.path == "lm_head" for event in last.memory_trace.events)


def test_an_optimizer_that_reads_values() -> None:
    """Adafactor asks for the norms of parameters on every rank: a row and a column for each matrix, vectors whole."""
    step, _ = ranks_of({"ranks": 2, "microbatches": 2, "split": ["layers.1"]}, optimizer="adafactor")
    table = VOCABULARY + WIDTH
    block = 4 * 2 * WIDTH + 2 * 5 * WIDTH + 4 * WIDTH
    assert lasting(step.memory_trace)["optimizer"] == FLOAT * (table + block)


def test_stages_that_are_sharded() -> None:
    """Each rank has a part of its stage's parameters, gradients and states; all is gathered and reduced once a step."""
    pipeline = {"ranks": 2, "microbatches": 4, "split": ["layers.2"]}
    pairs = zip(ranks_of(pipeline, sharding={"fsdp": 2}), ranks_of(pipeline), (2, 4), strict=True)
    for step, alone, blocks in pairs:
        parameters = blocks * BLOCK + TABLE + (2 * WIDTH if step.rank else 0)
        sums, trace = lasting(step.memory_trace), step.memory_trace
        assert sums["param"] == sums["gradient"] == FLOAT * parameters // 2
        assert sums["optimizer"] == pytest.approx(FLOAT * parameters, abs=1000)
        assert "gathered" not in sums
        sent = FLOAT * parameters // 2
        assert step.communication == {"all_gather": sent, "reduce_scatter": sent, "send": ROWS}
        whole = sum(size for event in trace.events[trace.measured :] for number, size in event.made
                    if trace.roles.get(number) == "gradient")  # fmt: skip
        assert whole == FLOAT * (parameters + parameters // 2)  # of all microbatches, and what is left of it
        flops = [sum(work.flops for work in other.memory_trace.work or ()) for other in (step, alone)]
        assert flops[0] == flops[1]


def test_sums_of_gradients_that_fsdp_makes() -> None:
    """By its policy it runs in half precision and adds up microbatches whole in float32, which are gradients."""
    step, _ = ranks_of(
        {"ranks": 2, "microbatches": 2, "split": ["layers.1"]}, sharding={"fsdp": 2, "casts": "policy"},
        precision="bf16-mixed",
    )  # fmt: skip
    trace, parameters = step.memory_trace, TABLE + BLOCK
    made = [
        size for event in trace.events[trace.measured :] for number, size in event.made
        if trace.roles.get(number) == "gradient"
    ]  # fmt: skip
    assert sum(made) == FLOAT * (parameters + parameters // 2)  # the whole, and this rank's part of it


def most_in_flight(trace: MemoryTrace, block: str) -> int:
    """How many results of the activation function of a block are alive at once in the last step."""
    alive: set[int] = set()
    most = 0
    for event in trace.events[trace.measured :]:
        alive.difference_update(event.freed)
        if event.op == "aten.gelu" and event.path == block:
            alive.update(number for number, _ in event.made)
        most = max(most, len(alive))
    return most


@pytest.mark.parametrize(("schedule", "expected"), [("1f1b", [3, 2, 1]), ("gpipe", [4, 4, 4])])
def test_microbatches_in_flight(schedule: str, expected: list[int]) -> None:
    """1F1B keeps the activations of as many microbatches as there are stages to come, GPipe those of all."""
    split = ["layers.2", "layers.4"]
    steps = ranks_of({"ranks": 3, "schedule": schedule, "microbatches": 4, "split": split})
    assert [most_in_flight(step.memory_trace, f"layers.{2 * step.rank}") for step in steps] == expected


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "1f1b": ({"ranks": 2, "microbatches": 4}, {}),
    "gpipe": ({"ranks": 2, "schedule": "gpipe", "microbatches": 4}, {"zero_grad": "after"}),
    "mixed": ({"ranks": 2, "microbatches": 4}, {"precision": "bf16-mixed", "outputs": "dropped"}),
    "recomputed": ({"ranks": 2, "microbatches": 4}, {"checkpointing": "blocks"}),
    "interleaved": ({"ranks": 2, "schedule": "interleaved1f1b", "microbatches": 4}, {"outputs": "until-step"}),
    "interleaved, in two parts": ({"ranks": 2, "schedule": "interleavedzerobubble", "microbatches": 4}, {}),
    "in the shape of a V": (
        {"ranks": 2, "schedule": "zbvzerobubble", "microbatches": 8},
        {"gradient_accumulation": 2, "loss": "cce", "sharding": {"fsdp": 2}},
    ),
    "fsdp, tp, accumulated": (
        {"ranks": 2, "microbatches": 4},
        {"sharding": {"fsdp": 2, "ddp": 2, "tp": 2}, "gradient_accumulation": 3},
    ),
    "experts": (
        {"ranks": 2, "microbatches": 4},
        {"sharding": {"fsdp": 2, "ep": 2}, "checkpointing": "blocks", "build": lambda: real_experts.Mixture(4)},
    ),
    "experts, in the shape of a V": (
        {"ranks": 2, "schedule": "zbvzerobubble", "microbatches": 4},
        {"sharding": {"fsdp": 2, "ep": 2}, "checkpointing": "blocks", "build": lambda: real_experts.Mixture(6)},
    ),
    "lora": ({"ranks": 2, "microbatches": 2}, {"lora": {"rank": 4, "targets": ["q_proj"]}}),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case == "1f1b" else pytest.mark.slow) for case in SAME]
)
def test_microbatches_that_are_repeated(case: str) -> None:
    """Operator by operator, as much is alive as where each microbatch runs itself; FLOPs are the same, too."""
    pipeline, recipe = SAME[case]
    pairs = zip(ranks_of(pipeline, **recipe), ranks_of(pipeline, repeats=False, **recipe), strict=True)
    for repeated, run in pairs:
        curves = [
            [
                (event.op, event.path, event.made and sum(size for _, size in event.made), alive)
                for event, alive in zip(trace.events, trace.alive(), strict=True)
                if event.op
            ]
            for trace in (repeated.memory_trace, run.memory_trace)
        ]
        assert curves[0] == curves[1]
        works = [trace.work or () for trace in (repeated.memory_trace, run.memory_trace)]
        alone = [{work.pass_number for work in each if work.pass_number < 0} for each in works]
        assert len(alone[0]) > len(alone[1])  # passes of what is repeated: nothing fell back to running all
        flops = [sum(work.flops for work in each) for each in works]
        assert flops[0] == flops[1] > 0
        assert repeated.communication == run.communication


def test_plan() -> None:
    """The plan is that of the highest rank, and says so; what is tied is on both ends."""
    with abstract():
        model = Tied()
    training = Training(pipeline={"ranks": 2, "microbatches": 4}, loss="cross_entropy")
    [plan] = make_plans(
        model,
        name="model",
        inputs=parse(f"int64[B, {TOKENS}]"),
        sizes={"B": BATCH},
        recipes=[training],
        built_here=True,
    )
    assert plan.ranks == 2
    assert plan.communication_bytes == ROWS
    text = str(plan)
    assert "shown is rank 0, layers.0 to layers.2, whose peak is the highest; peaks by rank: 0: " in text
    assert "embed_tokens.weight: several ranks need it" in text
    assert not torch.distributed.is_initialized()
    assert torch.distributed.isend.__module__.startswith("torch.")


@pytest.mark.parametrize(
    ("pipeline", "recipe", "build", "mistake"),
    [
        ({"ranks": 2, "microbatches": 3}, {}, Deep, "batch of 8 does not divide into 3 microbatches"),
        ({"ranks": 2}, {"loss": "auto"}, Deep, "a pipeline needs a loss"),
        ({"ranks": 2}, {"sharding": {"zero1": 2}}, Deep, "training.sharding: zero1 with pipeline is not planned"),
        ({"ranks": 2}, {"sharding": {"ddp": 2}}, Deep, "ddp with pipeline is planned beside fsdp alone"),
        ({"ranks": 2}, {"sharding": "nets:shard"}, Deep, "training.sharding: module:callable with pipeline"),
        (
            {"ranks": 2, "schedule": "zbvzerobubble"},
            {"sharding": {"fsdp": 2}},
            Tied,
            "embed_tokens.weight is needed by several stages of rank 0",
        ),
        (
            {"ranks": 2},
            {"offload": ("activations",)},
            Deep,
            "with pipeline, [optimizer] without sharding is planned alone",
        ),
        ({"ranks": 2}, {"in_backward": True}, Deep, "training.in_backward with pipeline is not planned"),
        ({"ranks": 2}, {"optimizer": "lomo"}, Deep, "training.optimizer: lomo with pipeline is not planned"),
        ({"ranks": 2}, {"loop": "lightning"}, Deep, "torch's schedule runs the passes"),
        ({"ranks": 2}, {}, Leaving, "layers.3 cannot begin a stage"),
        ({"ranks": 2}, {"loss": "cce", "sharding": {"tp": 2}}, Deep, "cce with pipeline and tp is not planned"),
        (
            {"ranks": 2, "schedule": "zbvzerobubble"},
            {"loss": "linear_cross_entropy"},
            Deep,
            "linear_cross_entropy runs its backward pass once, and zbvzerobubble runs it in two parts",
        ),
        ({"ranks": 2}, {}, lambda: nn.Embedding(9, 9), "the model has no repeated blocks"),
        ({"ranks": 2, "split": ["blocks.1"]}, {}, Deep, "the model has no module blocks"),
        ({"ranks": 2}, {}, Failing, "ValueError: no more"),
    ],
)
def test_mistakes(pipeline: dict[str, Any], recipe: dict[str, Any], build: Any, mistake: str) -> None:
    """What a schedule cannot run, and models that cannot be cut, with their cure."""
    with pytest.raises(ModelBudgetError, match=re.escape(mistake)):
        ranks_of(pipeline, build, **recipe)
    assert not torch.distributed.is_initialized()
