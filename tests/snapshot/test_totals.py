"""Totals of many models in one file: their line and back, what damage costs, and how the file is written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from pytest_modelbudget import snapshot
from pytest_modelbudget.diff import changes
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.reports.data import model_data
from pytest_modelbudget.results import Snapshot, SnapshotState, State, check
from pytest_modelbudget.snapshot.places import totals_name
from pytest_modelbudget.summary import Flops, Summary
from pytest_modelbudget.summary.totals import Totals
from tests.builders import HOSTILE, dense, gpt, towers, training
from tests.gitrepo import repository

PATH = "models/__model_budget__/zoo@nets.totals.yaml"
OWN = "models/__model_budget__/two-towers.yaml"


def entry(name: str = "two-towers", kind: str = "totals", source: str = "zoo:nets") -> ModelEntry:
    """A registered model."""
    return ModelEntry(name, "zoo:net", home="models", declared="modelbudget.yaml", snapshot=kind, source=source)  # type: ignore[arg-type]


def line(summary: Summary, name: str = "two-towers") -> str:
    """What is written of it."""
    return snapshot.text_for(entry(name), summary)


TEXTS = {name: line(towers(), name) for name in ("a", "b", "two-towers", "z")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with four models, all of them the towers."""
    snapshot.write_lines(tmp_path, "models", PATH, TEXTS)
    return tmp_path


def stored(root: Path, name: str = "two-towers", summary: Summary | None = None) -> Snapshot:
    """How a model compares."""
    return snapshot.compare(root, entry(name), summary or towers())


def states(root: Path) -> str:
    """The first letter of the state of each of the four models: equal, broken, missing, refused, different."""
    return "".join(stored(root, name).stored.value[0] for name in TEXTS)


def edit(root: Path, change: Callable[[str], str]) -> None:
    """Rewrite the file's text."""
    file = root / PATH
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")


def test_a_line_says_what_can_be_counted_on_paper() -> None:
    """YAML with the totals of the towers, and at its end a digest over all before it."""
    text = line(towers())
    [data] = yaml.safe_load(text)
    assert {name: data[name] for name in ("params", "weight_bytes", "layers", "largest_layer_share", "flops")} == {
        "params": 6_201, "weight_bytes": 24_804, "layers": 6, "largest_layer_share": "5050/6201",
        "flops": {"rules": 2, "value": 12_200},
    }  # fmt: skip
    body, _, digest = text.rpartition(", digest: ")
    assert digest == f"{hashlib.sha256(body.encode()).hexdigest()[:12]}}}"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_line_is_read_back(name: str) -> None:
    """Whatever names a model has, the line is one line of YAML, and says the same again."""
    summary = replace(gpt(), framework=name, plans=(replace(training(), recipe=name),), flops=Flops(3, ((name, 2),)))
    text = line(summary)
    assert len(text.splitlines()) == 1
    yaml.safe_load(text)
    totals, declared = snapshot.read_line(text)
    [plan] = totals.plans
    assert (declared, plan.recipe, plan.peak_bytes) == ("modelbudget.yaml", name, training().peak_bytes)
    assert replace(totals, plans=()) == replace(Totals.of(summary), model="two-towers", plans=())


def test_names_meet_no_other_file() -> None:
    """A source's file, that of no source and a model's own are told apart, also where case does not count."""
    sources = [
        "",
        "zoo:nets",
        "zoo:Nets",
        "zoo.nets:a",
        "zoo:nets.a",
        "zoo_nets:a",
        "models:x",
        f"zoo:{'n' * 300}",
        "züge:n",
    ]
    names = [totals_name(source) for source in sources]
    assert names[:2] == ["models@.totals.yaml", "zoo@nets.totals.yaml"]
    assert len({name.casefold() for name in names}) == len(names)
    assert all("@" in name and len(name) < 130 for name in names)  # no id of a model has one
    with pytest.raises(ModelBudgetError, match="bad model id"):
        ModelEntry("zoo@nets.totals", "a:b")


def test_files_are_sorted_and_written_when_they_change_alone(root: Path) -> None:
    """A line for each model by id, valid YAML as a whole; lines that were not in a run stay."""
    file = root / PATH
    assert [item["model"] for item in yaml.safe_load(file.read_text())["totals"]] == sorted(TEXTS)
    before = file.stat().st_mtime_ns
    assert snapshot.write_lines(root, "models", PATH, {"a": TEXTS["a"]}) == 0
    assert file.stat().st_mtime_ns == before
    assert snapshot.write_lines(root, "models", PATH, {"c": line(gpt(), "c"), "a": TEXTS["a"]}) == 1
    assert (states(root), [path.name for path in file.parent.iterdir()]) == ("eeee", [file.name])


@pytest.mark.parametrize(
    ("change", "expected", "words"),
    [
        pytest.param(lambda text: text.replace("\n", "\r\n"), "eeee", "", id="windows line ends"),
        pytest.param(lambda text: f"\ufeff{text}", "eeee", "", id="the mark of an editor"),
        pytest.param(lambda text: text.replace("model: two-towers, declared: modelbudget.yaml, framework: keras", "model: two-towers, declared: modelbudget.yaml, framework: torch"), "eebe", ":6: the digest does not fit", id="edited"),
        pytest.param(lambda text: text.replace(TEXTS["two-towers"], TEXTS["two-towers"][:-40]), "eebe", ":6: the digest does not fit", id="cut off"),
        pytest.param(lambda text: text.replace(f"{TEXTS['two-towers']}\n", ""), "eeme", "", id="deleted"),
        pytest.param(lambda text: text.replace("- {model: two-towers", "- {modl: two-towers"), "eeme", "", id="of no model"),
        pytest.param(lambda text: text.replace(TEXTS["z"], f"{TEXTS['z']}\n{line(gpt())}"), "eebe", ":8: is a second line", id="twice, as git's union merge leaves it"),
        pytest.param(lambda text: text.replace(TEXTS["z"], f"{TEXTS['z']}\n{TEXTS['z']}"), "eeee", "", id="the same twice"),
        pytest.param(lambda text: text.replace(TEXTS["two-towers"], f"<<<<<<< ours\n{TEXTS['two-towers']}\n=======\n{line(gpt())}\n>>>>>>> theirs"), "eebe", ":6: has a git conflict marker", id="conflict"),
        pytest.param(lambda text: text.replace(TEXTS["b"], f"{TEXTS['b']}\n<<<<<<< ours"), "bbbb", ":6: has a git conflict marker without the other", id="half a conflict"),
        pytest.param(lambda text: f"{text}=======\n", "bbbb", ":8: has a git conflict marker without the other", id="a marker alone"),
        pytest.param(lambda text: text.replace("format: 1\n", ""), "bbbb", "no 'format' line", id="no head"),
        pytest.param(lambda text: "", "bbbb", "no 'format' line", id="empty"),
        pytest.param(lambda text: text.replace("format: 1", "format: 2"), "rrrr", "newer pytest-modelbudget", id="newer"),
    ],
)  # fmt: skip
def test_damage_costs_the_models_it_is_about(
    root: Path, change: Callable[[str], str], expected: str, words: str
) -> None:
    """A line that was edited or merged wrongly is a conflict of its model alone, with its place."""
    edit(root, change)
    assert states(root) == expected
    assert words in stored(root).problem


def test_junk_costs_its_line_alone(root: Path) -> None:
    """What is no UTF-8 makes one line unreadable; what is rewritten beside it stays as it is."""
    file = root / PATH
    file.write_bytes(file.read_bytes().replace(b"model: b, declared: m", b"model: b, declared: \xff\xfe"))
    assert states(root) == "ebee"
    snapshot.write_lines(root, "models", PATH, {"c": line(gpt(), "c")})
    assert b"declared: \xff\xfe" in file.read_bytes()
    snapshot.write_lines(root, "models", PATH, {"b": TEXTS["b"]})
    assert states(root) == "eeee"


def test_an_update_of_one_model_leaves_the_conflict_of_another(root: Path) -> None:
    """Both its lines stay, so that it is still a conflict; an update of it ends that."""
    edit(root, lambda text: text.replace(TEXTS["b"], f"<<<<<<< a\n{TEXTS['b']}\n||||||| o\n{line(gpt(2), 'b')}\n=======\n{line(gpt(), 'b')}\n>>>>>>> b"))  # fmt: skip
    with pytest.raises(ModelBudgetError, match=r"line 5 has a git conflict marker.*: update its models before"):
        snapshot.remove_lines(root, "models", PATH, ["a"])
    snapshot.write_lines(root, "models", PATH, {"z": line(gpt(), "z")})
    assert states(root) == "ebed"
    assert [item["model"] for item in yaml.safe_load((root / PATH).read_text())["totals"]] == ["a", "b", "b", "two-towers", "z"]  # fmt: skip
    snapshot.write_lines(root, "models", PATH, TEXTS)
    assert states(root) == "eeee"


@pytest.mark.parametrize(
    ("fresh", "expected", "note", "moved"),
    [
        pytest.param(towers(), SnapshotState.EQUAL, "", [], id="the same"),
        pytest.param(replace(towers(), flops=Flops(7)), SnapshotState.DIFFERENT, "", ["flops"], id="other FLOPs"),
        pytest.param(replace(towers(), flops=Flops(12_200, (("odd", 1),))), SnapshotState.DIFFERENT, "", ["flops"], id="a lower bound now"),
        pytest.param(replace(towers(), flops=Flops(7, rules=9)), SnapshotState.RESTATED, "remeasured", [], id="counted by newer rules"),
        pytest.param(replace(towers(), plans=(training(),)), SnapshotState.RESTATED, "", [], id="an estimate alone"),
        pytest.param(replace(towers(), inputs=towers().inputs[:1]), SnapshotState.DIFFERENT, "", ["inputs"], id="other inputs"),
        pytest.param(replace(towers(), layers=(*towers().layers[:4], replace(towers().layers[4], type="Add"), towers().layers[5])), SnapshotState.DIFFERENT, "", ["rows"], id="no total moved"),
    ],
)  # fmt: skip
def test_compare(root: Path, fresh: Summary, expected: SnapshotState, note: str, moved: list[str]) -> None:
    """What moved is told in totals, a row by the digest of all rows alone, and estimates fail nothing."""
    seen = stored(root, summary=fresh)
    assert (seen.stored, note in seen.note, bool(seen.note)) == (expected, True, bool(note))
    result = check(entry(), fresh, seen)
    assert [change.path for change in result.changes] == moved
    assert result.state is (State.CHANGED if moved else State.OK)
    assert model_data(result)["comparison"] is None  # the page draws no row as new
    snapshot.write_lines(root, "models", PATH, {"two-towers": line(fresh)})
    assert stored(root, summary=fresh).stored is SnapshotState.EQUAL


def test_changes_of_totals_say_nothing_of_rows() -> None:
    """Neither side's rows are taken for new or gone; numbers that only follow are told once."""
    wider = replace(towers(), layers=(*towers().layers, dense("extra", 1, 9, "dense_2")))
    told = changes(Totals.of(towers()), wider)
    assert [(change.path, change.before, change.after, change.delta) for change in told] == [
        ("params", "6,201", "6,219", 18),
        ("trainable_params", "6,201", "6,219", 18),
        ("weight_bytes", "24,804", "24,876", 72),
        ("layers", "6", "7", 1),
        ("largest_layer_share", "81.4385%", "81.2028%", None),
        ("rows", Totals.of(towers()).rows, Totals.of(wider).rows, None),
    ]
    assert Totals.of(towers()).numbers["largest_layer_share"] == Fraction(5_050, 6_201)
    assert changes(towers(), Totals.of(towers())) == ()
    with pytest.raises(AttributeError):
        _ = Totals.of(towers()).layers  # type: ignore[attr-defined]


@pytest.mark.parametrize("kinds", [("layers", "totals"), ("totals", "layers")])
def test_a_model_that_is_stored_in_the_other_way_is_held_against_that(tmp_path: Path, kinds: tuple[str, str]) -> None:
    """To switch accepts no change: the same passes with a note, another is a change, and an update moves it."""
    old, new = (entry(kind=kind) for kind in kinds)
    before = snapshot.compare(tmp_path, old, towers())
    write = snapshot.write_lines if snapshot.is_totals(before.path) else snapshot.write
    write(tmp_path, "models", before.path, {old.id: before.text} if before.is_line else before.text)  # type: ignore[operator]
    same = snapshot.compare(tmp_path, new, towers())
    other = snapshot.compare(tmp_path, new, replace(gpt(), model="two-towers"))
    assert (same.stored, same.path, same.note) == (SnapshotState.RESTATED, snapshot.path_for(new), f"stored in {before.path if before.is_line else 'a file of its own'} so far")  # fmt: skip
    assert (other.stored, isinstance(other.before, Totals)) == (SnapshotState.DIFFERENT, kinds[0] == "totals")
    assert [*snapshot.addresses(tmp_path, new)] == [snapshot.address(new), snapshot.address(old)]
    assert snapshot.count_missing(tmp_path, [new]) == 0


def test_a_model_is_found_in_the_file_of_another_source(root: Path) -> None:
    """A source may be renamed; the place where its models are stored so far is theirs until the next update."""
    renamed = entry(source="zoo.registry:nets")
    assert snapshot.compare(root, renamed, towers()).stored is SnapshotState.RESTATED
    snapshot.write_lines(root, "models", snapshot.path_for(renamed), {"two-towers": line(towers())})
    assert [*snapshot.addresses(root, renamed)] == [snapshot.address(renamed)] * 2


def test_obsolete_lines_are_named_and_removed(root: Path) -> None:
    """Lines of no model, and what is no line of a model; a file without lines goes."""
    edit(root, lambda text: text.replace(TEXTS["z"], f"lost\n{TEXTS['z']}"))
    seen = list(snapshot.obsolete(root, "models", lambda address, declared: (address, declared) == (f"{PATH}::a", "modelbudget.yaml")))  # fmt: skip
    assert seen == [f"{PATH}::{name}" for name in ("b", "two-towers", "z", "line 7")]
    assert snapshot.remove_lines(root, "models", PATH, ["b", "z", "line 7"]) == 2
    assert states(root) == "emem"
    text = (root / PATH).read_text(encoding="utf-8")
    edit(root, lambda text: text.replace("format: 1\n", ""))
    assert len(list(snapshot.obsolete(root, "models", lambda *_: False))) == 2  # a damaged file is nobody's as well
    with pytest.raises(ModelBudgetError, match="no 'format' line"):
        snapshot.remove_lines(root, "models", PATH, ["a"])
    edit(root, lambda _: text)
    snapshot.remove_lines(root, "models", PATH, ["a", "two-towers"])
    assert not (root / PATH).exists()


def test_a_link_a_folder_or_an_endless_file_is_refused(root: Path) -> None:
    """Nothing outside of the tree is read or written, and no folder is taken for a file."""
    file = root / PATH
    outside = root / "outside.yaml"
    outside.write_text(file.read_text())
    file.unlink()
    file.symlink_to(outside)
    assert "link that leads out" in stored(root).problem
    with pytest.raises(ModelBudgetError, match="link that leads out"):
        snapshot.write_lines(root, "models", PATH, {"a": line(gpt(), "a")})
    file.unlink()
    file.write_text("\n" * 1_000_001)
    assert (stored(root).stored, "has 1,000,001 lines" in stored(root).problem) == (SnapshotState.REFUSED, True)
    file.unlink()
    file.mkdir()
    assert (stored(root).stored, "is a folder" in stored(root).problem) == (SnapshotState.REFUSED, True)


def test_writers_at_once_lose_nothing(root: Path) -> None:
    """Each of eight puts lines of its own into one file, one after the other."""

    def write_own(number: int) -> None:
        for turn in range(5):
            name = f"net-{number}-{turn}"
            snapshot.write_lines(root, "models", PATH, {name: line(towers(), name)})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write_own, range(8)))
    names = {item["model"] for item in yaml.safe_load((root / PATH).read_text())["totals"]}
    assert names == {*TEXTS, *(f"net-{number}-{turn}" for number in range(8) for turn in range(5))}


def test_two_branches(root: Path) -> None:
    """Each adds a model, and git merges them; where both changed one model, it alone is in conflict."""
    repo = repository(root)
    repo.commit("first")
    for branch, added, width in (("left", "0", 2), ("right", "y", 3)):
        repo.git("checkout", "--quiet", "-b", branch, "main")
        snapshot.write_lines(root, "models", PATH, {added: line(towers(), added)})
        repo.commit("adds one")
        repo.git("checkout", "--quiet", "-b", f"{branch}-too")
        snapshot.write_lines(root, "models", PATH, {"b": line(gpt(width), "b")})
        repo.commit("changes one")
    repo.git("merge", "--quiet", "--no-edit", "left")
    assert [item["model"] for item in yaml.safe_load((root / PATH).read_text())["totals"]] == ["0", "a", "b", "two-towers", "y", "z"]  # fmt: skip
    assert states(root) == "edee"
    with pytest.raises(AssertionError):
        repo.git("merge", "--quiet", "--no-edit", "left-too")
    assert states(root) == "ebee"
    repo.git("merge", "--abort")
    (root / ".git/info/attributes").write_text("*.totals.yaml merge=union\n")
    repo.git("merge", "--quiet", "--no-edit", "left-too")
    assert (states(root), stored(root, "b").problem.partition(": ")[2]) == ("ebee", "is a second line of this model: both sides of a merge changed it")  # fmt: skip
