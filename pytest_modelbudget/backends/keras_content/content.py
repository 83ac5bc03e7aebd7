"""What a file says of its model, as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]

_MAX_SHOWN = 100
"""Characters of a name that a message shows."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a file says of its model.

    `config` is without what models were compiled with; `optimizer` is the config of the optimizer among that, None
    when the model was not compiled. `legacy` says that configs are as `.h5` files have them, `shapes` are those of
    all stored weights (None when there are none), `version` is the Keras that wrote the file.
    """

    config: dict[str, Any]
    legacy: bool
    shapes: list[Shape] | None
    version: str
    optimizer: dict[str, Any] | None = None


def class_configs(config: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Everything in a config that names its class, with the name of the layer it is or belongs to."""
    pending: list[tuple[Any, str]] = [(config, "")]
    while pending:
        value, layer = pending.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                inner = value.get("config")
                own_name = inner.get("name") if isinstance(inner, dict) else None
                layer = str(own_name or value.get("name") or layer)
                yield value, shorten(layer)
            value = list(value.values())
        if isinstance(value, list):
            pending.extend((item, layer) for item in reversed(value))


def without_training(config: Any) -> Any:
    """`config` without what models were compiled with, at any depth."""
    if isinstance(config, dict):
        remaining = {
            key: value for key, value in config.items() if key != "compile_config" or "class_name" not in config
        }
        return {key: without_training(value) for key, value in remaining.items()}
    return [without_training(item) for item in config] if isinstance(config, list) else config


def shorten(name: object) -> str:
    """A name as messages show it."""
    text = str(name)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
