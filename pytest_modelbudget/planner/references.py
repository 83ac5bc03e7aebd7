"""What `module:callable` in a recipe stands for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from pytest_modelbudget.errors import ModelBudgetError


def imported(reference: str | Callable[..., Any], key: str, section: str = "training") -> Callable[..., Any]:
    """What `module:callable` names; a callable is itself.

    Raises:
        ModelBudgetError: there is none, or nothing to call, with the `key` of the recipe's `section` that names it.
    """
    if callable(reference):
        return reference
    module, _, path = reference.partition(":")
    try:
        target: Any = import_module(module)
        for name in path.split("."):
            target = getattr(target, name)
    except Exception as error:  # whatever the user's module raises
        text = f"{type(error).__name__}: {error}"
        raise ModelBudgetError(f"{section}.{key}: {reference} cannot be imported: {text}") from error
    if not callable(target):
        raise ModelBudgetError(f"{section}.{key}: {reference} is a {type(target).__name__}, not something to call")
    called: Callable[..., Any] = target
    return called
