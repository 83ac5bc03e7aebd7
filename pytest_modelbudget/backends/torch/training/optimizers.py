"""Optimizers by the names that recipes use, and what torch has none for."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.model.modules import all_modules
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Training
from pytest_modelbudget.planner.recipe import KERAS_OPTIMIZERS
from pytest_modelbudget.planner.references import imported

_TORCH_OPTIMIZERS = {
    "adamw": "AdamW",
    "adam": "Adam",
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "adafactor": "Adafactor",
    "muon": "Muon",
}


def optimizer_of(recipe: Training, params: list[nn.Parameter], tables: Collection[int] = ()) -> Any:
    """The optimizer of `recipe` for `params`, None for `none`; torch's own run as they do on the recipe's device.

    Muon is for the matrices of hidden layers; all other parameters get AdamW, and so do the `tables` (by `id`, see
    `embedding_tables`), as in Jordan et al. 2024 (kellerjordan.github.io/posts/muon).

    Raises:
        ModelBudgetError: it cannot be imported or does not take these parameters and options.
    """
    name, options = recipe.optimizer, dict(recipe.optimizer_options)
    if name == "none" or not params:
        return None
    try:
        if name == "adamw-8bit":
            return AdamW8bit(params, **options)
        if name == "muon":
            matrices = [parameter for parameter in params if parameter.dim() == 2 and id(parameter) not in tables]
            others = [parameter for parameter in params if parameter.dim() != 2 or id(parameter) in tables]
            optimizers = [_torch_optimizer("adamw", others, {}, recipe)] if others else []
            return OptimizerGroup(
                [*([_torch_optimizer("muon", matrices, options, recipe)] if matrices else []), *optimizers]
            )
        if isinstance(name, str) and name in _TORCH_OPTIMIZERS:
            return _torch_optimizer(name, params, options, recipe)
        if name in KERAS_OPTIMIZERS:
            raise ModelBudgetError(f"training.optimizer: {name} is planned for Keras models: write module:callable")
        return imported(name, "optimizer")(params, **options)
    except ModelBudgetError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, ImportError) as error:
        raise ModelBudgetError(f"training.optimizer: {name} cannot be made: {type(error).__name__}: {error}") from error


def embedding_tables(model: nn.Module) -> frozenset[int]:
    """The embedding tables of a model, and heads that are as large as one, by `id`."""
    modules = all_modules(model)
    tables = [module.weight for module in modules if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
    shapes = {tuple(table.shape) for table in tables}
    heads = [module.weight for module in modules if isinstance(module, nn.Linear)]
    return frozenset(map(id, [*tables, *(head for head in heads if tuple(head.shape) in shapes)]))


def _torch_optimizer(name: str, params: Iterable[Any], options: dict[str, Any], recipe: Training) -> Any:
    """One of torch's own: several tensors at a time on a GPU unless it is said otherwise, as torch decides there."""
    kind = getattr(torch.optim, _TORCH_OPTIMIZERS[name])
    accepted = inspect.signature(kind).parameters
    if "foreach" in accepted:
        foreach = recipe.kernels == "cuda" and not recipe.fused and name != "adafactor"
        options.setdefault("foreach", foreach if recipe.foreach is None else recipe.foreach)
    if name == "sgd" or name == "muon":
        options.setdefault("lr", 1e-3)
    return kind(_by_mesh(list(params)), **options)


def _by_mesh(params: list[Any]) -> list[Any]:
    """Groups of parameters that are over the same ranks: several tensors at a time must be alike in that."""
    groups: dict[Any, list[Any]] = {}
    for parameter in params:
        groups.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    return params if len(groups) < 2 else [{"params": group} for group in groups.values()]


class OptimizerGroup:
    """Several optimizers, each for some of the parameters."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    @property
    def state(self) -> dict[Any, Any]:
        """The state of all."""
        return {key: value for part in self.parts for key, value in part.state.items()}

    def step(self) -> None:
        """One step of each."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Let go of all gradients."""
        for part in self.parts:
            part.zero_grad()


class AdamW8bit(torch.optim.Optimizer):  # type: ignore[misc]
    """AdamW with states of 8 bits, as in Dettmers et al. 2022 (arXiv 2110.02861): memory only, it computes nothing.

    Each of the two states has a byte for each element and a float32 for each block of 256; tensors of fewer than 4,096
    elements keep float32 states. The update is one kernel without temporaries.
    """

    BLOCK, SMALL = 256, 4_096

    def __init__(self, params: Iterable[Any], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:
        """Make the states where there are none."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None or self.state[param]:
                    continue
                for state in ("state1", "state2"):
                    small = param.numel() < self.SMALL
                    kind = torch.float32 if small else torch.uint8
                    self.state[param][state] = torch.zeros_like(param, dtype=kind)
                    if not small:
                        blocks = -(-param.numel() // self.BLOCK)
                        self.state[param][f"absmax_{state}"] = torch.zeros(blocks, device=param.device)
