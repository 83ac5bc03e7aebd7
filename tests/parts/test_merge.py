"""Parts that are merged come to what one run comes to, or to all reasons why they do not."""

from __future__ import annotations

import json
import shutil

import pytest

from pytest_modelbudget.cli import main
from tests.cli.conftest import Command
from tests.cli.test_words import imported
from tests.parts.conftest import REPORT_WORDS, Zoo
from tests.project import Project

SUMS = """
    groups: {all: {models: "*", sum: {params: 4k}}}
    models:
      a: {build: zoo:small, inputs: "float32[B, 32]"}
      b: {build: zoo:small, inputs: "float32[B, 32]"}
"""


@pytest.mark.parametrize(
    "update",
    [pytest.param((), id="check"), pytest.param(("--model-budget-update",), id="update", marks=pytest.mark.slow)],
)
def test_merged_parts_are_the_unsharded_run(zoo: Zoo, update: tuple[str, ...]) -> None:
    """Every report is the same byte for byte, and so are the exit code and the snapshots that an update run writes."""
    before = zoo.project.snapshots()
    codes = [zoo.part(number, 3, *update) for number in (1, 2, 3)]
    assert zoo.project.snapshots() == before
    merged = zoo.merge(".", *(f"--report={word}" for word in REPORT_WORDS))
    from_parts, written = zoo.reports(), zoo.project.snapshots()
    zoo.repository.git("checkout", "-q", "--", ".")
    whole = zoo.project.run(*update, *(f"--model-budget-report={word}" for word in REPORT_WORDS))
    assert not merged.err
    assert from_parts == zoo.reports()
    assert written == zoo.project.snapshots()
    assert (merged.code, 1 in codes, set(codes) <= {0, 1}) == (whole.ret, True, True)
    models = {model["id"]: model["state"] for model in json.loads(from_parts["report.json"])["models"]}
    assert (models["group edge"], models["snapshot-files"], models["wide"]) == (
        "OVER BUDGET",
        "OBSOLETE",
        "OVER BUDGET",
    )
    kinds = {finding["kind"] for finding in json.loads(from_parts["report.json"])["findings"]}
    assert {"snapshot deleted"} <= kinds


def test_parts_of_the_command_are_its_unsharded_run(zoo: Zoo) -> None:
    """`check --part --shard` and a merge give the reports and the exit code of `check`."""
    for number in (1, 2, 3):
        assert main(["check", "--part", f"{number}.part", "--shard", f"{number}/3"]) in (0, 1)
    merged = zoo.merge(".", *(f"--report={word}" for word in REPORT_WORDS))
    from_parts = zoo.reports()
    assert merged.code == main(["check", *(f"--report={word}" for word in REPORT_WORDS)]) == 1
    assert from_parts == zoo.reports()
    assert "wide: OVER BUDGET\n  params: 2,112 > 2,100" in merged.out


def test_each_part_is_needed_once_and_as_it_was_written(project: Project, modelbudget: Command) -> None:
    """Missing, doubled or altered: exit code 1, its name or number, nothing judged, no report that looks like one."""
    project.manifest(SUMS.replace("4k", "5k"))
    project.update()
    words = ["--report=json:out/report.json", "--report=comment:out/report.comment"]
    parts = ["1.part", "2.part"]
    for number in (1, 2):
        assert main(["check", "--part", f"{number}.part", "--shard", f"{number}/2"]) == 0
    assert modelbudget("merge", *parts, *words).code == 0
    for number, name in enumerate(parts, 1):
        data = (project.path / name).read_bytes()
        others = [other for other in parts if other != name]
        (project.path / "copy.part").write_bytes(data)
        (project.path / "altered.part").write_bytes(data[:-100] + b"x" + data[-99:])
        for names, expected in (
            (others, f"the part of shard {number}/2 is missing"),
            ([*parts, name], f"{name} is the same part as {name}"),
            ([*parts, "copy.part"], f"copy.part is the same part as {name}"),
            ([*others, "altered.part"], "altered.part: it was cut, edited or mixed"),
            ([*others, "no.part"], "no.part: there is no such file"),
            ([], "there is no part"),
        ):
            done = modelbudget("merge", *names, *words)
            assert (done.code, done.out) == (1, "")
            assert expected in done.err
            assert [path.name for path in (project.path / "out").iterdir()] == ["report.comment"]
            assert "the run did not finish" in (project.path / "out/report.comment").read_text()


def test_a_limit_that_only_all_parts_break(project: Project, modelbudget: Command) -> None:
    """Each part is green, and says what it leaves; the merge is not, and writes snapshots, and times for the next run."""
    project.manifest(SUMS)
    project.update("--model-budget-part=0.part").stdout.fnmatch_lines(["a * accepted", "b * accepted"])
    assert not project.snapshots()
    assert "snapshots: wrote 2, 0 unchanged" in modelbudget("merge", "0.part").out
    for number in (1, 2):
        done = project.run(f"--model-budget-part={number}.part", f"--model-budget-shard={number}/2")
        assert done.ret == 0
        done.stdout.fnmatch_lines([f"part {number}/2: 1 of 2 models in {number}.part; no verdict yet: sums, *"])
    merged = modelbudget("merge", "1.part", "2.part", "--times", "times.json")
    assert merged.code == 1
    assert "OVER BUDGET group all: params: 4,096 > 4,000 (+96, +2.4%)" in merged.out
    assert json.loads((project.path / "times.json").read_text()).keys() == {
        f"modelbudget.yaml::{name}" for name in "ab"
    }
    checked = project.run("--model-budget-part=x.part", "--model-budget-shard=1/2", "--model-budget-times=times.json")
    checked.assert_outcomes(passed=1, deselected=1)


def test_an_empty_folder_and_a_run_without_models(small: Project, modelbudget: Command) -> None:
    """The folder is named; parts that know of no model are exit code 4, as a run without one."""
    (small.path / "parts").mkdir()
    done = modelbudget("merge", "parts")
    assert (done.code, "parts: there is no *.part in this folder" in done.err) == (1, True)
    (small.path / "modelbudget.yaml").unlink()
    shutil.rmtree(small.path / "__model_budget__")
    assert small.run("--model-budget-part=parts").ret == 0
    assert modelbudget("merge", "parts").code == 4


@pytest.mark.slow
def test_merging_imports_no_framework_and_no_pytest(small: Project) -> None:
    """The job that merges needs none of them installed."""
    assert small.run("--model-budget-part=1.part").ret == 0
    code = "from pytest_modelbudget.cli import main; assert main(['merge', '1.part']) == 0"
    assert not imported(code) & {"torch", "tensorflow", "keras", "mlflow", "numpy", "pytest"}
