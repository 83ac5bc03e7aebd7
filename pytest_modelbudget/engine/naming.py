"""What a name in a manifest stands for: a function or value of the user's, and the frameworks that it needs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import FrameworkMissing, ModelBudgetError

FRAMEWORK_MODULES = {
    "torch": "torch",
    "torchvision": "torch",
    "keras": "tensorflow",
    "tensorflow": "tensorflow",
    "tf_keras": "tf-keras",
    "jax": "jax",
    "flax": "",
    "equinox": "",
}
"""Modules whose absence means that a framework is not installed, and the extra that brings it; empty for none."""

_MODEL_LIBRARIES = {"jax": ("flax.nnx", "flax.linen", "equinox")}
"""What a framework's models are written with, where that is not the framework itself."""

CURES = {
    "haiku": "hold its parameters in a module of flax.linen, as in self.param('net', transformed.init, x), and call "
    "transformed.apply with them"
}
"""What to do with a model of a library that is not counted, by its package."""


def import_framework(name: str) -> None:
    """Import a framework, and of the libraries that its models are written with those that are installed.

    Raises:
        FrameworkMissing: it is not installed.
    """
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        raise missing_framework(error) or error from None
    for library in _MODEL_LIBRARIES.get(name, ()):
        if find_spec(library.partition(".")[0]) is not None:
            import_module(library)


def missing_framework(error: ModuleNotFoundError) -> FrameworkMissing | None:
    module = error.name  # a part that is not there, torch.nnn, is a mistake of another kind
    if module is None or module not in FRAMEWORK_MODULES:
        return None
    extra = FRAMEWORK_MODULES[module]
    hint = f", or pip install 'pytest-modelbudget[{extra}]'" if extra else ""
    return FrameworkMissing(module, f"{module} is not installed: pip install {module}{hint}")


def import_callable(reference: str, key: str, entry: ModelEntry) -> Callable[..., Any]:
    """Import `module:callable`; see `import_named`. Raises ModelBudgetError also for what cannot be called."""
    target = import_named(reference, key, entry)
    if isinstance(target, ModelEntry) and callable(target.build):
        target = target.build
    if not callable(target):
        prefix = f"{entry.place}: " if entry.place else ""
        raise ModelBudgetError(f"{prefix}{key}: {reference} is a {type(target).__name__}, not something to call")
    return target  # type: ignore[no-any-return]


def import_named(reference: str, key: str, entry: ModelEntry) -> Any:
    """Import what `module:name` names, whatever it is; `key` of `entry` is where it was written.

    Raises:
        FrameworkMissing: a framework that the module needs is not installed.
        ModelBudgetError: there is no such module or name.
    """
    module_name, _, path = reference.partition(":")
    prefix = f"{entry.place}: " if entry.place else ""
    try:
        target: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        if missing := missing_framework(error):
            raise missing from None
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ModelBudgetError(
                f"{prefix}{key}: there is no module {error.name!r} (for {reference!r}): it is looked for in the "
                "installed packages, the folder of the manifest and the root"
            ) from None
        raise
    for name in path.split("."):
        if not hasattr(target, name):
            raise ModelBudgetError(f"{prefix}{key}: {module_name} has no {name!r} (for {reference!r})")
        target = getattr(target, name)
    return target
