"""Limits on the sum over a group of models: told by the controller, on one process and on several."""

from __future__ import annotations

import json

import pytest

from pytest_modelbudget.parts import file
from tests.project import USE_FAKENET, Project

MANIFEST = """
    groups:
      edge: {{models: "edge/*", sum: {{{limits}}}}}
    models:
      edge/a: {{build: zoo:of_width, args: [10], inputs: "float32[B, 32]"}}
      edge/b: {{build: zoo:of_width, args: [20], inputs: "float32[B, 32]"}}
      edge/c: {{build: zoo:of_width, args: [30], inputs: "float32[B, 32]"}}
      other: {{build: zoo:of_width, args: [99], inputs: "float32[B, 32]"}}
"""
JSON = "--model-budget-report=json:report.json"
GROUPED = """
    def pytest_collection_modifyitems(items):
        for item in items:
            own = type(item)
            nodeid = property(lambda item, own=own: own.nodeid.fget(item) + "@gpu")
            item.__class__ = type(own.__name__, (own,), {"nodeid": nodeid})
"""


def written(project: Project, limits: str) -> None:
    """Three models of 320, 640 and 960 params (1,920 together) in a group, and one outside."""
    project.manifest(MANIFEST.format(limits=limits))


@pytest.mark.parametrize(
    ("limits", "code", "words"),
    [
        pytest.param("params: 1_920", 0, "sum: group edge: params 1,920 of 1,920 (100.0%)", id="just"),
        pytest.param("params: 1_919", 1, "OVER BUDGET group edge: params: 1,920 > 1,919 (+1, +0.1%); sum over 3 models: edge/c 960, edge/b 640, edge/a 320  [[]modelbudget.yaml:2]", id="over by one"),
        pytest.param("weight_bytes: 8 kB", 0, "sum: group edge: weight_bytes 7,680 bytes of 8,000 bytes (96.0%)", id="bytes"),
        pytest.param("flops: 3 kFLOPs", 1, "OVER BUDGET group edge: flops: 3,840 FLOPs > 3,000 FLOPs (+840, +28.0%); sum over 3 models:*", id="flops"),
        pytest.param("params: {max: 2k, warn: 90%}", 0, "warn: group edge: params: 1,920 is over 90.0% of the limit; max 2,000, sum over 3 models: *", id="warn"),
    ],
)  # fmt: skip
def test_a_sum(project: Project, limits: str, code: int, words: str) -> None:
    """Every model passes by itself; the sum decides the exit code."""
    written(project, limits)
    result = project.update(JSON)
    assert result.ret == code
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines([words])
    report = json.loads((project.path / "report.json").read_text())
    [one] = report["sums"]
    assert (one["group"], one["counted"], one["missing"]) == ("group edge", 3, [])
    assert one["state"] == ("over" if code else "warn" if "warn" in words else "ok")
    assert [model["id"] for model in report["models"] if model["state"] == "OVER BUDGET"] == (
        ["group edge"] if code else []
    )


@pytest.mark.slow
def test_the_same_with_two_workers(project: Project) -> None:
    """No worker sees all models; the controller adds them up."""
    written(project, "params: 1_919")
    one = project.update()
    two = project.alone("--model-budget-update", "-n", "2")
    wanted = [line for line in one.outlines if "group edge" in line]
    assert len(wanted) == 2  # the table's row and the line with the numbers
    assert [line for line in two.outlines if "group edge" in line] == wanted
    assert (one.ret, two.ret) == (1, 1)


@pytest.mark.parametrize(
    "outside", [pytest.param(False, id="a group of xdist"), pytest.param(True, id="a manifest outside")]
)
def test_pytest_may_name_models_otherwise(project: Project, outside: bool) -> None:
    """Sums and parts know those to which `--dist loadgroup` appends `@group`, and those of files outside the root."""
    written(project, "params: 1_919")
    options = []
    if outside:
        manifest = (project.path / "modelbudget.yaml").rename(project.outside / "modelbudget.yaml")
        options = [f"--model-budget-file={manifest}"]
    else:
        project.write("conftest.py", USE_FAKENET + GROUPED)
    result = project.update(*options)
    result.stdout.fnmatch_lines(["OVER BUDGET group edge: params: 1,920 > *"])
    assert result.ret == 1
    result = project.plain("--model-budget-part=1.part", *options)
    result.stdout.fnmatch_lines(["a part: 4 of 4 models in 1.part; *"])
    assert result.ret == 0
    part = file.read(project.path / "1.part")
    assert {node for group in part.head.registry.groups for node in group.members} < {*part.head.selected}


def test_a_sum_that_lacks_models_is_not_passed_silently(project: Project) -> None:
    """Deselected members are counted and named."""
    written(project, "params: 1k")
    result = project.update("-k", "not edge/c", JSON)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "warn: sum incomplete: group edge: params 960 of 1,000 so far: 1 of 3 models were not counted (edge/c)  "
            "[[]modelbudget.yaml:2]"
        ]
    )
    assert json.loads((project.path / "report.json").read_text())["sums"][0]["state"] == "incomplete"


def test_what_is_over_without_the_missing_ones_is_over(project: Project) -> None:
    """More cannot make it less."""
    written(project, "params: 900")
    result = project.update("-k", "not edge/c")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["OVER BUDGET group edge: params: 960 > 900 (+60, +6.7%); at least the sum over 2 models: *"]
    )


def test_a_run_without_any_of_the_group_says_nothing_of_it(project: Project) -> None:
    """One model on its own is not about the group."""
    written(project, "params: 1")
    result = project.update("modelbudget.yaml::other")
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*group edge*")


def test_a_member_that_fails_to_build(project: Project) -> None:
    """The run fails for it; the sum says that it is missing."""
    written(project, "params: 1k")
    path = project.path / "modelbudget.yaml"
    path.write_text(path.read_text().replace("args: [30]", "args: [30, 31]"))
    result = project.update()
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["warn: sum incomplete: group edge: params 960 of 1,000 so far: 1 of 3 models *(edge/c)*"]
    )


@pytest.mark.parametrize(
    ("builder", "limit", "words"),
    [
        pytest.param("flops=False", "9 kFLOPs", "flops: edge/x is unknown, so the limit cannot be checked", id="unknown"),
        pytest.param("uncounted={'magic': 2}", "9 kFLOPs", "flops: edge/x is unknown (at least 64, no formula for magic x2)", id="a lower bound"),
        pytest.param("uncounted={'magic': 2}", "1 kFLOPs", "flops: 3,904 FLOPs > 1,000 FLOPs (+2,904, +290.4%); at least the sum over *", id="over for sure"),
    ],
)  # fmt: skip
def test_a_number_that_is_not_known_does_not_pass(project: Project, builder: str, limit: str, words: str) -> None:
    """It is not taken for 0."""
    project.write("odd.py", f"""
        from fakenet import Model

        def net():
            return Model(dense=(32, 1), {builder})
        """)  # fmt: skip
    written(project, f"flops: {limit}")
    path = project.path / "modelbudget.yaml"
    path.write_text(path.read_text() + "  edge/x: {build: odd:net, inputs: 'float32[B, 32]'}\n")
    result = project.update()
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"OVER BUDGET group edge: {words}*"])


def test_tags_have_sums_too(project: Project) -> None:
    """Of the models that have the tag, those of sources among them."""
    project.write("registry.py", """
        import zoo
        from pytest_modelbudget import ModelEntry

        def models():
            yield ModelEntry("listed", zoo.of_width, args=(1,), inputs="float32[B, 32]", tags=["small"])
        """)  # fmt: skip
    project.manifest("""
        tags: {small: {sum: {params: 100, layers: 3}}}
        sources: [registry:models]
        models:
          own: {build: zoo:of_width, args: [2], inputs: "float32[B, 32]", tags: [small]}
        """)  # fmt: skip
    result = project.update()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*sum: layers cannot be added up; known are params*"])
    path = project.path / "modelbudget.yaml"
    path.write_text(path.read_text().replace(", layers: 3", ""))
    project.update().stdout.fnmatch_lines(["sum: tag small: params 96 of 100 (96.0%)"])
