"""`snapshot: totals`: a run's models in one file, from registration to prune, and what the base says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gitrepo import CI_VARIABLES, ENVIRONMENT, Repository, repository
from tests.project import Project

SOURCE = """
    from pytest_modelbudget import ModelEntry

    def nets():
        for width in {widths}:
            yield ModelEntry(f"net{{width}}", build="zoo:of_width", args=(width,), inputs="float32[B, 32]")
"""
MANIFEST = """
    defaults: {snapshot: totals}
    groups:
      kept: {models: whole, snapshot: layers}
    models:
      alone: {build: zoo:small, inputs: "float32[B, 32]"}
      whole: {build: zoo:two_layers, inputs: "float32[B, 32]"}
    sources: [registry:nets]
"""
FILE = "__model_budget__/registry@nets.totals.yaml"


@pytest.fixture
def zoo(project: Project) -> Project:
    """Three models of a source and one of the manifest with their totals, one with its rows."""
    project.manifest(MANIFEST)
    project.write("registry.py", SOURCE.format(widths="(4, 5, 6)"))
    project.update().stdout.fnmatch_lines(["snapshots: wrote 5, 0 unchanged"])
    return project


def ids(project: Project, file: str = FILE) -> list[str]:
    """The models of a file, in its order."""
    text = (project.path / file).read_text(encoding="utf-8")
    return [line.split("model: ")[1].split(",")[0] for line in text.splitlines() if line.startswith("- ")]


def test_a_file_for_each_origin(zoo: Project) -> None:
    """The models of a source share one, those of the manifest another, and a group keeps its rows; then all is green."""
    assert sorted(zoo.snapshots()) == ["__model_budget__/models@.totals.yaml", FILE, "__model_budget__/whole.yaml"]
    assert ids(zoo) == ["net4", "net5", "net6"]
    before = zoo.snapshots()
    zoo.run().assert_outcomes(passed=5)
    zoo.update().stdout.fnmatch_lines(["snapshots: wrote 0, 5 unchanged"])
    assert zoo.snapshots() == before


def test_what_moved_is_told_in_totals(zoo: Project) -> None:
    """The change, its command and every report name totals, and no layer is taken for a new one."""
    zoo.write("zoo.py", "from fakenet import Model\ndef of_width(width):\n    return Model(dense=(32, width + (width == 5)))\n"
              "def small():\n    return Model(dense=(32, 64))\ndef two_layers():\n    return Model(body=(32, 64), head=(64, 10))\n")  # fmt: skip
    kinds = ("json:r.json", "md:r.md")
    result = zoo.run(*(f"--model-budget-report={kind}" for kind in kinds))
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(
        [
            f"  differs from {FILE}:",
            "    params 160 -> 192  (+32, +20.00%)",
            "    weight_bytes 640 -> 768  (+128, +20.00%)",
            "    ~ outputs  float32[[]B, 5] -> float32[[]B, 6]",
            "    ~ rows  * -> *: which rows changed is not kept*",
            'accept:  pytest --model-budget-update "modelbudget.yaml::net5"',
            "CHANGED modelbudget.yaml::net5 - params 160 -> 192*",
        ]
    )
    [model] = [one for one in json.loads((zoo.path / "r.json").read_text())["models"] if one["state"] == "CHANGED"]
    assert {change["kind"] for change in model["changes"]} == {"total", "port"}
    assert "160 -> 192" in (zoo.path / "r.md").read_text(encoding="utf-8")
    zoo.update("modelbudget.yaml::net5").stdout.fnmatch_lines(["snapshots: wrote 1, 0 unchanged"])
    zoo.run().assert_outcomes(passed=5)


def test_new_and_obsolete_models(zoo: Project) -> None:
    """A model without a line has no snapshot yet, a line without a model is obsolete; prune takes it, and nothing else."""
    zoo.write("registry.py", SOURCE.format(widths="(6, 7)"))
    result = zoo.run()
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        [
            "2 lines of totals have no model in modelbudget.yaml:",
            f"  {FILE}: net4, net5",
            "delete:  pytest --model-budget-prune",
        ]
    )
    result.stdout.fnmatch_lines([f"  no line in {FILE} yet (counted 224 params)*"])
    zoo.update().assert_outcomes(passed=4, failed=1)
    assert ids(zoo) == ["net4", "net5", "net6", "net7"]
    zoo.plain("--model-budget-prune").stdout.fnmatch_lines([f"pruned {FILE}: net4, net5"])
    assert ids(zoo) == ["net6", "net7"]
    zoo.run().assert_outcomes(passed=4)


def test_a_conflict_of_one_line(zoo: Project) -> None:
    """It fails its model alone, and an update of that model ends it."""
    file = zoo.path / FILE
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[4:5] = ["<<<<<<< ours\n", lines[4], "=======\n", lines[4].replace("160", "161"), ">>>>>>> theirs\n"]
    file.write_text("".join(lines), encoding="utf-8")
    result = zoo.run()
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines([f"  {FILE}:5: has a git conflict marker*", "CONFLICT modelbudget.yaml::net5*"])
    zoo.update("modelbudget.yaml::net5")
    zoo.run().assert_outcomes(passed=5)


def test_from_layers_to_totals_and_back(small: Project) -> None:
    """The other way is the stored state until an update, which moves it: nothing is left where it was."""
    total = "__model_budget__/models@.totals.yaml"
    own = "__model_budget__/small.yaml"
    for kind, place in (("totals", "a file of its own"), ("layers", total)):
        for width, outcome in ((64, {"passed": 1}), (65, {"failed": 1})):
            small.manifest(f"""
                models:
                  small: {{build: zoo:of_width, args: [{width}], inputs: "float32[B, 32]", snapshot: {kind}}}
            """)
            result = small.run()
            result.assert_outcomes(**outcome)
            if width == 65:
                result.stdout.fnmatch_lines([f"  differs from what is stored in {place} so far:"])
            result.stdout.fnmatch_lines([f"note: small: stored in {place} so far; the next update rewrites it"])
        small.manifest(f"""
            models:
              small: {{build: zoo:of_width, args: [64], inputs: "float32[B, 32]", snapshot: {kind}}}
        """)
        small.update().stdout.fnmatch_lines(
            [
                f"note: small: stored in {place} so far; rewritten now",
                "snapshots: wrote 1, 0 unchanged, 1 removed where they were stored before",
            ]
        )
        assert list(small.snapshots()) == [total if kind == "totals" else own]
        small.run().assert_outcomes(passed=1)


def test_a_file_of_another_declaration_stays(project: Project) -> None:
    """What no registration of the model wrote is not deleted by its update; the next check tells of it."""
    project.manifest(MANIFEST.partition("    sources")[0])
    project.update("modelbudget.yaml::whole")
    mine = project.snapshot("whole").read_text(encoding="utf-8")
    theirs = mine.replace("model: whole", "model: alone").replace("modelbudget.yaml", "test_gone.py::alone")
    project.write("__model_budget__/alone.yaml", theirs)
    project.update("modelbudget.yaml::alone")
    assert "__model_budget__/alone.yaml" in project.snapshots()
    project.run().stdout.fnmatch_lines(["1 snapshot file has no model in modelbudget.yaml:"])


def test_decorator_and_fixture(project: Project) -> None:
    """Models of test modules in a folder share a file with each other; each module looks after its own lines."""
    module = """
        from pytest_modelbudget import model
        from fakenet import Model

        @model(inputs="float32[B, 32]", snapshot="totals")
        def encoder():
            return Model(dense=(32, 64))

        def test_decoder(model_budget):
            model_budget.check(Model(dense=(8, 4)), "float32[B, 8]", name="decoder", snapshot="totals")
    """
    project.write("test_one.py", module)
    project.write("test_two.py", module.replace("coder", "other"))
    project.update().assert_outcomes(passed=4)
    file = "__model_budget__/models@.totals.yaml"
    assert (list(project.snapshots()), ids(project, file)) == ([file], ["decoder", "deother", "encoder", "enother"])
    project.write(
        "test_three.py",
        module[module.index("    def test") :].replace("def test_d", "from fakenet import Model\n\n    def test_d"),
    )
    (project.path / file).unlink()
    project.update().stdout.fnmatch_lines(
        [f"ERROR {file}: test_one.py::test_decoder and test_three.py::test_decoder both*"]
    )
    (project.path / "test_three.py").unlink()
    project.write("test_one.py", "def test_nothing(): pass\n")
    project.run().stdout.fnmatch_lines(["2 lines of totals have no model in test_one.py:", f"  {file}: *coder, *coder"])


def test_an_unknown_kind_is_a_mistake(project: Project) -> None:
    """It is told with its line and the words there are."""
    project.manifest("models: {net: {build: zoo:small, snapshot: rows}}\n")
    project.run().stdout.fnmatch_lines(
        ["*modelbudget.yaml:1: models.net.snapshot: input should be 'layers' or 'totals'*"]
    )


@pytest.fixture
def repo(zoo: Project, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """The same, committed on main, and a branch for what changes it."""
    for name in CI_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    zoo.write(".gitignore", "__pycache__\n.pytest_cache\n*.json\n")
    made = repository(zoo.path)
    made.commit("first")
    made.git("checkout", "--quiet", "-b", "feature")
    return made


def test_growth_since_the_base(repo: Repository, zoo: Project) -> None:
    """Totals grow on the base's line, though the update took them; a layer's growth is unknown, and never 0."""
    zoo.manifest(MANIFEST.replace("defaults: {", 'defaults: {budgets: {params: {growth: "+2%"}, layers: {dense: {params: {growth: 0}}}}, ').replace("snapshot: layers", "snapshot: layers, budgets: {layers: {dense: null}}"))  # fmt: skip
    zoo.write(
        "zoo.py", (zoo.path / "zoo.py").read_text().replace("dense=(32, width)", "dense=(32, width + (width == 5))")
    )
    zoo.update()
    result = zoo.run("--model-budget-report=json:r.json")
    result.stdout.fnmatch_lines(["  params growth: 192 is +32 (+20.0%) on 160 (HEAD *); +2% is allowed: 29 too many*"])
    [model] = [one for one in json.loads((zoo.path / "r.json").read_text())["models"] if one["id"] == "net5"]
    assert model["since"]["totals"]["params"] == 160
    assert {change["kind"] for change in model["since"]["changes"]} == {"total", "port"}
    assert [finding["text"].partition(" (HEAD")[0] for finding in model["findings"] if finding["kind"] == "growth not enforced"] == [
        "of layers: the base has only totals (snapshot: totals)"
    ]  # fmt: skip


def test_lines_that_are_gone(repo: Repository, zoo: Project) -> None:
    """They are told in one line for a file; what moved to rows of its own is not."""
    zoo.write("registry.py", SOURCE.format(widths="(6,)"))
    zoo.manifest(MANIFEST.replace("models: whole, snapshot", "models: [whole, alone], snapshot"))
    zoo.update()
    zoo.plain("--model-budget-prune")
    result = zoo.run()
    [told] = [line for line in result.outlines if "snapshot deleted" in line]
    assert told.startswith(f"warn: snapshot deleted: {FILE}: net4, net5: in the base (HEAD ")


def test_the_command(repo: Repository, zoo: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """`diff` of two states of all files compares lines; of a model, whichever way each side is stored."""
    from pytest_modelbudget.cli import main

    monkeypatch.chdir(zoo.path)
    zoo.write(
        "zoo.py", (zoo.path / "zoo.py").read_text().replace("dense=(32, width)", "dense=(32, width + (width == 5))")
    )
    zoo.write("registry.py", SOURCE.format(widths="(5, 6, 7)"))
    zoo.manifest(MANIFEST.replace("models: whole, snapshot", "models: [whole, alone], snapshot"))
    zoo.update()
    zoo.plain("--model-budget-prune")
    capsys.readouterr()

    def said(*words: str) -> str:
        main(list(words))
        return capsys.readouterr().out

    text = said("diff", "main")
    assert f"net5 ({FILE}::net5):\n  params 160 -> 192  (+32, +20.00%)\n" in text
    assert f"net4 ({FILE}::net4): removed (128 params in 1 layer)" in text
    assert f"net7 ({FILE}::net7): added (224 params in 1 layer)" in text
    assert "alone" not in text
    assert "params 160 -> 192" in said("diff", "main", "net5")
    assert said("diff", "main", "alone") == "alone since main: nothing differs\n"
    assert main(["show", str(Path(FILE))]) == 2
    assert "has the totals of 3 models, and no rows: modelbudget show ID counts one" in capsys.readouterr().err
