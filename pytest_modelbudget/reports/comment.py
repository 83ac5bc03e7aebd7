"""A comment for a pull request: what changed or failed, and nothing else, with a marker by which it is found again.

The first line is `<!-- modelbudget:KEY -->`, or `<!-- modelbudget:KEY quiet -->` when there is nothing to say: then a
comment that is already there is brought up to date, and none is posted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from textwrap import dedent

from pytest_modelbudget import units
from pytest_modelbudget.reports import github, listing, markdown, terminal, text
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.summary.show import cells
from pytest_modelbudget.system.escape import harmless

_MOST_BYTES = 60_000
"""Services refuse a comment of more than 65,536 characters, and count some characters as two."""

_MOST_ROWS = 50
_MOST_DETAILS = 5_000


def page(results: Sequence[Result], setting: text.ReportSetting = text.DEFAULT_SETTING) -> str:
    """The marker, the verdict, a table of the models that changed or failed, and the details of each."""
    notable = sorted(filter(is_notable, results), key=github.rank)
    run_findings = [candidate for result, candidate in text.new_findings(results, setting) if result is None]
    run_findings += [candidate for candidate in text.unchecked_findings(setting) if candidate not in run_findings]
    key = _key(setting)
    base = markdown.code(setting.overall.base) if setting.overall.base else "the committed snapshots"
    title = f"### Model budget: {text.verdict(results)}\n\nCompared with {base}.\n"
    if not notable and not run_findings:
        return f"<!-- modelbudget:{key} quiet -->\n{title}\nNo model changed.\n"
    findings = [f"- {markdown.code(str(finding))}" for finding in run_findings]
    blocks = [f"<!-- modelbudget:{key} -->\n{title}", *findings, "", *_blocks(notable)]
    return markdown.fit_blocks(blocks, _MOST_BYTES)


def unfinished(setting: text.ReportSetting = text.DEFAULT_SETTING) -> str:
    """What a run that ends early leaves behind, so that what was posted for an earlier one does not stand."""
    return (
        f"<!-- modelbudget:{_key(setting)} -->\n### Model budget: the run did not finish\n\n"
        "Nothing is known of the models: the log of the job says why.\n"
    )


def _key(setting: text.ReportSetting) -> str:
    return re.sub("[^A-Za-z0-9._]+", "-", setting.key) or text.DEFAULT_SETTING.key


def is_notable(result: Result) -> bool:
    """Whether a reviewer wants to know of it."""
    return listing.kind_of(result) not in (listing.UNCHANGED, "accepted", "remeasured", State.SKIPPED.value)


def _blocks(notable: Sequence[Result]) -> Iterator[str]:
    if not notable:
        return
    yield markdown.row(("Model", "State", "Params", "Change", "FLOPs", "Change", "Weights", "Budget used"))
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"
    for result in notable[:_MOST_ROWS]:
        yield markdown.row(_cells(result))
    if len(notable) > _MOST_ROWS:
        yield f"\n{len(notable) - _MOST_ROWS} more models are not shown here."
    yield ""
    for result in notable[:_MOST_ROWS]:
        yield markdown.details(result, _details(result))
    if any(result.state in (State.CHANGED, State.NO_SNAPSHOT) for result in notable):
        yield "To accept what is intended: `pytest --model-budget-update`, and commit what it writes."


def _cells(result: Result) -> Iterator[str]:
    yield markdown.code(result.id)
    yield text.state_word(result)
    summary = result.summary
    if summary is None:
        yield from (cells.UNKNOWN, "-", cells.UNKNOWN, "-", cells.UNKNOWN)
    else:
        flops = cells.UNKNOWN if summary.flops.value is None else units.flops(summary.flops.value)
        yield cells.number(summary, "params")
        yield text.delta_text(result, "params")
        yield markdown.escape(f"{'>= ' if summary.flops.is_lower_bound else ''}{flops}")
        yield text.delta_text(result, "flops")
        yield cells.number(summary, "weight_bytes", units.size)
    yield markdown.escape(text.used_text(result))


def _details(result: Result) -> str:
    """As on the terminal, and what moved since the base; rows that came and went have a colour in a `diff` block."""
    _, *lines = terminal.failure(result, rows=0).splitlines()
    if result.error:
        return markdown.fenced_block("\n".join(lines), _MOST_DETAILS)
    if result.since is not None and result.since.reason:
        lines.append(harmless(result.since.reason))
    lines += [harmless(str(finding)) for finding in text.model_findings(result)]
    stripped = [line.strip() for line in lines]
    if any(line.startswith(("+ ", "- ")) for line in stripped):
        return markdown.fenced_block("\n".join(stripped), _MOST_DETAILS, "diff")
    return markdown.fenced_block(dedent("\n".join(lines)), _MOST_DETAILS)
