"""What a text of YAML or TOML is read into, and the bounds that hold for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Keys = tuple[str | int, ...]

DEEPEST = 50
"""Levels of lists and mappings inside each other."""

MOST_NODES = 150_000
"""Values of one text, those that an alias repeats as often as it does; `node_weight` says what a long one counts."""

LONGEST_KEY = 20_000
"""Characters of a key, which is named in messages."""

LONGEST_NUMBER = 40
"""Characters of a number, which is far more than any count or size has."""

_CHARACTERS_PER_NODE = 64


class InvalidText(ValueError):
    """The text is not of its format, or goes over a bound; `line` says where, when that is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Tree:
    """Plain data and where each key of it was written; `twice` lists keys that were written again, with both lines."""

    data: Any
    lines: dict[Keys, int] = field(default_factory=dict)
    twice: tuple[tuple[Keys, int, int], ...] = ()

    def line(self, keys: Keys) -> int | None:
        """The line of a key path, or of the nearest one above it."""
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.lines:
                return self.lines[keys[:end]]
        return None


def node_weight(text: str) -> int:
    """What a scalar counts towards `MOST_NODES`: one, and more when it is long."""
    return 1 + len(text) // _CHARACTERS_PER_NODE


def too_deep(line: int | None) -> InvalidText:
    """The error for more than `DEEPEST` levels."""
    return InvalidText(f"nested too deeply: lists and mappings may stand in each other {DEEPEST} times", line)


def too_many(line: int | None, most: int = MOST_NODES) -> InvalidText:
    """The error for more than `most` values."""
    return InvalidText(f"too much: more than {most:,} values, those that aliases repeat counted each time", line)


def refuse_number(text: str, line: int | None = None) -> None:
    """Nothing, for the text of a number that may be read as one.

    Raises:
        NotReadable: it is too long.
    """
    if len(text) > LONGEST_NUMBER:
        raise InvalidText(f"a number of {len(text):,} characters: numbers have at most {LONGEST_NUMBER}", line)
