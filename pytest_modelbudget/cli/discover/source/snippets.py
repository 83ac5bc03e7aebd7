"""Pieces of Python code in a project's files: modules, and the examples of its documentation and docstrings."""

from __future__ import annotations

import ast
import doctest
import re
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pytest_modelbudget.cli.discover.source.values import Scope

_FENCE = re.compile(r"^[ \t]*(?:```+|~~~+)[ \t]*([\w+-]*).*\n?$")
_LANGUAGES = ("", "python", "py", "python3", "pycon")
_BLOCK = re.compile(r"^([ \t]*)\.\. code(?:-block)?:: *(?:python|py)?\n((?:\1[ \t]+.*\n|[ \t]*\n)+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Snippet:
    """A piece of code: its statements with line numbers of the file, and what its names stand for."""

    path: str
    tree: ast.Module
    scope: Scope
    is_example: bool


def parsed(text: str | bytes) -> ast.Module:
    """The statements of a Python text; see `ast.parse` for what is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def module_snippets(path: str, module: str, tree: ast.Module, *, is_example: bool) -> Iterator[Snippet]:
    """A module itself, and the examples in its docstrings, in which its own names are known."""
    scope = _scope_of(tree, module)
    yield Snippet(path, tree, scope, is_example)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text and ("```" in text or ">>>" in text or ":: " in text or "code" in text):
                line = node.body[0].lineno - 1
                yield from _examples(path, f"{text}\n", line, scope)


def document_snippets(path: str, text: str) -> Iterator[Snippet]:
    """The examples of a Markdown or reStructuredText file."""
    yield from _examples(path, text, 0, Scope())


def _examples(path: str, text: str, line: int, outer: Scope) -> Iterator[Snippet]:
    for start, code in (*_marked(text), *_sessions(text)):
        try:
            tree = parsed(textwrap.dedent(code))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        ast.increment_lineno(tree, line + start)
        own = _scope_of(tree, "")
        imports = {**outer.imports, **own.imports}
        yield Snippet(path, tree, replace(own, module=outer.module, own=outer.own, imports=imports), True)


def _marked(text: str) -> Iterator[tuple[int, str]]:
    """Examples between fences and in blocks of code, with the number of lines before each."""
    blocks = [(text.count("\n", 0, match.start(2)), match[2]) for match in _BLOCK.finditer(text)]
    yield from ((line, code) for line, code in (*_fenced(text), *blocks) if ">>>" not in code)


def _fenced(text: str) -> Iterator[tuple[int, str]]:
    """What stands between two fences, of which the first names Python or nothing, and the number of lines before it."""
    start, language, code = 0, "", list[str]()
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        fence = _FENCE.match(line)
        if fence and start:
            if language in _LANGUAGES:
                yield start, "".join(code)
            start = 0
        elif fence:
            start, language, code = number, fence[1].lower(), []
        elif start:
            code.append(line)


def _sessions(text: str) -> list[tuple[int, str]]:
    """The statements of `>>>` examples, as one piece."""
    if ">>>" not in text:
        return []
    try:
        examples = doctest.DocTestParser().get_examples(text)
    except ValueError:
        return []
    return [(examples[0].lineno, "".join(example.source for example in examples))] if examples else []


def _scope_of(tree: ast.Module, module: str) -> Scope:
    own = frozenset(node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef)))
    return Scope(module, dict(_imports(tree, module)), own, assignments(tree))


def function_scope(function: ast.FunctionDef, outer: Scope) -> Scope:
    """What names stand for inside a function."""
    parameters = function.args
    names = [*parameters.posonlyargs, *parameters.args, *parameters.kwonlyargs, parameters.vararg, parameters.kwarg]
    hidden = frozenset(argument.arg for argument in names if argument is not None)
    own = assignments(function)
    imports = {**outer.imports, **dict(_imports(function, outer.module))}
    visible = {name: values for name, values in outer.assigned.items() if name not in hidden}
    return replace(outer, imports=imports, assigned={**visible, **own}, hidden=(outer.hidden | hidden) - own.keys())


def assignments(body: ast.AST) -> dict[str, list[tuple[int, ast.expr]]]:
    """The values of plain variables, in the order of lines; not those of functions and classes inside."""
    found: dict[str, list[tuple[int, ast.expr]]] = {}
    for node in own_nodes(body):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found.setdefault(name, []).append((node.lineno, value))
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found.setdefault(name, []).append((node.lineno, value))
            case ast.For(target=ast.Name(id=name), iter=ast.List(elts=[first, *_]) | ast.Tuple(elts=[first, *_])):
                found.setdefault(name, []).append((node.lineno, first))
    return found


def own_nodes(body: ast.AST) -> Iterator[ast.AST]:
    """Every node in a function or module but those of functions and classes inside it."""
    for node in ast.iter_child_nodes(body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            continue
        yield node
        yield from own_nodes(node)


def _imports(body: ast.AST, module: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(body):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (
                    alias.asname or alias.name.partition(".")[0],
                    (alias.name if alias.asname else alias.name.partition(".")[0]),
                )
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            head = ".".join((*parents, *([node.module] if node.module else [])))
            yield from ((alias.asname or alias.name, f"{head}:{alias.name}") for alias in node.names if head)
