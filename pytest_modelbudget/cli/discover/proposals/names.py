"""Names that a builder knows: the keys of a table that its code looks an argument up in, or the choices of a type."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints


def known_names(build: Callable[..., Any], parameter: str) -> tuple[Any, ...]:
    """What an argument may be, in the order of the table: `NETS[name]`, `if name in NETS`, `NETS.get(name.lower())`."""
    function = function_of(build)
    if function is None:
        return ()
    if choices := _choices(hints_of(function).get(parameter)):
        return choices
    for table in _tables(function_tree(function), parameter):
        names = getattr(function, "__globals__", {}).get(table)
        keys = list(names) if isinstance(names, (Mapping, list, tuple, set, frozenset)) else []
        if keys and all(isinstance(key, str) for key in keys):
            return tuple(sorted(keys) if isinstance(names, (set, frozenset)) else keys)
    return ()


def function_of(build: Callable[..., Any]) -> Any:
    """The function whose code is run when something is called: of a class its `__init__`."""
    if isinstance(build, type):
        return inspect.unwrap(getattr(build, "__init__"))  # noqa: B009  # of the class itself
    return inspect.unwrap(getattr(build, "__func__", build))


@cache
def function_tree(function: Callable[..., Any]) -> ast.AST:
    """The parsed source of a function or class; an empty module where there is none."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return ast.Module([], [])


@cache
def hints_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Its annotations, resolved where they can be."""
    try:
        return get_type_hints(function)
    except Exception:  # an annotation may name what is imported for type checkers only
        return dict(getattr(function, "__annotations__", {}))


def _choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return tuple(
            {"ref": f"{annotation.__module__}:{annotation.__qualname__}.{member.name}"} for member in annotation
        )
    return ()


def _tables(tree: ast.AST, parameter: str) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Name(id=table), slice=key) if _is_argument(key, parameter):
                yield table
            case ast.Compare(left=key, ops=[ast.In() | ast.NotIn()], comparators=[ast.Name(id=table)]):
                if _is_argument(key, parameter):
                    yield table
            case ast.Call(func=ast.Attribute(value=ast.Name(id=table), attr="get"), args=[key, *_]):
                if _is_argument(key, parameter):
                    yield table


def _is_argument(node: ast.expr, parameter: str) -> bool:
    match node:
        case ast.Name(id=name):
            return name == parameter
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="lower" | "upper" | "strip"), args=[]):
            return name == parameter
    return False
