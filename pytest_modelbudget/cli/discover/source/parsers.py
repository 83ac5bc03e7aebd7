"""Defaults of a project's command lines, as its `add_argument` calls write them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pytest_modelbudget.cli.discover.source.snippets import Snippet
from pytest_modelbudget.cli.discover.source.values import Unreadable, value_of


@dataclass(frozen=True, slots=True)
class WrittenDefaults:
    """Names and values that belong together: of one command line, or of one mapping of a settings file."""

    where: str
    values: dict[str, Any]


def parser_defaults(snippet: Snippet) -> Iterator[WrittenDefaults]:
    """What the options of a file's command line are when none is given."""
    values: dict[str, Any] = {}
    first = 0
    for node in ast.walk(snippet.tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="add_argument")):
                first = first or node.lineno
                for name, value in _option(node, snippet):
                    values.setdefault(name, value)
    if values:
        yield WrittenDefaults(f"{snippet.path}:{first}", values)


def _option(call: ast.Call, snippet: Snippet) -> Iterator[tuple[str, Any]]:
    flags = [item.value for item in call.args if isinstance(item, ast.Constant) and isinstance(item.value, str)]
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    name = _destination(flags, keywords.get("dest"))
    action = getattr(keywords.get("action"), "value", "")
    if not name or (not flags[0].startswith("-") and "default" not in keywords):
        return
    if "default" not in keywords:
        yield name, {"store_true": False, "store_false": True}.get(str(action))
        return
    try:
        yield name, value_of(keywords["default"], snippet.scope)
    except Unreadable:
        return


def _destination(flags: list[str], dest: ast.expr | None) -> str:
    if isinstance(dest, ast.Constant):
        return str(dest.value)
    longest = next((flag for flag in flags if flag.startswith("--")), flags[0] if flags else "")
    return longest.lstrip("-").replace("-", "_")
