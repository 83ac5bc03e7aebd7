"""Frameworks: each is a module that satisfies `Backend` and is listed in `BACKENDS`.

A framework that is not in `sys.modules` cannot own a model, so it is never imported to be asked.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module
from typing import Protocol, cast

from pytest_modelbudget.inputs import Inputs
from pytest_modelbudget.summary import Summary

BACKENDS = {"torch": "pytest_modelbudget.backends.torch", "keras": "pytest_modelbudget.backends.keras"}
"""The module to look for in `sys.modules`, and the backend that knows it."""


class Backend(Protocol):
    """What a framework's module has to offer."""

    FRAMEWORK: str

    def owns(self, model: object) -> bool:
        """Whether `model` is an instance of this framework's model class."""
        ...

    def is_class(self, model: object) -> bool:
        """Whether `model` is this framework's model class itself, or one derived from it."""
        ...

    def abstract(self) -> AbstractContextManager[None]:
        """Inside, models are built without memory for their weights; on leaving, all global state is as before.

        The random state, naming counters, policies and hooks are restored also when the body raises.
        """
        ...

    def summarize(
        self,
        model: object,
        *,
        name: str,
        inputs: Inputs | None,
        sizes: Mapping[str, int],
        built_here: bool,
    ) -> Summary:
        """Count `model` at `inputs`, with its symbolic dimensions at `sizes`.

        `built_here` says that the model was made inside `abstract()` for this summary and may be run and
        finished freely; any other model belongs to the user and is left exactly as it is.

        Raises:
            ModelBudgetError: inputs are missing or do not fit, or a layer has weights that were never built.
        """
        ...


def loaded() -> tuple[Backend, ...]:
    """The backends whose framework this process has imported."""
    return tuple(backend(name) for name in BACKENDS if name in sys.modules)


def backend(name: str) -> Backend:
    """The backend of one framework; imports it."""
    return cast(Backend, import_module(BACKENDS[name]))


def owner(model: object) -> Backend | None:
    """The backend that owns `model`, or None."""
    return next((one for one in loaded() if one.owns(model)), None)


@contextmanager
def abstract(backends: tuple[Backend, ...]) -> Iterator[None]:
    """Build without memory for weights in all of `backends` at once."""
    with ExitStack() as stack:
        for one in backends:
            stack.enter_context(one.abstract())
        yield
