"""The private names of torch that the torch backend uses, read from its source."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest_modelbudget.backends.torch as backend

ROOT = Path(backend.__file__).parent

_PRIVATE = re.compile(r"_[A-Za-z]\w*")
_DOTTED = re.compile(r"torch(\.\w+)+")


def used() -> dict[str, set[str]]:
    """The rooms that use each name: dotted from torch where its owner is seen, else the last part alone."""
    rooms = defaultdict(set)
    for path in sorted(ROOT.rglob("*.py")):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for name in _names(ast.parse(path.read_text(encoding="utf-8"))):
            rooms[name].add(room)
    return dict(rooms)


def _names(tree: ast.Module) -> Iterator[str]:
    imported = dict(_imported(tree))
    yield from filter(_is_of_torch, imported.values())
    ours, whole, listed = set(_own(tree)), _whole_chains(tree), set(_in_the_list(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) in whole:
            root, *parts = whole[id(node)]
            if root in imported:
                if _is_of_torch(name := ".".join((imported[root], *parts))):
                    yield name
            else:
                yield from (part for part in parts[root in ("self", "cls") :] if _is_private(part) and part not in ours)
        elif isinstance(node, ast.Constant) and _is_name(node.value) and node.value not in ours and node not in listed:
            yield node.value


def _is_name(value: object) -> bool:
    """Whether a constant may be the name of something private, as `getattr` and `sys.modules` are asked for it."""
    if not isinstance(value, str):
        return False
    return _is_private(value) or (_DOTTED.fullmatch(value) is not None and _is_of_torch(value))


def _in_the_list(tree: ast.Module) -> Iterator[ast.AST]:
    """Everything in `Private(...)`: to list a name is not to use it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Private":
            yield from ast.walk(node)


def _is_private(part: str) -> bool:
    return _PRIVATE.fullmatch(part) is not None and part != "_"


def _is_of_torch(name: str) -> bool:
    """Whether it is a private name of torch; operators are named by their schemas, which are there for others."""
    return name.startswith("torch.") and not name.startswith("torch.ops.") and any(map(_is_private, name.split(".")))


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What each imported name stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (
                    alias.asname or alias.name.partition(".")[0],
                    alias.name if alias.asname else alias.name.partition(".")[0],
                )
                yield f"import {alias.name}", alias.name
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _own(tree: ast.Module) -> Iterator[str]:
    """The private names that a module itself gives to something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def _whole_chains(tree: ast.Module) -> dict[int, list[str]]:
    """`a.b.c` of each outermost attribute, by its `id`; what is not a name in front is called nothing."""
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    inner = {id(node.value) for node in attributes}
    return {id(node): list(_chain(node)) for node in attributes if id(node) not in inner}


def _chain(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        yield from _chain(node.value)
        yield node.attr
    else:
        yield node.id if isinstance(node, ast.Name) else ""
