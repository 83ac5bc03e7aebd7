"""ZeRO-1, torch's `ZeroRedundancyOptimizer`: a rank has all parameters and gradients, and the states of its share."""

from __future__ import annotations

from typing import Any

from torch import nn

from pytest_modelbudget.backends.torch.distributed.optimizer import UNSHARDED
from pytest_modelbudget.backends.torch.training.optimizers import optimizer_of
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Training


class StatesOfOneRank:
    """The optimizer of `recipe` for the share of the rank that has most: torch deals out whole parameters.

    After its step each rank broadcasts what it updated, in place.
    """

    def __init__(self, recipe: Training, params: list[nn.Parameter], model: nn.Module) -> None:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        if recipe.optimizer in UNSHARDED:
            raise ModelBudgetError(f"training.optimizer: {recipe.optimizer} with sharding: zero1 is not planned")

        class HeaviestFirst(ZeroRedundancyOptimizer):  # type: ignore[misc]
            def _partition_parameters(self, params_per_rank: Any = None) -> Any:
                return sorted(super()._partition_parameters(params_per_rank), key=_elements, reverse=True)

        def optimizer(groups: Any, **_: Any) -> Any:
            own = optimizer_of(recipe, [parameter for group in groups for parameter in group["params"]], model)
            if not hasattr(own, "param_groups"):
                raise ModelBudgetError(
                    f"training.sharding: zero1 deals out one optimizer, and {recipe.optimizer} is not one: use adamw"
                )
            return own

        self._optimizer = HeaviestFirst(params, optimizer_class=optimizer)

    @property
    def state(self) -> Any:
        """What this rank keeps for each of its parameters."""
        return self._optimizer.optim.state

    @property
    def parts(self) -> list[Any]:
        """What does the work, which says what its numbers leave out: see `optimizers.notes_of`."""
        return [self._optimizer.optim]

    def step(self) -> None:
        """One step, and what other ranks send."""
        self._optimizer.step()


def _elements(groups: list[dict[str, Any]]) -> int:
    return sum(parameter.numel() for group in groups for parameter in group["params"])
