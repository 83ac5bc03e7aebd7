"""What one Keras offers to configs: its public classes, and what the project registered with it; imports nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

_AREAS = (
    "layers", "models", "activations", "constraints", "initializers", "losses", "metrics", "optimizers",
    "optimizers.schedules", "optimizers.legacy", "regularizers", "dtype_policies", "mixed_precision", "quantizers",
    "random",
)  # fmt: skip
_FUNCTIONS = ("activations", "constraints", "initializers", "losses", "metrics", "regularizers")
_AREA_FUNCTIONS = ("get", "serialize", "deserialize")


def _no_problem(layer: str, class_name: str, config: dict[str, Any]) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Library:
    """One Keras.

    `package` is the module `keras` or `tf_keras`, `aliases` are the names by which files call it. `kinds` are the base
    classes of what a model is made of, `layers` those of what is called in a graph. Files name classes that are not
    public by the modules of `src` that `inner` lists, a folder as `ops.`, or by none; models of the classes named in
    `called` have an output before they are called. `problem` takes the layer, class and config of something of this
    Keras, and says what in it is not rebuilt.
    """

    title: str
    package: Any
    aliases: tuple[str, ...]
    kinds: tuple[type, ...]
    layers: tuple[type, ...]
    inner: tuple[str, ...]
    called: tuple[str, ...]
    problem: Callable[[str, str, dict[str, Any]], str | None] = _no_problem

    def registered(self, name: object) -> Any:
        """What the project registered under `name`; None when nothing."""
        return self.package.saving.get_registered_object(name) if isinstance(name, str) else None

    def registered_function(self, name: str) -> bool:
        """Whether the project registered a function of that name, in a package of its own or in none."""
        keys = self.package.saving.get_custom_objects()
        return self.registered(name) is not None or any(key.endswith(f">{name}") for key in keys)

    def owns(self, module: str) -> bool:
        """Whether a module is of this Keras, by its name."""
        return module.partition(".")[0] in self.aliases

    def named(self, module: str | None, name: str) -> Any:
        """What a config means by the name of a class of this Keras; None when there is nothing of that name."""
        if not module:
            holders = (*map(self._area, _AREAS), *map(self._inner, self.inner))
            return next((vars(holder)[name] for holder in holders if holder is not None and name in vars(holder)), None)
        below = module.partition(".")[2]
        if below.startswith("src."):
            inner = below.removeprefix("src.")
            holder = self._inner(inner) if inner in self.inner or inner.startswith(self._folders) else None
        else:
            holder = self._area(below) if below in ("", *_AREAS) else None
        return None if holder is None else vars(holder).get(name)

    def function(self, module: str | None, name: str) -> bool:
        """Whether it is a function of this Keras that layers are made with, as `relu`."""
        below = (module or "").partition(".")[2]
        areas = _FUNCTIONS if module == "builtins" else tuple(area for area in _FUNCTIONS if area == below)
        members = (getattr(self._area(area), name, None) for area in areas)
        return name not in _AREA_FUNCTIONS and any(isinstance(member, FunctionType) for member in members)

    @property
    def _folders(self) -> tuple[str, ...]:
        return tuple(inner for inner in self.inner if inner.endswith("."))

    def _inner(self, name: str) -> Any:
        return sys.modules.get(f"{self.package.__name__}.src.{name}")

    def _area(self, name: str) -> Any:
        holder = self.package
        for part in filter(None, name.split(".")):
            holder = getattr(holder, part, None)
        return holder


def is_keras(module: object) -> bool:
    """Whether a module is of some Keras, by its name."""
    return isinstance(module, str) and module.partition(".")[0] in ("keras", "tf_keras")


def existing_classes(package: Any, *names: str) -> tuple[type, ...]:
    """The classes under dotted names, those that this release does not have left out."""
    classes = []
    for name in names:
        holder = package
        for part in name.split("."):
            holder = getattr(holder, part, None)
        classes.append(holder)
    return tuple(cls for cls in classes if isinstance(cls, type))
