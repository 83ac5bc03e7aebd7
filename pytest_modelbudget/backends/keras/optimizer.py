"""What the optimizer of a compiled model keeps."""

from __future__ import annotations

from typing import Any

import keras

from pytest_modelbudget.summary import Weight


def state_bytes(model: Any) -> int | None:
    """Bytes of all variables of the optimizer: a slot or more for each trainable weight, its step and learning rate.

    An optimizer that was not built yet is counted by a copy of it, and left as it is. Call it inside `abstract()`,
    where slots need no memory. None when the model is not compiled.

    Raises:
        Exception: whatever the optimizer says to being copied or built.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return None
    if not optimizer.built:
        optimizer = type(optimizer).from_config(optimizer.get_config())
        optimizer.build(model.trainable_variables)
    return sum(_bytes(variable) for variable in optimizer.variables)


def _bytes(variable: Any) -> int:
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return Weight(variable.name, tuple(int(size) for size in variable.shape), dtype).bytes
