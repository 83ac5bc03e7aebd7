"""Names in sentences: one line each, never endless, and runs of numbered names as a range."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pytest_modelbudget.system.escape import printable

LONGEST_NAME = 100
_MOST_NAMES = 4
_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>0|[1-9][0-9]{0,8})", re.DOTALL)


def shown(text: str, longest: int = LONGEST_NAME) -> str:
    """`text` on one line, what does not print escaped, and cut in its middle when very long.

    >>> shown("a\\nb"), shown("x" * 500, 9)
    ('a\\\\nb', 'xxx...xxx')
    """
    half = (longest - 3) // 2
    if len(text) > longest:
        text = f"{text[:half]}...{text[-half:]}"
    return printable(text)


def split_number(token: str) -> tuple[str, int] | None:
    """`layer3` as `("layer", 3)`, `3` as `("", 3)`; None for a name that does not end in a plain number."""
    match = _NUMBERED.fullmatch(token)
    return (match["stem"], int(match["number"])) if match else None


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers, neighbours as a range: `0-3,7`; of more than four pieces the first and the last.

    >>> ranges([0, 1, 2, 3, 7])
    '0-3,7'
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1][1:] = [number]
        else:
            spans.append([number])
    texts = ["-".join(map(str, span)) for span in spans]
    return ",".join(texts) if len(texts) <= _MOST_NAMES else f"{texts[0]},...,{texts[-1]}"


def list_text(names: Sequence[str], most: int = _MOST_NAMES) -> str:
    """Names as a list, runs such as `layer1`, `layer2`, `layer3` as `layer1-3`; of many, the first and a count."""
    runs: list[tuple[str, list[int]]] = []
    for name in names:
        numbered_name = split_number(name)
        if (
            numbered_name
            and runs
            and runs[-1][0] == numbered_name[0]
            and runs[-1][1]
            and numbered_name[1] == runs[-1][1][-1] + 1
        ):
            runs[-1][1].append(numbered_name[1])
        else:
            runs.append((numbered_name[0], [numbered_name[1]]) if numbered_name else (name, []))
    texts = [shown(f"{stem}{ranges(numbers) if numbers else ''}") for stem, numbers in runs]
    more = sum(max(1, len(numbers)) for _, numbers in runs[most:])
    return ", ".join([*texts[:most], *([f"{more} more"] if more else [])])
