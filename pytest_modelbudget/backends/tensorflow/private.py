"""Every private name of TensorFlow and tf_keras that is used here, with the reason; nothing else touches them.

Public TensorFlow has no variable without a value, and no way to trace a call without running the initialisers of the
variables that it makes. A test pins each name, so that a release that renames one fails there first; for users its
models then have no owner, and models of Keras 3 are counted as ever.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import tensorflow as tf

from pytest_modelbudget.errors import FrameworkMissing

try:
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel as SavedModelProto
    from tensorflow.python.autograph.core.converter import ConversionOptions
    from tensorflow.python.autograph.impl.api import converted_call
    from tensorflow.python.framework.func_graph import func_graph_from_py_func
    from tensorflow.python.ops.resource_variable_ops import UninitializedVariable
except ImportError as error:
    raise FrameworkMissing("tensorflow", f"TensorFlow {tf.__version__} lacks what is needed: {error}") from error

__all__ = [
    "ConversionOptions",
    "SavedModelProto",
    "Trackable",
    "UninitializedVariable",
    "converted_call",
    "func_graph_from_py_func",
    "tf_keras_backend",
    "tf_keras_losses_container",
]

Trackable: Any = tf.__internal__.tracking.AutoTrackable
"""What modules, layers and loaded models all are."""


def tf_keras_backend() -> ModuleType:
    """The module of tf_keras that counts automatic names and keeps settings; it has no public name for the counters.

    Raises:
        FrameworkMissing: this release is laid out otherwise.
    """
    try:
        from tf_keras.src import backend
    except ImportError as error:
        raise FrameworkMissing("tf_keras", f"this tf_keras lacks what is needed: {error}") from error
    module: ModuleType = backend
    return module


def tf_keras_losses_container() -> Any:
    """The class that computes the losses that a model of tf_keras is compiled with; its first use makes metrics in it.

    Raises:
        FrameworkMissing: this release is laid out otherwise.
    """
    try:
        from tf_keras.src.engine.compile_utils import LossesContainer
    except ImportError as error:
        raise FrameworkMissing("tf_keras", f"this tf_keras lacks what is needed: {error}") from error
    return LossesContainer
