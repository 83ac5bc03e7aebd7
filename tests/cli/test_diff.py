"""`modelbudget diff`: two models, two commits, and what lies between."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Command
from tests.project import SMALL

INPUTS = ("--inputs", "float32[B, 32]")
MORE = """
    from fakenet import Model

    def narrow():
        return Model(dense=(32, 60))
"""
PATH = "__model_budget__/small.yaml"
TOTALS = "__model_budget__/models@.totals.yaml"


@pytest.fixture
def committed(modelbudget: Command) -> Command:
    """A repository whose one commit has the model `small` (2,048 params) and its snapshot."""
    modelbudget.project.manifest(SMALL)
    assert modelbudget("update").code == 0
    modelbudget.commit()
    return modelbudget


def widen(command: Command) -> None:
    """The same model with 32 * 65 = 2,080 params."""
    command.write("zoo.py", "from fakenet import Model\ndef small(): return Model(dense=(32, 65))\n")


def test_two_models(modelbudget: Command) -> None:
    """Code 1, with the totals and the row; 32 * 64 - 32 * 60 is 128."""
    modelbudget.write("more.py", MORE)
    done = modelbudget("diff", "more:narrow", "zoo:small", *INPUTS)
    assert (done.code, done.err) == (1, "")
    lines = done.out.splitlines()
    assert lines[0] == "more:narrow -> zoo:small:"
    assert lines[1].startswith("  params 1,920 -> 2,048  (+128, +6.67%)")
    assert any(line.startswith("  ~ dense  widened  1,920 params") for line in lines)


def test_equal_models_are_code_0(modelbudget: Command) -> None:
    """Their names are not what is compared."""
    done = modelbudget("diff", "zoo:small", "zoo:small", *INPUTS)
    assert (done.code, done.out) == (0, "zoo:small -> zoo:small: nothing differs\n")


def test_the_rest_of_many_changes_is_counted(modelbudget: Command) -> None:
    """Totals first, and `--top 0` for all."""
    modelbudget.write("more.py", MORE)
    whole = modelbudget("diff", "more:narrow", "zoo:small", *INPUTS, "--top", "0").out.splitlines()
    cut = modelbudget("diff", "more:narrow", "zoo:small", *INPUTS, "--top", "1").out.splitlines()
    assert cut == [*whole[:2], f"  ... and {len(whole) - 2} more changes; --top 0 shows all"]
    assert len(whole) > 3


def test_json_has_every_change(modelbudget: Command) -> None:
    """As data, and as the sentence."""
    modelbudget.write("more.py", MORE)
    done = modelbudget("diff", "more:narrow", "zoo:small", *INPUTS, "--json")
    [model] = json.loads(done.out)
    assert model["status"] == "changed"
    first = model["changes"][0]
    assert (first["kind"], first["path"], first["delta"]) == ("total", "params", 128)
    assert all(one["text"] for one in model["changes"])


def test_since_a_commit(committed: Command) -> None:
    """Nothing at first; after an update the snapshot that changed, one that is new, and one that went."""
    hint = "Snapshot files were compared, and nothing was built. To see an edit of a model: modelbudget diff HEAD ID"
    assert committed("diff", "HEAD").out == f"nothing differs\n\n{hint}\n"
    widen(committed)
    committed("update")
    done = committed("diff", "HEAD")
    assert done.code == 1
    assert done.out.startswith(f"small ({PATH}):\n  params 2,048 -> 2,080  (+32, +1.56%)")
    (committed.project.path / PATH).rename(committed.project.path / "__model_budget__/new.yaml")
    done = committed("diff", "HEAD")
    assert done.out.splitlines() == [
        "small (__model_budget__/new.yaml): added (2,080 params in 1 layer)",
        "",
        f"small ({PATH}): removed (2,048 params in 1 layer)",
        "",
        hint,
    ]


def test_a_model_that_was_renamed_is_told_once(committed: Command) -> None:
    """Where its snapshot says the same under another name; what changed as well is one that went and one that came."""
    committed.project.manifest(SMALL.replace("small:", "tiny:", 1))
    (committed.project.path / PATH).unlink()
    committed("update")
    done = committed("diff", "HEAD")
    expected = f"small ({PATH}) -> tiny (__model_budget__/tiny.yaml): renamed, nothing else differs"
    assert (done.code, done.out.splitlines()[0]) == (1, expected)
    [pair] = json.loads(committed("diff", "HEAD", "--json").out)
    assert (pair["status"], pair["changes"]) == ("renamed", [])
    widen(committed)
    committed("update")
    lines = committed("diff", "HEAD").out.splitlines()
    assert [line.rpartition(": ")[2] for line in lines if "small" in line or "tiny" in line] == [
        "removed (2,048 params in 1 layer)",
        "added (2,080 params in 1 layer)",
    ]


def test_between_two_commits(committed: Command) -> None:
    """The work tree plays no part."""
    widen(committed)
    committed("update")
    committed.commit()
    (committed.project.path / PATH).unlink()
    done = committed("diff", "HEAD~1", "HEAD")
    assert done.code == 1
    assert "params 2,048 -> 2,080" in done.out
    assert "params 2,080 -> 2,048" in committed("diff", "HEAD", "HEAD~1").out


def test_a_commit_and_a_model(committed: Command) -> None:
    """The snapshot at the commit, and the model as it builds now, or the other way round."""
    widen(committed)
    done = committed("diff", "main", "small")
    assert done.code == 1
    assert done.out.startswith("small since main:\n  params 2,048 -> 2,080")
    assert "params 2,080 -> 2,048" in committed("diff", "small", "main").out
    assert "params 2,048 -> 2,080" in committed("diff", f"main:{PATH}", "small").out


def test_work_in_a_folder_below_the_repository(committed: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is found above, and so is its root."""
    widen(committed)
    folder = committed.project.path / "deep" / "er"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert "params 2,048 -> 2,080" in committed("diff", "main", "small").out


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        pytest.param(("params: 2048, t", "params: 2049, t"), f"{TOTALS}::small: the digest does not fit", id="a line"),
        pytest.param(("format: 1", "format: 9"), f"{TOTALS}: it has format 9", id="a newer file"),
        pytest.param(("totals:", "totals:\n<<<<<<< a"), f"{TOTALS}:4: has a git conflict marker", id="half a conflict"),
    ],
)
def test_totals_that_cannot_be_read_are_named(modelbudget: Command, damage: tuple[str, str], expected: str) -> None:
    """By the file that is there and the line; a model of which nothing is known is neither added nor removed."""
    modelbudget.project.manifest(f"{SMALL}        snapshot: totals\n")
    assert modelbudget("update").code == 0
    modelbudget.commit()
    path = modelbudget.project.path / TOTALS
    path.write_text(path.read_text(encoding="utf-8").replace(*damage), encoding="utf-8")
    done = modelbudget("diff", "HEAD")
    assert done.code == 2
    assert f"modelbudget: {expected}" in done.err
    assert "removed" not in done.out


def test_a_snapshot_that_cannot_be_read_hides_no_other(committed: Command) -> None:
    """Code 2, and the others are told."""
    path = committed.project.path / PATH
    text = path.read_text(encoding="utf-8")
    (path.parent / "other.yaml").write_text(text.replace("model: small", "model: other"), encoding="utf-8")
    path.write_text(text.replace("params: 2048", "params: 2049"), encoding="utf-8")
    done = committed("diff", "HEAD")
    assert done.code == 2
    assert f"{PATH}: cannot be compared" in done.out
    assert "modelbudget: __model_budget__/other.yaml: line" in done.err
    assert f"{PATH}: line" in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["nothing"], "'nothing' is no file, no id of the manifest, no git ref and no", id="no ref"),
        pytest.param(["small"], "'small' is one model: name the second", id="one model"),
        pytest.param(["HEAD", "zoo:small"], "'zoo:small' has no snapshot to compare with", id="not registered"),
        pytest.param(["HEAD:gone.yaml", "small"], "HEAD has no file gone.yaml", id="no such file there"),
        pytest.param(["--upload-pack=x", "small"], "unrecognized arguments", id="an option in place of a ref"),
    ],
)
def test_what_cannot_be_compared(committed: Command, words: list[str], said: str) -> None:
    """Code 2, as of diff(1)."""
    done = committed("diff", *words)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_a_model_that_is_not_in_the_commit(committed: Command) -> None:
    """Its snapshot is not there."""
    committed.project.manifest(SMALL.replace("small:", "other:", 1))
    done = committed("diff", "HEAD", "other")
    assert (done.code, done.err) == (2, "modelbudget: HEAD has no snapshot of other (__model_budget__/other.yaml)\n")


def test_without_a_repository(modelbudget: Command) -> None:
    """Why the word stands for nothing."""
    done = modelbudget("diff", "HEAD")
    assert done.code == 2
    assert "no git ref (not a git repository)" in done.err
