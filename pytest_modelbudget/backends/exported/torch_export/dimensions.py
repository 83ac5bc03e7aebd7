"""Sizes as exported graphs write them: a number, or an expression of symbols as sympy prints it, never evaluated.

    expression = name "(" [argument {"," argument}] ")" | number
    argument   = expression | "'" text "'" | name "=" value

`Add(Symbol('s77', positive=True, integer=True), Integer(-1))` is `s77-1`; older versions of torch wrote
`s0 - 1`. What sums, products and floor divisions do not say (a minimum, a square root) has no size here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from pytest_modelbudget.backends.exported import expressions, json_parts
from pytest_modelbudget.backends.exported.expressions import renamed
from pytest_modelbudget.summary import Dim

_TOKEN = re.compile(r"\s*(?:(-?[0-9]{1,18}(?![0-9]))|'(\w{1,100})'|([A-Za-z_]\w{0,100})|([(),=]))")
_LONGEST = 2000
_DEEPEST = 30
_MOST_FACTORS = 8


class _Unknown(ValueError):
    """An expression that is not said in our words."""


@dataclass(frozen=True, slots=True)
class _Term:
    """`number * text`; an empty text is 1. `is_atom` says that a text needs no brackets among factors."""

    number: int
    text: str = ""
    is_atom: bool = True


_Sum = tuple[_Term, ...]


def dimension(size: object, names: Mapping[str, Dim]) -> Dim:
    """A size of the file (`{"as_int": 8}`, `{"as_expr": {"expr_str": ...}}`) in our words, its symbols by `names`.

    None where it depends on values, or is a formula of another kind.
    """
    if isinstance(size, dict) and "as_int" in size:
        return json_parts.size(size["as_int"], "as_int")
    text = _expression(size)
    if "Symbol(" not in text and "Integer(" not in text:
        return renamed(text, {symbol: names.get(symbol) for symbol in expressions.symbols(text)})
    try:
        return _text(_parsed(text, names))
    except (_Unknown, IndexError, ValueError):
        return None


def symbols(size: object) -> tuple[str, ...]:
    """The symbols of a size, in the order first met."""
    if isinstance(size, dict) and "as_int" in size:
        return ()
    text = _expression(size)
    if "Symbol(" not in text:
        return expressions.symbols(text)
    return tuple(dict.fromkeys(match[2] for match in _TOKEN.finditer(text) if match[2]))


def _expression(size: object) -> str:
    text = json_parts.field(json_parts.field(size, "as_expr", dict), "expr_str", str)
    return text[: _LONGEST + 1]


def _parsed(text: str, names: Mapping[str, Dim]) -> _Sum:
    if len(text) > _LONGEST:
        raise _Unknown(text)
    tokens = list(_tokens(text))
    value, rest = _argument(tokens, 0, names, 0)
    if rest != len(tokens) or value is None:
        raise _Unknown(text)
    return value


def _tokens(text: str) -> Iterator[str]:
    place, text = 0, text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise _Unknown(text)
        yield match[0].strip()
        place = match.end()


def _argument(tokens: Sequence[str], place: int, names: Mapping[str, Dim], depth: int) -> tuple[_Sum | None, int]:
    """The argument that begins at `place`, None for an assumption (`positive=True`), and where it ends."""
    token = tokens[place]
    if token.lstrip("-").isdigit():
        return _number(int(token)), place + 1
    following = tokens[place + 1] if place + 1 < len(tokens) else ""
    if following == "=":
        return None, place + 3
    if following != "(" or depth > _DEEPEST:
        raise _Unknown(token)
    if token == "Symbol":
        return _symbol(tokens[place + 2], names), tokens.index(")", place) + 1
    arguments, place = list[_Sum](), place + 2
    while tokens[place] != ")":
        value, place = _argument(tokens, place, names, depth + 1)
        arguments += [] if value is None else [value]
        if tokens[place] != ")":
            place = _after_comma(tokens, place)
    function = _FUNCTIONS.get(token)
    if function is None or not arguments:
        raise _Unknown(token)
    return function(arguments), place + 1


def _after_comma(tokens: Sequence[str], place: int) -> int:
    if tokens[place] != "," or tokens[place + 1] == ")":
        raise _Unknown(tokens[place])
    return place + 1


def _symbol(token: str, names: Mapping[str, Dim]) -> _Sum:
    name = names.get(token.strip("'"))
    if name is None:
        raise _Unknown(token)
    return _number(name) if isinstance(name, int) else (_Term(1, name),)


def _number(value: int) -> _Sum:
    return (_Term(value),) if value else ()


def _sum(arguments: Sequence[_Sum]) -> _Sum:
    numbers: dict[str, _Term] = {}
    for term in (term for argument in arguments for term in argument):
        before = numbers.get(term.text)
        numbers[term.text] = _Term(term.number + (before.number if before else 0), term.text, term.is_atom)
    return tuple(term for term in numbers.values() if term.number)


def _product(arguments: Sequence[_Sum]) -> _Sum:
    if len(arguments) > _MOST_FACTORS:
        raise _Unknown("Mul")
    return reduce(_times, arguments)


def _times(left: _Sum, right: _Sum) -> _Sum:
    """Of two sums, each term with each, where one of them is a number or a term; else the brackets stay."""
    if not left or not right:
        return ()
    for sums, factor in ((left, right), (right, left)):
        if len(factor) == 1 and not factor[0].text:
            return tuple(_Term(term.number * factor[0].number, term.text, term.is_atom) for term in sums)
    (number, first), (other, second) = _factor(left), _factor(right)
    return (_Term(number * other, f"{first}*{second}"),)


def _factor(value: _Sum) -> tuple[int, str]:
    if len(value) == 1:
        (term,) = value
        return term.number, term.text if term.is_atom else f"({term.text})"
    return 1, f"({_text(value)})"


def _floor(arguments: Sequence[_Sum]) -> _Sum:
    left, right = arguments
    if not right:
        raise _Unknown("division by zero")
    if all(not term.text for term in (*left, *right)):
        return _number(_value(left) // _value(right))
    return (_Term(1, f"{_in_brackets(left)}//{_in_brackets(right)}", is_atom=False),)


def _rest(arguments: Sequence[_Sum]) -> _Sum:
    """What a division leaves: `a - b * (a // b)`."""
    left, right = arguments
    whole = _times(right, _floor(arguments))
    return _sum([left, _times(whole, _number(-1))])


def _power(arguments: Sequence[_Sum]) -> _Sum:
    base, exponent = arguments
    if any(term.text for term in exponent) or not 0 <= _value(exponent) <= _MOST_FACTORS:
        raise _Unknown("Pow")
    return reduce(_times, [base] * _value(exponent), _number(1))


def _of_numbers(function: Callable[[Sequence[int]], int]) -> Callable[[Sequence[_Sum]], _Sum]:
    def value(arguments: Sequence[_Sum]) -> _Sum:
        if any(term.text for argument in arguments for term in argument):
            raise _Unknown("not a number")
        return _number(function([_value(argument) for argument in arguments]))

    return value


def _value(value: _Sum) -> int:
    return sum(term.number for term in value)


def _in_brackets(value: _Sum) -> str:
    text = str(_text(value))
    return text if text.isalnum() else f"({text})"


def _text(value: _Sum) -> Dim:
    """A sum as text, what is added before what is taken off; a number where it has no symbol."""
    if all(not term.text for term in value):
        return json_parts.size(_value(value), "dimension")
    parts = sorted((term for term in value if term.text), key=lambda term: term.number < 0)
    texts = [_signed(term) for term in parts] + [f"{term.number:+d}" for term in value if not term.text]
    text = "".join(texts)
    return text.removeprefix("+") if text.startswith("+") else f"0{text}"


def _signed(term: _Term) -> str:
    sign, number = "-" if term.number < 0 else "+", abs(term.number)
    if number == 1:
        return f"{sign}{term.text}"
    return f"{sign}{number}*{term.text if term.is_atom else f'({term.text})'}"


_FUNCTIONS: Mapping[str, Callable[[Sequence[_Sum]], _Sum]] = {
    "Integer": lambda arguments: arguments[0],
    "Add": _sum,
    "Mul": _product,
    "Pow": _power,
    "PowByNatural": _power,
    "FloorDiv": _floor,
    "CleanDiv": _floor,
    "Mod": _rest,
    "PythonMod": _rest,
    "Min": _of_numbers(min),
    "Max": _of_numbers(max),
}
