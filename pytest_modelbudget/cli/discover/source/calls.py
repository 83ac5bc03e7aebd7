"""Calls of builders as a project's code, tests and documentation write them, and what the model is called with."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pytest_modelbudget.cli.discover.source.snippets import Snippet, function_scope, own_nodes
from pytest_modelbudget.cli.discover.source.values import Scope, Unreadable, call_arguments, value_of

_FILLED = frozenset(("randn", "rand", "zeros", "ones", "empty", "normal", "uniform", "random", "standard_normal"))
_DTYPES = {"long": "int64", "int": "int32", "bool": "bool", "half": "float16", "double": "float64", "float": "float32"}
_KEEPS = frozenset(("to", "cuda", "cpu", "requires_grad_", "clone", "detach", "astype", "contiguous"))


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A call of `target` (`module:name`, or a bare name where the file does not say whose it is).

    `complete` says whether all of its arguments are there; `inputs` is what its result is called with, in the ways that
    it can be read: with the first size as the batch, and as it stands; nothing where that is not seen. `is_example`
    says that it stands in documentation, a test or an example.
    """

    target: str
    args: list[Any]
    kwargs: dict[str, Any]
    complete: bool
    where: str
    is_example: bool
    inputs: tuple[Any, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """Plain data, for the worker."""
        return asdict(self)


def written_calls(snippet: Snippet) -> Iterator[WrittenCall]:
    """Each call of something with a name like a class, or of which a name is imported, outside of classes."""
    yield from _calls_in(snippet, snippet.tree, snippet.scope)
    for node in ast.walk(snippet.tree):
        if isinstance(node, ast.FunctionDef):
            yield from _calls_in(snippet, node, function_scope(node, snippet.scope))


def _calls_in(snippet: Snippet, body: ast.AST, scope: Scope) -> Iterator[WrittenCall]:
    nodes = [node for node in own_nodes(body) if isinstance(node, (ast.Assign, ast.Call))]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    targets = {
        id(node.value): node.targets[0].id
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for call in calls:
        target = scope.reference(call.func) or (call.func.id if isinstance(call.func, ast.Name) else "")
        if not target or target.partition(":")[0] in ("torch", "numpy", "builtins"):
            continue
        args, kwargs, complete = call_arguments(call, scope)
        name = targets.get(id(call), "")
        uses = [use for use in calls if name and isinstance(use.func, ast.Name) and use.func.id == name]
        inputs = next(filter(None, (_inputs(use, scope) for use in uses if use.lineno >= call.lineno)), ())
        yield WrittenCall(
            target, args, kwargs, complete, f"{snippet.path}:{call.lineno}", snippet.is_example, inputs
        )  # fmt: skip


def _inputs(use: ast.Call, scope: Scope) -> tuple[Any, ...]:
    """The arguments of a model's call as the grammar of inputs has them: the size of the batch as `B`, and as it is."""
    try:
        args = [_input(item, scope) for item in use.args]
        kwargs = {keyword.arg: _input(keyword.value, scope) for keyword in use.keywords if keyword.arg is not None}
    except Unreadable:
        return ()
    batch = next((tensor["shape"][0] for tensor in _tensors([args, kwargs])), 0)
    return (_as_inputs(args, kwargs, batch), _as_inputs(args, kwargs, 0)) if batch else ()


def _input(node: ast.expr, scope: Scope) -> Any:
    """A tensor as `{shape, dtype}`, a plain value, or a list or mapping of these.

    Raises:
        Unreadable: it is made in another way.
    """
    if isinstance(node, ast.Name) and (assigned := scope.assignment(node.id, node.lineno)) is not None:
        return _input(assigned, scope)
    if isinstance(node, ast.List):
        return [_input(item, scope) for item in node.elts]
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        pairs = zip(node.keys, node.values, strict=True)
        return {str(key.value): _input(item, scope) for key, item in pairs}  # type: ignore[union-attr]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _tensor(node, node.func, scope)
    value = value_of(node, scope)
    if isinstance(value, (dict, list)):
        raise Unreadable
    return value


def _tensor(node: ast.Call, function: ast.Attribute, scope: Scope) -> dict[str, Any]:
    """A tensor of random or equal values, as `{shape, dtype}`.

    Raises:
        Unreadable: it is made in another way.
    """
    name = function.attr
    if name in _DTYPES and not node.args:
        return {**_input(function.value, scope), "dtype": _DTYPES[name]}
    if name in _KEEPS:
        return dict(_input(function.value, scope))
    if name == "randint":
        named = [keyword.value for keyword in node.keywords if keyword.arg == "size"]
        sizes = [*named, *(item for item in reversed(node.args) if isinstance(item, (ast.Tuple, ast.List)))]
        if not sizes:
            raise Unreadable
        return {"shape": _shape(sizes[:1], scope), "dtype": _dtype(node, scope) or "int64"}
    if name in _FILLED:
        shape = [keyword.value for keyword in node.keywords if keyword.arg in ("size", "shape")]
        return {"shape": _shape(shape or node.args, scope), "dtype": _dtype(node, scope) or "float32"}
    raise Unreadable


def _shape(nodes: list[ast.expr], scope: Scope) -> list[int]:
    items = nodes[0].elts if len(nodes) == 1 and isinstance(nodes[0], (ast.Tuple, ast.List)) else nodes
    shape = [value_of(item, scope) for item in items]
    if not shape or not all(type(size) is int and size > 0 for size in shape):
        raise Unreadable
    return shape


def _dtype(node: ast.Call, scope: Scope) -> str:
    for keyword in node.keywords:
        if keyword.arg == "dtype" and isinstance(keyword.value, ast.Attribute):
            return _DTYPES.get(keyword.value.attr, keyword.value.attr)
    return ""


def _as_inputs(args: list[Any], kwargs: Mapping[str, Any], batch: int) -> Any:
    """The inputs of a call written out, first sizes that are the `batch` as `B`."""
    written, named = _written(args, batch), _written(kwargs, batch)
    if named:
        return {"args": written, "kwargs": named} if written else named
    return written[0] if len(written) == 1 and isinstance(written[0], str) else written


def _tensors(tree: Any) -> Iterator[dict[str, Any]]:
    if _is_tensor(tree):
        yield tree
    elif isinstance(tree, (list, Mapping)):
        for item in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _tensors(item)


def _is_tensor(tree: Any) -> bool:
    return isinstance(tree, dict) and tree.keys() == {"shape", "dtype"} and isinstance(tree["shape"], list)


def _written(tree: Any, batch: int) -> Any:
    if _is_tensor(tree):
        first, *rest = tree["shape"]
        sizes = ["B" if first == batch else str(first), *map(str, rest)]
        return f"{tree['dtype']}[{', '.join(sizes)}]"
    if isinstance(tree, Mapping):
        return {name: _written(item, batch) for name, item in tree.items()}
    return [_written(item, batch) for item in tree] if isinstance(tree, list) else tree
