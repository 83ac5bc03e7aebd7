"""Everything that came from a model is data: one table of names, through all that shows or keeps them."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from markdown_it import MarkdownIt

from pytest_modelbudget import reports, snapshot
from pytest_modelbudget.reports import github, table, terminal, text
from pytest_modelbudget.results import Result
from pytest_modelbudget.summary.show import notebook
from pytest_modelbudget.system.escape import harmless, harmless_output
from tests import hostile

CASES = [pytest.param(name, id=word) for word, name in hostile.NAMES.items()]
PLAIN = hostile.results("plain")


def kind(name: str) -> Callable[[list[Result]], str]:
    """A report as a function of results."""
    return lambda results: reports.render(name, results)


def each(show: Callable[[Result], str]) -> Callable[[list[Result]], str]:
    """What is shown of one result, for all of them."""
    return lambda results: "\n".join(map(show, results))


RENDERERS: dict[str, Callable[[list[Result]], str]] = {
    **{name: kind(name) for name in reports.REPORTS},
    "annotations": lambda results: "\n".join(github.commands(results, text.DEFAULT_SETTING)),
    "failure": each(lambda result: terminal.failure(result, explain=True)),
    "short line": each(terminal.short_reason),
    "closing": lambda results: "\n".join(terminal.closing_lines(results)),
    "layer table": lambda results: table.summary_text(results[0].summary, explain=True),  # type: ignore[arg-type]
    "notebook of a plan": lambda results: "".join(map(notebook.plan_fragment, results[0].summary.plans)),  # type: ignore[union-attr]
    "notebook": lambda results: notebook.summary_fragment(results[0].summary),  # type: ignore[arg-type]
    "captured output": lambda results: harmless_output(results[-1].id),
}
OF_OUR_OWN = r"::(error|warning|notice) file=[^,:]+,line=\d+,title=[^,:]*::"


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", CASES)
def test_nothing_that_acts_comes_out(name: str, renderer: str) -> None:
    """No invisible character, no command to a CI service, no line without end."""
    shown = RENDERERS[renderer](hostile.results(name))
    assert shown
    assert not re.search(hostile.INVISIBLE, shown)
    commands = [line for line in shown.split("\n") if re.match(r"\s*::.*::", line)]
    assert all(re.match(OF_OUR_OWN, line) for line in commands) if renderer == "annotations" else not commands
    if renderer != "json":  # data in quotes, for programs
        assert not re.search(r"##(vso)?\[", shown)
    if renderer not in ("json", "html", "captured output"):
        assert max(map(len, shown.split("\n"))) < 6_000


class Tags(HTMLParser):
    """The tags of a page with the names of their attributes, and its text outside of code."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.prose = ""
        self.inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen |= {tag, *(f"{tag}.{name}" for name, _ in attrs)}
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"code", "pre", "script", "style"} & set(self.inside):
            self.prose += data


@pytest.mark.parametrize("name", CASES)
def test_html_has_no_tag_more(name: str) -> None:
    """The page has the tags and attributes that it has for a plain name; the packed data reads back as text."""
    page = reports.render("html", hostile.results(name))
    assert Tags(page).seen == Tags(reports.render("html", PLAIN)).seen
    for packed in re.findall(r'class="data">([A-Za-z0-9+/=]+)</script>', page):
        data = json.loads(zlib.decompress(base64.b64decode(packed)))
        assert data["rows"][0][0] == harmless(name)
        assert data["rows"][1][10] == 0, "the second row stands in the first"


def rendered(kind: str, name: str) -> str:
    """What a reader of Markdown makes of a report."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(reports.render(kind, hostile.results(name)))


@pytest.mark.parametrize("report", ["md", "comment"])
@pytest.mark.parametrize("name", CASES)
def test_markdown_stays_what_it_is(name: str, report: str) -> None:
    """The rendered page has the tags of a plain one, each row its cells, and no name outside of code."""
    page, plain = rendered(report, name), rendered(report, "plain")
    assert Tags(page).seen == Tags(plain).seen
    cells = [
        [len(re.findall(r"<t[dh]", row)) for row in re.findall(r"<tr>.*?</tr>", one, re.DOTALL)]
        for one in (page, plain)
    ]
    assert cells[0] == cells[1]
    assert len(set(cells[0])) <= 2  # models, and planned runs
    prose = Tags(page).prose
    assert not re.search(r"owned|example|everyone|alert|gnp", prose)


@pytest.mark.parametrize("report", ["md", "comment"])
@pytest.mark.parametrize("name", CASES)
def test_github_makes_no_links(name: str, report: str) -> None:
    """GitHub's own Markdown links nothing, and what it looks for afterwards stands in code, where it does not look."""
    cmark = pytest.importorskip("cmarkgfm")
    page = cmark.github_flavored_markdown_to_html(
        reports.render(report, hostile.results(name)), options=cmark.cmark.Options.CMARK_OPT_UNSAFE
    )
    assert "a" not in Tags(page).seen
    assert not re.search(REFERENCES, Tags(page).prose)


REFERENCES = r"(?i)@\w|#\d|\bgh-\d|\b[0-9a-f]{7,40}\b|https?://|www\."
"""What GitHub links outside of code: users, issues, commits, addresses."""


@pytest.mark.parametrize("name", CASES)
def test_json_and_snapshot_give_the_name_back(name: str) -> None:
    """What is kept is exact, and escaped where that is needed."""
    data: Any = json.loads(reports.render("json", hostile.results(name)))
    [net] = [model for model in data["models"] if model["id"] == "net"]
    assert [layer["path"] for layer in net["summary"]["layers"]] == [name, f"{name}.z"]
    kept = snapshot.render(hostile.model(name), declared="modelbudget.yaml")
    assert not re.search(hostile.INVISIBLE, kept)
    assert not re.search(r"##(vso)?\[|^\s*::", kept, re.MULTILINE)
    assert [layer.path for layer in snapshot.read(kept).layers] == [name, f"{name}.z"]


@pytest.mark.parametrize("name", [case for case in CASES if case.id in ("html", "pipe", "star", "emoji", "mention")])
def test_names_stay_readable(name: str) -> None:
    """Where nothing would act, the name is shown as it is."""
    assert name in terminal.failure(hostile.results(name)[0])
    assert name in Tags(rendered("md", name)).prose + re.sub("<[^>]+>", "", rendered("md", name)).replace(
        "&lt;", "<"
    ).replace("&gt;", ">")
