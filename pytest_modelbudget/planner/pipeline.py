"""`pipeline` in a recipe: how many stages, which schedule, and which of a model's repeated blocks a stage has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pytest_modelbudget.errors import ModelBudgetError

SCHEDULES: Mapping[str, str] = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved1f1b": "Interleaved1F1B",
    "interleavedzerobubble": "InterleavedZeroBubble",
    "zbvzerobubble": "ZBVZeroBubble",
}
"""Schedules by the names they are written with, and by torch's own."""

_ONE_STAGE_A_RANK = ("gpipe", "1f1b")
_SPLITTING_BACKWARD = ("interleavedzerobubble", "zbvzerobubble")
_V_SHAPED = ("zbvzerobubble",)
_KEYS = ("ranks", "schedule", "microbatches", "stages_per_rank", "split")
_NAME = r"^\w+(\.\w+)*$"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What a recipe says of its pipeline.

    `ranks` share the model, each with `stages_per_rank` stages; a batch runs in so many `microbatches`. `split` names
    the blocks that later stages begin with; empty: the blocks are dealt out evenly.
    """

    ranks: int
    schedule: str
    microbatches: int
    stages_per_rank: int
    split: tuple[str, ...] = ()

    @property
    def stages(self) -> int:
        """Of all ranks."""
        return self.ranks * self.stages_per_rank

    @property
    def splits_backward(self) -> bool:
        """Whether gradients of parameters are made later than those that other stages wait for."""
        return self.schedule in _SPLITTING_BACKWARD

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The stages of a rank: one in each round, or the first and the last that are left, in the shape of a V."""
        if self.schedule in _V_SHAPED:
            return rank, self.stages - 1 - rank
        return tuple(range(rank, self.stages, self.ranks))


def pipeline_of(written: Mapping[str, Any]) -> Pipeline:
    """What `pipeline` in a recipe means: by default `1f1b`, with as many microbatches as stages.

    Schedules of several stages have two on each rank by default, as torchtitan does.
    """
    schedule, ranks = str(written.get("schedule", "1f1b")).lower(), int(written["ranks"])
    per_rank = int(written.get("stages_per_rank", 1 if schedule in _ONE_STAGE_A_RANK else 2))
    split = tuple(written.get("split", ()))
    return Pipeline(ranks, schedule, int(written.get("microbatches", ranks * per_rank)), per_rank, split)


def check_pipeline(value: Any) -> tuple[str, Any]:
    """What is wrong with a written `pipeline: {ranks: 4, schedule: 1f1b, microbatches: 8}` (empty: nothing)."""
    if value in (None, {}, "none"):
        return "", {}
    if not isinstance(value, Mapping) or not set(value) <= set(_KEYS) or "ranks" not in value:
        return f"write {{ranks: 4, schedule: 1f1b, microbatches: 8}}, with keys of {', '.join(_KEYS)}", value
    counts = ("ranks", "microbatches", "stages_per_rank")
    if wrong := next((name for name in counts if not _is_count(value.get(name, 1))), ""):
        return f"{wrong}: write a whole number, at least 1", value
    if str(value.get("schedule", "1f1b")).lower() not in SCHEDULES:
        return f"schedule: write one of {', '.join(SCHEDULES)}", value
    split = value.get("split", [])
    if not isinstance(split, list | tuple) or not all(
        isinstance(name, str) and re.match(_NAME, name) for name in split
    ):
        return "split: write a list of names of blocks, such as [layers.8, layers.16]", value
    return _disagreement(pipeline_of(value)), value


def _disagreement(pipeline: Pipeline) -> str:
    single = pipeline.schedule in _ONE_STAGE_A_RANK
    if pipeline.ranks < 2:
        return "one rank alone is no pipeline: give ranks above 1, or leave pipeline out"
    if single and pipeline.stages_per_rank != 1:
        return f"{pipeline.schedule} has one stage on each rank: take interleaved1f1b for more"
    if not single and pipeline.stages_per_rank < 2:
        return f"{pipeline.schedule} has several stages on each rank: take 1f1b for one"
    if pipeline.schedule in _V_SHAPED and pipeline.stages_per_rank != 2:
        return f"{pipeline.schedule} has two stages on each rank"
    if pipeline.split and len(pipeline.split) != pipeline.stages - 1:
        return f"split: {pipeline.stages} stages begin at {pipeline.stages - 1} blocks, give that many names"
    if pipeline.schedule == "1f1b" and pipeline.microbatches < pipeline.ranks:
        return f"1f1b needs at least as many microbatches as ranks, {pipeline.ranks}"
    return ""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


PIPELINE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "ranks": {"type": "integer", "minimum": 2},
        "schedule": {"enum": [*SCHEDULES]},
        "microbatches": {"type": "integer", "minimum": 1},
        "stages_per_rank": {"type": "integer", "minimum": 1},
        "split": {"type": "array", "items": {"type": "string", "pattern": _NAME}},
    },
    "required": ["ranks"],
    "additionalProperties": False,
}
"""`pipeline` as a JSON schema."""


def pipeline_text(written: Mapping[str, Any]) -> str:
    """A pipeline in words: `pipeline of 4 ranks, 1f1b, 8 microbatches`."""
    pipeline = pipeline_of(written)
    several = f" with {pipeline.stages_per_rank} stages each" if pipeline.stages_per_rank > 1 else ""
    split = f", split at {' and '.join(pipeline.split)}" if pipeline.split else ""
    return (
        f"pipeline of {pipeline.ranks} ranks{several}, {pipeline.schedule}, {pipeline.microbatches} microbatches{split}"
    )


def cuts_of(pipeline: Pipeline, blocks: Sequence[str]) -> tuple[int, ...]:
    """The first block of each stage but the first, as an index into the names of all `blocks` in order.

    Without names, what comes before the blocks and what comes after them count as a block each, and earlier stages
    have one more where the sum does not divide: torchtitan, distributed/pipeline_parallel.py,
    `generate_llm_fqn_per_model_part` with its default weights of 1.

    Raises:
        ModelBudgetError: fewer blocks than stages, or names that are no blocks in order.
    """
    if pipeline.split:
        return _named_cuts(pipeline, blocks)
    each, more = divmod(len(blocks) + 2, pipeline.stages)
    ends, end = [], -1
    for stage in range(pipeline.stages - 1):
        end += each + (stage < more)
        ends.append(end)
    if not all(first < last for first, last in pairwise([0, *ends, len(blocks)])):
        raise ModelBudgetError(
            f"training.pipeline: {len(blocks)} repeated blocks are too few for {pipeline.stages} stages, the first and "
            "last of which have one less: take fewer, or say with split which blocks they begin with"
        )
    return tuple(ends)


def _named_cuts(pipeline: Pipeline, blocks: Sequence[str]) -> tuple[int, ...]:
    if unknown := next((name for name in pipeline.split if name not in blocks), ""):
        raise ModelBudgetError(
            f"training.pipeline: split: {unknown} is none of the blocks, which are {blocks[0]} to {blocks[-1]}"
        )
    cuts = tuple(blocks.index(name) for name in pipeline.split)
    if not all(first < second for first, second in pairwise([0, *cuts])):
        raise ModelBudgetError("training.pipeline: split: name blocks in the order they run in, none of them the first")
    return cuts
