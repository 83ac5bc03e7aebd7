"""What users read when a file is not rebuilt: the file, the layer and the cure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pytest_modelbudget.backends.keras_content.content import Content, described, shortened
from pytest_modelbudget.backends.model_files import shown
from pytest_modelbudget.errors import ModelBudgetError

_INNER = "Exception encountered: "


def refusal(path: Path, found: Content, keras: str, error: Exception) -> ModelBudgetError:
    """Why a version of Keras does not rebuild a config, and the cure."""
    text = str(error)
    match = re.search(r"(?:Could not locate|Unknown) (class|function|layer|object)[^'\"]*['\"](.+?)['\"]", text)
    if match and not (_is_of_two(found, keras) and _is_of_keras(match[2], found.config)):
        return ModelBudgetError(f"{shown(path)}: {not_located(match[2], *_naming(match[2], found.config))}")
    inner = text.rpartition(_INNER)[2]  # Keras says first that there was one, and shows the whole config
    said = inner.partition("\n\nconfig=")[0].partition(" Full object config")[0].strip() or type(error).__name__
    other = (
        " (for models of Keras 2: pip install tf_keras, and framework: tf_keras)" if _is_of_two(found, keras) else ""
    )
    return ModelBudgetError(
        f"{shown(path)}: {keras} cannot rebuild its config, written by Keras {shortened(found.version)}{other}: "
        f"{said[:500]}"
    )


def not_located(name: str, one: dict[str, Any] | None, layer: str) -> str:
    """What to do about a class or function that nobody registered, which `one` of the layer `layer` names."""
    where = f" of layer {layer!r}" if layer else ""
    key = shortened((one or {}).get("registered_name") or name)
    module = (one or {}).get("module")
    source = f", which the file takes from {shortened(module)!r}," if isinstance(module, str) and module else ""
    return (
        f"{shortened(name)!r}{where}{source} is not one of Keras' own and is not registered: in conftest.py, import "
        "the module that decorates it with @keras.saving.register_keras_serializable(), or set "
        f"keras.saving.get_custom_objects()[{key!r}] = {shortened(name)}"
    )


def _naming(name: str, config: Any) -> tuple[dict[str, Any] | None, str]:
    return next(((one, layer) for one, layer in described(config) if name in _names(one)), (None, ""))


def of_layer(layer: str) -> str:
    """A layer in a message."""
    return f"layer {layer!r}" if layer else "the model"


def _is_of_keras(name: str, config: Any) -> bool:
    """Whether a name stands for a class of some version of Keras."""
    modules = (str(one.get("module")) for one, _ in described(config) if name in _names(one))
    return any(module.partition(".")[0] in ("keras", "tf_keras") for module in modules)


def _names(one: dict[str, Any]) -> tuple[Any, ...]:
    inner = one.get("config")
    return one["class_name"], inner if isinstance(inner, str) else None


def _is_of_two(found: Content, keras: str) -> bool:
    return found.version.startswith("2.") and not keras.startswith("tf_keras")
