"""Edits of real Keras models, each told as what it is; from a summary as from its snapshot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras import layers as L

from pytest_modelbudget import compare
from pytest_modelbudget.backends import keras as backend
from pytest_modelbudget.snapshot.text import read, render


def classifier(
    *,
    filters: int = 4,
    units: int = 10,
    norm: bool = False,
    act: str = "relu",
    strides: int = 1,
    depth: int = 1,
    first: bool = False,
) -> keras.Model:
    """A small convolutional network with the names that Keras gives."""
    image = keras.Input((16, 16, 1))
    x = L.Conv2D(2, 5, padding="same")(image) if first else image
    x = L.Conv2D(filters, 3, padding="same", strides=strides)(x)
    x = L.BatchNormalization()(x) if norm else x
    x = L.ReLU()(x) if act == "relu" else L.PReLU(shared_axes=[1, 2])(x)
    for _ in range(depth):
        x = L.Conv2D(filters, 3, padding="same")(x)
    return keras.Model(image, L.Dense(units)(L.GlobalAveragePooling2D()(x)))


def tower(
    *, shared: bool = False, joined: bool = True, trainable: bool = True, dtype: str = "float32", head: str = "head"
) -> keras.Model:
    """Two inputs, two encoders of one shape or one encoder for both, and a head."""
    user, item = keras.Input((8,), name="user"), keras.Input((8,), name="item")
    first = L.Dense(4, name="first", trainable=trainable, dtype=dtype)
    second = first if shared else L.Dense(4, name="second", trainable=trainable, dtype=dtype)
    left, right = first(user), second(item)
    both = L.Concatenate(name="both", dtype=dtype)([left, right if joined else left])
    both = (
        both
        if joined
        else L.Add(name="sum", dtype=dtype)([both, L.Concatenate(name="twice", dtype=dtype)([right, right])])
    )
    return keras.Model([user, item], L.Dense(2, name=head, dtype=dtype)(both))


def nested(*, body: str = "body", units: int = 4) -> keras.Model:
    """A model in a model."""
    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.Sequential([L.Dense(units, name="a"), L.Dense(4, name="b")], name=body),
            L.Dense(2, name="head"),
        ]
    )


@pytest.mark.parametrize(
    ("before", "after", "kinds"),
    [
        pytest.param(classifier, classifier, set(), id="nothing"),
        pytest.param(classifier, lambda: classifier(first=True), {"added", "widened", "renamed", "follows"}, id="inserted at the front"),
        pytest.param(classifier, lambda: classifier(units=20), {"widened"}, id="units"),
        pytest.param(classifier, lambda: classifier(filters=8), {"widened", "follows"}, id="filters"),
        pytest.param(classifier, lambda: classifier(norm=True), {"added", "follows"}, id="inserted"),
        pytest.param(lambda: classifier(norm=True), classifier, {"removed", "follows"}, id="removed"),
        pytest.param(classifier, lambda: classifier(depth=3), {"added", "follows"}, id="deeper"),
        pytest.param(classifier, lambda: classifier(strides=2), {"output", "follows"}, id="stride"),
        pytest.param(tower, lambda: tower(trainable=False), {"frozen"}, id="frozen"),
        pytest.param(lambda: tower(trainable=False), tower, {"unfrozen"}, id="unfrozen"),
        pytest.param(tower, lambda: tower(dtype="bfloat16"), {"dtype", "follows"}, id="dtype"),
        pytest.param(tower, lambda: tower(shared=True), {"removed", "calls", "follows"}, id="shared"),
        pytest.param(tower, lambda: tower(head="top"), {"renamed"}, id="renamed"),
        pytest.param(tower, lambda: tower(joined=False), {"added", "connection", "follows"}, id="connected in another way"),
        pytest.param(nested, lambda: nested(body="trunk"), {"renamed"}, id="renamed model"),
        pytest.param(nested, lambda: nested(units=6), {"widened"}, id="widened inside"),
    ],
)  # fmt: skip
def test_an_edit_is_told_as_what_it_is(
    summarize: Any, before: Callable[[], Any], after: Callable[[], Any], kinds: set[str]
) -> None:
    """The kinds of one edit and no others; the parts sum to the difference, and a snapshot says the same."""
    old, new = summarize(before), summarize(after)
    changes = compare(old, new)
    moved = [change for change in changes if not change.of_the_model]
    assert {change.kind for change in moved} == kinds, [str(change) for change in moved]
    assert sum(change.delta or 0 for change in moved) == new.params - old.params
    assert compare(read(render(old, declared="models.py")), new) == changes


def test_an_inserted_layer_does_not_move_the_others(summarize: Any) -> None:
    """Keras numbers all convolutions behind it anew: one addition of 5*5*1*2 + 2, and a neighbour with one input more."""
    changes = compare(summarize(classifier), summarize(lambda: classifier(first=True)))
    told = [(change.kind, change.was, change.path, change.delta) for change in changes if not change.of_the_model]
    assert ("added", "", "conv2d", 52) in told
    assert ("widened", "", "conv2d_1", 3 * 3 * 1 * 4) in told
    assert ("renamed", "conv2d-conv2d_1", "conv2d_1-2", None) in told or ("renamed", "conv2d", "conv2d_1", None) in told
    assert not [change for change in changes if change.kind in ("removed", "type")]


def test_the_same_model_built_twice_is_the_same() -> None:
    """A second model of one process has other names in Keras, and none that differ here."""
    first, second = classifier(), classifier()
    old, new = (
        backend.summarize(model, name="model", inputs=None, sizes={}, built_here=False) for model in (first, second)
    )
    assert first.layers[1].name != second.layers[1].name
    assert not compare(old, new)


def test_the_arithmetic_of_a_wider_layer(summarize: Any) -> None:
    """3*3*4*4 + 4 = 148 params become 3*3*8*8 + 8 = 584, because 4 channels became 8 before it."""
    changes = compare(summarize(classifier), summarize(lambda: classifier(filters=8)))
    whys = [change.why for change in changes if change.kind == "widened"]
    assert any(
        why.startswith("k*k*in/groups*out + out: 3*3*4*4 + 4 = 148 -> 3*3*8*8 + 8 = 584; input from re_lu")
        and why.endswith(" widened 4 -> 8")
        for why in whys
    )
