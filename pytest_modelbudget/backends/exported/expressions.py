"""Dimensions that exporters write as expressions of symbols: `2*B`, `T + 1`, `(T-1)//2`; nothing else is evaluated.

expression = term {("+" | "-") term}
term       = factor {("*" | "//") factor}
factor     = number | symbol | "(" expression ")"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

from pytest_modelbudget.summary import Dim

Sizes = Mapping[str, int]
_Value = Callable[[Sizes], int]

_TOKEN = re.compile(r"\s*(?:(?P<number>[0-9]{1,18})|(?P<symbol>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>//|[-+*()]))")
_LONGEST = 300
_DEEPEST = 30


class NoExpression(ValueError):
    """A text that is no expression of symbols."""


def symbols(text: str) -> tuple[str, ...]:
    """The symbols of an expression, in the order first met."""
    return tuple(dict.fromkeys(match["symbol"] for match in _TOKEN.finditer(text) if match["symbol"]))


def is_expression(text: str) -> bool:
    """Whether a text is an expression, and no name with other signs in it."""
    try:
        _parsed(text)
    except NoExpression:
        return False
    return True


def evaluate(dim: Dim, sizes: Sizes) -> int | None:
    """The size of a dimension; None where it, or one of its symbols, has none."""
    if not isinstance(dim, str):
        return dim
    try:
        size = _parsed(dim)(sizes)
    except (NoExpression, KeyError, ZeroDivisionError):
        return None
    return size if size >= 0 else None


def renamed(dim: Dim, names: Mapping[str, Dim]) -> Dim:
    """A dimension in other words: its symbols by `names`; a number where none is left, None where one has no size."""
    if not isinstance(dim, str):
        return dim
    own = symbols(dim)
    if any(names.get(symbol, symbol) is None for symbol in own):
        return None
    text = re.sub(r"[A-Za-z_][A-Za-z0-9_]*", lambda match: _in_brackets(names.get(match[0], match[0])), dim)
    try:
        size = _parsed(text)
    except NoExpression:
        return None
    return "".join(text.split()) if symbols(text) else size({})


def _in_brackets(dim: Dim) -> str:
    text = str(dim)
    return text if re.fullmatch(r"\w+", text) else f"({text})"


@lru_cache(4096)
def _parsed(text: str) -> _Value:
    """The expression as a function of the sizes of its symbols.

    Raises:
        NoExpression: it is none.
    """
    if len(text) > _LONGEST:
        raise NoExpression(text[:_LONGEST])
    tokens = list(_tokens(text))
    value, rest = _sum(tokens, 0, 0)
    if rest != len(tokens):
        raise NoExpression(text)
    return value


def _tokens(text: str) -> Iterator[str]:
    position, text = 0, text.rstrip()
    while position < len(text):
        if not (match := _TOKEN.match(text, position)):
            raise NoExpression(text)
        yield match[0].strip()
        position = match.end()


def _sum(tokens: list[str], position: int, depth: int) -> tuple[_Value, int]:
    value, position = _product(tokens, position, depth)
    while tokens[position : position + 1] in (["+"], ["-"]):
        sign = tokens[position]
        other, position = _product(tokens, position + 1, depth)
        value = _joined(sign, value, other)
    return value, position


def _product(tokens: list[str], position: int, depth: int) -> tuple[_Value, int]:
    value, position = _factor(tokens, position, depth)
    while tokens[position : position + 1] in (["*"], ["//"]):
        sign = tokens[position]
        other, position = _factor(tokens, position + 1, depth)
        value = _joined(sign, value, other)
    return value, position


def _factor(tokens: list[str], position: int, depth: int) -> tuple[_Value, int]:
    token = tokens[position] if position < len(tokens) else ""
    if token.isdigit():
        number = int(token)
        return lambda _: number, position + 1
    if token == "(" and depth < _DEEPEST:
        value, position = _sum(tokens, position + 1, depth + 1)
        if tokens[position : position + 1] == [")"]:
            return value, position + 1
    elif token.isidentifier():
        return lambda sizes: sizes[token], position + 1
    raise NoExpression("".join(tokens))


def _joined(sign: str, left: _Value, right: _Value) -> _Value:
    match sign:
        case "+":
            return lambda sizes: left(sizes) + right(sizes)
        case "-":
            return lambda sizes: left(sizes) - right(sizes)
        case "*":
            return lambda sizes: left(sizes) * right(sizes)
        case _:
            return lambda sizes: left(sizes) // right(sizes)
