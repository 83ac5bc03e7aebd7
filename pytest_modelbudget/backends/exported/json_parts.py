"""JSON of strangers, read within bounds: what is not of the kind that a format says refuses the file."""

from __future__ import annotations

import json
from collections import Counter
from math import prod
from typing import Any, TypeVar

from pytest_modelbudget.backends.model_files import DamagedFile

T = TypeVar("T")

_MOST_ITEMS = 4_000_000
"""Values in a text, each of which takes some hundred bytes once it is read."""

MOST_ELEMENTS = 2**63
"""Elements, or a size of one axis, of which a tensor has fewer."""

_MOST_AXES = 64
_CURE = "fetch it again, or save the model again"
_KINDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false"}


def parsed(raw: bytes, part: str) -> dict[str, Any]:
    """The object that `raw`, a part of a file, says; no name stands in an object twice."""
    if sum(raw.count(sign) for sign in (b",", b"[", b"{")) > _MOST_ITEMS:
        raise DamagedFile(f"is not read: its {part} has more than {_MOST_ITEMS:,} values: save the model in parts")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
        if b"\\u" in raw:
            json.dumps(value, ensure_ascii=False).encode()  # half a character is no text
    except RecursionError:
        raise DamagedFile(f"is damaged: its {part} is nested too deeply: {_CURE}") from None
    except ValueError:
        raise DamagedFile(f"is damaged: its {part} is no JSON: {_CURE}") from None
    return of_kind(value, dict, part)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    by_name = dict(pairs)
    if len(by_name) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise DamagedFile(f"is damaged: it has the name {twice[:100]!r} twice: {_CURE}")
    return by_name


def of_kind(value: object, kind: type[T], place: str) -> T:
    """`value`, which is of that kind; `place` says where it stands."""
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise DamagedFile(f"is damaged: {place[:100]} in it is missing or not {_KINDS.get(kind, kind.__name__)}: {_CURE}")


def field(value: object, name: str, kind: type[T]) -> T:
    """What an object has under `name`."""
    return of_kind(value.get(name) if isinstance(value, dict) else None, kind, name)


def size(value: object, place: str) -> int:
    """A size, an offset or a count."""
    number = of_kind(value, int, place)
    if not 0 <= number < MOST_ELEMENTS:
        raise DamagedFile(f"is damaged: {place[:100]} in it has the size {_shown(number)}: {_CURE}")
    return number


def shape(values: object, place: str) -> tuple[int, ...]:
    """The sizes of a tensor."""
    sizes = tuple(size(value, place) for value in of_kind(values, list, place))
    if len(sizes) > _MOST_AXES or prod(sizes) >= MOST_ELEMENTS:
        raise DamagedFile(f"is damaged: {place[:100]} in it has more elements than any tensor: {_CURE}")
    return sizes


def _shown(number: int) -> str:
    return f"{number:,}" if abs(number) < 10**30 else "of more than 30 digits"
