"""What the tests below build, they build as the plugin does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_modelbudget.backends import keras as backend
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.summary import Summary

Summarize = Callable[..., Summary]


@pytest.fixture
def summarize() -> Summarize:
    """Build without memory for weights, then count: `summarize(builder, inputs, T=32)`."""

    def run(build: Callable[[], object], inputs: object = None, **sizes: int) -> Summary:
        with backend.global_state_restored(), backend.abstract():
            model = build()
        return backend.summarize(model, name="model", inputs=parse(inputs), sizes=sizes, built_here=True)

    return run
