"""What a user reads: 80 columns, no colour, no terminal."""

from __future__ import annotations

import pytest

from pytest_modelbudget.reports import REPORTS
from pytest_modelbudget.system import pace
from tests.project import SMALL, Project

THREE = """
    models:
      small:
        build: zoo:small
        inputs: "float32[B, 32]"
        budgets: {params: 1_000}
      two: {build: zoo:two_layers, inputs: "float32[B, 32]", budgets: {params: 3k}}
      broken: {build: zoo:nowhere}
"""


def test_a_run_from_header_to_short_summary(project: Project) -> None:
    """One header line, a table with failures first, a verdict, and our words in pytest's summary."""
    project.manifest(THREE)
    project.update()
    result = project.run()
    result.stdout.fnmatch_lines(
        [
            "model-budget: checking snapshots and budgets, writing none",
            "modelbudget.yaml B.E*",
            "_* small _*",
            "small: OVER BUDGET",
            "-* model budgets -*",
            "model *params *trainable *FLOPs *weights *budget used*",
            "=====*",
            "broken *BUILD ERROR",
            "small *2,048 *2,048 *4.096 k *8.000 KiB *params 204.8% *OVER BUDGET",
            "two *2,688 *2,688 *5.376 k *10.50 KiB *params 89.6%",
            "3 models in * s: 1 build error, 1 over budget, 1 ok",
            "*short test summary info*",
            "OVER BUDGET modelbudget.yaml::small - params: 2,048 > 1,000 (+1,048, +104.8%)",
            "BUILD ERROR modelbudget.yaml::broken - *",
            "*2 failed, 1 passed in*",
        ]
    )
    text = result.stdout.str()
    assert "\x1b" not in text
    ours = text[text.index("= FAILURES") : text.index("= short test summary")].splitlines()
    assert max(map(len, ours)) <= 80 + len("modelbudget.yaml:5: build: zoo has no 'nowhere' (for 'zoo:nowhere')")
    table = text[text.index("- model budgets") : text.index("= short test summary")].splitlines()
    assert max(map(len, table)) <= 80


def test_verbose_shows_layer_tables_in_the_familiar_shape(small: Project) -> None:
    """`-v`: Layer (type), Output Shape, Param #, Connected to, and the three totals, for models that pass too."""
    small.manifest(THREE.replace("params: 1_000", "params: 3_000"))
    result = small.update("-v")
    result.stdout.fnmatch_lines(
        [
            "modelbudget.yaml::small PASSED*",
            "modelbudget.yaml::broken BUILD ERROR*",
            "Model: two (fakenet)",
            "Input: 0 float32[[]B, 32]",
            "Layer (type) *Output Shape *Param # *Connected to",
            "body (Dense) *[[]B, 64] *2,048 *0",
            "head (Dense) *[[]B, 10] *640 *body",
            "Total params: 2,688 (10.50 KiB)",
            "Trainable params: 2,688",
            "Non-trainable params: 0",
            "FLOPs, forward at B=1: 5.376 kFLOPs (2.688 kMACs)",
        ]
    )
    result.stdout.no_fnmatch_line("Layer (type) *Why")
    small.update().stdout.no_fnmatch_line("Layer (type)*")


def test_very_verbose_says_where_params_come_from(small: Project) -> None:
    """`-vv`: one more column, by formula, for models that pass and for one that fails."""
    small.manifest(THREE.replace("params: 1_000", "params: 3_000"))
    small.update("-vv").stdout.fnmatch_lines(
        ["Layer (type) *Connected to *Why", "body (Dense) *0 *in[*]out: 32[*]64 = 2,048"]
    )
    small.manifest(THREE)
    result = small.run("-vv")
    result.stdout.fnmatch_lines(["*params: 2,048 > 1,000*", "Layer (type) *Why", "* in[*]out: 32[*]64 = 2,048"])


def test_a_quiet_run_says_the_verdict_only(small: Project) -> None:
    """`-q` on a clean project is short."""
    assert len(small.run("-q").outlines) < 12


@pytest.mark.parametrize("width", [pytest.param("40", id="narrow"), pytest.param("200", id="wide")])
def test_the_table_follows_the_width(small: Project, monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    """No line of the table is longer than the terminal, and no number is lost."""
    monkeypatch.setenv("COLUMNS", width)
    text = small.run().stdout.str()
    table = text[text.index("- model budgets") :].splitlines()
    assert max(map(len, table)) <= int(width)
    assert "2,048" in "".join(table)


def test_a_failing_assert_about_a_model_stays_short(project: Project) -> None:
    """A summary, a plan and what changed are a short line each where pytest explains an assert."""
    project.write(
        "test_nets.py",
        """
        from pytest_modelbudget import compare, summarize
        from zoo import small, two_layers

        def test_small():
            assert summarize(small, "float32[B, 32]").params < 1_000

        def test_equal():
            before, after = (summarize(build, "float32[B, 32]") for build in (small, two_layers))
            assert not compare(before, after)
        """,
    )
    result = project.plain()
    result.assert_outcomes(failed=2)
    lines = [line for line in result.outlines if line.startswith("E ")]
    assert "E        +  where 2048 = <Summary 'small' (fakenet): 2,048 params, 4.096 kFLOPs, 1 layer>.params" in lines
    assert "E       AssertionError: assert not <Changes: params 2,048 -> 2,688 (+640), 2 rows changed>" in lines
    assert max(map(len, lines)) < 240


@pytest.mark.parametrize(
    ("models", "options", "tables"),
    [
        pytest.param(3, (), 3, id="few"),
        pytest.param(4, (), 0, id="many"),
        pytest.param(4, ("-k", "net0"), 1, id="one of many"),
        pytest.param(4, ("-v",), 4, id="many, and verbose"),
    ],
)
def test_many_new_models_get_a_line_each(project: Project, models: int, options: tuple[str, ...], tables: int) -> None:
    """The first check of a project says how to see one and how to write all; `over` breaks a limit too."""
    entry = '{build: zoo:small, inputs: "float32[B, 32]"'
    names = [*(f"net{number}" for number in range(models - 1)), "over"]
    lines = [f"  {name}: {entry}{', budgets: {params: 1}' if name == 'over' else ''}}}\n" for name in names]
    project.manifest(f"models:\n{''.join(lines)}")
    result = project.run(*options)
    assert result.stdout.str().count("Layer (type)") == tables
    result.stdout.fnmatch_lines(["OVER BUDGET modelbudget.yaml::over - params: 2,048 > 1 *"] if not options else [])
    if not tables:
        result.stdout.fnmatch_lines(
            [
                "net0: NO SNAPSHOT: no __model_budget__/net0.yaml yet; 2,048 params, 4.096 kFLOPs, 1 layer",
                "over: OVER BUDGET",
                "  params: 2,048 > 1 *",
                "4 models have no snapshot yet:",
                "create:  pytest --model-budget-update",
                "look:    modelbudget show net0",
            ]
        )
        assert project.update().stdout.str().count("Layer (type)") == 0


def test_nothing_is_said_without_the_option(small: Project) -> None:
    """An ordinary run neither collects nor mentions models."""
    small.write("test_plain.py", "def test_plain(): pass\n")
    result = small.plain()
    result.assert_outcomes(passed=1)
    assert "budget" not in result.stdout.str().replace("modelbudget-0", "").replace(str(small.path), "")


def test_a_report_per_kind(small: Project) -> None:
    """All kinds in one run, in folders that need not exist; each has the numbers."""
    flags = [f"--model-budget-report={kind}:out/deep/report.{kind}" for kind in REPORTS]
    assert small.run(*flags).ret == 0
    folder = small.path / "out/deep"
    assert '"params": 2048' in (folder / "report.json").read_text()
    assert "| <code>small</code> | ok | 2,048 |" in (folder / "report.md").read_text()
    assert 'model_params{model="small"} 2048' in (folder / "report.openmetrics").read_text()
    assert (folder / "report.codequality").read_text() == "[]\n"
    assert (folder / "report.comment").read_text().startswith("<!-- modelbudget:report quiet -->")
    assert "2,048" in (folder / "report.html").read_text()
    assert {file.name for file in folder.iterdir()} == {f"report.{kind}" for kind in REPORTS}


def test_a_report_that_cannot_be_written_fails_the_run(small: Project) -> None:
    """The path and the system's reason are told; the other reports are written."""
    small.write("taken", "a file")
    result = small.run("--model-budget-report=json:taken/x.json", "--model-budget-report=md:x.md")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["ERROR report json: *taken/x.json cannot be written (*)"])
    assert (small.path / "x.md").exists()


def test_a_step_summary_is_appended_to(small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CI job's summary belongs to its other steps too."""
    summary = small.write("summary.md", "before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert small.run(f"--model-budget-report=md:{summary}").ret == 0
    assert summary.read_text().startswith("before\n### Model budget: 1 ok\n")


def test_a_hook_of_the_users_gets_the_results(project: Project) -> None:
    """`pytest_modelbudget_finish` in a conftest: once, after files were written, with sorted results."""
    project.manifest(SMALL)
    project.write(
        "conftest.py",
        """
        from pytest_modelbudget import backends

        backends.BACKENDS["fakenet"] = "fakenet"

        def pytest_modelbudget_finish(results, config):
            print("finish:", [(result.id, result.state.value, result.summary.params) for result in results])
        """,
    )
    project.update("-s").stdout.fnmatch_lines(["*finish: [[]('small', 'ok', 2048)]*"])
    project.plain("--co").stdout.no_fnmatch_line("*finish*")


@pytest.mark.parametrize("style", ["line", "short", "long", "native", "no"])
def test_every_traceback_style_has_the_words(project: Project, style: str) -> None:
    """`--tb` changes nothing about what a model's failure says in one line."""
    project.manifest(THREE)
    result = project.update(f"--tb={style}")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["OVER BUDGET modelbudget.yaml::small - params: 2,048 > 1,000 (+1,048, +104.8%)"])
    if style == "line":
        result.stdout.fnmatch_lines(["*modelbudget.yaml:2: params: 2,048 > 1,000 (+1,048, +104.8%)"])


def test_it_works_without_a_terminal_reporter(small: Project) -> None:
    """Other tools run pytest without one."""
    assert small.run("-p", "no:terminal").ret == 0
    small.manifest(THREE)
    assert small.run("-p", "no:terminal").ret == 1


def test_a_log_of_a_long_run_says_how_far_it_is(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between pytest's own lines, now and then, which here is after each model."""
    monkeypatch.setattr(pace, "_EVERY", 0)
    project.manifest(SMALL)
    assert "model-budget: [1/1]" in project.update().outlines
