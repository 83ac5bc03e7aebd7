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
from pytest_modelbudget.summary.totals import Totals
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


SHARING = [replace(ENTRY, id=name, snapshot="totals") for name in ("a", "b", "net")]
TOTALS_PATH = snapshot.path_for(SHARING[0])


@fuzzed(strategies.summaries)
def test_every_line_of_totals_is_read_back(summary: Summary) -> None:
    """It is one line of YAML that says all totals of the model, and that its rows are the same."""
    text = snapshot.text_for(SHARING[0], summary)
    assert text.split("\n") == text.splitlines() == [text]
    yaml.safe_load(text)
    totals, declared = snapshot.read_line(text)
    assert (totals, declared) == (replace(Totals.of(summary), model="a"), ENTRY.declared)


@fuzzed(st.data(), strategies.summaries, strategies.summaries)
def test_damage_of_a_file_of_totals_costs_what_it_touches(
    data: st.DataObject, summary: Summary, other: Summary
) -> None:
    """A model passes only where its whole line is there; damage is never taken for another model either."""
    models = list(zip(SHARING, (summary, other, summary), strict=True))
    lines = {entry.id: snapshot.text_for(entry, model) for entry, model in models}
    new = {"c": snapshot.text_for(replace(ENTRY, id="c", snapshot="totals"), other)}
    with TemporaryDirectory() as folder:
        snapshot.write_lines(Path(folder), ".", TOTALS_PATH, lines)
        file = Path(folder, TOTALS_PATH)
        text = data.draw(damaged(file.read_bytes().decode()))
        file.write_bytes(text.encode())
        seen = {entry.id: snapshot.compare(Path(folder), entry, model) for entry, model in models}
        attempted(snapshot.write_lines, Path(folder), ".", TOTALS_PATH, new)
        after = {entry.id: snapshot.compare(Path(folder), entry, model) for entry, model in models}
    for name, stored in seen.items():
        whole = lines[name] in text.replace("\r\n", "\n").split("\n")
        failed = stored.stored in (SnapshotState.MISSING, SnapshotState.BROKEN, SnapshotState.REFUSED)
        assert failed or (whole and stored.stored is SnapshotState.EQUAL)
        assert not failed or stored.stored is SnapshotState.MISSING or TOTALS_PATH in stored.problem
        if stored.stored is SnapshotState.EQUAL:  # what is written for another model loses none
            assert after[name].stored is SnapshotState.EQUAL
        assert whole or after[name].stored not in (SnapshotState.EQUAL, SnapshotState.RESTATED)
