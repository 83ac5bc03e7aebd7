"""A step of training on each rank of a pipeline, recorded: torch's stages and schedules, in a world that sends nothing.

torch's own schedule runs the microbatches of a rank, with its buffers for what is received, what it keeps of outputs
and losses, and its order; so the number of microbatches that are alive at once is what torch makes it. A model is cut
between its repeated blocks; see `planner.pipeline`. What each rank sends are tensors that stages hand on, each once.

What is sent is held as long as torch's schedule keeps the work of sending it. Not on the trace: NCCL's own buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from logging import getLogger
from math import prod
from typing import Any

import torch

from pytest_modelbudget import units
from pytest_modelbudget.backends.patching import exchanged, patched
from pytest_modelbudget.backends.torch import compat
from pytest_modelbudget.backends.torch.distributed.experts import expert_dims
from pytest_modelbudget.backends.torch.distributed.fake_world import FakeWorld, fake_world
from pytest_modelbudget.backends.torch.distributed.hugging_face_experts import shares_experts
from pytest_modelbudget.backends.torch.distributed.optimizer import optimizer_on_shards
from pytest_modelbudget.backends.torch.distributed.rank import ShardedStep
from pytest_modelbudget.backends.torch.distributed.stage_cuts import record_copy, survey_of
from pytest_modelbudget.backends.torch.distributed.stage_recorder import NotRepeatableError
from pytest_modelbudget.backends.torch.distributed.stage_sharding import stage_sharding_of
from pytest_modelbudget.backends.torch.distributed.stage_step import StageStep
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import MemoryTrace, Training
from pytest_modelbudget.planner.loops import resolved
from pytest_modelbudget.planner.pipeline import pipeline_of
from pytest_modelbudget.planner.recipe import LANGUAGE_LOSSES, Precision

TIED_NOTE = (
    "{names}: several ranks need it, so each has it, with a gradient and states of its own; what exchanges these "
    "gradients is the loop's own and not counted"
)
"""What is said of parameters that are on more than one rank."""


_CAST_BY_POLICY: Mapping[torch.dtype, Precision] = {torch.bfloat16: "bf16", torch.float16: "fp16"}
"""The precision of a model whose parameters FSDP's policy casts, and of what its stages hand on."""


@dataclass(frozen=True, slots=True)
class RankStep:
    """The step of one rank, and the bytes that it sends in it, by kind.

    `holds` says in words which blocks it has; `tied` are the parameters that other ranks have, too.
    """

    rank: int
    memory_trace: MemoryTrace
    communication: Mapping[str, int]
    holds: str
    tied: tuple[str, ...]


def record_pipeline(runnable: RunnableModel, sizes: Mapping[str, int], recipe: Training) -> ShardedStep:
    """The step of the rank whose peak is the highest, with the peaks of all ranks in a note.

    Raises:
        ModelBudgetError: a recipe that a schedule cannot run, a model that cannot be cut so, or the step does not run.
    """
    ranks = record_ranks(runnable, sizes, recipe)
    peak_of = {step.rank: step.memory_trace.peak() for step in ranks}
    highest = max(ranks, key=lambda step: peak_of[step.rank])
    pipeline = pipeline_of(recipe.pipeline)
    peaks = ", ".join(f"{rank}: {units.size(peak)}" for rank, peak in peak_of.items())
    notes = [
        f"shown is rank {highest.rank}, {highest.holds}, whose peak is the highest; peaks by rank: {peaks}",
        *([TIED_NOTE.format(names=", ".join(highest.tied))] if highest.tied else []),
    ]
    trace = replace(highest.memory_trace, notes=(*notes, *highest.memory_trace.notes))
    return ShardedStep(trace, highest.communication, pipeline.ranks * stage_sharding_of(resolved(recipe))[0].ranks)


def record_ranks(
    runnable: RunnableModel, sizes: Mapping[str, int], recipe: Training, *, repeats: bool = True
) -> list[RankStep]:
    """The step of each rank; without `repeats` each microbatch runs itself, which takes long and gives the same.

    Raises:
        ModelBudgetError: see `record_pipeline`.
    """
    recipe = resolved(recipe)
    _refuse(recipe)
    if "ep" in (recipe.sharding if isinstance(recipe.sharding, Mapping) else {}) and shares_experts(runnable.model):
        raise ModelBudgetError(
            "training.sharding: ep of a model that deals out its experts itself (transformers' plans) with pipeline is "
            "not planned: write {fsdp: ...} alone"
        )
    pipeline = pipeline_of(recipe.pipeline)
    sharding, recipe = stage_sharding_of(recipe)
    surveyed = replace(recipe, precision=_CAST_BY_POLICY[sharding.half]) if sharding.half else recipe
    cut = survey_of(runnable, sizes, surveyed, pipeline)
    stages = {"pipeline": pipeline, "cut": cut, "sharding": sharding}
    return [_record_rank(runnable, sizes, recipe, stages, rank, repeats) for rank in range(pipeline.ranks)]


def _refuse(recipe: Training) -> None:
    if not compat.KNOWN_PIPELINES:
        raise ModelBudgetError(
            f"training.pipeline: stages of torch {torch.__version__} were not looked at: update to 2.14 or later"
        )
    default = Training()
    for name in ("no_sync", "in_backward", "steps"):
        if getattr(recipe, name) != getattr(default, name):
            raise ModelBudgetError(f"training.{name} with pipeline is not planned: leave one of the two out")
    if recipe.offload and (recipe.offload != ("optimizer",) or recipe.sharding):
        raise ModelBudgetError(
            "training.offload: with pipeline, [optimizer] without sharding is planned alone: gradients of later "
            "microbatches are added to those of earlier ones on the device"
        )
    if recipe.optimizer == "lomo":
        raise ModelBudgetError(
            "training.optimizer: lomo with pipeline is not planned, since it runs in the backward pass: write another"
        )
    if recipe.loop in ("hf-trainer", "lightning") or recipe.zero_grad == "before-backward":
        raise ModelBudgetError(
            "training.loop: with pipeline, torch's schedule runs the passes: write torch, torchtitan or nanogpt, and "
            "zero_grad before, after or never"
        )
    if recipe.loss in LANGUAGE_LOSSES:
        _refuse_language_loss(recipe)
    if recipe.loss == "none" or recipe.lora.get("base"):
        key = "lora: base" if recipe.lora.get("base") else f"loss: {recipe.loss}"
        raise ModelBudgetError(
            f"training.{key} with pipeline is not planned: write another, or leave one of the two out"
        )


def _refuse_language_loss(recipe: Training) -> None:
    if isinstance(recipe.sharding, Mapping) and recipe.sharding.get("tp", 1) != 1:
        raise ModelBudgetError(
            f"training.loss: {recipe.loss} with pipeline and tp is not planned, since each rank has a part of the "
            "head: write cross_entropy, or leave tp out"
        )
    if recipe.loss == "linear_cross_entropy" and pipeline_of(recipe.pipeline).splits_backward:
        raise ModelBudgetError(
            "training.loss: torch's linear_cross_entropy runs its backward pass once, and "
            f"{recipe.pipeline['schedule']} runs it in two parts: write liger, cce or chunked, or take interleaved1f1b"
        )


def _record_rank(
    runnable: RunnableModel, sizes: Mapping[str, int], recipe: Training, stages: Mapping[str, Any], rank: int,
    repeats: bool,
) -> RankStep:  # fmt: skip
    steps: list[StageStep] = []
    pipeline, cut, sharding = stages["pipeline"], stages["cut"], stages["sharding"]
    dims = {"pp": pipeline.ranks, **sharding.dims}
    with _one_rank_of(dims, rank) as fake:
        meshes: dict[str, Any] = {
            "mesh": fake.mesh(**dims) if sharding.dims else None,
            "expert_mesh": fake.mesh(pp=pipeline.ranks, **expert_dims(sharding.experts)) if sharding.experts else None,
        }

        def recording(*arguments: Any) -> StageStep:
            steps.append(StageStep(*arguments, **stages, **meshes, rank=rank, repeats=repeats))
            return steps[-1]

        try:
            trace = record_copy(runnable, sizes, recipe, recording, optimizer_on_shards)
        except NotRepeatableError:
            trace = None
    if trace is None:
        return _record_rank(runnable, sizes, recipe, stages, rank, repeats=False)
    return RankStep(rank, trace, steps[-1].communication, cut.words(pipeline.stages_of(rank)), steps[-1].tied)


@contextmanager
def _one_rank_of(dims: Mapping[str, int], rank: int) -> Iterator[FakeWorld]:
    """Inside, this process has the stages of `rank` of a world of these `dims`, and what it sends arrives nowhere.

    It is the first of the ranks that share these stages.
    """
    isend = torch.distributed.isend
    with (
        fake_world() as fake,
        patched(torch.random, "fork_rng", lambda *args, **kwargs: nullcontext()),
        patched(getLogger("torch.distributed.pipelining.schedules"), "disabled", True),  # it lists all of a schedule
        patched(torch.distributed, "batch_isend_irecv", _one_by_one),
        exchanged("torch.distributed", {"isend": isend}, {"isend": _sending(isend)}),
    ):
        ranks = prod(dims.values())
        fake.join(ranks, rank * ranks // dims["pp"])
        yield fake


def _one_by_one(operations: Sequence[Any]) -> list[Any]:
    """Sends and receives that a backend would group, which there is none for on meta."""
    return [operation.op(operation.tensor, operation.peer, operation.group, operation.tag) for operation in operations]


def _sending(original: Callable[..., Any]) -> Callable[..., Any]:
    """`isend` whose work holds what is sent, as that of NCCL and gloo does: a schedule may keep it after it waited."""

    def isend(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return _Sent(original(tensor, *args, **kwargs), tensor)

    return isend


@dataclass(frozen=True, slots=True)
class _Sent:
    work: Any
    tensor: torch.Tensor

    def wait(self) -> None:
        """It has arrived."""
        self.work.wait()
