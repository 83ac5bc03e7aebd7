"""Fold repeated identical blocks, `layers.1-31 x31`, so that a deep model is a page and not a book.

Rows are mappings as they are written in a snapshot. Blocks are runs of rows whose paths differ only in one
number that counts up (`layers.1.`, `layers.2.`, ...); inside a folded block that number is written `*`, and a
reference to a neighbouring block `*-1`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

Row = Mapping[str, Any]

_NUMBERED = re.compile(r"(?P<stem>(?:.*[^0-9])?)(?P<number>0|[1-9][0-9]*)")
_TITLE = re.compile(r"(?P<prefix>(?:.*[^0-9])?)(?P<first>[0-9]{1,18})-(?P<last>[0-9]{1,18}) x(?P<times>[0-9]{1,18})")
_SEPARATOR = re.compile(r"([./])")
_LEAST_SAVED = 3
"""Rows a fold has to save to be worth its two lines."""

_DEEPEST = 100
"""Levels that are folded: no model has as many, and names in a file may have thousands."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """`body` stands once for each number from `first` to `last`; `prefix` is what comes before the number."""

    prefix: str
    first: int
    last: int
    body: tuple[Item, ...]

    @property
    def times(self) -> int:
        """How many blocks it stands for."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.prefix}{self.first}-{self.last} x{self.times}"

    @classmethod
    def parse(cls, title: str, body: tuple[Item, ...]) -> Repeat:
        """Read back `str()` of a repeat.

        Raises:
            ValueError: the title is not of that form, or its numbers do not agree.
        """
        match = _TITLE.fullmatch(title)
        if not match:
            raise ValueError(f"{title[:100]!r} is not a repeat: expected e.g. 'layers.1-31 x31'")
        repeat = cls(match["prefix"], int(match["first"]), int(match["last"]), body)
        if repeat.times != int(match["times"]) or repeat.times < 1:
            raise ValueError(f"{title[:100]!r}: {repeat.first} to {repeat.last} is {repeat.times} times")
        return repeat


Item = Row | Repeat


@dataclass(frozen=True, slots=True)
class _RowBlock:
    """Consecutive rows below one path token; `number` is None for a token that does not end in one."""

    stem: str
    number: int | None
    rows: tuple[Row, ...]


def fold(rows: tuple[Row, ...]) -> tuple[Item, ...]:
    """Return `rows` with repeated blocks folded, innermost first."""
    if any("*" in row["path"] for row in rows):
        return rows
    return _fold(rows, 0)


def _fold(rows: tuple[Row, ...], depth: int) -> tuple[Item, ...]:
    folded: list[Item] = []
    blocks = tuple(_blocks(rows, depth))
    position = 0
    while position < len(blocks):
        block = blocks[position]
        inside = _fold_inside(block, depth)
        run = _run(blocks, position)
        if block.number is not None and (run - 1) * len(block.rows) >= _LEAST_SAVED:
            folded.append(Repeat(block.stem, block.number, block.number + run - 1, _template(block, inside)))
        else:
            run = 1
            folded.extend(inside)
        position += run
    return tuple(folded)


def _fold_inside(block: _RowBlock, depth: int) -> tuple[Item, ...]:
    own_rows = tuple(row for row in block.rows if len(_tokens(row["path"], depth)) <= depth + 1)
    if len(own_rows) == len(block.rows) or depth >= _DEEPEST:
        return block.rows
    head = len(own_rows) if own_rows == block.rows[: len(own_rows)] else 0
    return (*block.rows[:head], *_fold(block.rows[head:], depth + 1))


def _tokens(path: str, depth: int) -> list[str]:
    """`h.0.attn` as `h`, `.0`, `.attn`; what lies deeper than `depth` is one token."""
    parts = _SEPARATOR.split(path, depth + 1)
    return [parts[0], *(sep + name for sep, name in zip(parts[1::2], parts[2::2], strict=True))]


def _blocks(rows: tuple[Row, ...], depth: int) -> Iterator[_RowBlock]:
    def head(row: Row) -> str:
        return "".join(_tokens(row["path"], depth)[: depth + 1])

    for path, group in groupby(rows, key=head):
        match = _NUMBERED.fullmatch(path)
        yield _RowBlock(match["stem"] if match else path, int(match["number"]) if match else None, tuple(group))


def _run(blocks: tuple[_RowBlock, ...], start: int) -> int:
    """How many blocks from `start` on are the same but for their number."""
    first = blocks[start]
    if first.number is None:
        return 1
    pattern = _template(first, first.rows)
    run = 1
    while start + run < len(blocks):
        block = blocks[start + run]
        if block.stem != first.stem or block.number != first.number + run or len(block.rows) != len(first.rows):
            break
        if _template(block, block.rows) != pattern:
            break
        run += 1
    return run


def _template(block: _RowBlock, items: tuple[Item, ...]) -> tuple[Item, ...]:
    """`items` with the block's number written as `*` wherever a path or reference holds it."""
    if block.number is None:
        return items
    pattern = re.compile(rf"(?P<head>^|\[|= ){re.escape(block.stem)}(?P<number>0|[1-9][0-9]*)(?=$|[./ ])")
    number = block.number

    def star(match: re.Match[str]) -> str:
        offset = int(match["number"]) - number
        return f"{match['head']}{block.stem}*{f'{offset:+d}' if offset else ''}"

    return tuple(_map_item(item, lambda text: pattern.sub(star, text)) for item in items)


def unfold(items: tuple[Item, ...]) -> Iterator[Row]:
    """Yield the rows that `items` stand for."""
    for item in items:
        if isinstance(item, Repeat):
            for number in range(item.first, item.last + 1):
                yield from unfold(tuple(_numbered(part, item.prefix, number) for part in item.body))
        else:
            yield item


def size(items: tuple[Item, ...]) -> tuple[int, int]:
    """How many rows `items` stand for, and how many characters their texts have; nothing is unfolded for it."""
    rows = characters = 0
    for item in items:
        inner = (1, _characters(item)) if not isinstance(item, Repeat) else size(item.body)
        times = item.times if isinstance(item, Repeat) else 1
        rows, characters = rows + times * inner[0], characters + times * inner[1]
    return rows, characters


def _characters(value: Any) -> int:
    match value:
        case str():
            return len(value)
        case Mapping():
            return sum(map(_characters, value.values()))
        case list():
            return sum(map(_characters, value))
        case _:
            return 0


def _numbered(item: Item, stem: str, number: int) -> Item:
    pattern = re.compile(rf"(?P<head>^|\[|= ){re.escape(stem)}\*(?P<offset>[+-][0-9]{{1,9}})?(?=$|[./ ])")

    def plain(match: re.Match[str]) -> str:
        return f"{match['head']}{stem}{number + int(match['offset'] or 0)}"

    return _map_item(item, lambda text: pattern.sub(plain, text))


def _map_item(item: Item, change: Callable[[str], str]) -> Item:
    if isinstance(item, Repeat):
        return Repeat(change(item.prefix), item.first, item.last, tuple(_map_item(part, change) for part in item.body))
    return {key: _map_value(key, value, change) for key, value in item.items()}


def _map_value(key: str, value: Any, change: Callable[[str], str]) -> Any:
    if key in ("path", "weights"):
        return change(value)
    if key == "from":
        return [[change(name) for name in part] if isinstance(part, list) else change(part) for part in value]
    return value
