"""`.keras` and `.h5` files: the model of their config, built without memory; of the weights only the shapes are read.

No code of a file is run: it may name Keras' own classes and those that the project itself registered, and Keras' safe
mode stays on.
Of what it was compiled with, only the optimizer is made, without the variables that the file has of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import keras

from pytest_modelbudget.backends.keras import walk
from pytest_modelbudget.backends.keras_content import (
    Content,
    Library,
    Shape,
    content,
    existing_classes,
    read_from_file,
    refusal,
)
from pytest_modelbudget.backends.model_files import shown
from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.errors import ModelBudgetError

_CLASSES = (
    "Initializer", "Regularizer", "constraints.Constraint", "Loss", "Metric", "Optimizer",
    "optimizers.schedules.LearningRateSchedule", "DTypePolicy", "dtype_policies.DTypePolicyMap", "Quantizer",
    "quantizers.QuantizationConfig", "random.SeedGenerator",
)  # fmt: skip
"""What models are made of, beside layers."""

_NOT_REBUILT = {
    "TorchModuleWrapper": "which the file has as a pickle, and a pickle can run anything",
    "TFSMLayer": "which reads another file",
}


def read(path: Path) -> Any:
    """The model of a file, without values; see `backends.model_files.Reader`.

    Raises:
        ModelBudgetError: the file is damaged or holds weights only, its config has a Lambda or a class that is not
            registered, or the weights in it are not those of its config.
    """
    library = _library()
    file_content = content(path, library)
    try:
        with _safe_mode(), patched(keras.Sequential, "from_config", _built_once(vars(keras.Sequential)["from_config"])):
            model = _deserialized(file_content.config, legacy=file_content.legacy)
    except Exception as error:
        raise refusal(path, file_content, library.title, error) from None
    if file_content.shapes is not None:
        _check_weights(path, model, file_content.shapes)
    _give_optimizer(model, file_content)
    return read_from_file(model)


def _library() -> Library:
    return Library(
        title=f"Keras {keras.__version__}",
        package=keras,
        aliases=("keras",),
        kinds=(keras.Layer, keras.Operation, *existing_classes(keras, *_CLASSES)),
        layers=(keras.Layer, keras.Operation),
        inner=("models.functional", "models.sequential", "models.model", "ops."),
        called=("Functional", "Model"),
        problem=_problem,
    )


def _problem(layer: str, class_name: str, config: dict[str, Any]) -> str | None:
    """What of Keras' own is not rebuilt from files."""
    if class_name not in _NOT_REBUILT:
        return None
    return f"layer {layer!r} is a {class_name}, {_NOT_REBUILT[class_name]}: name a builder instead of the file"


@contextmanager
def _safe_mode() -> Iterator[None]:
    """Inside, Keras' safe mode is on also where the process has it off; Keras has no public name for that."""
    from keras.src.saving.serialization_lib import SafeModeScope

    with SafeModeScope(True):
        yield


def _deserialized(config: Any, *, legacy: bool) -> Any:
    """The model of a config; Keras has no public name for those of `.h5` files (`legacy`) without their weights."""
    from keras.src.legacy.saving import saving_options, saving_utils

    if not legacy:
        return keras.saving.deserialize_keras_object(config)
    with saving_options.keras_option_scope(use_legacy_config=True):
        return saving_utils.model_from_config(config)


def _built_once(original: Any) -> Any:
    """`Sequential.from_config` that builds when all layers are there; Keras builds anew after each, n² calls in all."""

    def from_config(cls: Any, config: Any, custom_objects: Any = None) -> Any:
        if cls is not keras.Sequential or not isinstance(config, dict) or not {"name", "layers"} <= set(config):
            return original.__func__(cls, config, custom_objects=custom_objects)
        layers = [_deserialized(layer, legacy="module" not in layer) for layer in config["layers"]]
        model = cls(layers, name=config["name"])
        shape = config.get("build_input_shape")
        if not model.built and shape and isinstance(shape, list | tuple):
            model.build(shape)
        return model

    return classmethod(from_config)


def _give_optimizer(model: Any, file_content: Content) -> None:
    """Give `model` the optimizer it was compiled with, so that its state can be told; one of the user's may not be
    known here, and then neither is its state."""
    with suppress(Exception), _safe_mode():
        if file_content.optimizer is not None:
            model.optimizer = keras.optimizers.deserialize(file_content.optimizer)


def _check_weights(path: Path, model: Any, stored: list[Shape]) -> None:
    """Hold the shapes of a file's weights against those of its config, where layers store them one by one.

    Raises:
        ModelBudgetError: a weight of the model is not in the file: its class has changed since the file was saved.
    """
    layers = list(walk.all_layers(model))
    if not all(layer.built for layer in layers) or not all(map(_stores_plainly, layers)):
        return
    missing = Counter(tuple(map(int, weight.shape)) for weight in model.weights) - Counter(stored)
    if missing:
        shape = next(iter(missing))
        weight = next(candidate for candidate in model.weights if tuple(candidate.shape) == shape)
        raise ModelBudgetError(
            f"{shown(path)}: its config gives {weight.path!r} the shape {list(shape)}, and the weights stored in the "
            "file have none of that shape left: the classes of the model changed since, save it again"
        )


def _stores_plainly(layer: Any) -> bool:
    """Whether each variable is a dataset of its own shape: not so where a class stores them itself, or quantised."""
    store = type(layer).save_own_variables
    if store is keras.layers.Layer.save_own_variables:
        return True
    return store.__module__.startswith("keras.src.") and getattr(layer, "quantization_mode", None) is None
