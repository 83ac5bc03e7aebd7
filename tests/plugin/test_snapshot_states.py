"""Every state a committed snapshot can be in: what is said, what is written, and the exit code."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_modelbudget.summary import FLOP_RULES
from pytest_modelbudget.system import writing
from tests.project import SMALL, Project


def test_a_missing_snapshot_fails_and_is_never_written(project: Project) -> None:
    """A rerun cannot turn it green; the message has the command that writes it."""
    project.manifest(SMALL)
    for _ in range(2):
        result = project.run()
        result.assert_outcomes(failed=1)
        assert result.ret == 1
        result.stdout.fnmatch_lines(
            [
                "small: NO SNAPSHOT",
                "*no __model_budget__/small.yaml yet (counted 2,048 params)*",
                'create:  pytest --model-budget-update "modelbudget.yaml::small"',
                "NO SNAPSHOT modelbudget.yaml::small - not written: run with --model-budget-up*",
            ]
        )
        result.stdout.no_fnmatch_line("* written")
    assert project.snapshots() == {}


def test_update_writes_and_the_next_run_is_clean(project: Project) -> None:
    """Exit 0, a line that counts what was written, and a check that passes."""
    project.manifest(SMALL)
    result = project.update()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["small *written", "snapshots: wrote 1, 0 unchanged"])
    text = project.snapshot("small").read_bytes()
    assert text.startswith(b"# snapshot of pytest-modelbudget;")
    assert b"\r" not in text
    assert project.run().ret == 0


def test_a_second_update_leaves_the_file_alone(small: Project) -> None:
    """The same bytes, and not even touched."""
    before = small.snapshots()
    os.utime(small.snapshot("small"), (1, 1))
    result = small.update()
    result.stdout.fnmatch_lines(["snapshots: wrote 0, 1 unchanged"])
    assert small.snapshots() == before
    assert small.snapshot("small").stat().st_mtime == 1


@pytest.mark.parametrize(
    ("width", "total", "row"),
    [
        pytest.param(65, "params 2,048 -> 2,080  (+32, +1.56%)", "in*out: 32*64 = 2,048 -> 32*65 = 2,080", id="larger"),
        pytest.param(
            10, "params 2,048 -> 320  (-1,728, -84.38%)", "in*out: 32*64 = 2,048 -> 32*10 = 320", id="smaller"
        ),
    ],
)
def test_a_changed_model_fails_with_its_rows(small: Project, width: int, total: str, row: str) -> None:
    """Also when it is smaller; nothing is written until the user accepts."""
    before = small.snapshots()
    small.write("zoo.py", f"from fakenet import Model\ndef small():\n    return Model(dense=(32, {width}))\n")
    result = small.run()
    result.assert_outcomes(failed=1)
    flat = " ".join(result.stdout.str().split())
    assert total.replace("  ", " ") in flat
    result.stdout.fnmatch_lines(
        [
            "small: CHANGED",
            "*differs from __model_budget__/small.yaml:",
            f"*~ dense *{row}*",
            "*= 0 other rows unchanged",
            'accept:  pytest --model-budget-update "modelbudget.yaml::small"',
            "CHANGED modelbudget.yaml::small - params 2,048 -> *",
        ]
    )
    assert small.snapshots() == before
    accepted = small.update()
    assert accepted.ret == 0
    accepted.stdout.fnmatch_lines(["snapshots: wrote 1, 0 unchanged"])
    assert small.run().ret == 0


def test_added_and_removed_layers_are_named(small: Project) -> None:
    """A new layer reads `+`, a lost one `-`."""
    small.write("zoo.py", "from fakenet import Model\ndef small():\n    return Model(stem=(32, 8), head=(8, 2))\n")
    small.run().stdout.fnmatch_lines(["*- dense *2,048 params*", "*+ stem *256 params*", "*+ head *16 params*"])


def test_update_of_a_model_over_budget_still_fails(project: Project) -> None:
    """The snapshot is a record, the budget a limit: both are told."""
    project.manifest(SMALL + "        budgets: {params: 1_000}\n")
    result = project.update()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*params: 2,048 > 1,000 (+1,048, +104.8%)*", "*OVER BUDGET written*"])
    assert project.run().ret == 1


def test_update_takes_the_selected_models_only(project: Project) -> None:
    """What is not selected is neither written nor deleted."""
    project.manifest(SMALL + '      other: {build: zoo:two_layers, inputs: "float32[B, 32]"}\n')
    project.update("-k", "other").assert_outcomes(passed=1, deselected=1)
    assert list(project.snapshots()) == ["__model_budget__/other.yaml"]


def rewrite(change: Callable[[str], str]) -> Callable[[Path], object]:
    """A change of a file's text."""
    return lambda path: path.write_text(change(path.read_text()))


def conflict(text: str) -> str:
    """What git leaves when both sides changed the totals."""
    return text.replace("params: 2048\n", "<<<<<<< ours\nparams: 2048\n=======\nparams: 4096\n>>>>>>> theirs\n", 1)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(
            rewrite(conflict), "__model_budget__/small.yaml:10: has a git conflict marker*", id="conflict markers"
        ),
        pytest.param(
            rewrite(lambda text: text[:-30]), "__model_budget__/small.yaml:*cut off or damaged*", id="cut in a row"
        ),
        pytest.param(
            rewrite(lambda text: text.partition("layers:")[0]),
            "__model_budget__/small.yaml: *cut off*",
            id="cut before the rows",
        ),
        pytest.param(rewrite(lambda _: ""), "__model_budget__/small.yaml: *empty, cut off or damaged*", id="empty"),
        pytest.param(
            rewrite(lambda text: text.replace("params: 2048\n", "params: 2049\n", 1)),
            "__model_budget__/small.yaml:16: the digest does not fit*",
            id="edited total",
        ),
        pytest.param(
            rewrite(lambda text: text.replace("kernel 32x64", "kernel 32x65")),
            "__model_budget__/small.yaml:16: the digest does not fit*",
            id="edited row",
        ),
        pytest.param(
            lambda path: path.write_bytes(b"\x80\x81\xff\x00" * 50),
            "__model_budget__/small.yaml:1: not UTF-8 text (binary junk*",
            id="binary junk",
        ),
        pytest.param(
            lambda path: path.write_bytes(b"\x00\x01\x02" * 50),
            "__model_budget__/small.yaml:1: not YAML*",
            id="control characters",
        ),
        pytest.param(rewrite(lambda _: "a: [b\n"), "__model_budget__/small.yaml:2: not YAML*", id="not YAML"),
        pytest.param(rewrite(lambda _: "- 1\n"), "__model_budget__/small.yaml: not a snapshot*", id="a list"),
    ],
)
def test_a_damaged_snapshot_is_a_conflict_that_update_mends(
    small: Project, damage: Callable[[Path], object], words: str
) -> None:
    """The message has the file, the line where there is one, and the command that mends it."""
    good = small.snapshots()
    damage(small.snapshot("small"))
    bad = small.snapshots()
    assert bad != good
    result = small.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "small: CONFLICT",
            f"  {words}",
            'fix:     pytest --model-budget-update "modelbudget.yaml::small"',
            "CONFLICT modelbudget.yaml::small - *",
        ]
    )
    assert small.snapshots() == bad
    assert small.update().ret == 0
    assert small.snapshots() == good


def newer(project: Project) -> None:
    """A format from the future."""
    path = project.snapshot("small")
    path.write_text(path.read_text().replace("format: 1\n", "format: 2\n"))


def folder(project: Project) -> None:
    """A folder that has the snapshot's name."""
    project.snapshot("small").unlink()
    project.write("__model_budget__/small.yaml/keep.txt", "mine")


def link_out(project: Project) -> None:
    """A link to a file elsewhere."""
    outside = project.outside / "outside.yaml"
    outside.write_text("theirs")
    project.snapshot("small").unlink()
    project.snapshot("small").symlink_to(outside)


def dangling_link(project: Project) -> None:
    """A link to where nothing is, elsewhere."""
    project.snapshot("small").unlink()
    project.snapshot("small").symlink_to(project.outside / "nothing.yaml")


def linked_folder(project: Project) -> None:
    """The whole folder is a link to one elsewhere."""
    outside = project.outside / "elsewhere"
    project.snapshot("small").parent.rename(outside)
    (project.path / "__model_budget__").symlink_to(outside)


def file_for_folder(project: Project) -> None:
    """A file lies where the folder should be."""
    project.snapshot("small").unlink()
    project.snapshot("small").parent.rmdir()
    project.write("__model_budget__", "mine")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        pytest.param(newer, "*format 2, written by a newer pytest-modelbudget*upgrade*", id="newer format"),
        pytest.param(folder, "*small.yaml: is a folder, where a file should be: remove it", id="folder"),
        pytest.param(link_out, "*small.yaml: is a link that leads out of the folder: remove it", id="link out"),
        pytest.param(
            dangling_link, "*small.yaml: is a link that leads out of the folder: remove it", id="dangling link"
        ),
        pytest.param(
            linked_folder, "*small.yaml: is a link that leads out of the folder: remove it", id="linked folder"
        ),
        pytest.param(file_for_folder, "*small.yaml: cannot be read (Not a directory)", id="file for folder"),
    ],
)
def test_what_is_not_ours_is_never_written(small: Project, prepare: Callable[[Project], None], words: str) -> None:
    """A newer format, a folder, a link that leads out: refused, in an update too, and left as it is."""
    prepare(small)
    files = [*small.path.glob("__model_budget__/**/*"), *small.outside.rglob("*")]
    there = {path: path.read_bytes() for path in files if path.is_file()}
    for result in (small.run(), small.update()):
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(["small: CONFLICT", words, "CONFLICT modelbudget.yaml::small - *"])
        result.stdout.no_fnmatch_line("fix:*")
    result.stdout.fnmatch_lines(["snapshots: wrote 0, 0 unchanged"])
    assert {path: path.read_bytes() for path in there} == there
    assert not (small.outside / "nothing.yaml").exists()


def test_a_folder_that_cannot_be_written_fails_the_update(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path and the system's reason are told, and the exit code is 1."""

    def refused(*_: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    project.manifest(SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "write", refused)
        result = project.update()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["ERROR __model_budget__/small.yaml: cannot be written (Permission denied)"])
    assert project.snapshots() == {}


def test_a_failed_write_leaves_the_old_file_and_no_litter(small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing is atomic: the disk fills up, and the committed snapshot is still whole."""

    def full(*_: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    before = small.snapshots()
    small.write("zoo.py", "from fakenet import Model\ndef small():\n    return Model(dense=(32, 65))\n")
    with monkeypatch.context() as patch:
        patch.setattr(writing, "_replace", full)
        result = small.update("-p", "no:cacheprovider")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["ERROR __model_budget__/small.yaml: cannot be written (No space left on device)"])
    assert small.snapshots() == before


def test_a_checkout_with_crlf_is_equal(small: Project) -> None:
    """Line ends of a checkout on Windows are no change, and update does not touch them."""
    path = small.snapshot("small")
    crlf = path.read_bytes().replace(b"\n", b"\r\n")
    path.write_bytes(crlf)
    assert small.run().ret == 0
    assert small.update().ret == 0
    assert path.read_bytes() == crlf


def test_remeasured_flops_are_a_note_and_no_failure(small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot whose FLOPs were counted by older rules passes, and the next update restates it."""
    from pytest_modelbudget.snapshot import text

    path = small.snapshot("small")
    old = path.read_text().replace(f"flops: {{rules: {FLOP_RULES}, value: 4096}}", "flops: {rules: 0, value: 4000}")
    body = "".join(f"{line}\n" for line in old.splitlines() if not re.match("#|format|model|declared|digest", line))
    path.write_text(re.sub("digest: .*", f"digest: {text._digest('small', body)}", old))
    result = small.run()
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"*remeasured: FLOPs are counted by rules {FLOP_RULES}, the snapshot by rules 0*"])
    small.update().stdout.fnmatch_lines(["snapshots: wrote 1, 0 unchanged"])
    assert f"flops: {{rules: {FLOP_RULES}, value: 4096}}" in path.read_text()


@pytest.mark.slow
def test_two_runs_leave_git_clean(small: Project) -> None:
    """After the snapshots are committed, a check changes no file, on one process or on two."""

    def git(*args: str) -> str:
        who = ("-c", "user.name=u", "-c", "user.email=u@example.org", "-c", "core.autocrlf=false")
        return subprocess.run(["git", *who, *args], cwd=small.path, check=True, capture_output=True, text=True).stdout

    small.write(".gitignore", "stdout\nstderr\nrunpytest-*\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "models")
    for check in (small.run, small.run, lambda: small.alone("--model-budget", "-n", "2")):
        assert check().ret == 0
        assert git("status", "--porcelain") == ""
