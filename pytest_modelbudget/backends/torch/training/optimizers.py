"""Optimizers by the names that recipes use, and what torch has none for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from pytest_modelbudget import units
from pytest_modelbudget.backends.torch.model.modules import all_modules
from pytest_modelbudget.backends.torch.training.published_optimizers import (
    AdamMini,
    Adopt,
    Apollo,
    GaLore,
    Lion,
    Sophia,
    linear_weights,
    named_linear_weights,
    names_of,
)
from pytest_modelbudget.backends.torch.training.quantized_optimizers import (
    AdamW4bit,
    Bitsandbytes,
    BitsandbytesAdEMAMix,
    BitsandbytesLion,
)
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Training
from pytest_modelbudget.planner.recipe import BITSANDBYTES_OPTIMIZERS, KERAS_OPTIMIZERS, OPTAX_OPTIMIZERS
from pytest_modelbudget.planner.references import imported

_TORCH_OPTIMIZERS = {
    "adamw": "AdamW",
    "adam": "Adam",
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "adafactor": "Adafactor",
    "muon": "Muon",
    "nadam": "NAdam",
    "radam": "RAdam",
    "adamax": "Adamax",
    "adadelta": "Adadelta",
    "rprop": "Rprop",
    "asgd": "ASGD",
}


def optimizer_of(recipe: Training, params: list[nn.Parameter], model: nn.Module) -> Any:
    """The optimizer of `recipe` for `params` of `model`, None for `none`; it runs as on the recipe's device.

    Muon is for the matrices of hidden layers; all other parameters get AdamW, and so do embedding tables, as in Jordan
    et al. 2024 (kellerjordan.github.io/posts/muon).

    Raises:
        ModelBudgetError: it cannot be imported or does not take these parameters and options.
    """
    name, options = recipe.optimizer, dict(recipe.optimizer_options)
    if name == "none" or not params:
        return None
    try:
        if name == "muon":
            return _muon(params, options, recipe, embedding_tables(model))
        if isinstance(name, str) and name in _TORCH_OPTIMIZERS:
            return _torch_optimizer(name, params, options, recipe)
        if isinstance(name, str) and name in _PUBLISHED_OPTIMIZERS:
            _check_implementation(recipe, "foreach" if name == "adopt" else "")
            return _PUBLISHED_OPTIMIZERS[name](params, options, recipe, model)
        if name in (*KERAS_OPTIMIZERS, *OPTAX_OPTIMIZERS):
            owner = "Keras" if name in KERAS_OPTIMIZERS else "JAX"
            raise ModelBudgetError(f"training.optimizer: {name} is planned for {owner} models: write module:callable")
        return imported(name, "optimizer")(params, **options)
    except ModelBudgetError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, ImportError) as error:
        raise ModelBudgetError(f"training.optimizer: {name} cannot be made: {type(error).__name__}: {error}") from error


def _muon(params: list[nn.Parameter], options: dict[str, Any], recipe: Training, tables: frozenset[int]) -> Any:
    matrices = [parameter for parameter in params if parameter.dim() == 2 and id(parameter) not in tables]
    others = [parameter for parameter in params if parameter.dim() != 2 or id(parameter) in tables]
    optimizers = [_torch_optimizer("adamw", others, {}, recipe)] if others else []
    return OptimizerGroup([*([_torch_optimizer("muon", matrices, options, recipe)] if matrices else []), *optimizers])


def _check_implementation(recipe: Training, *known: str) -> None:
    """An implementation that the published code has not would change the plan without being there."""
    for name in ("foreach", "fused"):
        if getattr(recipe, name) and name not in known:
            raise ModelBudgetError(
                f"training.{name}: the published {recipe.optimizer} has no such implementation: leave it out"
            )


_Make = Callable[[list[nn.Parameter], dict[str, Any], Training, nn.Module], Any]


def _plain(kind: Callable[..., Any], **fixed: Any) -> _Make:
    return lambda params, options, recipe, model: kind(params, **fixed, **options)


def _low_rank(kind: Callable[..., Any], **defaults: Any) -> _Make:
    """Linear layers of attention and MLP are projected unless `targets` name others, as the published scripts do it.

    Where a model has none of such a name these scripts train it by plain AdamW; `targets` have to name some.
    """

    def make(params: list[nn.Parameter], options: dict[str, Any], recipe: Training, model: nn.Module) -> Any:
        if targets := options.pop("targets", None):
            projected = named_linear_weights(model, targets)
        else:
            projected = linear_weights(model, ("attn", "mlp"))
        return kind(params, projected=projected, **{**defaults, **options})

    return make


def _bitsandbytes(name: str) -> _Make:
    """On a CPU bitsandbytes has no paged states, and makes plain ones."""
    kind = _OF_BITSANDBYTES[name.removeprefix("paged-").removesuffix("-8bit")]
    paged, bits = name.startswith("paged-"), 8 if name.endswith("-8bit") else 32
    return lambda params, options, recipe, model: kind(
        params, bits=bits, paged=paged and recipe.kernels == "cuda", **options
    )


def _adopt(params: list[nn.Parameter], options: dict[str, Any], recipe: Training, model: nn.Module) -> Any:
    foreach = recipe.kernels == "cuda" if recipe.foreach is None else recipe.foreach
    return Adopt(params, **options, foreach=foreach)


_OF_BITSANDBYTES: dict[str, type[Bitsandbytes]] = {
    "adam": Bitsandbytes,
    "adamw": Bitsandbytes,
    "lion": BitsandbytesLion,
    "ademamix": BitsandbytesAdEMAMix,
}

_PUBLISHED_OPTIMIZERS: dict[str, _Make] = {
    **{name: _bitsandbytes(name) for name in BITSANDBYTES_OPTIMIZERS},
    "adamw-4bit": lambda params, options, recipe, model: AdamW4bit(params, **options, on_cpu=recipe.kernels != "cuda"),
    "lion": _plain(Lion),
    "adopt": _adopt,
    "sophia": _plain(Sophia),
    "adam-mini": lambda params, options, recipe, model: AdamMini(params, **options, names=names_of(model)),
    "galore": _low_rank(GaLore),
    "apollo": _low_rank(Apollo),
    "apollo-mini": _low_rank(Apollo, rank=1, scale=128.0, scale_type="tensor"),
}
"""Optimizers of other libraries, and what makes them."""


def notes_of(*optimizers: Any) -> list[str]:
    """What optimizers say of their numbers, and how much of their states is in unified memory, in all their parts."""
    parts = [part for optimizer in optimizers for part in parts_of(optimizer)]
    notes = list({note: None for part in parts for note in getattr(part, "notes", ())})
    if unified := sum(map(unified_bytes, optimizers)):
        notes.append(
            f"{units.size(unified)} of paged optimizer states are in unified memory and in none of these numbers: they "
            "are on the device while there is room, else on the host"
        )
    return notes


def parts_of(optimizer: Any) -> Iterator[Any]:
    """The optimizers that one is made of: itself, and all that it holds."""
    yield optimizer
    for part in getattr(optimizer, "parts", ()):
        yield from parts_of(part)


def unified_bytes(optimizer: Any) -> int:
    """How much of the states of an optimizer is in unified memory, in all its parts."""
    return sum(getattr(part, "unified_bytes", 0) for part in parts_of(optimizer))


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
    if recipe.fused and "fused" not in accepted:
        raise ModelBudgetError(f"training.fused: torch's {name} has no such implementation: leave it out")
    if recipe.fused and recipe.foreach:
        raise ModelBudgetError("training.foreach: torch takes fused or foreach, not both: leave one of the two out")
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
