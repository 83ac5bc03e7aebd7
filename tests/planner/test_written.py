"""Recipes as they are written: what is read, what several levels make together, and each mistake."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_modelbudget import ModelBudgetError, ModelEntry
from pytest_modelbudget.config import read
from pytest_modelbudget.planner import Inference, Serving, Training, written
from pytest_modelbudget.planner.recipe import OPTIMIZERS


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        pytest.param([], None, id="nothing is said"),
        pytest.param([None, {"batch": 2}, None], {"batch": 2}, id="one level"),
        pytest.param([{"batch": 2, "precision": "fp16"}, {"batch": 4}], {"batch": 4, "precision": "fp16"}, id="key by key"),
        pytest.param([{"batch": 2}, {"batch": None}], {}, id="a key of null is as if never written"),
        pytest.param([{"batch": 2}, False], None, id="taken away"),
        pytest.param([{"batch": 2}, False, {"optimizer": "sgd"}], {"optimizer": "sgd"}, id="taken away, and written anew"),
        pytest.param([{"batch": 2}, {}], {"batch": 2}, id="an empty section changes nothing"),
        pytest.param([{"dims": {"T": 8, "S": 2}}, {"dims": {"T": 16}}], {"dims": {"T": 16, "S": 2}}, id="dims by name"),
        pytest.param([{"lora": {"rank": 8}}, {"lora": {"rank": 4}}], {"lora": {"rank": 4}}, id="other mappings as a whole"),
    ],
)  # fmt: skip
def test_merge(levels: list[Any], expected: object) -> None:
    """Later levels win, key by key."""
    assert written.merge(*levels) == expected


@pytest.mark.parametrize(
    ("title", "given", "words"),
    [
        pytest.param("training", {"batch": 0}, "training.batch: write a whole number, at least 1, not 0", id="bad value"),
        pytest.param("training", {"bacth": 2}, "unknown key 'bacth', did you mean 'batch'", id="unknown key"),
        pytest.param("training", {"bacth": None}, "unknown key 'bacth'", id="unknown key of null"),
        pytest.param("inference", {"optimizer": "sgd"}, "unknown key 'optimizer'", id="a key of the other kind"),
        pytest.param("training", 7, "training: write a mapping of its keys", id="no mapping"),
        pytest.param("training", ["batch"], "training: write a mapping of its keys", id="a list"),
        pytest.param("training", {1: 2}, "unknown key 1", id="no name"),
        pytest.param("inference", Training(), "a recipe of another kind: Training", id="the other recipe"),
        pytest.param("training", {"optimizer": "adamz"}, "training.optimizer: write adamw, adam, sgd", id="no optimizer"),
    ],
)  # fmt: skip
def test_mistakes(title: str, given: object, words: str) -> None:
    """One clear sentence, also from the entry that is made with it."""
    with pytest.raises(ModelBudgetError, match=words):
        written.read(title, given)
    with pytest.raises(ModelBudgetError, match=words):
        ModelEntry("net", "nets:build", **{title: given})  # type: ignore[arg-type]


def test_entry() -> None:
    """An entry has the recipes that were written for it, training first."""
    entry = ModelEntry("net", "nets:build", inference=True, training={"batch": 8, "dims": {"T": 4}})
    assert entry.recipes == (Training(batch=8, dims={"T": 4}), Inference())
    assert ModelEntry("net", "nets:build").recipes == ()
    assert ModelEntry("net", "nets:build", training=False).recipes == ()


def test_a_recipe_that_was_read_is_taken_as_it_is() -> None:
    """The library's own type does as well as a mapping."""
    recipe = Training(batch=8, optimizer="sgd", foreach=False)
    assert ModelEntry("net", "nets:build", training=recipe).recipes == (recipe,)


MANIFEST = """
version: 1
defaults:
  training: {optimizer: sgd}
tags:
  llm:
    training: {precision: bf16-mixed, batch: 8}
groups:
  small:
    models: "tiny-*"
    training: {batch: 2}
    serving: {tokens: 8k}
models:
  cnn: nets:cnn
  tiny-gpt:
    build: nets:gpt
    tags: [llm]
    training:
      gradient_accumulation: 4
      optimizer: null
    inference: {kv_cache: 128}
    serving: {requests: 4}
  frozen:
    build: nets:gpt
    training: null
"""


def test_manifest() -> None:
    """Defaults, tags, groups and the model, in this order; null takes a key or the whole away."""
    loaded = read(MANIFEST, file="modelbudget.yaml")
    assert loaded.mistakes == ()
    recipes = {entry.id: entry.recipes for entry in loaded.entries}
    assert recipes["cnn"] == (Training(optimizer="sgd"),)
    assert recipes["tiny-gpt"] == (
        Training(batch=2, precision="bf16-mixed", gradient_accumulation=4),
        Inference(kv_cache=128),
        Serving(requests=4, tokens=8192),
    )
    assert recipes["frozen"] == ()
    assert Training().optimizer == OPTIMIZERS[0]


def test_the_manifest_holds_for_entries_of_sources() -> None:
    """What a source yields gets the defaults under its own."""
    loaded = read(MANIFEST, file="modelbudget.yaml")
    assert loaded.apply(ModelEntry("more", "nets:more", training={"batch": 3})).recipes == (
        Training(optimizer="sgd", batch=3),
    )
    assert loaded.apply(ModelEntry("none", "nets:more", training=False)).recipes == ()


BAD = """
version: 1
defaults:
  inference:
    precision: fp33
models:
  one:
    build: nets:one
    training:
      batch: 4
      bacth: 3
      zero_grad: soon
  two:
    build: nets:two
    training: yes please
  three:
    build: nets:three
    training: {compile: true}
"""


def test_every_mistake_has_its_line() -> None:
    """All are told at once, each at the key that it is about."""
    loaded = read(BAD, file="modelbudget.yaml")
    found = {(one.place.line, one.model, one.message.split(":")[0]) for one in loaded.mistakes}
    assert found == {
        (5, None, "inference.precision"),
        (11, "one", "training"),
        (12, "one", "training.zero_grad"),
        (15, "two", "training"),
        (18, "three", "training.compile"),
    }
    assert loaded.entries == ()


def test_toml() -> None:
    """The same in pyproject.toml."""
    text = '[tool.modelbudget.models.net]\nbuild = "nets:net"\ntraining = {batch = 0}\n'
    [mistake] = read(text, file="pyproject.toml").mistakes
    assert str(mistake) == "pyproject.toml:3: training.batch: write a whole number, at least 1, not 0"
