"""Which classes and functions of an imported module build a model; a function is read, never called, to find out."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any, get_type_hints

from pytest_modelbudget import backends
from pytest_modelbudget.cli.discover.proposals.configs import required_parameters
from pytest_modelbudget.cli.discover.proposals.names import function_tree, known_names
from pytest_modelbudget.cli.discover.source.scan import libraries

PART = "a part of other models"
"""Why a class is not tried as long as there are others."""

_MAX_DEPTH = 4
_MOST_VARIANTS = 3
_FACTORY_PREFIX = "from_"
_WEIGHT_MAKERS = frozenset(("Parameter", "add_weight", "Variable", "add_parameter", "register_parameter"))
_RETURN_THE_MODEL = frozenset(
    ("eval", "train", "to", "float", "half", "double", "bfloat16", "cpu", "requires_grad_", "apply")
)
"""Methods of a model that return the model."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A name of a module that builds a model.

    `lacks` says why it is not to be called, `needs` names the arguments that it cannot be called without. `variants`
    are arguments that give a model each: the first names of a table. `has_weights` is False for a class that makes
    none: a loss, or what has no layers.
    """

    name: str
    is_class: bool
    lacks: str = ""
    needs: tuple[str, ...] = ()
    variants: tuple[dict[str, Any], ...] = ()
    has_weights: bool = True


def candidates(module: ModuleType, parts: frozenset[str], *, alike: int | None = None) -> Iterator[Candidate]:
    """The classes and functions of a module's own that build models, in the order they are written.

    Of functions that are `alike`, the same but for literals, only so many are to be called.
    """
    shapes: dict[str, list[str]] = {}
    for name, value in list(vars(module).items()):
        if name.startswith("_"):
            continue
        if backends.owner(value) is not None:
            yield Candidate(name, False, "a model that is there already: write a function that returns it")
        elif getattr(value, "__module__", None) == module.__name__ and _builds_model(value):
            is_class = isinstance(value, type)
            lacks = PART if is_class and name in parts else ""
            if not is_class:
                namesakes = shapes.setdefault(_shape(value) or name, [])
                namesakes.append(name)
                if alike is not None and len(namesakes) > alike:
                    lacks = f"like {module.__name__}:{namesakes[0]}; name its file to have all of them"
            yield _candidate(name, value, lacks, _makes_weights(value) if is_class else True)
            if is_class and not lacks:
                yield from _factories(name, value)


def _shape(function: Callable[..., Any]) -> str:
    """The code of a function without its name, docstring and literals."""
    tree = function_tree(inspect.unwrap(function))
    body = tree.body[0] if isinstance(tree, ast.Module) and tree.body else None
    if not isinstance(body, ast.FunctionDef):
        return ""
    statements = body.body[1:] if ast.get_docstring(body) else body.body
    dumped = "".join(map(ast.dump, (body.args, *statements)))
    return re.sub(r"Constant\(value=(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^()]*?)\)", "Constant", dumped)


def _candidate(name: str, build: Callable[..., Any], lacks: str, has_weights: bool = True) -> Candidate:
    needs = required_parameters(build)
    names = known_names(build, needs[0]) if len(needs) == 1 else ()
    variants = tuple({needs[0]: choice} for choice in names[:_MOST_VARIANTS])
    return Candidate(name, isinstance(build, type), lacks, needs, variants, has_weights)


def _factories(name: str, kind: type) -> Iterator[Candidate]:
    """Class methods that make a model by a name: `GPT.from_name`, where their code has a table of names."""
    for method_name, method in inspect.getmembers(kind, inspect.ismethod):
        if method_name.startswith(_FACTORY_PREFIX) and method_name in vars(kind):
            candidate = _candidate(f"{name}.{method_name}", method, "")
            if candidate.variants:
                yield candidate


def _builds_model(value: object) -> bool:
    if isinstance(value, type):
        return _is_model_class(value) and not inspect.isabstract(value)
    return isinstance(value, FunctionType) and returns_model(value)


def _is_model_class(value: object) -> bool:
    return isinstance(value, type) and any(backend.is_class(value) for backend in backends.loaded())


def _makes_weights(kind: type) -> bool:
    """Whether the code of a class, or of what it is derived from, makes layers or weights."""
    for base in kind.__mro__:
        names = vars(inspect.getmodule(base) or object)
        if not _is_model_class(base) or _is_bare(base):
            continue
        if base.__module__.partition(".")[0] in libraries():
            return True  # a layer, or a whole model, of a framework's
        for node in ast.walk(function_tree(base)):
            if isinstance(node, ast.Call) and (
                _called_name(node.func) in _WEIGHT_MAKERS or _may_be_model(node.func, names)
            ):
                return True
    return False


def _is_bare(kind: type) -> bool:
    """Whether a class is the framework's root of all models, which has no weights by itself."""
    return not any(_is_model_class(base) for base in kind.__bases__)


def _called_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _may_be_model(node: ast.expr, names: Mapping[str, Any]) -> bool:
    resolved = _BodyReader(names, 0).resolve(node)
    return _is_model_class(resolved) or (isinstance(resolved, FunctionType) and returns_model(resolved))


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
                resolved = self.resolve(called)
                return _is_model_class(resolved) or (callable(resolved) and returns_model(resolved, self.depth + 1))
            case ast.Name(id=name) if name in self.assigned and name not in self.visited:
                self.visited.add(name)
                return any(self.is_model(one) for one in self.assigned[name])
            case ast.IfExp(body=one, orelse=other):
                return self.is_model(one) or self.is_model(other)
        return False

    def resolve(self, node: ast.expr) -> Any:
        """What a name stands for; None when that cannot be told."""
        match node:
            case ast.Name(id=name) if name in self.assigned:
                return None
            case ast.Name(id=name):
                return self.imported[name]() if name in self.imported else self.names.get(name)
            case ast.Attribute(value=inner, attr=name):
                owner = self.resolve(inner)
                return getattr(owner, name, None) if isinstance(owner, (ModuleType, type)) else None
        return None


def _import_member(module: str, name: str) -> Any:
    try:
        return getattr(import_module(module), name, None) or import_module(f"{module}.{name}")
    except ImportError:
        return None
