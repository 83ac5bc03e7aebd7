"""Single changes of a recipe that may save memory, and what each of them costs, in order: the one table of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pytest_modelbudget.planner.loops import resolved
from pytest_modelbudget.planner.recipe import Recipe, Training
from pytest_modelbudget.planner.written import flow_text
from pytest_modelbudget.summary import Plan

Cost = Literal["free", "code", "memory", "compute", "numerics", "devices"]
COSTS: tuple[Cost, ...] = ("free", "code", "memory", "compute", "numerics", "devices")
"""What a change costs, cheapest first; an order by kind, which weighs no change against several of another kind.

`free`: the same numbers at the same speed or better. `code`: the same, a line in the loop. `memory`: the same numbers
but for batch statistics, from more and smaller passes. `compute`: the same numbers, more work. `numerics`: a run that
may train otherwise. `devices`: more of them.
"""


def _trains(recipe: Recipe) -> bool:
    return isinstance(recipe, Training)


def _all(plan: Plan) -> int:
    return plan.peak_bytes or 0


def _outputs_at_the_peak(plan: Plan) -> int:
    return plan.by_role().get("output", 0)


def _all_in_the_optimizer(plan: Plan) -> int:
    return _all(plan) if plan.phase == "optimizer" else 0


@dataclass(frozen=True, slots=True)
class Change:
    """Keys of a recipe at other values: the kind of what that costs, and a `note` on it; `applies` says to which.

    `most_saved` are the bytes of the peak of a recorded run that may go with it, at most.
    """

    cost: Cost
    values: Mapping[str, Any]
    note: str = ""
    applies: Callable[[Recipe], bool] = _trains
    most_saved: Callable[[Plan], int] = _all

    @property
    def name(self) -> str:
        """The change as an order: `checkpointing: blocks`; what it takes back to the default is not named."""
        return ", ".join(f"{key}: {flow_text(value)}" for key, value in self.values.items() if value not in (None, {}))

    def applied(self, recipe: Recipe) -> Recipe:
        """`recipe` with this change."""
        return replace(recipe, **self.values)


def _trains_in_full_precision(recipe: Recipe) -> bool:
    return isinstance(recipe, Training) and recipe.precision == "fp32" and recipe.steps == "none"


def _has_wide_weights(recipe: Recipe) -> bool:
    return recipe.precision in ("fp32", "fp16-mixed", "bf16-mixed") and recipe.steps == "none"  # a step has its own


def _has_adam(recipe: Recipe) -> bool:
    return isinstance(recipe, Training) and recipe.optimizer in ("adamw", "adam")


def _has_unfused_adam(recipe: Recipe) -> bool:
    return isinstance(recipe, Training) and _has_adam(recipe) and not recipe.fused


def _keeps_outputs(recipe: Recipe) -> bool:
    return isinstance(recipe, Training) and recipe.steps == "none" and resolved(recipe).outputs != "dropped"


def _keeps_all(recipe: Recipe) -> bool:
    return isinstance(recipe, Training) and recipe.checkpointing == "none"


def _is_whole(recipe: Recipe) -> bool:
    return isinstance(recipe, Training) and recipe.sharding is None and not recipe.pipeline


def _infers_in_wide_weights(recipe: Recipe) -> bool:
    return not isinstance(recipe, Training) and _has_wide_weights(recipe)


def _optimizer(name: str) -> dict[str, Any]:
    return {"optimizer": name, "optimizer_options": {}, "foreach": None, "fused": None}


CHANGES: tuple[Change, ...] = (
    Change("free", {"fused": True, "foreach": None}, "", _has_unfused_adam, _all_in_the_optimizer),
    Change(
        "code", {"outputs": "dropped"}, "let go of the outputs before the backward pass", _keeps_outputs,
        _outputs_at_the_peak,
    ),
    Change("compute", {"checkpointing": "blocks"}, "about a third more compute", _keeps_all),
    Change("numerics", {"precision": "bf16-mixed"}, "", _trains_in_full_precision),
    Change("numerics", _optimizer("adamw-8bit"), "needs bitsandbytes", _has_adam),
    Change("numerics", {"precision": "bf16"}, "weights in half precision may train worse", _has_wide_weights),
    Change("numerics", _optimizer("adafactor"), "trains differently", _has_adam),
    Change("devices", {"sharding": {"fsdp": 8}}, "eight devices, each with this batch", _is_whole),
)  # fmt: skip
"""All changes but accumulation, which depends on the batch, by what they cost."""

_IN_FLOAT16: Mapping[str, Change] = {
    "bf16-mixed": Change("numerics", {"precision": "fp16-mixed"}, "", _trains_in_full_precision),
    "bf16": Change("numerics", {"precision": "fp16"}, "", _infers_in_wide_weights),
}
"""In place of the changes to bfloat16, for devices that only emulate it."""


def smaller_passes(recipe: Recipe, batch: int | None) -> Iterator[Change]:
    """The batch in equal parts, as many accumulated passes each; the largest parts first."""
    if not isinstance(recipe, Training) or not batch or recipe.pipeline:
        return
    for parts in range(2, batch + 1):
        if batch % parts == 0:
            passes = recipe.gradient_accumulation * parts
            yield Change("memory", {"gradient_accumulation": passes, "batch": batch // parts})


def changes_of(recipe: Recipe, *, bfloat16: bool = True) -> list[Change]:
    """The changes of the table that are ones of this recipe, for devices that have `bfloat16` or do not."""
    table = (
        CHANGES if bfloat16 else [_IN_FLOAT16.get(str(change.values.get("precision")), change) for change in CHANGES]
    )
    return [change for change in table if change.applies(recipe)]
