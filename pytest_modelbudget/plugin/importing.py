"""Importing what pytest imports, as it does, in the worker that has no pytest session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from _pytest.pathlib import ImportMode, import_path

from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.isolation.channel import UserModule


def user_module(config: pytest.Config, path: Path) -> UserModule:
    """How a worker imports the file at `path`."""
    mode = str(config.getoption("importmode"))
    namespaces = bool(config.getini("consider_namespace_packages"))
    return UserModule(str(path), str(config.rootpath), mode, namespaces)


def conftests(config: pytest.Config) -> tuple[UserModule, ...]:
    """The conftest files that this run has loaded."""
    files = (getattr(plugin, "__file__", None) for plugin in config.pluginmanager.get_plugins())
    return tuple(user_module(config, Path(file)) for file in files if file and Path(file).name == "conftest.py")


def load(module: UserModule) -> ModuleType:
    """Import it; whatever its code raises comes through."""
    mode = ImportMode(module.mode)
    path, root = Path(module.path), Path(module.root)
    try:
        return import_path(path, mode=mode, root=root, consider_namespace_packages=module.namespaces)
    except TypeError:  # pytest before 8.1 knows no namespaces
        return import_path(path, mode=mode, root=root)  # type: ignore[call-arg]


def entry_in(module: UserModule, name: str) -> ModelEntry | None:
    """The entry of that id among the values of a test module and of the classes in it."""
    return next((entry for entry in entries_of(load(module)) if entry.id == name), None)


def entries_of(module: object) -> Iterator[ModelEntry]:
    """The entries that are values of a module or of a class in it."""
    for namespace in (module, *test_classes(module)):
        yield from (value for value in vars(namespace).values() if isinstance(value, ModelEntry))


def test_classes(namespace: object) -> Iterator[type]:
    """The classes that are written inside a module or class, at any depth."""
    name = namespace.__qualname__ if isinstance(namespace, type) else ""
    for value in vars(namespace).values():
        if isinstance(value, type) and value.__qualname__.rpartition(".")[0] == name:
            yield value
            yield from test_classes(value)
