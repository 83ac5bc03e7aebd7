"""A Markdown page for a CI job's step summary."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pytest_modelbudget import units
from pytest_modelbudget.check import Result, State
from pytest_modelbudget.reports import terminal, text

_MOST_BYTES = 900 * 1024
"""Below the 1 MiB at which CI services refuse a whole step summary."""


def page(results: Sequence[Result]) -> str:
    """The verdict, a table of all models, and why each failing one failed; cut, with a count, when very long."""
    parts: list[str] = []
    length = 0
    blocks = list(_blocks(results))
    for index, block in enumerate(blocks):
        length += len(block.encode()) + 1
        if length > _MOST_BYTES:
            parts.append(f"... {len(blocks) - index} more lines and sections did not fit")
            break
        parts.append(block)
    return "\n".join(parts) + "\n"


def _blocks(results: Sequence[Result]) -> Iterator[str]:
    ordered = text.sorted_results(results)
    yield f"### Model budget: {text.verdict(results)}\n"
    yield "| Model | State | Params | Trainable | FLOPs | Weights | Budget used |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | --- |"
    for result in ordered:
        yield f"| {' | '.join(_cells(result))} |"
    yield ""
    for result in ordered:
        if result.state.failed:
            yield f"<details><summary>{escape(result.id)}: {result.state.value}</summary>\n"
            yield f"{_fenced(terminal.failure(result, rows=0))}\n\n</details>\n"


def _cells(result: Result) -> Iterator[str]:
    yield escape(result.id)
    yield text.marked(result.state.value if result.state is not State.OK or not result.warnings else "warn", result)
    if result.summary is None:
        yield from (text.UNKNOWN,) * 4
    else:
        yield f"{result.summary.params:,}"
        yield f"{result.summary.trainable_params:,}"
        yield escape(text.flops(result.summary))
        yield units.size(result.summary.weight_bytes)
    yield escape(text.used_text(result))


def escape(value: str) -> str:
    """Text that Markdown and HTML show as it is."""
    plain = text.harmless(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+.!|~@:-])", lambda match: f"&#{ord(match[1])};", plain) if _marks(plain) else plain


def _marks(value: str) -> bool:
    return re.search(r"[\\`*{}\[\]#!|~@]|(?<!\w)_|_(?!\w)|://|^[-+]", value) is not None


def _fenced(block: str) -> str:
    longest = max((len(ticks) for ticks in re.findall(r"`+", block)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{block}\n{fence}"
