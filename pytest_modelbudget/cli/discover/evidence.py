"""Which classes and functions of an imported module build a model; a function is read, never called, to find out."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any, get_type_hints

from pytest_modelbudget import backends
from pytest_modelbudget.cli.discover.scan import libraries

_MAX_DEPTH = 4
_RETURN_THE_MODEL = frozenset(
    ("eval", "train", "to", "float", "half", "double", "bfloat16", "cpu", "requires_grad_", "apply")
)
"""Methods of a model that return the model."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A name of a module that builds a model; `lacks` says why it cannot be called as it is."""

    name: str
    is_class: bool
    lacks: str = ""


def candidates(module: ModuleType, parts: frozenset[str]) -> Iterator[Candidate]:
    """The classes and functions of a module's own that build models, in the order they are written."""
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if backends.owner(value) is not None:
            yield Candidate(name, False, "a model that is there already: write a function that returns it")
        elif getattr(value, "__module__", None) == module.__name__ and _builds_model(value):
            is_class = isinstance(value, type)
            lacks = _required_arguments(value)
            if is_class and name in parts and not lacks:
                lacks = "a part of other models"
            yield Candidate(name, is_class, lacks)


def _builds_model(value: object) -> bool:
    if isinstance(value, type):
        return _is_model_class(value) and not inspect.isabstract(value)
    return isinstance(value, FunctionType) and returns_model(value)


def _is_model_class(value: object) -> bool:
    return isinstance(value, type) and any(backend.is_class(value) for backend in backends.loaded())


def _required_arguments(build: Callable[..., object]) -> str:
    """The arguments that it cannot be called without, as a reason."""
    try:
        parameters = inspect.signature(build).parameters.values()
    except (TypeError, ValueError):
        return ""
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    return f"needs arguments: {', '.join(needed)}" if needed else ""


def returns_model(function: Callable[..., object], depth: int = 0) -> bool:
    """Whether a function says that it returns a model, or plainly does: `return Net()`, `return resnet18(...)`."""
    function = inspect.unwrap(function)
    if depth > _MAX_DEPTH or not isinstance(function, FunctionType):
        return False
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        return False
    try:
        if _is_model_class(get_type_hints(function).get("return")):
            return True
    except Exception:  # an annotation may name what is imported for type checkers only
        pass
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return False
    body = tree.body[0] if tree.body else None
    if not isinstance(body, ast.FunctionDef):
        return False
    reader = _BodyReader(function.__globals__, depth)
    reader.visit_all(body.body)
    return any(reader.is_model(value) for value in reader.returned)


@dataclass(slots=True)
class _BodyReader:
    """Reads the body of one function."""

    names: Mapping[str, Any]
    depth: int
    returned: list[ast.expr] = field(default_factory=list)
    assigned: dict[str, list[ast.expr]] = field(default_factory=dict)
    imported: dict[str, Callable[[], Any]] = field(default_factory=dict)
    visited: set[str] = field(default_factory=set)

    def visit_all(self, body: list[ast.stmt]) -> None:
        """Note what is returned, assigned and imported; not inside functions and classes of its own."""
        for node in body:
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    continue
                case ast.Return(value=ast.expr() as value):
                    self.returned.append(value)
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self.assigned.setdefault(name, []).append(value)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    self.assigned.setdefault(name, []).append(value)
                case ast.Import() | ast.ImportFrom():
                    self._note_import(node)
            for field_name in ("body", "orelse", "finalbody", "handlers", "cases"):
                inner = getattr(node, field_name, None) or []
                for child in inner:
                    self.visit_all(child.body if isinstance(child, (ast.ExceptHandler, ast.match_case)) else [child])

    def _note_import(self, node: ast.Import | ast.ImportFrom) -> None:
        """Frameworks imported inside the function; anything else is not imported to be asked."""
        frameworks = libraries()
        for alias in node.names:
            if isinstance(node, ast.Import):
                module_name = alias.name if alias.asname else alias.name.partition(".")[0]
                if alias.name.partition(".")[0] in frameworks:
                    self.imported[alias.asname or module_name] = lambda module_name=module_name: import_module(
                        module_name
                    )  # type: ignore[misc]
            elif node.module and not node.level and node.module.partition(".")[0] in frameworks:
                module, name = node.module, alias.name
                self.imported[alias.asname or name] = lambda module=module, name=name: _import_member(module, name)  # type: ignore[misc]

    def is_model(self, value: ast.expr) -> bool:
        """Whether an expression plainly is a model."""
        match value:
            case ast.Call(func=ast.Attribute(value=inner, attr=name)) if name in _RETURN_THE_MODEL and self.is_model(
                inner
            ):
                return True
            case ast.Call(func=called):
                resolved = self._resolve(called)
                return _is_model_class(resolved) or (callable(resolved) and returns_model(resolved, self.depth + 1))
            case ast.Name(id=name) if name in self.assigned and name not in self.visited:
                self.visited.add(name)
                return any(self.is_model(one) for one in self.assigned[name])
            case ast.IfExp(body=one, orelse=other):
                return self.is_model(one) or self.is_model(other)
        return False

    def _resolve(self, node: ast.expr) -> Any:
        """What a name stands for; None when that cannot be told."""
        match node:
            case ast.Name(id=name) if name in self.assigned:
                return None
            case ast.Name(id=name):
                return self.imported[name]() if name in self.imported else self.names.get(name)
            case ast.Attribute(value=inner, attr=name):
                owner = self._resolve(inner)
                return getattr(owner, name, None) if isinstance(owner, (ModuleType, type)) else None
        return None


def _import_member(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name, None) or import_module(f"{module}.{name}")
    except ImportError:
        return None
