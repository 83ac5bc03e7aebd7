"""Text in a few columns: lines end between words, never inside one, and columns share the room there is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rich.cells import cell_len

_BETWEEN_WORDS = re.compile(r"(?<= )(?! )")
_BETWEEN_NAMES = re.compile(r"(?<=[./])(?=[^\s\d./])")
_IN_NAMES = re.compile(r"(?<=[^\w\s,.]|_)(?=[^\W_])|(?<=[,.])(?=[^\W\d_])|(?<=[a-z0-9])(?=[A-Z])")
_PLACES = (_BETWEEN_WORDS, _BETWEEN_NAMES, _IN_NAMES)
"""Where a line may end, the best first: after a blank, between the parts of a path, between the words of one part."""

_LEAST_FILLED = 0.3
"""The part of a line that is filled at least, before a worse place to end it is better."""

_FURTHER_IN = 4
"""Blanks before what goes on, beside those before the line."""

_NARROWEST = 4
"""Columns of text that are kept before numbers are parted."""


def folded(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` columns; a word is parted only when it is longer than a line.

    >>> folded("layers.0.norm_before_attention (RMSNorm)", 24)
    ['layers.0.', 'norm_before_attention', '(RMSNorm)']
    """
    lines = []
    while cell_len(text) > width:
        end = _line_end(text, width)
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return [*lines, text]


def _line_end(text: str, width: int) -> int:
    """The index after the last character that fits, or back at the best place before it."""
    fitting = _fitting(text, width)
    last = fitting + (text[fitting] == " ")
    ends = [_last_place(places, text, last) for places in _PLACES]
    next_word = text[ends[0] :].partition(" ")[0]
    if ends[0] and cell_len(next_word) <= width:
        return ends[0]
    return next((end for end in ends if end >= _LEAST_FILLED * width), max(ends)) or max(1, fitting)


def _last_place(places: re.Pattern[str], text: str, last: int) -> int:
    """The last of these places up to `last`, 0 where there is none."""
    return max((place.start() for place in places.finditer(text) if place.start() <= last), default=0)


def _fitting(text: str, width: int) -> int:
    """How many characters of a longer text fit into `width` columns."""
    used = 0
    for index, char in enumerate(text):
        used += cell_len(char)
        if used > width:
            return index
    return len(text)


def hanging(line: str, width: int) -> Iterator[str]:
    """The lines of one that is too long, those after the first further in than it."""
    content = line.lstrip()
    indent = len(line) - len(content)
    if cell_len(line) <= width or indent + _FURTHER_IN >= width // 2:
        yield line
        return
    first = folded(content, width - indent)[0]
    rest = content[len(first) :].lstrip()
    yield f"{' ' * indent}{first}"
    yield from (f"{' ' * (indent + _FURTHER_IN)}{part}" for part in folded(rest, width - indent - _FURTHER_IN))


def column_widths(
    columns: Sequence[Sequence[str]], room: int, *, numbers: Sequence[int] = (), whole: Sequence[int] = ()
) -> list[int]:
    """Widths of columns that take at most `room` together, as wide as their cells where that fits.

    Where it does not, the widest give way first, down to their longest word; then the longest of these is parted, then
    all words, and at last `numbers` and those that are to stay `whole`.
    """
    widest = [max(map(cell_len, cells)) for cells in columns]
    if sum(widest) <= room:
        return widest
    words = [max(_longest_word(cell) for cell in cells) for cells in columns]
    kept = [widest[index] if index in whole else word for index, word in enumerate(words)]
    texts = [width for index, width in enumerate(kept) if index not in (*numbers, *whole)]

    def parted(longer_than: int) -> list[int]:
        return [
            width if index in (*numbers, *whole) or width <= longer_than else min(width, _NARROWEST)
            for index, width in enumerate(kept)
        ]

    stages = (kept, parted(max(texts, default=1) - 1), parted(0))
    least = next((widths for widths in stages if sum(widths) <= room), [1] * len(widest))
    return _shared(least, widest, room)


def _longest_word(cell: str) -> int:
    parts = (part for word in cell.split() for part in _BETWEEN_NAMES.split(word))
    return max(map(cell_len, parts), default=1)


def _shared(least: Sequence[int], most: Sequence[int], room: int) -> list[int]:
    """Widths between `least` and `most`, none narrower than another but where it needs less."""
    widths = list(least)
    while (free := room - sum(widths)) > 0:
        level = min(width for width, limit in zip(widths, most, strict=True) if width < limit)
        growing = [index for index, width in enumerate(widths) if width == level and width < most[index]]
        for index in growing[:free]:
            widths[index] += 1
    return widths
