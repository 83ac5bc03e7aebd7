"""Snapshots of any model, and what becomes of their text when it is damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from hypothesis import strategies as st

from pytest_modelbudget import snapshot
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.results import SnapshotState
from pytest_modelbudget.summary import Summary
from tests.fuzz import strategies
from tests.fuzz.strategies import attempted, fuzzed

ENTRY = ModelEntry("net", build="a:b", declared="modelbudget.yaml")
PATH = snapshot.path_for(ENTRY)


def text_of(summary: Summary) -> str:
    """Its snapshot."""
    return snapshot.render(summary, declared=ENTRY.declared)


def kept(summary: Summary) -> Summary:
    """What a snapshot keeps of it."""
    return replace(summary, layers=tuple(replace(layer, flops=None) for layer in summary.layers))


@fuzzed(strategies.summaries)
def test_every_model_is_read_back(summary: Summary) -> None:
    """The text is YAML of which nothing that is compared is lost, and rendering it again gives the same bytes."""
    text = text_of(summary)
    yaml.safe_load(text)
    assert snapshot.read(text) == kept(summary)
    assert text_of(snapshot.read(text)) == text


FRAGMENTS = st.sampled_from([
    "\n", "\r\n", "\u2028", " ", "#", "0", "9", "-", ":", "{}", "[]", "null", "~", "\t", "\x00", "\ufeff", "---\n", "...\n",
    "layers: []\n", "model: other\n", "digest: 0\n", "format: 1\n", "params: 0\n", "estimates:\n", "estimates: {}\n",
    "<<<<<<< HEAD\n", "=======\n", ">>>>>>> b\n", "&a ", "*a", "!!timestamp ", "!!python/name:os.system ", "? ",
    "%YAML 1.2\n", "<<: {layers: []}\n", "'", '"', "x2", "é",
])  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """The text with lines or characters deleted, repeated, moved, changed or put in."""
    for _ in range(draw(st.integers(1, 3))):
        lines = text.splitlines(keepends=True)
        at = draw(st.integers(0, max(0, len(lines) - 1)))
        where = draw(st.integers(0, len(text)))
        match draw(st.sampled_from(["delete", "repeat", "move", "insert", "cut", "put in", "drop", "flip"])):
            case "delete":
                text = "".join(lines[:at] + lines[at + 1 :])
            case "repeat":
                text = "".join(lines[: at + 1] + lines[at:])
            case "move":
                text = "".join(lines[:at] + lines[at + 1 :] + lines[at : at + 1])
            case "insert":
                text = "".join([*lines[: at + 1], draw(FRAGMENTS), *lines[at + 1 :]])
            case "cut":
                text = text[:where]
            case "put in":
                text = text[:where] + draw(FRAGMENTS) + text[where:]
            case "drop":
                text = text[:where] + text[where + 1 :]
            case "flip":
                text = text[:where] + draw(st.characters(exclude_categories=["Cs"])) + text[where + 1 :]
    return text


def content(text: str) -> Any:
    """What a YAML reader makes of what counts: not where it was declared, the digest and the estimates."""
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, AttributeError, ValueError):  # what PyYAML raises at tags that do not fit
        return None
    return {key: value for key, value in data.items() if key not in ("format", "declared", "digest", "estimates")}


def before_estimates(text: str) -> str:
    """The part that is compared."""
    return text.partition("\nestimates:\n")[0]


def rows(text: str) -> Any:
    """The rows that a reader takes from it; None where it refuses them."""
    summary, _ = attempted(snapshot.read, text)
    return summary and summary.layers


@fuzzed(st.data(), strategies.summaries)
def test_damage_is_never_taken_for_the_same(data: st.DataObject, summary: Summary) -> None:
    """A damaged file is a conflict or a change, and passes only where it still says the same in every line."""
    fresh = text_of(summary)
    text = data.draw(damaged(fresh))
    with TemporaryDirectory() as folder:
        file = Path(folder, PATH)
        file.parent.mkdir()
        file.write_bytes(text.encode())
        seen = snapshot.compare(Path(folder), ENTRY, summary)
    if seen.stored in (SnapshotState.EQUAL, SnapshotState.RESTATED):
        wanted = content(fresh)
        assert content(text) == wanted or content(before_estimates(text)) == wanted
        assert rows(text) in (None, kept(summary).layers)  # a base takes them from there
    else:
        assert seen.stored in (SnapshotState.DIFFERENT, SnapshotState.BROKEN, SnapshotState.REFUSED)
        assert seen.stored is SnapshotState.DIFFERENT or PATH in seen.problem
