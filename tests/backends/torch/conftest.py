"""Counting a torch model as the plugin does: built inside `abstract()`, or handed over alive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_modelbudget.backends import torch as backend
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.summary import Summary


def _built(build: Callable[[], Any], inputs: object, **sizes: int) -> Summary:
    with backend.global_state_restored(), backend.abstract():
        model = build()
    return backend.summarize(
        model, name="model", inputs=parse(inputs), sizes=sizes, built_here=True, rebuild=_rebuild(build)
    )  # type: ignore[arg-type]


def _rebuild(build: Callable[[], Any]) -> Callable[[int], Any]:
    def rebuild(seed: int) -> Any:
        with backend.global_state_restored(), backend.with_memory(seed, limited=True):
            return build()

    return rebuild


def _live(model: Any, inputs: object, **sizes: int) -> Summary:
    return backend.summarize(model, name="model", inputs=parse(inputs), sizes=sizes, built_here=False)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def count() -> Callable[..., Summary]:
    """`count(build, inputs, B=2)`: the summary of a model built without memory."""
    return _built


@pytest.fixture(scope="session")
def count_live() -> Callable[..., Summary]:
    """`count_live(model, inputs, B=2)`: the summary of a model that belongs to the user."""
    return _live


@pytest.fixture(params=["builder", "live"])
def counted(request: pytest.FixtureRequest) -> Callable[..., Summary]:
    """`counted(build, inputs, B=2)`: what a builder gives, built without memory, and the same as a model of the user's."""
    if request.param == "builder":
        return _built
    return lambda build, *args, **sizes: _live(build(), *args, **sizes)
