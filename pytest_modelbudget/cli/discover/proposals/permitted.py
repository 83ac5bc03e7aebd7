"""Which calls among arguments are made: what a README or a settings file names is not run because it is named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from types import FunctionType
from typing import Any

from pytest_modelbudget.cli.discover.proposals.builders import returns_model
from pytest_modelbudget.cli.discover.source.scan import libraries

_PLAIN = frozenset(("builtins:tuple", "argparse:Namespace", "types:SimpleNamespace"))


def is_permitted(value: Any) -> bool:
    """Whether all that a value names may be imported, and all that it calls be called.

    Classes of the project and of frameworks are made, functions called when they plainly return a model; modules are
    the project's own, or are imported already.
    """
    return all(_may_be_used(reference, called=called) for reference, called in _named(value))


def _named(value: Any) -> Iterator[tuple[str, bool]]:
    """Every reference in a value, and whether it is called."""
    if isinstance(value, dict) and "literal" not in value:
        for key in ("call", "ref"):
            if isinstance(value.get(key), str):
                yield value[key], key == "call"
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _named(item)


def _may_be_used(reference: str, *, called: bool) -> bool:
    module_name = reference.partition(":")[0]
    if reference in _PLAIN:
        return True
    is_known = module_name.partition(".")[0] in libraries() or _is_of_project(module_name)
    if not is_known and module_name not in sys.modules:
        return False
    try:
        target = resolve_name(reference)
    except Exception:
        return False
    if not called:
        return True
    return is_known if isinstance(target, type) else _builds(target, known=is_known)


def _builds(target: Any, *, known: bool) -> bool:
    if isinstance(target, FunctionType):
        return returns_model(target)
    return known and isinstance(getattr(target, "__self__", None), type)  # a class method: `Config.from_name`


def _is_of_project(module_name: str) -> bool:
    head = module_name.partition(".")[0]
    return (Path.cwd() / head).is_dir() or (Path.cwd() / f"{head}.py").is_file()
