"""What waits to be sent is data: nothing of it leads out of its entry, and nothing lies in the way of the sender."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.system import processes
from pytest_modelbudget.trackers import mlflow
from pytest_modelbudget.trackers.mlflow import appending, content, facts, outbox, store
from pytest_modelbudget.trackers.mlflow.facts import RepositoryFacts
from tests.builders import towers
from tests.edits import put
from tests.gitrepo import repository
from tests.trackers.mlflow_helpers import result

TARGET = "http://127.0.0.1:9"


def kept(root: Path, number: int = 1) -> Path:
    """An entry in the outbox of `root`."""
    now_ms = 1_700_000_000_000 + number
    key = f"{number:032x}"
    entry, files = content.make_entry(
        [result(towers())], RepositoryFacts("nets"), target=TARGET, key=key, now_ms=now_ms, exit_failed=False
    )
    return outbox.write(outbox.project_folder(root) / "outbox", entry, files)


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The entry with something else in it."""
    data = json.loads((path / "entry.json").read_text())
    change(data)
    (path / "entry.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(put("job", "folder", value="/etc"), "job.folder", id="an absolute folder"),
        pytest.param(put("job", "folder", value="../.."), "job.folder", id="a folder above"),
        pytest.param(put("job", "folder", value="job/../../x"), "job.folder", id="a folder above in it"),
        pytest.param(put("job", "folder", value=""), "job.folder", id="no folder"),
        pytest.param(put("job", "folder", value="job\n"), "job.folder", id="a line end"),
        pytest.param(put("history", 0, "slug", value="../../x"), "history.0.slug", id="a slug above"),
        pytest.param(put("history", 0, "slug", value="/etc"), "history.0.slug", id="an absolute slug"),
        pytest.param(put("history", 0, "key", value="x' OR '1"), "history.0.key", id="a key that is a condition"),
        pytest.param(put("history", 0, "key", value="a\ncurl x|sh"), "history.0.key", id="a key of two lines"),
        pytest.param(put("experiment", value="production"), "experiment", id="an experiment of others"),
        pytest.param(put("job", "status", value="RUNNING"), "job.status", id="a status"),
        pytest.param(put("job", "metrics", value={"a": "1"}), "job.metrics.a", id="a metric of text"),
        pytest.param(put("job", "metrics", value=[1]), "job.metrics", id="metrics as a list"),
        pytest.param(put("job", "tags", value={"a": 1}), "job.tags.a", id="a tag that is a number"),
        pytest.param(put("job", "tags", value={"a": "x" * 9000}), "job.tags.a", id="a long tag"),
        pytest.param(put("created_ms", value=10**40 - 1), "created_ms", id="a far time"),
        pytest.param(put("created_ms", value=True), "created_ms", id="true as a time"),
        pytest.param(put("history", value=7), "history", id="no histories"),
        pytest.param(put("more", value=7), "more", id="an unknown key"),
        pytest.param(put("schema", value=[2]), "another version", id="no version"),
    ],
)
def test_an_entry_that_says_something_else_is_damaged(tmp_path: Path, change: Callable[..., None], words: str) -> None:
    """It is not sent, its neighbour is, and the reason is told with the key."""
    good, bad = kept(tmp_path, 1), kept(tmp_path, 2)
    changed(bad, change)
    with pytest.raises(outbox.UnreadableEntry, match=words):
        outbox.read(bad)
    assert outbox.count_waiting(good.parent, TARGET) == (1, 0)
    (reason,) = outbox.damaged(good.parent)
    assert bad.name in reason
    assert words in reason


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 900_000, id="brackets"),
        pytest.param('{"schema": 2, "target": NaN}', id="no number"),
        pytest.param('{"schema": ' + "2" * 900_000 + "}", id="a long number"),
        pytest.param("[]", id="a list"),
        pytest.param("", id="empty"),
        pytest.param("\ufeff{}", id="a mark before nothing"),
    ],
)
def test_an_entry_that_is_no_entry_is_damaged(tmp_path: Path, text: str) -> None:
    """With a reason."""
    path = kept(tmp_path)
    (path / "entry.json").write_text(text)
    with pytest.raises(outbox.UnreadableEntry, match=path.name):
        outbox.read(path)


def test_an_entry_of_ours_is_good(tmp_path: Path) -> None:
    """What the cases here change is all that is wrong with them."""
    path = kept(tmp_path)
    outbox.check_files(path)
    assert outbox.read(path).target == TARGET
    assert list(outbox.damaged(path.parent)) == []


@pytest.mark.parametrize("name", ["job/key", "entry.json", "done", "job/models.json", "deep"])
@pytest.mark.parametrize("kind", ["link", "pipe", "link to a folder"])
def test_links_and_pipes_in_an_entry_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    """Whatever they are called: a secret is not read, a pipe not waited for, and nothing is written through a link."""
    path = kept(tmp_path / "project")
    secret = tmp_path / "secret"
    secret.write_text("sekrit")
    (path / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path / name)
    else:
        (path / name).symlink_to(secret if kind == "link" else tmp_path)
    with pytest.raises(outbox.UnreadableEntry, match="is a link or no file"):
        outbox.check_files(path)
    assert outbox.done_keys(path) <= {"sekrit"}
    if name == "entry.json":
        with pytest.raises(outbox.UnreadableEntry):
            outbox.read(path)
    if name == "done":
        outbox.note_done(path, "key")
        assert secret.read_text() == "sekrit"


def test_a_hard_link_in_an_entry_is_refused(tmp_path: Path) -> None:
    """It is a file from elsewhere under another name."""
    path = kept(tmp_path)
    (tmp_path / "secret").write_text("sekrit")
    os.link(tmp_path / "secret", path / "job" / "text")
    with pytest.raises(outbox.UnreadableEntry, match="text is a link or no file"):
        outbox.check_files(path)


def test_an_entry_is_bounded(tmp_path: Path) -> None:
    """Sparse files count as what they say."""
    path = kept(tmp_path)
    with (path / "job" / "large").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(outbox.UnreadableEntry, match="is too large"):
        outbox.check_files(path)


@pytest.mark.parametrize("name", ["", "outbox", "mlflow.db", "artifacts", "sender.lock", ".gitignore"])
def test_a_link_in_the_projects_own_folder_is_refused(tmp_path: Path, name: str) -> None:
    """Old entries and drafts are removed from there: a link to the user's home must not be taken for the outbox."""
    home, root = tmp_path / "home", tmp_path / "project"
    (home / ".ssh").mkdir(parents=True)
    os.utime(home / ".ssh", (0, 0))
    (root / ".modelbudget").mkdir(parents=True)
    if not name:
        (root / ".modelbudget").rmdir()
    (root / ".modelbudget" / name).symlink_to(home)
    with pytest.raises(ModelBudgetError, match="is a link"):
        outbox.project_folder(root)
    assert mlflow.send_outbox(root) == 1
    assert [path.name for path in home.iterdir()] == [".ssh"]


def test_only_entries_and_drafts_of_ours_are_removed(tmp_path: Path) -> None:
    """Other folders and links in the outbox are nobody's business."""
    paths = [kept(tmp_path, number) for number in range(3)]
    folder = paths[0].parent
    (tmp_path / "elsewhere").mkdir()
    for name in (".config", "notes"):
        (folder / name).mkdir()
        os.utime(folder / name, (0, 0))
    (folder / "1700000000099-0123456789ab").symlink_to(tmp_path / "elsewhere")
    outbox.trim(folder, most_entries=1)
    assert {path.name for path in folder.iterdir()} == {
        ".config",
        "notes",
        "1700000000099-0123456789ab",
        paths[-1].name,
    }
    assert outbox.entries(folder) == [paths[-1]]


def test_an_outbox_that_was_committed_is_not_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours is ignored by git, so what git has of it comes from somebody else; taken out of git it is ours again."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    repo = repository(tmp_path / "repo")
    kept(repo.path)
    assert mlflow.send_outbox(repo.path) == 0
    assert "nothing is waiting" in capsys.readouterr().out
    repo.git("add", "--force", ".modelbudget/outbox")
    repo.git("commit", "--quiet", "--message", "an outbox")
    assert mlflow.send_outbox(repo.path) == 1
    assert (
        ".modelbudget/outbox is committed, so anybody may have written it: git rm -r --cached"
        in capsys.readouterr().out
    )
    repo.git("rm", "-r", "--quiet", "--cached", ".modelbudget/outbox")
    assert mlflow.send_outbox(repo.path) == 0


def test_damaged_entries_are_told_though_nothing_else_waits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And `modelbudget mlflow send` says by its status that something is left."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", TARGET)
    changed(kept(tmp_path), put("job", "folder", value="/etc"))
    assert mlflow.send_outbox(tmp_path) == 1
    assert "job.folder" in capsys.readouterr().out


def test_facts_run_no_program_of_the_repository(tmp_path: Path) -> None:
    """Whether something is not committed is asked without the monitor that its configuration names."""
    repo = repository(tmp_path / "repo")
    repo.commit(file="1")
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    for name in ("core.fsmonitor", "core.pager", "core.sshCommand", "diff.external"):
        repo.git("config", name, str(hook))
    (repo.path / "file").write_text("2")
    assert facts.gather(repo.path, {}).dirty
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_no_module_of_the_projects_folder_is_imported(tmp_path: Path) -> None:
    """The sender starts in it; a module there must not run in place of one of ours or of Python's."""
    for name in ("json.py", "mlflow.py", "pytest_modelbudget.py", "runpy.py"):
        (tmp_path / name).write_text("open('ran', 'w')\nraise SystemExit(9)\n")
    *start, code = processes.module_command("pytest_modelbudget.trackers.mlflow.sender")
    code = code.replace("run_name='__main__'", "run_name='imported'")
    done = subprocess.run([*start, code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("file:///home/ada/nets/.modelbudget/artifacts/modelbudget/nets/1/artifacts", True),
        ("file:///home/ada/.ssh", False),
        ("file:///home/ada/nets/.modelbudget/artifacts/../../../.ssh", False),
        ("file:///home/ada/nets/.modelbudget/artifacts/%2e%2e/%2e%2e/x", False),
        ("file://host/.modelbudget/artifacts/x", False),
        ("s3://bucket/.modelbudget/artifacts/x", False),
        ("http://example.org/.modelbudget/artifacts/x", False),
        ("/home/ada/.modelbudget/artifacts/x", False),
    ],
)
def test_artifacts_of_the_local_store_stay_beside_it(uri: str, expected: bool) -> None:
    """A store that somebody committed names any place."""
    assert store._beside_store(uri) is expected


def archived(path: Path, data: bytes) -> None:
    """The entry with its model in the archive, as of many models, with that as its result."""
    for file in (path / "job" / "models" / "two-towers").iterdir():
        file.unlink()
    with zipfile.ZipFile(path / "job" / "all-models.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("two-towers/result.json", data)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda path: archived(path, b" " * 9_000_001), "is too large", id="a bomb"),
        pytest.param(lambda path: archived(path, b"[" * 900_000), "nested too deeply", id="brackets"),
        pytest.param(lambda path: archived(path, b'{"summary": {"layers": 7}}'), "model: is missing", id="no summary"),
        pytest.param(lambda path: archived(path, b"\xff"), "not UTF-8", id="no text"),
        pytest.param(
            lambda path: (path / "job/models/two-towers/result.json").unlink(), "result of two-towers", id="nothing"
        ),
        pytest.param(lambda path: (path / "job/all-models.zip").write_text("x"), "not a zip file", id="no archive"),
    ],
)
def test_a_result_that_is_none_is_damage(
    tmp_path: Path, spoil: Callable[[Path], object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry is told as damaged, and the sender goes on with the next."""
    monkeypatch.setattr(appending, "_MOST_BYTES", 9_000_000)
    path = kept(tmp_path)
    spoil(path)
    (model,) = outbox.read(path).history
    with pytest.raises(outbox.UnreadableEntry, match=words):
        appending._Summaries(path / "job").of(model)
