"""What a machine's `keras.json` says, which Keras reads when it is imported; imports no Keras.

The file lies in `KERAS_HOME`, or in `.keras` in the user's home. It decides what a layer is made of that asks for
nothing else, so a model may be another one on each machine: a summary says what it took from there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_DEFAULTS = {"floatx": "float32", "image_data_format": "channels_last"}


def settings() -> Mapping[str, str]:
    """The settings of the file that are not Keras' own; none when there is no file, or none that can be read."""
    try:
        content = json.loads((_folder() / "keras.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # Keras goes on with its own settings, too
        return {}
    config = content if isinstance(content, dict) else {}
    return {name: str(config[name]) for name, default in _DEFAULTS.items() if config.get(name, default) != default}


def _folder() -> Path:
    if "KERAS_HOME" in os.environ:
        return Path(os.environ["KERAS_HOME"]).expanduser()
    home = Path.home()
    return (home if os.access(home, os.W_OK) else Path("/tmp")) / ".keras"


def notes(keras: Any, layers: Sequence[Any]) -> Iterator[str]:
    """What `layers` took from the file: nothing where code has set another value since, or each layer has its own.

    `keras` is the package that they are of, and `keras.backend` has its settings.
    """
    for name, value in settings().items():
        in_force = getattr(keras.backend, name)()
        if in_force == value and any(value in _settings_in_layer(layer, keras)[name] for layer in layers):
            yield (
                f"{name} is {value} by keras.json, a file of this machine: "
                f"set it where the model is built, since it may be {_DEFAULTS[name]} on another"
            )


def _settings_in_layer(layer: Any, keras: Any) -> dict[str, tuple[Any, ...]]:
    """What a layer has, that may come from a setting; a model itself has its weights."""
    if isinstance(layer, keras.Model):
        dtypes: tuple[Any, ...] = tuple(getattr(weight.dtype, "name", weight.dtype) for weight in layer.weights)
    else:
        dtypes = (layer.dtype,) if isinstance(layer, keras.layers.InputLayer) else (layer.dtype, layer.compute_dtype)
    return {"floatx": dtypes, "image_data_format": (getattr(layer, "data_format", None),)}
