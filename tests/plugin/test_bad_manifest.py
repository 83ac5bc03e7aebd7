"""Mistakes in a manifest: one clear message with the line and the cure, and the other models are still checked."""

from __future__ import annotations

import pytest

from tests.project import Project

GOOD = """\
version: 1
models:
  good: {build: zoo:small, inputs: "float32[B, 32]"}
"""
BAD = "  bad: {build: zoo:small, inputs: 'float32[B, 32]'"


def field(text: str) -> str:
    """A second model in line 4, with one more field."""
    return f"{GOOD}{BAD}, {text}}}\n"


def limit(text: str) -> str:
    """A second model in line 4, with budgets in line 7."""
    return f"{GOOD}  bad:\n    build: zoo:small\n    inputs: 'float32[B, 32]'\n    budgets: {text}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(field("buld: 1"), "4: unknown key 'buld', did you mean 'build'*", id="unknown key"),
        pytest.param(f"{GOOD}modles: {{}}\n", "4: unknown key 'modles', did you mean 'models'*", id="unknown top key"),
        pytest.param(
            f"{GOOD}defaults:\n  bach: 2\n", "5: unknown key 'bach', did you mean 'batch'*", id="unknown default"
        ),
        pytest.param(f"{GOOD}  bad: {{}}\n", "4: *build is missing*module:callable*", id="no build"),
        pytest.param(
            f"{GOOD}  bad: {{build: zoo.small}}\n",
            "4: build: 'zoo.small' is not a reference: write module:callable, or the path of a *",
            id="no reference",
        ),
        pytest.param(f"{GOOD}  bad: {{build: 7}}\n", "4: *models.bad.build*string*7", id="build is a number"),
        pytest.param(f"{GOOD}  ../bad: {{build: zoo:small}}\n", "4: bad model id '../bad'*", id="id with dots"),
        pytest.param(
            f"{GOOD}  a/../bad: {{build: zoo:small}}\n", "4: bad model id 'a/../bad'*", id="id with dots inside"
        ),
        pytest.param(f"{GOOD}  /bad: {{build: zoo:small}}\n", "4: bad model id '/bad'*", id="id from the root"),
        pytest.param(f"{GOOD}  bad id: {{build: zoo:small}}\n", "4: bad model id 'bad id'*", id="id with a space"),
        pytest.param(
            f"{GOOD}  'bad@1': {{build: zoo:small}}\n", "4: bad model id 'bad@1': use letters*", id="id with @"
        ),
        pytest.param(f"{GOOD}  'bad::1': {{build: zoo:small}}\n", "4: bad model id 'bad:*1'*", id="id with colons"),
        pytest.param(field("inputs: 'x32'"), "4: *the key 'inputs' is used twice*", id="a field twice"),
        pytest.param(
            f"{GOOD}  bad: {{build: zoo:small, inputs: 'flot32[B, 32]'}}\n",
            "4: inputs: *there is no dtype 'flot32', did you mean 'float32'*",
            id="inputs: dtype",
        ),
        pytest.param(
            f"{GOOD}  bad: {{build: zoo:small, inputs: 'float32(B, 32)'}}\n",
            "4: inputs: *is not a tensor: write dtype[[]dim, dim]*",
            id="inputs: form",
        ),
        pytest.param(
            f"{GOOD}  bad: {{build: zoo:small, inputs: 'float32[B, -1]'}}\n",
            "4: inputs: *'-1' is neither a size nor*",
            id="inputs: dimension",
        ),
        pytest.param(field("batch: 0"), "4: *models.bad.batch*greater than 0*", id="batch 0"),
        pytest.param(field("optional: on"), "4: *write true or false, not 'on'", id="on"),
        pytest.param(field("run: fast"), "4: models.bad.run: *'real' or 'abstract'*'fast'*", id="run"),
        pytest.param(field("framework: pytorch"), "4: *framework*'torch'*'pytorch'", id="framework"),
        pytest.param(
            limit("{weight_bytes: 24}"),
            "7: budgets.weight_bytes: *24* needs a unit: write e.g. 24 MiB*",
            id="unit missing",
        ),
        pytest.param(
            limit("{weight_bytes: 24 Mb}"),
            "7: budgets.weight_bytes: '24 Mb' has the unit 'Mb'*did you mean 'MB'*",
            id="unit unknown",
        ),
        pytest.param(limit("{largest_layer_share: 0.95}"), "7: *0.95* needs a unit: write e.g. 95%", id="bare share"),
        pytest.param(
            limit("{parms: 1k}"), "7: budgets: there is no metric 'parms', did you mean 'params'*", id="metric"
        ),
        pytest.param(
            limit("{params: {maximum: 1k}}"), "7: budgets.params: there is no limit of the kind 'maximum'*", id="bound"
        ),
        pytest.param(limit("{params: 1e6}"), "7: budgets.params: '1e6' is not a quantity*write e.g. 26M*", id="1e6"),
        pytest.param(limit("{params: 1:30}"), "7: budgets.params: '1:30' is not a quantity*", id="1:30"),
        pytest.param(limit("{params: on}"), "7: budgets.params: 'on' is not a quantity*", id="budget on"),
        pytest.param(limit("{params: 010}"), "7: budgets.params: '010' is not a quantity*", id="010"),
        pytest.param(limit("{params: true}"), "7: budgets.params: True is not a quantity*", id="true"),
        pytest.param(limit("{params: -1}"), "7: budgets.params: -1 is negative*", id="negative"),
        pytest.param(
            limit("{params: 1.5}"), "7: budgets.params: *1.5* is not a whole number of elements*", id="half a parameter"
        ),
        pytest.param(
            limit("{params: {min: 2k, max: 1k}}"),
            "7: budgets.params: min 2,000 is above max 1,000*",
            id="min above max",
        ),
        pytest.param(
            limit("{params: {min: 5k}}") + "defaults: {budgets: {params: 4k}}\n",
            "7: *params: min 5,000 is above max 4,000*",
            id="min above a default max",
        ),
        pytest.param(
            f"{GOOD}sources: [nowhere]\n", "4: 'nowhere' is not a reference: write module:callable", id="source"
        ),
        pytest.param(f"{GOOD}sources: [nowhere:models]\n", "4: *there is no module 'nowhere'*", id="source module"),
    ],
)
def test_a_mistake_is_an_item_that_fails(project: Project, text: str, words: str) -> None:
    """Its place and cure are told; the good model beside it is checked; nothing is written for the bad one."""
    project.write("modelbudget.yaml", text)
    result = project.update()
    assert result.ret == 1
    assert result.parseoutcomes() == {"passed": 1, "failed": 1}
    result.stdout.fnmatch_lines([f"modelbudget.yaml:{words}"])
    assert list(project.snapshots()) == ["__model_budget__/good.yaml"]


def test_a_mistake_in_a_tag_leaves_its_models_checked(project: Project) -> None:
    """The tag's line is told as an item of the manifest."""
    project.write("modelbudget.yaml", f"{GOOD}tags:\n  edge:\n    budgets: {{params: 1x}}\n")
    result = project.update()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["modelbudget.yaml:6: budgets.params: '1x' has the unit 'x'*"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("models: [\n  a: }\n", "modelbudget.yaml:2: not YAML: *", id="not YAML"),
        pytest.param("models:\n\tx: 1\n", "modelbudget.yaml:2: not YAML: *", id="a tab"),
        pytest.param("a: 1\n---\nb: 2\n", "modelbudget.yaml:2: not YAML: *", id="two documents"),
        pytest.param("- a\n", "modelbudget.yaml: not a mapping: write version: 1 and models: {...}", id="a list"),
        pytest.param("", "modelbudget.yaml: an empty manifest: write version: 1 and models: {...}", id="empty"),
        pytest.param("version: 2\nmodels: {}\n", "modelbudget.yaml:1: version 2 is not known*upgrade*", id="version 2"),
        pytest.param("models: 7\n", "modelbudget.yaml:1: models: *valid dictionary*7", id="models is a number"),
        pytest.param("models: &a {x: *a}\n", "modelbudget.yaml*nested too deeply*", id="a loop"),
        pytest.param("\x00\x01", "modelbudget.yaml*not YAML: *", id="junk"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_one_failing_item(project: Project, text: str, words: str) -> None:
    """The line is told, exit 1, and ordinary tests go on."""
    project.write("test_plain.py", "def test_plain(): pass\n")
    project.write("modelbudget.yaml", text)
    result = project.update()
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines([words, "0 models in * s: 1 bad manifest", "BAD CONFIG modelbudget.yaml::manifest - *"])
    assert project.snapshots() == {}


def test_a_pyproject_that_is_not_toml_names_the_line(project: Project) -> None:
    """The table is there, the file is broken: pytest itself cannot read it either."""
    project.write("sub/pyproject.toml", "[tool.modelbudget]\nmodels = {\n")
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["sub/pyproject.toml:*: not TOML: *"])


def test_all_mistakes_are_told_in_one_run(project: Project) -> None:
    """Each model's mistakes are one item, with a line for each mistake."""
    project.write(
        "modelbudget.yaml",
        f"{GOOD}  bad:\n    build: zoo\n    inputs: '[x y'\n    budgets: {{params: on, flops: 3}}\n  worse: {{}}\n",
    )
    result = project.update()
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines_random(
        [
            "modelbudget.yaml:5: build: 'zoo' is not a reference*",
            "modelbudget.yaml:6: inputs: *",
            "modelbudget.yaml:7: budgets.params: 'on'*",
            "modelbudget.yaml:7: budgets.flops: *3* needs a unit*",
            "modelbudget.yaml:8: models.worse.build is missing*",
        ]
    )


def test_a_model_id_used_twice_names_both_lines(project: Project) -> None:
    """Neither of the two is checked; the third is."""
    project.write("modelbudget.yaml", f"{GOOD}  bad: zoo:small\n  bad: zoo:two_layers\n")
    result = project.update()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["modelbudget.yaml:5: the model id 'bad' is used twice (first in line 4): rename one"])


@pytest.mark.parametrize(
    ("first", "second"), [pytest.param("a:b", "a_b", id="colon"), pytest.param("net", "NET", id="case")]
)
def test_two_models_with_one_snapshot_file(project: Project, first: str, second: str) -> None:
    """Each fails, names the other and its place, and nothing is written; the third is checked."""
    inputs = 'inputs: "float32[B, 32]"'
    project.write(
        "modelbudget.yaml",
        f"{GOOD}  '{first}': {{build: zoo:small, {inputs}}}\n  '{second}': {{build: zoo:two_layers, {inputs}}}\n",
    )
    result = project.update()
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines_random(
        [
            f"its snapshot would be *, which is also that of {second} (modelbudget.yaml:5): rename one*",
            f"its snapshot would be *, which is also that of {first} (modelbudget.yaml:4): rename one*",
        ]
    )
    assert list(project.snapshots()) == ["__model_budget__/good.yaml"]


def test_a_source_with_a_contradiction_fails_alone(project: Project) -> None:
    """A min of the source's above a max of the defaults is told; the manifest's own model is checked."""
    project.write(
        "registry.py",
        """
        from pytest_modelbudget import ModelEntry

        def models():
            return [ModelEntry("net", "zoo:small", inputs="float32[B, 32]", budgets={"params": {"min": "5k"}})]
        """,
    )
    project.write("modelbudget.yaml", GOOD + "sources: [registry:models]\ndefaults: {budgets: {params: 4k}}\n")
    result = project.update()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*params: min 5,000 is above max 4,000*"])


@pytest.mark.parametrize("name", ["manifest", "sources", "snapshot-files"])
def test_a_model_cannot_have_the_name_of_another_item(project: Project, name: str) -> None:
    """Otherwise two items would share one node id."""
    project.write("modelbudget.yaml", f"{GOOD}  {name}: zoo:small\n")
    result = project.update()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines([f"modelbudget.yaml:4: the model id '{name}' is taken by an item of the plugin's own*"])
