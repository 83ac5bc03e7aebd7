"""Names that a model brings along are data: in the snapshot, the terminal, Markdown, HTML and JSON."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from pytest_modelbudget import snapshot
from tests.project import Project

NAMES = {
    "html": "<img src=x onerror=alert(1)>",
    "closing tag": "</pre></td></details><script>alert(1)</script>",
    "workflow command": "::error::owned",
    "workflow command with a file": "::warning file=a.py,line=1::owned",
    "older workflow command": "##[error]owned",
    "encoded newline": "a%0A::error::owned",
    "pipe": "a|b|c",
    "backtick": "a`b```c",
    "clear screen": "a\x1b[2Jb",
    "right to left": "a\u202egnp.exe",
    "zero width": "a\u200bb\u2066c",
    "newline": "a\n::error::owned\n| x | y |",
    "carriage return": "a\rOK",
    "yaml": "a: {b: [c, &d *d]} # e",
    "quotes": "\"'\\",
    "template": "{{ 7 * 7 }}{% raw %}",
    "markup": "[bold red]x[/bold red] [link](http://example.org)",
    "mention": "@everyone #1 https://example.org",
    "very long": "x" * 10_000,
    "line separator": "a\u2028b\x85c",
    "emoji": "🧨層",
    "star": "a*b.0",
}
BIDI = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")


class Tags(HTMLParser):
    """The tags of a page, with the names of their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen |= {tag, *(f"{tag}.{name}" for name, _ in attrs)}


def tags(page: str) -> set[str]:
    """Every tag and attribute in `page`."""
    parser = Tags()
    parser.feed(page)
    return parser.seen


def reports(project: Project, name: str) -> tuple[str, str, str, str]:
    """Terminal, Markdown, HTML and JSON of a run over a model that breaks a limit of the layer called `name`."""
    project.write(
        "names.py", f"from fakenet import Model\ndef net():\n    return Model({{{name!r}: (32, 64), 'z': (64, 1)}})\n"
    )
    project.manifest(
        """
        models:
          net: {build: "names:net", inputs: "float32[B, 32]", budgets: {params: 1, layers: {"*": {params: 1}}}}
        """
    )
    result = project.update("-v", *(f"--model-budget-report={kind}:out.{kind}" for kind in ("md", "html", "json")))
    assert result.ret == 1
    read = [(project.path / f"out.{kind}").read_text(encoding="utf-8") for kind in ("md", "html", "json")]
    return result.stdout.str(), read[0], read[1], read[2]


@pytest.mark.parametrize("name", [pytest.param(text, id=word) for word, text in NAMES.items()])
def test_a_hostile_layer_name_is_harmless_everywhere(project: Project, name: str) -> None:
    """It is shown as text that cannot act, and the snapshot and JSON give it back as it was."""
    terminal, markdown, html, data = reports(project, name)

    assert [layer["path"] for layer in json.loads(data)["models"][0]["summary"]["layers"]] == [name, "z"]
    text = project.snapshot("net").read_text(encoding="utf-8")
    assert [layer.path for layer in snapshot.read(text).layers] == [name, "z"]
    assert not BIDI.search(text)
    project.run().stdout.no_fnmatch_line("*CHANGED*")

    for shown in (terminal, markdown, html):
        assert not BIDI.search(shown)
        assert not re.search(r"^\s*::[a-z]", shown, re.MULTILINE)
        assert "##[" not in shown
        assert max(map(len, shown.splitlines())) < 2_500

    harmless = tags(reports(project, "plain")[2])
    assert tags(html) <= harmless
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert tags(outside) == {"details", "summary"}
    assert name not in outside


def test_hostile_error_texts_are_harmless(project: Project) -> None:
    """What a builder raises is data too."""
    project.write("names.py", f"def net():\n    raise ValueError({''.join(NAMES.values())[:3000]!r})\n")
    project.manifest("models: {net: names:net}")
    result = project.run("--model-budget-report=md:out.md", "--model-budget-report=html:out.html")
    assert result.ret == 1
    for shown in (result.stdout.str(), *((project.path / f"out.{kind}").read_text() for kind in ("md", "html"))):
        assert not BIDI.search(shown)
        assert not re.search(r"^\s*::[a-z]", shown, re.MULTILINE)
    assert "img" not in tags((project.path / "out.html").read_text())
