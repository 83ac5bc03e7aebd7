"""What a config may name: public classes of Keras and what the project registered, and nothing else.

Older releases of Keras import whatever a config names, and call it. So the rest is refused before Keras sees a config,
on every release.
"""

from __future__ import annotations

import re
from typing import Any

from pytest_modelbudget.backends.keras_content.content import described, shortened
from pytest_modelbudget.backends.keras_content.library import Library, is_keras
from pytest_modelbudget.backends.keras_content.refusals import not_located, of_layer

_VALUES = ("__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__", "__tuple__")
"""Classes of plain values."""

_DTYPE = re.compile(r"bool|u?int\d{1,2}|b?float\d{1,2}|float8_\w{1,9}|complex\d{1,3}|string|str|object")
"""Of values; a dtype as `U1000000000` would take more memory than the file has."""

_LISTS = {"num_oov_indices": 1_000_000, "ngrams": 1_000}
"""Numbers of a config that Keras makes lists of, and the most that a file may ask for."""

_CODE_KINDS = ("function_type", "output_shape_type", "mask_type", "residual_fn_type")


class Lacking(Exception):
    """A config names something of Keras that is no part of models, or not in this release."""


def problem(config: Any, library: Library) -> str | None:
    """Why Keras is not to see a config; None when it may.

    Raises:
        Lacking: it names something of Keras that is no part of models, or not in this release.
    """
    reasons = (_reason(one, layer, library) for one, layer in described(config))
    return next((reason for reason in reasons if reason is not None), None)


def _reason(one: dict[str, Any], layer: str, library: Library) -> str | None:
    name, module = one["class_name"], one.get("module")
    registered_name = one.get("registered_name", name)
    if not isinstance(name, str) or not isinstance(module, str | None) or not isinstance(registered_name, str | None):
        return f"is damaged: {of_layer(layer)} has no name of a class, but {shortened(name)!r}"
    if _holds_code(one):
        return (
            f"layer {layer!r} is a Lambda whose Python code is stored in the file, and code of a "
            "file is never run: make it a registered Layer class (or a registered function) and save the model "
            "again, or name a builder instead of the file"
        )
    if name in _VALUES:
        return _of_value(one.get("config"), layer)
    if name == "function":
        return _of_function(one, layer, library)
    own = library.registered(registered_name)
    if own is None and not module:
        own = library.registered(name)
    if own is not None:
        return _of_call(one, own, layer, library)
    return _of_keras(one, layer, library)


def _holds_code(one: dict[str, Any]) -> bool:
    """Whether Python code is stored in a config, as bytes of a function."""
    inner = one.get("config")
    if one["class_name"] == "__lambda__" or not isinstance(inner, dict):
        return bool(one["class_name"] == "__lambda__")
    return isinstance(inner.get("function"), list) or any(inner.get(kind) == "lambda" for kind in _CODE_KINDS)


def _of_value(inner: Any, layer: str) -> str | None:
    dtype = inner.get("dtype") if isinstance(inner, dict) else None
    if dtype is None or (isinstance(dtype, str) and _DTYPE.fullmatch(dtype)):
        return None
    return f"is damaged: {of_layer(layer)} has a value of dtype {shortened(dtype)!r}"


def _of_function(one: dict[str, Any], layer: str, library: Library) -> str | None:
    name, module = one.get("config"), one.get("module")
    if not isinstance(name, str):
        return f"is damaged: {of_layer(layer)} has no name of a function, but {shortened(name)!r}"
    if "inbound_nodes" in one:
        return f"{of_layer(layer)} is the function {_full(module, name)}: only layers are called in a file's graph"
    if library.registered_function(name) or library.function(module, name):
        return None
    if is_keras(module):
        raise _no_part(module, name, layer)
    return not_located(name, one, layer)


def _of_keras(one: dict[str, Any], layer: str, library: Library) -> str | None:
    name, module, inner = one["class_name"], one.get("module"), one.get("config")
    cls = library.named(module, name) if not module or library.owns(module) else None
    if cls is None and not is_keras(module):
        return not_located(name, one, layer)
    if not isinstance(cls, type) or not issubclass(cls, library.kinds):
        raise _no_part(module, name, layer)
    return (
        _of_call(one, cls, layer, library)
        or _of_vocabulary(inner, layer)
        or _of_lists(inner, layer)
        or (library.problem(layer, name, inner) if isinstance(inner, dict) else None)
    )


def _no_part(module: str | None, name: str, layer: str) -> Lacking:
    return Lacking(f"{_full(module, name)} of {of_layer(layer)} is no part of its models")


def _full(module: str | None, name: str) -> str:
    return shortened(f"{module}.{name}" if module else name)


def _of_call(one: dict[str, Any], cls: Any, layer: str, library: Library) -> str | None:
    """Whatever is called in a graph is a layer: other classes make tensors of any size, or worse, when called."""
    if "inbound_nodes" not in one or (isinstance(cls, type) and issubclass(cls, library.layers)):
        return None
    return f"{of_layer(layer)} is a {shortened(one['class_name'])}, which is no layer: it is called in the file's graph"


def _of_vocabulary(inner: Any, layer: str) -> str | None:
    if not isinstance(inner, dict) or not isinstance(inner.get("vocabulary"), str):
        return None
    return (
        f"{of_layer(layer)} reads its vocabulary from another file, {shortened(inner['vocabulary'])!r}: give it the "
        "words themselves (set_vocabulary) and save the model again, or name a builder instead of the file"
    )


def _of_lists(inner: Any, layer: str) -> str | None:
    sizes = [(key, inner.get(key), most) for key, most in _LISTS.items()] if isinstance(inner, dict) else []
    for key, size, most in sizes:
        if isinstance(size, (int, float)) and size > most:
            return (
                f"{of_layer(layer)} has {key} {shortened(size)}, of which Keras makes a list: a file may have {most:,} "
                "at most, name a builder instead of the file"
            )
    return None
