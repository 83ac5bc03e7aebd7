"""Names that a model brings along are data, in a whole run: snapshot, terminal, annotations, and every report."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pytest_modelbudget import snapshot
from pytest_modelbudget.reports import REPORTS
from tests import hostile
from tests.project import Project

NAMES = [name for name in hostile.NAMES.values() if "\0" not in name]  # the source of a builder cannot hold it
KINDS = [kind for kind in REPORTS if kind != "json"]


class Tags(HTMLParser):
    """The tags of a page, with the names of their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen |= {tag, *(f"{tag}.{name}" for name, _ in attrs)}


def tags(page: Path) -> set[str]:
    """Every tag and attribute of a page, or of what Markdown is outside of its fenced blocks."""
    parser = Tags()
    text = page.read_text(encoding="utf-8")
    parser.feed(re.sub(r"^(`{3,})text\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE))
    return parser.seen


@pytest.fixture
def job(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project in a job of GitHub Actions, whose log is read for commands."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    project.manifest(
        """
        models:
          net: {build: "names:net", inputs: "float32[B, 8]", budgets: {params: 1, layers: {"*": {params: 1}}}}
        """
    )
    return project


def build(project: Project, names: list[str]) -> None:
    """A model whose layers have these names, and which prints them."""
    project.write(
        "names.py",
        f"from fakenet import Model\nNAMES = {names!r}\n\n"
        "def net():\n    print(*NAMES, sep='\\n')\n    return Model({name: (8, 8) for name in NAMES})\n",
    )


def run(project: Project, *flags: str) -> str:
    """What a run prints that writes every report, `out.KIND`."""
    flags = ("-p", "no:pytest_github_actions_annotate_failures", *flags)
    return project.run(*flags, *(f"--model-budget-report={kind}:out.{kind}" for kind in REPORTS)).stdout.str()


def is_harmless(text: str) -> bool:
    """No character that acts, and no command but our own."""
    commands = [line for line in text.splitlines() if re.match(r"\s*::.*::", line)]
    ours = all(
        re.match(r"::(error|warning|notice) file=modelbudget.yaml,line=2,title=net%3A ", line) for line in commands
    )
    return ours and not re.search(hostile.INVISIBLE, text) and not re.search(r"##(vso)?\[", text)


def test_hostile_layer_names_are_harmless_in_a_run(job: Project) -> None:
    """They are shown as text that cannot act, and the snapshot and JSON give them back as they were."""
    build(job, ["plain"])
    run(job, "--model-budget-update")
    plain = tags(job.path / "out.html")
    build(job, NAMES)
    shown = [run(job, "-v", "--model-budget-update"), run(job)]
    assert "CHANGED" not in shown[1], "the snapshot reads back as what it was"
    shown += [(job.path / f"out.{kind}").read_text(encoding="utf-8") for kind in KINDS]
    kept = job.snapshot("net").read_text(encoding="utf-8")
    assert [text for text in (*shown, kept) if not is_harmless(text)] == []
    assert tags(job.path / "out.html") <= plain
    assert [layer.path for layer in snapshot.read(kept).layers] == NAMES
    [model] = json.loads((job.path / "out.json").read_text(encoding="utf-8"))["models"]
    assert [layer["path"] for layer in model["summary"]["layers"]] == NAMES


def test_hostile_error_texts_are_harmless(job: Project) -> None:
    """What a builder raises is data too."""
    job.write("names.py", f"def net():\n    raise ValueError({''.join(NAMES)[:3000]!r})\n")
    shown = [run(job), *((job.path / f"out.{kind}").read_text(encoding="utf-8") for kind in KINDS)]
    assert [text for text in shown if not is_harmless(text)] == []
    assert tags(job.path / "out.md") == {"details", "summary", "code"}
    assert "img" not in tags(job.path / "out.html")
