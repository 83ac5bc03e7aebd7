"""What a config may name: public classes of Keras and what the project registered, and nothing else.

Older releases of Keras import whatever a config names, and call it. So the rest is refused before Keras sees a config,
on every release.
"""

from __future__ import annotations

import re
from typing import Any

from pytest_modelbudget.backends.keras_content.content import class_configs, shorten
from pytest_modelbudget.backends.keras_content.library import Library, is_keras
from pytest_modelbudget.backends.keras_content.refusals import layer_text, not_located

_VALUES = ("__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__", "__tuple__")
"""Classes of plain values."""

_DTYPE = re.compile(r"bool|u?int\d{1,2}|b?float\d{1,2}|float8_\w{1,9}|complex\d{1,3}|string|str|object")
"""Of values; a dtype as `U1000000000` would take more memory than the file has."""

_LISTS = {"num_oov_indices": 1_000_000, "ngrams": 1_000}
"""Numbers of a config that Keras makes lists of, and the most that a file may ask for."""

_CODE_KINDS = ("function_type", "output_shape_type", "mask_type", "residual_fn_type")


class NotInLibrary(Exception):
    """A config names something of Keras that is no part of models, or not in this release."""


def problem(config: Any, library: Library) -> str | None:
    """Why Keras is not to see a config; None when it may.

    Raises:
        Lacking: it names something of Keras that is no part of models, or not in this release.
    """
    reasons = (_reason(config_part, layer, library) for config_part, layer in class_configs(config))
    return next((reason for reason in reasons if reason is not None), None)


def _reason(config: dict[str, Any], layer: str, library: Library) -> str | None:
    name, module = config["class_name"], config.get("module")
    registered_name = config.get("registered_name", name)
    if not isinstance(name, str) or not isinstance(module, str | None) or not isinstance(registered_name, str | None):
        return f"is damaged: {layer_text(layer)} has no name of a class, but {shorten(name)!r}"
    if _holds_code(config):
        return (
            f"layer {layer!r} is a Lambda whose Python code is stored in the file, and code of a "
            "file is never run: make it a registered Layer class (or a registered function) and save the model "
            "again, or name a builder instead of the file"
        )
    if name in _VALUES:
        return _value_problem(config.get("config"), layer)
    if name == "function":
        return _function_problem(config, layer, library)
    registered = library.registered(registered_name)
    if registered is None and not module:
        registered = library.registered(name)
    if registered is not None:
        return _call_problem(config, registered, layer, library)
    return _keras_class_problem(config, layer, library)


def _holds_code(config: dict[str, Any]) -> bool:
    """Whether Python code is stored in a config, as bytes of a function."""
    inner = config.get("config")
    if config["class_name"] == "__lambda__" or not isinstance(inner, dict):
        return bool(config["class_name"] == "__lambda__")
    return isinstance(inner.get("function"), list) or any(inner.get(kind) == "lambda" for kind in _CODE_KINDS)


def _value_problem(inner: Any, layer: str) -> str | None:
    dtype = inner.get("dtype") if isinstance(inner, dict) else None
    if dtype is None or (isinstance(dtype, str) and _DTYPE.fullmatch(dtype)):
        return None
    return f"is damaged: {layer_text(layer)} has a value of dtype {shorten(dtype)!r}"


def _function_problem(config: dict[str, Any], layer: str, library: Library) -> str | None:
    name, module = config.get("config"), config.get("module")
    if not isinstance(name, str):
        return f"is damaged: {layer_text(layer)} has no name of a function, but {shorten(name)!r}"
    if "inbound_nodes" in config:
        return (
            f"{layer_text(layer)} is the function {_full_name(module, name)}: only layers are called in a file's graph"
        )
    if library.registered_function(name) or library.function(module, name):
        return None
    if is_keras(module):
        raise _not_in_library(module, name, layer)
    return not_located(name, config, layer)


def _keras_class_problem(config: dict[str, Any], layer: str, library: Library) -> str | None:
    name, module, inner = config["class_name"], config.get("module"), config.get("config")
    cls = library.named(module, name) if not module or library.owns(module) else None
    if cls is None and not is_keras(module):
        return not_located(name, config, layer)
    if not isinstance(cls, type) or not issubclass(cls, library.kinds):
        raise _not_in_library(module, name, layer)
    return (
        _call_problem(config, cls, layer, library)
        or _vocabulary_problem(inner, layer)
        or _list_problem(inner, layer)
        or (library.problem(layer, name, inner) if isinstance(inner, dict) else None)
    )


def _not_in_library(module: str | None, name: str, layer: str) -> NotInLibrary:
    return NotInLibrary(f"{_full_name(module, name)} of {layer_text(layer)} is no part of its models")


def _full_name(module: str | None, name: str) -> str:
    return shorten(f"{module}.{name}" if module else name)


def _call_problem(config: dict[str, Any], cls: Any, layer: str, library: Library) -> str | None:
    """Whatever is called in a graph is a layer: other classes make tensors of any size, or worse, when called."""
    if "inbound_nodes" not in config or (isinstance(cls, type) and issubclass(cls, library.layers)):
        return None
    return (
        f"{layer_text(layer)} is a {shorten(config['class_name'])}, which is no layer: it is called in the file's graph"
    )


def _vocabulary_problem(inner: Any, layer: str) -> str | None:
    if not isinstance(inner, dict) or not isinstance(inner.get("vocabulary"), str):
        return None
    return (
        f"{layer_text(layer)} reads its vocabulary from another file, {shorten(inner['vocabulary'])!r}: give it the "
        "words themselves (set_vocabulary) and save the model again, or name a builder instead of the file"
    )


def _list_problem(inner: Any, layer: str) -> str | None:
    sizes = [(key, inner.get(key), cap) for key, cap in _LISTS.items()] if isinstance(inner, dict) else []
    for key, size, cap in sizes:
        if isinstance(size, (int, float)) and size > cap:
            return (
                f"{layer_text(layer)} has {key} {shorten(size)}, of which Keras makes a list: a file may have {cap:,} "
                "at most, name a builder instead of the file"
            )
    return None
