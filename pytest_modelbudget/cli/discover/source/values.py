"""An expression of Python as a manifest writes its value; see `entry.arguments` for calls and names among them."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_modelbudget.entry import arguments

_MOST_STEPS = 12
_MOST_TEXT = 200
_LARGEST = 10**12

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


class Unreadable(Exception):
    """An expression is no value that a manifest could have."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What names stand for at some place of a file.

    `module` is what the file is imported as (empty for a README), `imports` the `module:name` or module of each
    imported name, `own` the classes and functions of the file, `assigned` the lines and values of variables, and
    `hidden` names of which nothing is known: the arguments of a function.
    """

    module: str = ""
    imports: Mapping[str, str] = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    assigned: Mapping[str, Sequence[tuple[int, ast.expr]]] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()

    def assignment(self, name: str, line: int) -> ast.expr | None:
        """What was last assigned to a variable above a line."""
        values = [value for assigned_line, value in self.assigned.get(name, ()) if assigned_line < line]
        return values[-1] if values and name not in self.hidden else None

    def reference(self, node: ast.expr) -> str:
        """`module:name` of a name or attribute; empty where that is not told by the file."""
        match node:
            case ast.Name(id=name) if name in self.hidden or name in self.assigned:
                return ""
            case ast.Name(id=name) if name in self.own and self.module:
                return f"{self.module}:{name}"
            case ast.Name(id=name):
                return self.imports.get(name, "")
            case ast.Attribute(value=inner, attr=name):
                owner = self.reference(inner)
                return owner and f"{owner}{'.' if ':' in owner else ':'}{name}"
        return ""


def value_of(node: ast.expr, scope: Scope, steps: int = 0) -> Any:
    """The value of an expression in a scope.

    Raises:
        Unreadable: it depends on more than literals, names and calls of what is imported.
    """
    if steps > _MOST_STEPS:
        raise Unreadable
    match node:
        case ast.Constant(value=value):
            return _plain(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _plain(-_number(value_of(operand, scope, steps + 1)))
        case ast.BinOp(left=left, op=op, right=right):
            return _computed(type(op), value_of(left, scope, steps + 1), value_of(right, scope, steps + 1))
        case ast.List(elts=items):
            return [value_of(item, scope, steps + 1) for item in items]
        case ast.Tuple(elts=items):
            return as_tuple([value_of(item, scope, steps + 1) for item in items])
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return as_mapping({_key(key): value_of(item, scope, steps + 1) for key, item in pairs})
        case ast.Call():
            return _called(node, scope, steps + 1)
        case ast.Name(id=name) if (assigned := scope.assignment(name, node.lineno)) is not None:
            return value_of(assigned, scope, steps + 1)
    if arguments.REFERENCE.fullmatch(reference := scope.reference(node)):
        return {"ref": reference}
    raise Unreadable


def call_arguments(call: ast.Call, scope: Scope, steps: int = 0) -> tuple[list[Any], dict[str, Any], bool]:
    """The arguments of a call that are values, positional ones up to the first gap, and whether these are all."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    complete = True
    for item in call.args:
        try:
            args.append(value_of(item, scope, steps))
        except Unreadable:
            complete = False
            break
    for keyword in call.keywords:
        try:
            if keyword.arg is None:
                raise Unreadable
            kwargs[keyword.arg] = value_of(keyword.value, scope, steps)
        except Unreadable:
            complete = False
    return args, kwargs, complete


def as_tuple(items: list[Any]) -> dict[str, Any]:
    """A tuple, which YAML has no way to write."""
    return {"call": "builtins:tuple", "args": [items]}


def as_mapping(items: dict[str, Any]) -> dict[str, Any]:
    """A mapping that is handed on, also where it looks like a call."""
    return {"literal": items} if any(arguments.mistakes(items)) or {"call", "ref", "literal"} & items.keys() else items


def as_call(target: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call as a manifest writes it."""
    return {"call": target, **({"args": args} if args else {}), **({"kwargs": kwargs} if kwargs else {})}


def _called(node: ast.Call, scope: Scope, steps: int) -> Any:
    args, kwargs, complete = call_arguments(node, scope, steps)
    if not complete:
        raise Unreadable
    if isinstance(node.func, ast.Name) and node.func.id == "dict" and not args:
        return as_mapping(kwargs)
    target = scope.reference(node.func)
    if not arguments.REFERENCE.fullmatch(target):
        raise Unreadable
    return as_call(target, args, kwargs)


def _plain(value: object) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise Unreadable
    if isinstance(value, str) and (len(value) > _MOST_TEXT or not value.isprintable()):
        raise Unreadable
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise Unreadable


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise Unreadable


def _number(value: object) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST:
        return value
    raise Unreadable


def _computed(kind: type[ast.operator], left: object, right: object) -> Any:
    if kind is ast.Pow and isinstance(left, int) and isinstance(right, int) and abs(left) < 1000 and 0 <= right < 12:
        return left**right
    if kind not in _OPERATORS:
        raise Unreadable
    try:
        return _plain(_OPERATORS[kind](_number(left), _number(right)))
    except ZeroDivisionError:
        raise Unreadable from None
