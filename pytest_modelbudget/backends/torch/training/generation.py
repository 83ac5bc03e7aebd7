"""What a pass of generation needs of a model: which of its dimensions holds tokens, and where its cache is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from pytest_modelbudget.backends.torch.trace.arguments import ModelCall
from pytest_modelbudget.backends.torch.training.caches import CachePlace, given_arguments, places, takes
from pytest_modelbudget.errors import ModelBudgetError


def token_dimension(name: str, model: nn.Module, symbols: Iterable[str]) -> str:
    """The one among the `symbols` of the inputs' dimensions, beside the batch, that a longer text makes longer.

    Raises:
        ModelBudgetError: there is not one of them, or the model does not take `use_cache`.
    """
    token_symbols = [symbol for symbol in symbols if symbol != "B"]
    if len(token_symbols) != 1 or not takes(model, "use_cache"):
        raise ModelBudgetError(
            f"{name}: inference.kv_cache needs a model whose forward takes use_cache, and inputs with one dimension of "
            'tokens: inputs: "int64[B, T]"'
        )
    return token_symbols[0]


def only_place(name: str, model: nn.Module, call: ModelCall, out: Any) -> CachePlace:
    """Where the model returned its cache, and the argument that takes it back.

    Raises:
        ModelBudgetError: there is not one such place.
    """
    cache_places = places(model, out, given_arguments(model, call.args, call.kwargs))
    if len(cache_places) != 1:
        raise ModelBudgetError(
            f"{name}: inference.kv_cache needs a model that returns its cache under the name of the argument that "
            "takes it"
        )
    return cache_places[0]
