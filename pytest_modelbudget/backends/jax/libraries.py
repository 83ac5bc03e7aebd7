"""The libraries of JAX models: which are in use, and which of them a model is of."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

_MODULES = {"flax.nnx": "flax_nnx", "flax.linen": "flax_linen", "equinox": "equinox"}
"""What a library is called when it is imported, and the module here that knows it."""


def loaded() -> Iterator[tuple[str, Any]]:
    """The libraries that this process has imported; none is imported to be asked."""
    for name, module in _MODULES.items():
        if name in sys.modules:
            yield name, import_module(f"{__package__}.{module}")


def of(model: object) -> str | None:
    """The name of the library that `model` is of, None for any other object."""
    return next((name for name, library in loaded() if library.owns(model)), None)


def is_class(model: object) -> bool:
    """Whether `model` is a class of models of one of them."""
    return any(library.is_class(model) for _, library in loaded())


def known(name: str) -> Any:
    """The module here that knows the library of this name."""
    return import_module(f"{__package__}.{_MODULES[name]}")
