"""Options of a mapping in a recipe: what each takes, as a check with its cure and as a JSON schema, said once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Option:
    """What an option takes: `is_valid` checks a value, `mistake` says what to write, `schema` is the same in JSON."""

    is_valid: Callable[[Any], bool]
    mistake: str
    schema: Mapping[str, Any]


def one_of(values: Iterable[object]) -> str:
    """`write a, b or c`."""
    *others, last = map(str, values)
    return f"write {', '.join(others)} or {last}"


def choice(*allowed: Any) -> Option:
    """One of these."""
    return Option(lambda value: value in allowed, one_of(allowed), {"enum": list(allowed)})


def flag() -> Option:
    """True or false."""
    return Option(lambda value: isinstance(value, bool), "write true or false", {"type": "boolean"})


def count(least: int) -> Option:
    """A whole number from `least` on."""
    return Option(
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
        f"write a whole number, at least {least}",
        {"type": "integer", "minimum": least},
    )


def names(what: str, *, least: int = 1) -> Option:
    """A list of `least` names or more."""
    return Option(
        lambda value: (
            isinstance(value, list | tuple) and len(value) >= least and all(isinstance(name, str) for name in value)
        ),
        f"write a list of {what}",
        {"type": "array", "items": {"type": "string"}, "minItems": least},
    )


def mistakes(value: Mapping[str, Any], options: Mapping[str, Option]) -> Iterator[str]:
    """What is wrong with the options of a mapping, each with its cure."""
    for name, option in value.items():
        if name not in options:
            yield f"{name} is unknown: {one_of(options)}"
        elif not options[name].is_valid(option):
            yield f"{name}: {options[name].mistake}"


def schema_of(options: Mapping[str, Option], **more: Any) -> dict[str, Any]:
    """The JSON schema of a mapping of `options`; `more` are further keywords of it."""
    properties = {name: option.schema for name, option in options.items()}
    return {"type": "object", **more, "properties": properties, "additionalProperties": False}
