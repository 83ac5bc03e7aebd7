"""`modelbudget` and files that somebody made to hurt."""

from __future__ import annotations

import json
import os

import pytest

from tests.cli.conftest import Command
from tests.hostile_files import SNAPSHOT, of_rows
from tests.project import SMALL

FOLDER = "__model_budget__"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        pytest.param("a.json", "[" * 900_000, "a.json: nested too deeply", id="brackets"),
        pytest.param("a.json", '{\n"model": NaN}', "a.json: NaN is no number of JSON", id="no number"),
        pytest.param("a.json", '{\n"model": 7}', "a.json is not a model as modelbudget show --json prints it: model: ", id="a place"),
        pytest.param("a.json", "{\n,", "a.json:2: not JSON", id="a line"),
        pytest.param("a.yaml", of_rows("- repeat: a.0-999999 x1000000\n  layers:\n  - {path: a.*, type: T}\n"), "a.yaml: it is cut off or damaged: it stands for 1,000,000 rows", id="repeats"),
        pytest.param("a.yaml", "[" * 900_000, "nested too deeply", id="brackets in YAML"),
        pytest.param("pipe.yaml", None, "pipe.yaml is a pipe, where a file should be", id="a pipe"),
        pytest.param("m.keras", "junk", "m.keras is text, and no model that can be read", id="a model file"),
        pytest.param("m.H5", "junk", "m.H5 is text, and no model that can be read", id="a model file of the older format"),
        pytest.param("pipe.h5", None, "pipe.h5 is a pipe, where a file should be", id="a pipe for a model file"),
        pytest.param("pipe.json", None, "pipe.json is a pipe, where a file should be", id="a pipe of JSON"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_model(modelbudget: Command, name: str, text: str | None, words: str) -> None:
    """Code 2, the place, and no traceback."""
    path = modelbudget.project.path / name
    os.mkfifo(path) if text is None else path.write_text(text)
    done = modelbudget("show", name)
    assert (done.code, done.out) == (2, "")
    assert words in done.err


@pytest.mark.slow
def test_a_table_has_an_end(modelbudget: Command) -> None:
    """Of a snapshot of a few lines that stands for 200,000 rows; the totals are there, and what is left out is told."""
    row = "- repeat: a.0-199999 x200000\n  layers:\n  - {path: a.*, type: T}\n"
    modelbudget.write("a.yaml", of_rows(row))
    done = modelbudget("show", "a.yaml")
    assert done.code == 0
    assert "\n... 190,000 more rows; --json has all\n" in done.out
    assert "Total params: 0 " in done.out


def test_a_model_that_has_become_huge_is_not_compared(modelbudget: Command) -> None:
    """A few lines of a snapshot stand for 20,000 rows, and each would be looked for in the other."""
    name = f"{FOLDER}/a.yaml"
    modelbudget.write(name, of_rows("- {path: a, type: T}\n"))
    modelbudget.commit()
    modelbudget.write(name, of_rows("- repeat: a.0-19999 x20000\n  layers:\n  - {path: a.*, type: T}\n"))
    done = modelbudget("diff", "HEAD")
    assert done.code == 2
    assert f"{name}: it stands for 1 rows before and 20,000 after, too many to compare" in done.err


def test_a_model_that_show_printed_is_read_with_a_mark_before_it(modelbudget: Command) -> None:
    """As some editors save it."""
    modelbudget.project.manifest(SMALL)
    printed = modelbudget("show", "small", "--json").out
    (modelbudget.project.path / "a.json").write_bytes(b"\xef\xbb\xbf" + printed.encode())
    done = modelbudget("diff", "a.json", "small", "--json")
    assert (done.code, json.loads(done.out)[0]["status"]) == (0, "equal")


def test_odd_files_among_snapshots_hide_no_other(modelbudget: Command) -> None:
    """A pipe, a folder and junk are named; what changed is told."""
    modelbudget.project.manifest(SMALL)
    modelbudget("update")
    modelbudget.commit()
    folder = modelbudget.project.path / FOLDER
    os.mkfifo(folder / "pipe.yaml")
    (folder / "junk.yaml").write_bytes(b"format: 1\n\xff")
    (folder / "device.yaml").symlink_to("/dev/zero")
    (folder / "new.yaml").write_text(SNAPSHOT)
    done = modelbudget("diff", "HEAD")
    assert done.code == 2
    assert f"two-towers ({FOLDER}/new.yaml): added" in done.out
    for name, words in (("pipe", "is a pipe"), ("junk", "not UTF-8 text"), ("device", "is a device")):
        assert f"{FOLDER}/{name}.yaml: {words}" in done.err


@pytest.mark.parametrize("command", [("check",), ("show", "small"), ("tighten",)], ids=lambda words: words[0])
def test_what_lies_in_the_place_of_a_manifest(modelbudget: Command, command: tuple[str, ...]) -> None:
    """Is told, and no manifest of a folder above is taken in its place."""
    os.mkfifo(modelbudget.project.path / "modelbudget.yaml")
    done = modelbudget(*command)
    assert done.code == 2
    assert "modelbudget.yaml is a pipe, where a manifest should be: remove it" in done.err
