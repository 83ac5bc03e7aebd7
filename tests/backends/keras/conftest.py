"""Keras is needed for all tests below; what they build, they build as the plugin does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

keras = pytest.importorskip("keras", minversion="3.0")

from pytest_modelbudget.backends import keras as backend  # noqa: E402
from pytest_modelbudget.inputs import parse  # noqa: E402
from pytest_modelbudget.summary import Summary  # noqa: E402

Summarize = Callable[..., Summary]


@pytest.fixture
def summarize() -> Summarize:
    """Build without memory for weights, then count: `summarize(builder, inputs, T=32)`."""

    def run(build: Callable[[], object], inputs: object = None, **sizes: int) -> Summary:
        with backend.abstract():
            model = build()
        return backend.summarize(model, name="model", inputs=parse(inputs), sizes=sizes, built_here=True)

    return run
