"""TOML as plain data, with the line of every key at the start of a line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from pytest_modelbudget.loading.tree import (
    DEEPEST,
    LONGEST_NUMBER,
    MOST_NODES,
    InvalidText,
    Keys,
    Tree,
    too_deep,
    too_many,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_QUOTED = re.compile(
    r'"""(?:[^\\]|\\.)*?"""|' + r"'''.*?'''|" + r'"(?:[^"\\\n]|\\.)*"|' + r"'[^'\n]*'|#[^\n]*", re.DOTALL
)
"""Texts and comments, in which brackets, dots and digits mean nothing."""

_KEY_PART = r"[A-Za-z0-9_-]+"
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-]){_KEY_PART}(?:[ \t]*\.[ \t]*{_KEY_PART}){{{DEEPEST}}}")
_ENDLESS_NUMBER = re.compile(r"(?<!\w)[0-9]\w{1000}")
_HEADER = re.compile(r"[ \t]*\[\[?[^\[\]{}=]*\]\]?[ \tq]*")
_MOST_HEADERS = 3_000
_MOST_DOTS = 1_000
"""In keys and numbers, beside those of headers."""

_BRACKET = re.compile(r"[\[\]{}]|\n")


def read_toml_table(text: str, table: tuple[str, ...]) -> Tree:
    """Read one table of a TOML file.

    Raises:
        NotReadable: not TOML, or over a bound, with the line.
    """
    _check_bounds(text)
    try:
        data: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"line (\d+)", str(error))
        line = int(match[1]) if match else text.count("\n")  # without a number it is the end of the document
        raise InvalidText(f"not TOML: {str(error)[:500]}", max(1, line)) from None
    except RecursionError:
        raise too_deep(None) from None
    for name in table:
        data = data.get(name) if isinstance(data, dict) else None
    lines = {keys[len(table) :]: line for keys, line in _key_lines(text) if keys[: len(table)] == table}
    tree = Tree(data, lines)
    _check_values(tree)
    return tree


def is_quickly_edited(text: str) -> bool:
    """Whether an editor of TOML takes seconds at most for a text that was read; its time grows with a square too."""
    lines = _bare(text).splitlines()
    others = [line for line in lines if not _HEADER.fullmatch(line)]
    return len(lines) - len(others) <= _MOST_HEADERS and sum(line.count(".") for line in others) <= _MOST_DOTS


def _bare(text: str) -> str:
    """The text with a letter for each quoted text, and no comments; its lines stay."""
    return _QUOTED.sub(lambda quoted: "q" + "\n" * quoted[0].count("\n"), text)


def _check_bounds(text: str) -> None:
    """Nothing, for a text within the bounds; the time of a TOML reader grows with the square of a key's dots.

    Raises:
        NotReadable: over a bound.
    """
    bare = _bare(text)
    if match := _LONG_KEY.search(bare):
        raise too_deep(_line_of(bare, match))
    if match := _ENDLESS_NUMBER.search(bare):
        reason = f"a number of 1,000 digits or more: numbers have at most {LONGEST_NUMBER}"
        raise InvalidText(reason, _line_of(bare, match))
    _check_nesting(bare)
    if bare.count(",") + bare.count("=") > MOST_NODES:
        raise too_many(None)


def _check_values(tree: Tree) -> None:
    """Nothing, for data without endless numbers and levels; walks without recursion.

    Raises:
        NotReadable: over a bound.
    """
    values: list[tuple[Any, Keys]] = [(tree.data, ())]
    while values:
        value, keys = values.pop()
        if len(keys) > DEEPEST:
            raise too_deep(tree.line(keys))
        if isinstance(value, (dict, list)):
            inside = value.items() if isinstance(value, dict) else enumerate(value)
            values.extend((item, (*keys, key)) for key, item in inside)
        elif isinstance(value, (int, float)) and not abs(value) < 10**LONGEST_NUMBER:  # what is no number is not below
            raise InvalidText(f"a number of more than {LONGEST_NUMBER} digits, or none", tree.line(keys))


def _line_of(text: str, match: re.Match[str]) -> int:
    return text.count("\n", 0, match.end()) + 1


def _check_nesting(bare: str) -> None:
    level, line = 0, 1
    for bracket in _BRACKET.finditer(bare):
        match bracket[0]:
            case "\n":
                line += 1
            case "[" | "{":
                level += 1
            case _:
                level = max(0, level - 1)
        if level > DEEPEST:
            raise too_deep(line)


def _key_lines(text: str) -> Iterator[tuple[Keys, int]]:
    """The line of each table header and key at the start of a line; good enough to point at, never used to read."""
    header: Keys = ()
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.fullmatch(r"\s*\[\[?([^\]]+)\]\]?\s*(?:#.*)?", line):
            header = _split_key(match[1])[: DEEPEST + 1]
            yield from ((header[: end + 1], number) for end in range(len(header)))
        elif match := re.match(
            r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:"[^"]*"|[A-Za-z0-9_-]+))*)\s*=""", line
        ):
            keys = (*header, *_split_key(match[1]))
            yield keys, number
            for inner in re.finditer(r"""(?<![\w*.-])["']?([A-Za-z_][\w*.-]*)["']?\s*=""", line[match.end() :]):
                yield (*keys, inner[1]), number


def _split_key(text: str) -> Keys:
    return tuple(part.strip().strip("\"'") for part in re.findall(r""""[^"]*"|'[^']*'|[^.]+""", text))
