"""Snapshot files on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_modelbudget import snapshot
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.results import Snapshot, SnapshotState
from pytest_modelbudget.summary import Flops
from tests.builders import towers

ENTRY = ModelEntry("towers/two", build="towers:build", home="models", declared="modelbudget.yaml")
PATH = "models/__model_budget__/towers/two.yaml"
TEXT = snapshot.render(towers(), declared="modelbudget.yaml")


def stored(root: Path, text: str | bytes) -> Snapshot:
    """How the two-input model compares with a file of that text."""
    file = root / PATH
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return snapshot.compare(root, ENTRY, towers())


@pytest.mark.parametrize(
    ("text", "expected", "words"),
    [
        pytest.param(TEXT, SnapshotState.EQUAL, "", id="equal"),
        pytest.param(TEXT.replace("\n", "\r\n"), SnapshotState.EQUAL, "", id="windows line ends"),
        pytest.param(TEXT.replace("declared: modelbudget.yaml", "declared: pyproject.toml"), SnapshotState.RESTATED, "", id="declared elsewhere"),
        pytest.param(snapshot.render(replace(towers(), flops=Flops(7, rules=0)), declared="x"), SnapshotState.RESTATED, "", id="counted by older rules"),
        pytest.param(snapshot.render(replace(towers(), flops=Flops(7)), declared="x"), SnapshotState.DIFFERENT, "", id="other flops"),
        pytest.param(TEXT.replace("params: 6201", "params: 6202", 1), SnapshotState.BROKEN, f"{PATH}:17: the digest", id="edited"),
        pytest.param(f"<<<<<<< HEAD\n{TEXT}", SnapshotState.BROKEN, f"{PATH}:1: has a git conflict marker", id="conflict"),
        pytest.param(b"\xff\xfe\x00", SnapshotState.BROKEN, f"{PATH}:1: not UTF-8 text (binary junk", id="binary"),
        pytest.param(TEXT.replace("format: 1", "format: 9"), SnapshotState.REFUSED, "newer pytest-modelbudget", id="newer format"),
    ],
)  # fmt: skip
def test_compare(tmp_path: Path, text: str | bytes, expected: SnapshotState, words: str) -> None:
    """Each state of a committed file is told apart, and problems name the file and line."""
    found = stored(tmp_path, text)
    assert found.stored is expected
    assert words in found.problem


def test_missing(tmp_path: Path) -> None:
    """No file is a state of its own, and comparing writes nothing."""
    assert snapshot.compare(tmp_path, ENTRY, towers()).stored is SnapshotState.MISSING
    assert list(tmp_path.iterdir()) == []


def test_a_folder_or_a_link_out_of_the_tree_is_refused(tmp_path: Path) -> None:
    """Neither is read through nor written over."""
    root = tmp_path / "project"
    file = root / PATH
    file.mkdir(parents=True)
    assert "is a folder" in snapshot.compare(root, ENTRY, towers()).problem
    with pytest.raises(ModelBudgetError, match="is a folder"):
        snapshot.write(root, "models", PATH, TEXT)
    file.rmdir()
    (tmp_path / "outside.yaml").write_text(TEXT)
    file.symlink_to(tmp_path / "outside.yaml")
    assert "link that leads out" in snapshot.compare(root, ENTRY, towers()).problem
    with pytest.raises(ModelBudgetError, match="link that leads out"):
        snapshot.write(root, "models", PATH, "other")
    assert (tmp_path / "outside.yaml").read_text() == TEXT


def test_a_folder_that_is_a_link_out_of_the_tree_is_not_written_into(tmp_path: Path) -> None:
    """The folder counts like the file."""
    root, outside = tmp_path / "project", tmp_path / "outside"
    (root / "models").mkdir(parents=True)
    outside.mkdir()
    (root / "models/__model_budget__").symlink_to(outside)
    with pytest.raises(ModelBudgetError, match="link that leads out"):
        snapshot.write(root, "models", PATH, TEXT)
    assert list(outside.iterdir()) == []


def test_write_is_skipped_when_equal(tmp_path: Path) -> None:
    """An unchanged file keeps its time stamp; nothing else is left in the folder."""
    assert snapshot.write(tmp_path, "models", PATH, TEXT)
    before = (tmp_path / PATH).stat().st_mtime_ns
    assert not snapshot.write(tmp_path, "models", PATH, TEXT)
    assert (tmp_path / PATH).stat().st_mtime_ns == before
    assert [file.name for file in (tmp_path / PATH).parent.iterdir()] == ["two.yaml"]
    assert (tmp_path / PATH).read_bytes() == TEXT.encode()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing goes to a file beside it first, so a full disk loses nothing."""
    snapshot.write(tmp_path, "models", PATH, TEXT)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ModelBudgetError, match=r"two.yaml: cannot be written \(No space left on device\)"):
        snapshot.write(tmp_path, "models", PATH, "other")
    assert (tmp_path / PATH).read_text() == TEXT
    assert [file.name for file in (tmp_path / PATH).parent.iterdir()] == ["two.yaml"]


@pytest.mark.parametrize(
    ("model", "home", "path"),
    [
        ("net", ".", "__model_budget__/net.yaml"),
        ("vision/net", "models", "models/__model_budget__/vision/net.yaml"),
        ("timm:net", ".", "__model_budget__/timm_net.yaml"),
    ],
)
def test_path_for(model: str, home: str, path: str) -> None:
    """A file beside the declaring one; a colon is no character for file names everywhere."""
    assert snapshot.path_for(ModelEntry(model, build="a:b", home=home)) == path


def test_obsolete_names_only_our_files(tmp_path: Path) -> None:
    """Files that are not snapshots, and those of other declaring files, are nobody's business."""
    snapshot.write(tmp_path, "models", PATH, TEXT)
    (tmp_path / "models/__model_budget__/notes.yaml").write_text("declared by: hand\n")
    seen: list[tuple[str, str]] = []

    def known(path: str, declared: str) -> bool:
        seen.append((path, declared))
        return False

    assert list(snapshot.obsolete(tmp_path, "models", known)) == [PATH]
    assert seen == [(PATH, "modelbudget.yaml")]
