"""What the frameworks of a process make new arrays of that say nothing else; a module may set it where it is imported.

That holds for all that the process builds afterwards, so another module's models are not built there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pytest_modelbudget.backends import keras_config


def default_types() -> tuple[str, ...]:
    """Each of them with its framework; as it comes where the framework is not imported."""
    return tuple(f"{name} {kind}" for name, read, plain in _SETTINGS for kind in _setting(name, read, plain))


def changed_types(before: tuple[str, ...]) -> str:
    """Those that are not as `default_types` gave them before; empty for none."""
    return ", ".join(kind for kind in default_types() if kind not in before)


def _setting(name: str, read: Callable[[Any], object], plain: Callable[[], str]) -> Iterator[str]:
    if (module := sys.modules.get(name)) is None:
        yield plain()
        return
    try:
        yield str(read(module))
    except Exception:  # a module of that name that is another one, or is not whole
        yield plain()


def _keras_type() -> str:
    return keras_config.settings().get("floatx", "float32")


def _jax_has_64_bits() -> str:
    return str(os.environ.get("JAX_ENABLE_X64", "").lower() in ("1", "true", "yes", "on", "t", "y"))


_SETTINGS: tuple[tuple[str, Callable[[Any], object], Callable[[], str]], ...] = (
    ("torch", lambda torch: torch.get_default_dtype(), lambda: "torch.float32"),
    ("jax", lambda jax: jax.config.jax_enable_x64, _jax_has_64_bits),
    ("keras", lambda keras: keras.config.dtype_policy().name, _keras_type),
    ("tf_keras", lambda keras: keras.mixed_precision.global_policy().name, _keras_type),
)
