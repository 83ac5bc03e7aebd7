"""`.keras` and `.h5` files read by tf_keras, for those that are not for Keras 3 to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tf_keras

from pytest_modelbudget.backends.keras_content import content, read_from_file, refusal


def read(path: Path) -> Any:
    """The model of a file, its variables without memory; see `backends.files.Reader`.

    Raises:
        ModelBudgetError: the file is damaged or holds weights only, or its config has a Lambda or a class that is not
            registered.
    """
    found = content(path)
    try:
        if found.legacy:
            return read_from_file(tf_keras.models.model_from_config(found.config))
        return read_from_file(tf_keras.saving.deserialize_keras_object(found.config, safe_mode=True))
    except Exception as error:
        raise refusal(path, found, f"tf_keras {tf_keras.__version__}", error) from None
