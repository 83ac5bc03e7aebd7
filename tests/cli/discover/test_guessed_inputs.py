"""What `modelbudget init` tries to call a model with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_modelbudget.cli.discover.trial.inputs import guesses


class Layer:
    """A layer as a framework has it: attributes, no children."""

    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)

    def children(self) -> Iterator[object]:
        return iter(())


class Conv2d(Layer): ...


class Linear(Layer): ...


class Embedding(Layer): ...


class LSTM(Layer): ...


class Conv1d(Layer): ...


class LayerNorm(Layer): ...


class Dropout(Layer): ...


class Holder:
    """A model of such layers."""

    def __init__(self, *layers: Layer) -> None:
        self.layers = layers

    def modules(self) -> Iterator[Layer]:
        return iter(self.layers)

    def forward(self, x: object, mask: object = None) -> None: ...


class Pair(Holder):
    """One that takes two."""

    def forward(self, left: object, right: object) -> None: ...  # type: ignore[override]


class Named(Holder):
    """One whose inputs have telling names."""

    def forward(self, image: object, tokens: object) -> None: ...  # type: ignore[override]


class Batched(Holder):
    """One that takes a mapping."""

    def forward(self, batch: dict[str, object]) -> object:  # type: ignore[override]
        return batch["image"], batch["label"]


@pytest.mark.parametrize(
    ("model", "first"),
    [
        pytest.param(Holder(Conv2d(in_channels=3)), "float32[B, 3, 224, 224]", id="images"),
        pytest.param(Holder(Dropout(), Linear(in_features=16)), "float32[B, 16]", id="features"),
        pytest.param(Holder(LayerNorm(), Linear(in_features=7)), "float32[B, 7]", id="a layer of the user's own name"),
        pytest.param(Holder(Embedding()), "int64[B, T]", id="token ids"),
        pytest.param(Holder(LSTM(input_size=8, batch_first=True)), "float32[B, T, 8]", id="steps"),
        pytest.param(Holder(LSTM(input_size=8, batch_first=False)), "float32[T, B, 8]", id="steps first"),
        pytest.param(Holder(Conv1d(in_channels=80)), "float32[B, 80, 128]", id="a mel spectrogram"),
        pytest.param(
            Holder(Linear(in_features=9), Conv2d(in_channels=3)), "float32[B, 3, 224, 224]", id="a backbone last"
        ),
        pytest.param(
            Pair(Linear(in_features=3)), {"left": "float32[B, 3]", "right": "float32[B, 3]"}, id="two inputs by name"
        ),
        pytest.param(
            Named(Conv2d(in_channels=1), Embedding()),
            {"image": "float32[B, 1, 224, 224]", "tokens": "int64[B, T]"},
            id="names that say what they are",
        ),
        pytest.param(
            Batched(Conv2d(in_channels=3)),
            [{"image": "float32[B, 3, 224, 224]", "label": "int64[B]"}],
            id="a mapping by the keys that are read",
        ),
    ],
)
def test_inputs_are_guessed_from_layers_and_names(model: Holder, first: object) -> None:
    """The likeliest come first."""
    tries, why = guesses(model, {})
    assert (tries[0].inputs, why) == (first, "")


@pytest.mark.parametrize(
    ("hints", "first"),
    [
        pytest.param({"image_size": 96}, "float32[B, 3, 96, 96]", id="a side"),
        pytest.param({"image_size": 96, "frames": 4}, "float32[B, 3, 4, 96, 96]", id="a video"),
        pytest.param(
            {"size": {"call": "builtins:tuple", "args": [[48, 48]]}}, "float32[B, 3, 48, 48]", id="in a tuple"
        ),
    ],
)
def test_arguments_of_the_builder_say_how_large_images_are(hints: dict[str, object], first: str) -> None:
    """Also for a net that cuts them into patches before its first layer."""
    tries, _ = guesses(Holder(Linear(in_features=768)), hints)
    assert tries[0].inputs == first


@pytest.mark.parametrize(
    ("model", "why"),
    [
        pytest.param(object(), "cannot be guessed", id="no layers at all"),
    ],
)
def test_inputs_that_cannot_be_guessed(model: object, why: str) -> None:
    """Say what to do."""
    tries, reason = guesses(model, {})
    assert tries == ()
    assert why in reason
