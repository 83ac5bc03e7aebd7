"""Models come in by a manifest, a decorator, a fixture or a source, and are ordinary pytest items."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from tests.project import SMALL, Project

DECORATED = """
    from pytest_modelbudget import model
    from fakenet import Model

    @model(inputs="float32[B, 32]", budgets={"params": "2_048"}, tags=["edge"])
    def encoder():
        return Model(dense=(32, 64))

    @model(inputs="float32[B, 32]")
    def test_like_a_test():
        return Model(dense=(32, 10))

    def test_ordinary():
        pass
"""


def ids(result: pytest.RunResult) -> list[str]:
    """The node ids that `--co -q` lists."""
    return [line for line in result.outlines if "::" in line]


def states(project: Project, *args: str) -> dict[str, str]:
    """How each model came out, by node id, as the JSON report says."""
    project.run("--model-budget-report=json:out.json", *args)
    data = json.loads((project.path / "out.json").read_text())
    return {model["nodeid"]: model["state"] for model in data["models"]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("modelbudget.yaml", SMALL, id="yaml"),
        pytest.param("modelbudget.yml", SMALL, id="yml"),
        pytest.param(
            "pyproject.toml",
            """
            [project]
            name = "user"

            [tool.modelbudget.models.small]
            build = "zoo:small"
            inputs = "float32[B, 32]"
            """,
            id="pyproject",
        ),
    ],
)
def test_a_manifest_registers_models(project: Project, name: str, text: str) -> None:
    """The same model by either kind of manifest: one item, named after the file and the id."""
    project.write(name, text)
    project.update().assert_outcomes(passed=1)
    assert states(project) == {f"{name}::small": "ok"}
    assert "params: 2048\n" in project.snapshot("small").read_text()


def test_a_decorated_builder_is_a_model_only_with_the_option(project: Project) -> None:
    """`@model` in a test module: an item with the option, nothing at all without, whatever the name."""
    project.write("tests/test_models.py", DECORATED)
    assert ids(project.plain("--co", "-q")) == ["tests/test_models.py::test_ordinary"]
    assert ids(project.run("--co", "-q")) == [
        "tests/test_models.py::encoder",
        "tests/test_models.py::test_like_a_test",
        "tests/test_models.py::test_ordinary",
    ]
    project.plain().assert_outcomes(passed=1)
    project.update().assert_outcomes(passed=3)
    assert sorted(project.snapshots()) == [
        "tests/__model_budget__/encoder.yaml",
        "tests/__model_budget__/test_like_a_test.yaml",
    ]
    project.write("tests/test_models.py", DECORATED.replace("2_048", "2_000"))
    project.run().stdout.fnmatch_lines(["  params: 2,048 > 2,000 (*)  [[]tests/test_models.py:4[]]"])


def test_a_decorator_that_does_not_parse_names_its_line(project: Project) -> None:
    """A mistake in the decorator's arguments is an error of that module, with the line."""
    project.write(
        "test_models.py",
        """
        from pytest_modelbudget import model

        @model(budgets={"params": "-3"})
        def net():
            pass
        """,
    )
    result = project.run()
    assert result.ret == 2
    result.stdout.fnmatch_lines(["*ModelBudgetError: *test_models.py:3: budgets.params: -3 is negative*"])


def test_a_source_yields_entries(project: Project) -> None:
    """`sources` call a function of the user's; defaults of the manifest hold for its entries too."""
    project.write(
        "registry.py",
        """
        import zoo
        from pytest_modelbudget import ModelEntry

        def models():
            for width in (20, 10):
                yield ModelEntry(id=f"net-{width}", build=zoo.of_width, args=(width,), inputs="float32[B, 32]")
        """,
    )
    project.manifest(
        """
        defaults: {budgets: {params: 320}}
        sources: [registry:models]
        """
    )
    result = project.update()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*params: 640 > 320 (+320, +100.0%)*"])
    assert sorted(project.snapshots()) == ["__model_budget__/net-10.yaml", "__model_budget__/net-20.yaml"]
    assert states(project) == {"modelbudget.yaml::net-10": "ok", "modelbudget.yaml::net-20": "OVER BUDGET"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param("raise RuntimeError('registry is down')", "*E   RuntimeError: registry is down", id="raises"),
        pytest.param("import sys; sys.exit(3)", "*SystemExit: 3", id="exits"),
        pytest.param("return 7", "*sources: registry:models returned a int: yield ModelEntry values", id="a number"),
        pytest.param(
            "return ['zoo:small']",
            "*sources: registry:models yielded a str, not a ModelEntry",
            id="text",
        ),
        pytest.param("import no_such_thing", "*ModuleNotFoundError: No module named 'no_such_thing'", id="import"),
    ],
)
def test_a_source_that_fails_is_one_failing_item(project: Project, body: str, words: str) -> None:
    """The models of the manifest are checked all the same."""
    project.write("registry.py", f"def models():\n    {body}\n")
    project.manifest(SMALL + "\n    sources: [registry:models]\n")
    result = project.update()
    result.assert_outcomes(passed=1, failed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines([words, "*BAD CONFIG modelbudget.yaml::sources*"])
    result.stdout.no_fnmatch_line("*pytest_modelbudget/*")


def test_a_root_manifest_is_found_beside_testpaths(project: Project) -> None:
    """`testpaths` does not hide the root's manifest; a path that the user names does."""
    project.write("pytest.ini", "[pytest]\ntestpaths = tests\n")
    project.write("tests/test_models.py", DECORATED)
    project.manifest(SMALL)
    assert "modelbudget.yaml::small" in ids(project.run("--co", "-q"))
    assert ids(project.run("--co", "-q", "tests")) == [
        "tests/test_models.py::encoder",
        "tests/test_models.py::test_like_a_test",
        "tests/test_models.py::test_ordinary",
    ]


def test_manifests_of_folders_are_found_and_keep_snapshots_beside_them(project: Project) -> None:
    """Each part of a repository can hold a manifest of its own."""
    project.write("team/modelbudget.yaml", SMALL)
    project.manifest(SMALL)
    project.update().assert_outcomes(passed=2)
    assert sorted(project.snapshots()) == ["__model_budget__/small.yaml", "team/__model_budget__/small.yaml"]


def test_the_manifest_can_be_named(project: Project) -> None:
    """`--model-budget-file`, or the ini key, in place of the name that is looked for."""
    project.write("conf/nets.yaml", SMALL)
    project.manifest(SMALL.replace("small:", "other:"))
    assert ids(project.run("--model-budget-file=conf/nets.yaml", "--co", "-q")) == ["conf/nets.yaml::small"]
    project.write("pytest.ini", "[pytest]\nmodel_budget_file = conf/nets.yaml\n")
    assert ids(project.run("--co", "-q")) == ["conf/nets.yaml::small"]
    result = project.run("--model-budget-file=conf/no.yaml")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*there is no manifest conf/no.yaml*"])


def test_the_ini_key_switches_the_option_on(project: Project) -> None:
    """`model_budget = true` is as good as the flag, and does not get in the way of a narrow run without models."""
    project.write("pytest.ini", "[pytest]\nmodel_budget = true\n")
    project.manifest(SMALL)
    project.write("test_plain.py", "def test_plain(): pass\n")
    result = project.plain()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*NO SNAPSHOT modelbudget.yaml::small*"])
    narrow = project.plain("test_plain.py")
    narrow.assert_outcomes(passed=1)
    assert narrow.ret == 0


TWO = """
    models:
      small:
        build: zoo:small
        inputs: "float32[B, 32]"
        tags: [edge]
      deep/two:
        build: zoo:two_layers
        inputs: "float32[B, 32]"
        tags: [server]
"""


@pytest.mark.parametrize(
    ("args", "chosen"),
    [
        pytest.param(["modelbudget.yaml::deep/two"], ["deep/two"], id="node id"),
        pytest.param(["-m", "model_budget"], ["small", "deep/two"], id="marker"),
        pytest.param(["-m", "not model_budget"], [], id="not the marker"),
        pytest.param(["-k", "edge"], ["small"], id="tag"),
        pytest.param(["-k", "two"], ["deep/two"], id="part of the name"),
        pytest.param(["--deselect", "modelbudget.yaml::small"], ["deep/two"], id="deselect"),
    ],
)
def test_items_are_selected_as_tests_are(project: Project, args: list[str], chosen: list[str]) -> None:
    """By node id, marker, tag and name."""
    project.manifest(TWO)
    project.write("test_plain.py", "def test_plain(): pass\n")
    found = ids(project.run("--co", "-q", "--strict-markers", *args))
    assert [one for one in found if "plain" not in one] == [f"modelbudget.yaml::{name}" for name in chosen]


def test_last_failed_and_stop_at_first(project: Project) -> None:
    """`-x` stops at a model, `--lf` runs the one that failed."""
    project.manifest(TWO)
    project.update("modelbudget.yaml::small").assert_outcomes(passed=1)
    project.run().assert_outcomes(passed=1, failed=1)
    again = project.run("--lf")
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(["NO SNAPSHOT modelbudget.yaml::deep/two*"])
    project.snapshot("small").unlink()
    project.run("-x").assert_outcomes(failed=1)


def test_junit_has_numbers_and_places(project: Project) -> None:
    """Numbers are properties; the location is the line of the manifest, or of the builder."""
    project.manifest(TWO)
    project.write("test_models.py", DECORATED)
    project.update("--junitxml=junit.xml", "-o", "junit_family=xunit1")
    cases = {case.get("name"): case for case in ElementTree.parse(project.path / "junit.xml").iter("testcase")}
    properties = {one.get("name"): one.get("value") for one in cases["deep/two"].iter("property")}
    assert properties == {
        "model_budget.params": "2688",
        "model_budget.trainable_params": "2688",
        "model_budget.non_trainable_params": "0",
        "model_budget.non_embedding_params": "2688",
        "model_budget.buffers": "0",
        "model_budget.weight_bytes": "10752",
        "model_budget.flops": "5376",
        "model_budget.layers": "2",
        "model_budget.largest_layer_share": "0.761905",
    }
    assert (cases["deep/two"].get("file"), cases["deep/two"].get("line")) == ("modelbudget.yaml", "5")
    assert (cases["encoder"].get("file"), cases["encoder"].get("line")) == ("test_models.py", "3")


def test_names_for_the_library_are_imported_when_asked_for() -> None:
    """`from pytest_modelbudget import summarize, compare` are the functions, and a wrong name is an error."""
    import pytest_modelbudget
    from pytest_modelbudget import api, compare, diff, plan, summarize

    assert (summarize, plan, compare) == (api.summarize, api.plan, diff.changes)
    assert all(getattr(pytest_modelbudget, name) for name in pytest_modelbudget.__all__)
    with pytest.raises(AttributeError, match="no attribute 'sumarize'"):
        pytest_modelbudget.sumarize  # noqa: B018


def test_a_decorated_builder_is_selected_by_its_node_id(project: Project) -> None:
    """Alone, in a class, and written by an update of just that id."""
    project.write(
        "tests/test_models.py",
        """
        from pytest_modelbudget import model
        from fakenet import Model

        class TestNets:
            @model(inputs="float32[B, 32]", name="nets/first")
            def first():
                return Model(dense=(32, 64))

            @model(inputs="float32[B, 32]")
            def second():
                return Model(dense=(32, 64))
        """,
    )
    assert ids(project.run("--co", "-q")) == [
        "tests/test_models.py::TestNets::nets/first",
        "tests/test_models.py::TestNets::second",
    ]
    project.update("tests/test_models.py::TestNets::nets/first").assert_outcomes(passed=1)
    assert list(project.snapshots()) == ["tests/__model_budget__/nets/first.yaml"]
    project.update().assert_outcomes(passed=2)
    project.run().assert_outcomes(passed=2)


@pytest.mark.parametrize(
    "workers", [pytest.param([], id="one process"), pytest.param(["-n", "2"], id="two workers", marks=pytest.mark.slow)]
)
def test_a_run_from_a_folder_below_the_root(
    project: Project, monkeypatch: pytest.MonkeyPatch, workers: list[str]
) -> None:
    """Paths of flags are those of the folder, snapshots those of the manifest."""
    project.write("conf/nets.yaml", SMALL)
    project.write("tests/test_plain.py", "def test_plain(): pass\n")
    monkeypatch.chdir(project.path / "tests")
    flags = ("--model-budget-update", "--model-budget-file=../conf/nets.yaml", "--model-budget-report=md:out.md")
    (project.alone if workers else project.plain)(*flags, *workers).assert_outcomes(passed=2)
    assert list(project.snapshots()) == ["conf/__model_budget__/small.yaml"]
    assert (project.path / "tests/out.md").exists()


def test_a_test_that_is_run_again_counts_once(project: Project) -> None:
    """Plugins that rerun failed tests see the same model, not a second one."""
    project.write(
        "conftest.py",
        """
        from _pytest.runner import runtestprotocol
        from pytest_modelbudget import backends

        backends.BACKENDS["fakenet"] = "fakenet"

        def pytest_runtest_protocol(item, nextitem):
            for _ in range(2):
                for report in runtestprotocol(item, nextitem=nextitem, log=False):
                    item.ihook.pytest_runtest_logreport(report=report)
            return True
        """,
    )
    project.manifest(SMALL)
    project.write(
        "test_nets.py",
        """
        from fakenet import Model

        def test_encoder(model_budget):
            model_budget.check(Model(dense=(32, 64)), inputs="float32[B, 32]")
        """,
    )
    result = project.update()
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["2 models in *: 2 ok", "snapshots: wrote 2, 0 unchanged"])
