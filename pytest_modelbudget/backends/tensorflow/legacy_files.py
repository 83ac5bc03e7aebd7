"""`.keras` and `.h5` files read by tf_keras, for those that are not for Keras 3 to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from pytest_modelbudget.backends.keras_content import Library, content, existing_classes, read_from_file, refusal

_KINDS = (
    "initializers.Initializer", "regularizers.Regularizer", "constraints.Constraint", "losses.Loss", "metrics.Metric",
    "optimizers.Optimizer", "optimizers.legacy.Optimizer", "optimizers.schedules.LearningRateSchedule",
    "mixed_precision.Policy",
)  # fmt: skip

_OPERATIONS = {"TFOpLambda": "function", "SlicingOpLambda": "function", "ClassMethod": "cls_symbol"}
"""Layers for what was called on tensors, and where their config names it."""

_CALLED = ("math", "nn", "linalg", "image", "signal", "strings", "bitwise", "ragged", "sparse", "random", "sets")
_NOT_CALLED = ("print", "py_function", "numpy_function", "function", "Assert")
_TENSORS = ("RaggedTensor", "SparseTensor")


def read(path: Path) -> Any:
    """The model of a file, its variables without memory; see `backends.model_files.Reader`.

    Raises:
        ModelBudgetError: the file is damaged or holds weights only, or its config has a Lambda or a class that is not
            registered.
    """
    library = _library()
    file_content = content(path, library)
    try:
        if file_content.legacy:
            return read_from_file(tf_keras.models.model_from_config(file_content.config))
        return read_from_file(tf_keras.saving.deserialize_keras_object(file_content.config, safe_mode=True))
    except Exception as error:
        raise refusal(path, file_content, library.title, error) from None


def _library() -> Library:
    return Library(
        title=f"tf_keras {tf_keras.__version__}",
        package=tf_keras,
        aliases=("tf_keras", "keras"),
        kinds=(tf_keras.layers.Layer, *existing_classes(tf_keras, *_KINDS)),
        layers=(tf_keras.layers.Layer,),
        inner=("engine.functional", "engine.sequential", "engine.training", "layers.core.tf_op_layer"),
        called=("Functional", "Model", "Sequential"),
        problem=_problem,
    )


def _problem(layer: str, class_name: str, config: dict[str, Any]) -> str | None:
    """What of tf_keras' own is not rebuilt from files: any function of TensorFlow that is no operation on tensors."""
    names = [config.get(_OPERATIONS[class_name])] if class_name in _OPERATIONS else []
    if class_name in ("InstanceProperty", "InstanceMethod"):
        names = [config.get("attr_name")]
    elif class_name == "ClassMethod":
        names = [*names, config.get("method_name")]
    elif class_name == "TensorFlowOpLayer":
        names = [class_name]
    unknown_names = [name for name in names if not isinstance(name, str) or not _fits(class_name, name)]
    if not unknown_names:
        return None
    return (
        f"layer {layer!r} calls {str(unknown_names[0])[:100]!r}, which is no operation on tensors that a file may name"
    )


def _fits(class_name: str, name: str) -> bool:
    if class_name not in ("TFOpLambda", "SlicingOpLambda"):
        return name in _TENSORS or (class_name != "TensorFlowOpLayer" and "." not in name and not name.startswith("_"))
    area, _, rest = name.rpartition(".")
    if area == "__operators__":
        return True
    function = getattr(getattr(tf, area, None) if area else tf, rest, None)
    return (area in _CALLED or (not area and rest not in _NOT_CALLED)) and hasattr(function, "_tf_fallback_dispatchers")
