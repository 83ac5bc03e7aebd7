"""What users read when a file is not rebuilt: the file, the layer and the cure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pytest_modelbudget.backends.keras_content.content import Content, class_configs, shorten
from pytest_modelbudget.backends.model_files import shown
from pytest_modelbudget.errors import ModelBudgetError

_INNER = "Exception encountered: "


def refusal(path: Path, file_content: Content, keras: str, error: Exception) -> ModelBudgetError:
    """Why a version of Keras does not rebuild a config, and the cure."""
    text = str(error)
    match = re.search(r"(?:Could not locate|Unknown) (class|function|layer|object)[^'\"]*['\"](.+?)['\"]", text)
    if match and not (_is_of_keras_2(file_content, keras) and _is_of_keras(match[2], file_content.config)):
        return ModelBudgetError(
            f"{shown(path)}: {not_located(match[2], *_naming_config(match[2], file_content.config))}"
        )
    inner = text.rpartition(_INNER)[2]  # Keras says first that there was one, and shows the whole config
    message = inner.partition("\n\nconfig=")[0].partition(" Full object config")[0].strip() or type(error).__name__
    hint = (
        " (for models of Keras 2: pip install tf_keras, and framework: tf_keras)"
        if _is_of_keras_2(file_content, keras)
        else ""
    )
    return ModelBudgetError(
        f"{shown(path)}: {keras} cannot rebuild its config, written by Keras {shorten(file_content.version)}{hint}: "
        f"{message[:500]}"
    )


def not_located(name: str, config: dict[str, Any] | None, layer: str) -> str:
    """What to do about a class or function that nobody registered, which `config` of the layer `layer` names."""
    location = f" of layer {layer!r}" if layer else ""
    key = shorten((config or {}).get("registered_name") or name)
    module = (config or {}).get("module")
    source = f", which the file takes from {shorten(module)!r}," if isinstance(module, str) and module else ""
    return (
        f"{shorten(name)!r}{location}{source} is not one of Keras' own and is not registered: in conftest.py, import "
        "the module that decorates it with @keras.saving.register_keras_serializable(), or set "
        f"keras.saving.get_custom_objects()[{key!r}] = {shorten(name)}"
    )


def _naming_config(name: str, config: Any) -> tuple[dict[str, Any] | None, str]:
    return next(((part, layer) for part, layer in class_configs(config) if name in _names(part)), (None, ""))


def layer_text(layer: str) -> str:
    """A layer in a message."""
    return f"layer {layer!r}" if layer else "the model"


def _is_of_keras(name: str, config: Any) -> bool:
    """Whether a name stands for a class of some version of Keras."""
    modules = (str(part.get("module")) for part, _ in class_configs(config) if name in _names(part))
    return any(module.partition(".")[0] in ("keras", "tf_keras") for module in modules)


def _names(config: dict[str, Any]) -> tuple[Any, ...]:
    inner = config.get("config")
    return config["class_name"], inner if isinstance(inner, str) else None


def _is_of_keras_2(file_content: Content, keras: str) -> bool:
    return file_content.version.startswith("2.") and not keras.startswith("tf_keras")
