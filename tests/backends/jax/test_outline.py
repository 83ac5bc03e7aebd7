"""What `modelbudget init` finds of a project's JAX models, and what it tries them on."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from pytest_modelbudget.backends import backend
from pytest_modelbudget.cli.discover.proposals.builders import candidates
from pytest_modelbudget.cli.discover.trial.inputs import guesses

NETS = """
import equinox as eqx
import flax.linen as nn
import jax
from flax import nnx


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.Dense(10)(nn.relu(nn.Conv(16, (3, 3))(x)).mean((1, 2)))


class Tagger(nnx.Module):
    def __init__(self, *, rngs):
        self.embed, self.head = nnx.Embed(100, 16, rngs=rngs), nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, ids):
        return self.head(self.embed(ids))


def perceptron(key):
    return eqx.nn.MLP(8, 3, 16, 1, key=key)


def helper():
    return jax.numpy.ones(3)
"""


def test_classes_and_functions_are_found_with_inputs_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images for convolutions, ids for a table, and one example for equinox; a function of arrays is none."""
    (tmp_path / "nets_of_jax.py").write_text(NETS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module, jax_backend = import_module("nets_of_jax"), backend("jax")
    found = list(candidates(module, frozenset()))
    assert [candidate.name for candidate in found] == ["Classifier", "Tagger", "perceptron"]
    first_tries = {}
    for candidate in found:
        model = jax_backend.traced(getattr(module, candidate.name))()  # type: ignore[attr-defined]
        tries, why = guesses(model, {}, jax_backend.outline(model))  # type: ignore[attr-defined]
        assert not why
        first_tries[candidate.name] = tries[0].inputs
    assert first_tries == {
        "Classifier": "float32[B, 224, 224, 3]",
        "Tagger": "int64[B, T]",
        "perceptron": "float32[8]",
    }
