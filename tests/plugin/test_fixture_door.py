"""The `model_budget` fixture checks a model inside an ordinary test."""

from __future__ import annotations

import sys

import pytest

from tests.project import Project

ENCODER = """
    from fakenet import Model

    def test_encoder(model_budget):
        summary = model_budget.check(Model(dense=(32, 64)), inputs="float32[B, 32]", params="2_048")
        assert summary.params == 2_048
"""


def test_limits_hold_with_and_without_the_option(project: Project) -> None:
    """A plain run checks the limits and wants no snapshot; with the option the snapshot counts too."""
    project.write("test_nets.py", ENCODER)
    project.plain().assert_outcomes(passed=1)
    project.run().assert_outcomes(failed=1)
    assert project.snapshots() == {}
    project.update().assert_outcomes(passed=1)
    assert list(project.snapshots()) == ["__model_budget__/test_encoder.yaml"]
    project.run().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "option", [pytest.param(["-p", "no:xdist"], id="without"), pytest.param(["--model-budget"], id="with")]
)
def test_over_a_limit_the_test_fails_at_its_own_line(project: Project, option: list[str]) -> None:
    """The words and numbers are those of a manifest's model, the traceback is the user's."""
    project.write("test_nets.py", ENCODER.replace("2_048", "2_047", 1))
    result = project.plain(*option)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">*model_budget.check(Model(dense=(32, 64))*",
            "E*params: 2,048 > 2,047 (+1, +<0.1%)*",
            "test_nets.py:4: *",
            "OVER BUDGET test_nets.py::test_encoder*",
        ]
    )
    result.stdout.no_fnmatch_line("*plugin/fixture.py*")


def test_the_short_summary_has_the_numbers(project: Project) -> None:
    """The line of the short summary says what a manifest's model would say."""
    project.write("test_nets.py", ENCODER.replace("2_048", "2_047", 1))
    result = project.plain()
    result.stdout.fnmatch_lines(["OVER BUDGET test_nets.py::test_encoder - *params: 2,048 > 2,047*"])


def test_models_of_one_test_need_names(project: Project) -> None:
    """A second model in one test takes a name; without one the error says so."""
    project.write(
        "test_nets.py",
        """
        from fakenet import Model

        def test_pair(model_budget):
            model_budget.check(Model(dense=(32, 64)), inputs="float32[B, 32]")
            model_budget.check(Model(dense=(32, 10)), inputs="float32[B, 32]", name="head")

        def test_unnamed(model_budget):
            model_budget.check(Model(dense=(32, 64)), inputs="float32[B, 32]")
            model_budget.check(Model(dense=(32, 10)), inputs="float32[B, 32]")
        """,
    )
    result = project.update()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*test_unnamed checks a second model as 'test_unnamed': give it a name= of its own*"])
    assert list(project.snapshots()) == [
        "__model_budget__/head.yaml",
        "__model_budget__/test_pair.yaml",
        "__model_budget__/test_unnamed.yaml",
    ]


def test_parametrized_tests_and_tests_in_classes_keep_their_snapshots(project: Project) -> None:
    """Each case has a snapshot of its own, and none of them is taken for obsolete."""
    project.write(
        "test_nets.py",
        """
        import pytest
        from fakenet import Model

        class TestNets:
            @pytest.mark.parametrize("width", [64, 10])
            def test_width(self, model_budget, width):
                model_budget.check(Model(dense=(32, width)), inputs="float32[B, 32]")
        """,
    )
    project.update().assert_outcomes(passed=2)
    assert sorted(project.snapshots()) == [
        "__model_budget__/test_width-10.yaml",
        "__model_budget__/test_width-64.yaml",
    ]
    project.run().assert_outcomes(passed=2)


def test_two_tests_that_want_one_snapshot_are_told(project: Project) -> None:
    """Nothing is overwritten: the update fails and names both tests."""
    project.write(
        "test_nets.py",
        """
        from fakenet import Model

        def test_a(model_budget):
            model_budget.check(Model(dense=(32, 64)), inputs="float32[B, 32]", name="net")

        def test_b(model_budget):
            model_budget.check(Model(dense=(32, 10)), inputs="float32[B, 32]", name="NET")
        """,
    )
    result = project.update()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["ERROR *both want to be here: rename one*"])
    assert len(project.snapshots()) == 1


def test_a_removed_test_leaves_an_obsolete_snapshot(project: Project) -> None:
    """The file is named, kept, and deleted by prune."""
    project.write("test_nets.py", ENCODER + "\n    def test_stays():\n        pass\n")
    project.update().assert_outcomes(passed=2)
    project.write("test_nets.py", "def test_other(model_budget):\n    pass\n")
    result = project.run()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*__model_budget__/test_encoder.yaml", "OBSOLETE test_nets.py::snapshot-files*"])
    project.plain("--model-budget-prune").assert_outcomes(passed=2)
    assert project.snapshots() == {}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        pytest.param(
            'check(lambda: Model, inputs="float32[B, 32]")', "*returned the class Model, not a model*", id="a class"
        ),
        pytest.param('check(7, inputs="float32[B, 32]")', "*got a builtins.int, which is no model*", id="a number"),
        pytest.param('check(Model(d=(32, 1)), inputs="float32")', "*'float32' is not a tensor*", id="inputs"),
        pytest.param(
            'check(Model(d=(32, 1)), inputs="float32[B, 32]", parms="1k")',
            "*no metric 'parms', did you mean 'params'*",
            id="metric",
        ),
        pytest.param(
            'check(Model(d=(32, 1)), inputs="float32[B, 32]", name="../x")', "*bad model id '../x'*", id="name"
        ),
    ],
)
def test_wrong_arguments_fail_with_a_cure(project: Project, call: str, words: str) -> None:
    """The message is the same as for a manifest."""
    project.write(
        "test_nets.py", f"from fakenet import Model\n\ndef test_net(model_budget):\n    model_budget.{call}\n"
    )
    result = project.plain()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([words])


def test_an_expected_failure_stays_one(project: Project) -> None:
    """`xfail` and `raises` are the user's word on it."""
    project.write(
        "test_nets.py",
        """
        import pytest
        from fakenet import Model

        @pytest.mark.xfail
        def test_known(model_budget):
            model_budget.check(Model(dense=(32, 64)), inputs="float32[B, 32]", params="1")

        def test_guard(model_budget):
            with pytest.raises(AssertionError, match="params: 2,048 > 1"):
                model_budget.check(Model(dense=(32, 64)), inputs="float32[B, 32]", params="1")
        """,
    )
    for result in (project.plain(), project.update()):
        assert result.ret == 0
        result.assert_outcomes(passed=1, xfailed=1)


def test_a_missing_framework_skips_at_the_users_line(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is told with the place in the user's test."""
    monkeypatch.setitem(sys.modules, "torch", None)
    project.write(
        "test_nets.py",
        """
        def build():
            import torch

        def test_net(model_budget):
            model_budget.check(build, inputs="float32[B, 32]")
        """,
    )
    result = project.plain("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED [[]1] test_nets.py:5: torch is not installed*"])


def test_how_a_model_runs_is_real_or_abstract(project: Project) -> None:
    """`run` is read as in a manifest, and is no limit; another word fails at the user's line."""
    project.write(
        "test_nets.py",
        """
        from fakenet import Model

        def test_known(model_budget):
            model_budget.check(Model(dense=(32, 64)), inputs="float32[B, 32]", run="abstract")

        def test_unknown(model_budget):
            model_budget.check(Model(dense=(32, 64)), inputs="float32[B, 32]", run="fast")
        """,
    )
    result = project.plain()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["E*run: 'fast' is not known: write real or abstract"])


def test_summaries_that_should_be_equal_show_what_changed(project: Project) -> None:
    """A failing assert has the changes, not two thousand rows."""
    project.write(
        "test_nets.py",
        """
        from fakenet import Model

        def test_equal(model_budget):
            rows = {f"layer{index}": (32, 32) for index in range(2000)}
            before = model_budget.check(Model(rows), "float32[B, 32]", name="net")
            after = model_budget.check(Model({**rows, "layer7": (32, 31), "layer8": (31, 32)}), "float32[B, 32]", name="other")
            assert before == after
        """,
    )
    result = project.plain("-vv", "-p", "no:xdist")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*<Summary 'net' (fakenet): 2,048,000 params, *2,000 layers> == <Summary 'other' *",
            "E*params 2,048,000 -> 2,047,936*",
            "E*layer7*narrowed*",
        ]
    )
    assert len(result.outlines) < 60
