"""What a machine's `keras.json` says, which Keras reads when it is imported; imports no Keras.

The file lies in `KERAS_HOME`, or in `.keras` in the user's home. It decides what a layer is made of that asks for
nothing else, so a model may be another one on each machine: a summary says what it took from there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_DEFAULTS = {"floatx": "float32", "image_data_format": "channels_last"}
_READERS = {"floatx": ("compute_dtype", "variable_dtype"), "image_data_format": ("data_format",)}
"""The attributes of a layer that take a setting's value, where its author asked for nothing else."""


def settings() -> Mapping[str, str]:
    """The settings of the file that are not Keras' own; none when there is no file, or none that can be read."""
    try:
        found = json.loads((_folder() / "keras.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # Keras goes on with its own settings, too
        return {}
    known = found if isinstance(found, dict) else {}
    return {name: str(known[name]) for name, usual in _DEFAULTS.items() if known.get(name, usual) != usual}


def _folder() -> Path:
    if "KERAS_HOME" in os.environ:
        return Path(os.environ["KERAS_HOME"]).expanduser()
    home = Path.home()
    return (home if os.access(home, os.W_OK) else Path("/tmp")) / ".keras"


def notes(in_force: Mapping[str, str], layers: Iterable[Any]) -> Iterator[str]:
    """What `layers` took from the file: nothing where code has set another value since, or each layer has its own."""
    looked_at: list[Any] | None = None
    for name, value in settings().items():
        if in_force[name] != value:
            continue
        looked_at = list(layers) if looked_at is None else looked_at
        if any(getattr(layer, attribute, None) == value for layer in looked_at for attribute in _READERS[name]):
            yield (
                f"{name} is {value} by keras.json, a file of this machine: "
                f"set it where the model is built, since it may be {_DEFAULTS[name]} on another"
            )
