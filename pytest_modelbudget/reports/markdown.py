"""A Markdown page for a CI job's step summary, and the pieces that Markdown is made of here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from pytest_modelbudget import units
from pytest_modelbudget.reports import overall, terminal, text
from pytest_modelbudget.reports.listing import listed
from pytest_modelbudget.results import Result
from pytest_modelbudget.summary.show import cells, plans
from pytest_modelbudget.system.escape import harmless

_MOST_BYTES = 900 * 1024
"""Below the 1 MiB at which CI services refuse a whole step summary."""

_MOST_DETAILS = 60_000
"""Characters about one model, so that one long error leaves room for the others."""


def page(results: Sequence[Result], setting: text.ReportSetting = text.DEFAULT_SETTING) -> str:
    """The verdict, a table of all models, and why each failing one failed; cut, with a count, when very long."""
    return fit_blocks(_blocks(results, setting), _MOST_BYTES)


def fit_blocks(blocks: Iterable[str], most: int) -> str:
    """The blocks, each whole or not at all, that fit into `most` bytes, and how many did not."""
    parts: list[str] = []
    remaining = most - 100  # the line that counts the others
    omitted = 0
    for block in blocks:
        size = len(block.encode()) + 1
        if omitted or size > remaining:
            omitted += 1
        else:
            remaining -= size
            parts.append(block)
    note = [f"\n... {omitted} more lines and sections did not fit"] if omitted else []
    return "\n".join([*parts, *note]) + "\n"


def _blocks(results: Sequence[Result], setting: text.ReportSetting) -> Iterator[str]:
    listing = listed(results)
    yield f"### Model budget: {text.verdict(results)}\n"
    yield "| Model | State | Params | Moved | Trainable | FLOPs | Weights | Budget used |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"
    for result in listing.results:
        yield row(_cells(result))
    yield ""
    if listing.line:
        yield f"{listing.line}\n"
    yield from _plans(listing.results)
    for line in overall.lines(setting.overall, results):
        yield f"- {code(line)}"
    yield ""
    for result in listing.results:
        if result.state.failed:
            yield details(result, fenced_block(terminal.failure(result, rows=0), _MOST_DETAILS))


def _plans(results: Iterable[Result]) -> Iterator[str]:
    """A table of all planned runs, when there are any."""
    planned = [(result, plan) for result in results if result.summary for plan in result.summary.plans]
    if not planned:
        return
    yield "| Model | Planned run | Peak | Where | Reserved | Devices |"
    yield "| --- | --- | ---: | --- | ---: | --- |"
    for result, plan in planned:
        reason = plan.notes[0] if plan.peak_bytes is None and plan.notes else plans.peak_place_text(plan).strip()
        sizes = (cells.UNKNOWN if size is None else units.size(size) for size in (plan.peak_bytes, plan.reserved_bytes))
        peak, reserved = sizes
        fits = "; ".join(map(plans.fit_text, plan.fits))
        texts = (f"{plan.kind} ({plan.recipe})", reason, fits)
        run, peak_place, devices = (code(value) if value else "-" for value in texts)
        yield row([code(result.id), run, peak, peak_place, reserved, devices])
    yield ""


def _cells(result: Result) -> Iterator[str]:
    yield code(result.id)
    yield text.state_word(result)
    if result.summary is None:
        yield from (cells.UNKNOWN,) * 5
    else:
        yield cells.number(result.summary, "params")
        yield text.delta_text(result, "params")
        yield cells.number(result.summary, "trainable_params")
        yield escape(cells.flops(result.summary))
        yield cells.number(result.summary, "weight_bytes", units.size)
    yield escape(text.used_text(result))


def row(cells: Iterable[str]) -> str:
    """One line of a table; the cells are Markdown."""
    return f"| {' | '.join(cells)} |"


def details(result: Result, content: str) -> str:
    """A part that is folded until it is asked for."""
    return f"<details><summary>{code(result.id)}: {result.state.value}</summary>\n\n{content}\n\n</details>\n"


def escape(value: str) -> str:
    """Words of ours that Markdown and HTML show as they are; what came from a model is set as `code`."""
    plain = harmless(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _entities(plain) if _has_markup(plain) else plain


def code(value: str) -> str:
    """A name, set as code: there services make no links and no mentions of what looks like them.

    But for mail addresses, which GitHub finds in tags too, once entities are characters again: a tag parts them.
    """
    plain = harmless(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    escaped = _entities(plain) if _has_markup(plain) else plain
    return f"<code>{escaped.replace('&#64;', '&#64;</code><code>')}</code>"


def _entities(plain: str) -> str:
    return re.sub(r"([\\`*_{}\[\]()#+.!|~@:-])", lambda match: f"&#{ord(match[1])};", plain)


def _has_markup(value: str) -> bool:
    return re.search(r"[\\`*{}\[\]#!|~@]|(?<!\w)_|_(?!\w)|://|www[.]", value) is not None


def fenced_block(block: str, most: int, language: str = "text") -> str:
    """A block that is shown as it is, with a fence longer than any inside it, cut after `most` characters."""
    longest = max((len(ticks) for ticks in re.findall(r"`+", block)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *text.cut_lines(block.splitlines(), most), fence])
