"""Snapshots that somebody made to hurt: a conflict, and nothing outside of their folder is touched.

`tests/benchmarks/hostile_files.py` measures what they cost.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_modelbudget import snapshot
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.results import SnapshotState
from pytest_modelbudget.snapshot.text import MOST_ROWS
from tests.builders import gpt, towers
from tests.hostile_files import DEAR, SNAPSHOT, SNAPSHOTS, of_rows, signed

ENTRY = ModelEntry("two-towers", build="towers:build", declared="modelbudget.yaml")
PATH = "__model_budget__/two-towers.yaml"


def write(root: Path, data: bytes) -> Path:
    """A snapshot file of that content."""
    path = root / PATH
    path.parent.mkdir()
    path.write_bytes(data)
    return path


CASES = [
    pytest.param(*case, id=name, marks=[pytest.mark.slow] if name in DEAR else []) for name, case in SNAPSHOTS.items()
]


@pytest.mark.parametrize(("text", "words"), CASES)
def test_it_is_a_conflict(tmp_path: Path, text: str, words: str) -> None:
    """Although the digest fits in most of them; what a base has of it is not known, with the same reason."""
    write(tmp_path, text.encode())
    compared = snapshot.compare(tmp_path, ENTRY, towers())
    base = snapshot.baseline(text, towers(), SNAPSHOT, name="main", path=PATH)
    assert compared.stored is SnapshotState.BROKEN
    assert words in compared.problem
    assert len(compared.problem) < 3_000
    assert base.summary is None
    assert "of the base (main) cannot be read" in base.reason


@pytest.mark.parametrize(
    ("estimates", "words"),
    [
        pytest.param("- 1", "estimates", id="a list"),
        pytest.param("  training: {recipe: x, peak_bytes: x}", "estimates.training.peak_bytes", id="a word"),
        pytest.param("  training: {recipe: [x], peak_bytes: 1}", "estimates.training.recipe", id="no words"),
        pytest.param(f"  training: {{recipe: x, peak_bytes: {'9' * 5000}}}", "a number of 5,000", id="a long number"),
        pytest.param(f"  a: {'[' * 900_000}", "nested too deeply", id="brackets"),
    ],
)
def test_estimates_of_a_base_are_not_believed(tmp_path: Path, estimates: str, words: str) -> None:
    """They are outside of the digest; of the work tree nothing is read but that they differ."""
    text = f"{SNAPSHOT}estimates:\n{estimates}\n"
    write(tmp_path, text.encode())
    assert snapshot.compare(tmp_path, ENTRY, towers()).stored is SnapshotState.RESTATED
    base = snapshot.baseline(text, towers(), SNAPSHOT, name="main", path=PATH)
    assert (base.summary, words in base.reason) == (None, True)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xef\xbb\xbf" + SNAPSHOT.encode(), id="a mark before it"),
        pytest.param(SNAPSHOT.replace("\n", "\r\n").encode(), id="windows line ends"),
        pytest.param(b"\xef\xbb\xbf" + SNAPSHOT.replace("\n", "\r\n").encode(), id="both"),
        pytest.param(SNAPSHOT.replace("\n", "\r").encode(), id="old line ends"),
    ],
)
def test_what_editors_do_is_no_change(tmp_path: Path, data: bytes) -> None:
    """The file is equal, and an update leaves it alone."""
    path = write(tmp_path, data)
    assert snapshot.compare(tmp_path, ENTRY, towers()).stored is SnapshotState.EQUAL
    assert not snapshot.write(tmp_path, ".", PATH, SNAPSHOT)
    assert path.read_bytes() == data


@pytest.mark.parametrize("data", [SNAPSHOT[:-1], f"{SNAPSHOT}\n\n"], ids=["no last line end", "lines after it"])
def test_blank_lines_at_the_end_are_no_conflict(tmp_path: Path, data: str) -> None:
    """It says the same."""
    write(tmp_path, data.encode())
    assert snapshot.compare(tmp_path, ENTRY, towers()).stored is SnapshotState.RESTATED


@pytest.mark.slow
def test_a_large_model_is_read_whole() -> None:
    """Its rows are in repeats, and it is held against nothing."""
    summary = gpt(40, 256)
    assert 10_000 < len(summary.layers) < MOST_ROWS
    assert len(snapshot.read(snapshot.render(summary, declared="x")).layers) == len(summary.layers)


def test_rows_of_a_large_model_are_held_against_a_large_one(tmp_path: Path) -> None:
    """What is too much beside the two towers is not beside a model that has as many rows."""
    text = of_rows("- repeat: a.0-10999 x11000\n  layers:\n  - {path: a.*, type: T}\n")
    assert snapshot.baseline(text, towers(), "", name="main", path=PATH).summary is None
    large = snapshot.read(text)
    assert snapshot.baseline(text, large, "", name="main", path=PATH).summary == large


@pytest.mark.parametrize("kind", ["pipe", "device", "circle", "folder"])
def test_what_is_no_file_is_neither_read_nor_written(tmp_path: Path, kind: str) -> None:
    """A pipe would be waited for; an update says so and leaves it."""
    path = tmp_path / PATH
    path.parent.mkdir()
    {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "circle": lambda: path.symlink_to(path.name),
        "folder": path.mkdir,
    }[kind]()  # fmt: skip
    compared = snapshot.compare(tmp_path, ENTRY, towers())
    assert compared.stored is SnapshotState.REFUSED
    assert f"{PATH}: " in compared.problem
    with pytest.raises(ModelBudgetError, match=r"two-towers\.yaml: "):
        snapshot.write(tmp_path, ".", PATH, SNAPSHOT)
    assert not path.is_file()
    assert list(snapshot.obsolete(tmp_path, ".", lambda *_: False)) == []


def test_no_folder_is_made_outside(tmp_path: Path) -> None:
    """Where a folder of ids is a link that leads out."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / snapshot.FOLDER).mkdir(parents=True)
    outside.mkdir()
    (root / snapshot.FOLDER / "zoo").symlink_to(outside)
    with pytest.raises(ModelBudgetError, match="link that leads out"):
        snapshot.write(root, ".", f"{snapshot.FOLDER}/zoo/deep/net.yaml", SNAPSHOT)
    assert list(outside.iterdir()) == []


def test_a_large_file_is_refused_by_its_size(tmp_path: Path) -> None:
    """Before it is read."""
    with write(tmp_path, b"").open("r+b") as file:
        file.truncate(10**12)
    compared = snapshot.compare(tmp_path, ENTRY, towers())
    assert (compared.stored, "is too large" in compared.problem) == (SnapshotState.REFUSED, True)


def test_the_digest_of_signed_is_that_of_render() -> None:
    """Otherwise the cases here would all be refused for their digest."""
    assert signed(SNAPSHOT).replace('"', "") == SNAPSHOT.replace('"', "")
