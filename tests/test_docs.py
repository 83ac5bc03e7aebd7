"""What the documents say of options, keys, metrics and units is what the code has; workflows do no harm."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import pytest_modelbudget
from pytest_modelbudget import inputs, snapshot, units
from pytest_modelbudget.backends import BACKENDS
from pytest_modelbudget.budget import BOUNDS
from pytest_modelbudget.config import schema
from pytest_modelbudget.entry import arguments
from pytest_modelbudget.planner import Training
from pytest_modelbudget.planner.growth import LAWS
from pytest_modelbudget.planner.loops import LOOPS
from pytest_modelbudget.planner.recipe import ASSUMED, OPTIMIZERS, Precision
from pytest_modelbudget.planner.recipe_reading import RECIPE_TYPES
from pytest_modelbudget.plugin import pytest_addoption
from pytest_modelbudget.reports import REPORTS
from pytest_modelbudget.results import State
from pytest_modelbudget.summary import FLOP_RULES
from pytest_modelbudget.summary.metrics import GROWING, LAYER_METRICS, METRICS
from tests.documents import PAGES, REPOSITORY, blocks, text_of

ACTION = REPOSITORY / ".github/actions/model-budget/action.yml"
RELEASE = REPOSITORY / ".github/workflows/release.yml"
WORKFLOWS = [
    REPOSITORY / ".github/workflows/ci.yml", REPOSITORY / "examples/github-workflow.yml",
    REPOSITORY / "examples/github-shards.yml", RELEASE,
]  # fmt: skip


def section(page: str, title: str) -> str:
    """A page's text from one heading to the next."""
    match = re.search(
        rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", text_of(f"docs/{page}.md"), re.MULTILINE | re.DOTALL
    )
    assert match, title
    return match[1]


def table(page: str, title: str) -> list[list[str]]:
    """The cells of a section's first table, without its head."""
    lines = section(page, title).partition("\n|")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def code(cell: str) -> list[str]:
    """The parts of a cell that are set as code."""
    return re.findall(r"`([^`]+)`", cell)


class Options:
    """Notes what a plugin adds to pytest's options."""

    def __init__(self) -> None:
        self.flags: list[str] = []
        self.ini: list[str] = []

    def getgroup(self, *_: str) -> Options:
        return self

    def addoption(self, flag: str, *, metavar: str = "", **_: Any) -> None:
        self.flags.append(f"{flag}={metavar}" if metavar else flag)

    def addini(self, name: str, *_: Any, **__: Any) -> None:
        self.ini.append(name)


def test_options_are_those_of_the_plugin() -> None:
    """The table has every flag, with its value, in the order of `--help`; the text below names the ini keys."""
    options = Options()
    pytest_addoption(options)  # type: ignore[arg-type]
    assert [code(row[0])[0] for row in table("reference/options", "Options of pytest")] == options.flags
    assert set(re.findall(r"`(model_budget\w*)\b", section("reference/options", "Options of pytest"))) >= set(
        options.ini
    )


def test_report_kinds_are_those_there_are() -> None:
    """The option's row names every kind."""
    [row] = [row for row in table("reference/options", "Options of pytest") if "--model-budget-report" in row[0]]
    assert code(row[1]) == list(REPORTS)
    assert [code(row[0])[0] for row in table("reference/reports", "Reports")] == list(REPORTS)


def test_manifest_keys_are_those_of_the_schema() -> None:
    """The table has every key with the places it may stand in, and no other."""
    places = {
        "manifest": schema.Manifest, "defaults": schema.Defaults, "model": schema.Model, "tag": schema.Tag,
        "group": schema.Group,
    }  # fmt: skip
    known = {(place, key) for place, shape in places.items() for key in shape.model_fields}
    rows = [
        (place, key)
        for keys, of, _ in table("reference/manifest", "Manifest keys")
        for place in of.split(", ")
        for key in code(keys)
    ]
    assert set(rows) == known
    assert len(rows) == len(known)


def test_recipe_keys_are_those_of_recipes() -> None:
    """The table has every key with the recipes it may stand in, its default, and the names that it takes."""
    known = {(kind, one.name) for kind, shape in RECIPE_TYPES.items() for one in fields(shape)}
    rows = [
        (kind, key)
        for keys, of, _ in table("reference/recipes", "Recipes")
        for kind in of.split(", ")
        for key in code(keys)
    ]
    assert set(rows) == known
    assert len(rows) == len(known)
    rows_of_runs = [row for row in table("reference/recipes", "Recipes") if row[1] != "serving"]
    meanings = {key: code(meaning) for keys, _, meaning in rows_of_runs for key in code(keys)}
    assert set(meanings["optimizer"]) == {*OPTIMIZERS, "module:callable"}
    assert set(meanings["precision"]) == set(get_args(Precision))
    for key in ("optimizer", "precision", "checkpointing", "loss", "kernels", *ASSUMED):
        assert meanings[key][-1] == (getattr(Training(), key) or ASSUMED[key])
    assert set(meanings["loop"]) - set(ASSUMED) == set(LOOPS)


def test_growth_can_be_limited_as_is_said() -> None:
    """The laws and the metrics of the text."""
    [sentence] = re.findall(
        r"`growth_in` limits .*?\. ", section("reference/recipes", "Growth with a dimension"), re.DOTALL
    )
    assert code(sentence)[1:] == [*LAWS, "{max_exponent: 1.2}", *GROWING]


def test_metrics_are_those_of_budgets() -> None:
    """The table has every metric in order with its unit; the sentence below has those of layers."""
    unit = {
        "count": "elements",
        "bytes": "bytes",
        "flops": "FLOPs",
        "share": "%",
        "ratio": "number",
        "seconds": "seconds",
    }
    rows = {code(name)[0]: kind for name, _, kind in table("reference/metrics", "Metrics")}
    assert list(rows) == list(METRICS)
    assert rows == {name: "layers" if name == "layers" else unit[metric.kind] for name, metric in METRICS.items()}
    sentence = (
        section("reference/metrics", "Metrics").partition("For layers there are ")[2].partition(" (of all params)")[0]
    )
    assert code(sentence) == list(LAYER_METRICS)


def test_rules_for_flops_are_those_of_this_version() -> None:
    """The page numbers the rules and names their version."""
    assert f"version, which is {FLOP_RULES}" in section("reference/flops", "Rules for FLOPs")
    assert [number for number, *_ in table("reference/flops", "Rules for FLOPs")] == [
        str(number) for number in range(1, 11)
    ]


def test_kinds_of_limits_are_those_of_budgets() -> None:
    """The text on budgets names every bound."""
    [names] = re.findall(r"^(.+)are the limits", section("how-to/limits", "Set limits"), re.MULTILINE)
    assert tuple(code(names)) == BOUNDS


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        pytest.param("elements", "count", id="elements"),
        pytest.param("bytes", "bytes", id="bytes"),
        pytest.param("FLOPs", "flops", id="FLOPs"),
        pytest.param("%", "share", id="shares"),
        pytest.param("seconds", "seconds", id="seconds"),
    ],
)
def test_quantities_of_the_units_table_are_read(row: str, kind: units.Kind) -> None:
    """Everything in the column of how it is written is a quantity of that kind."""
    [written] = [code(cell) for name, cell, _ in table("reference/metrics", "Units") if name == row]
    assert all(units.parse(text, kind) > 0 for text in written)


def test_states_are_those_there_are() -> None:
    """The table has every state's word, once."""
    assert sorted(code(row[0])[0] for row in table("reference/states", "States")) == sorted(
        state.value for state in State
    )


def test_inputs_of_the_table_are_read() -> None:
    """Every row of the grammar is one that the parser takes."""
    written = [text for row in table("reference/inputs", "Inputs") for text in code(row[0])]
    assert len(written) == 11
    for text in written:
        assert inputs.parse(yaml.safe_load(text)) is not None


def test_arguments_of_the_table_are_read() -> None:
    """Each row is one of the forms, and no other is left out."""
    written = [yaml.safe_load(code(row[0])[0]) for row in table("reference/manifest", "Arguments")]
    kinds = [type(arguments.read([value], (), lambda _: None)[0]) for value in written]
    assert kinds == [arguments.ArgCall, arguments.Reference, arguments.LiteralArgument]


def test_names_of_the_library_are_public() -> None:
    """What the pages import from the package is there."""
    imported = re.findall(r"^from pytest_modelbudget import (.+)", "\n".join(map(text_of, PAGES)), re.MULTILINE)
    names = {name for line in imported for name in line.split(", ")}
    assert names >= {"compare", "model", "plan", "summarize"}
    assert names <= set(pytest_modelbudget.__all__)


def test_frameworks_are_those_with_a_backend() -> None:
    """The `framework` key names every backend of builders."""
    [row] = [row for row in table("reference/manifest", "Manifest keys") if row[0] == "`framework`"]
    assert set(code(row[2])) == set(BACKENDS) - {"exported"}


def test_published_numbers_are_as_many_as_is_said() -> None:
    """The evidence counts the rows of each table of published numbers."""
    rows = {
        Path(code(cell)[0]): int(count.split()[0])
        for cell, count, _ in table("explanation/evidence", "Layers, params, FLOPs")[:4]
    }
    for path, count in rows.items():
        lines = (REPOSITORY / path).read_text(encoding="utf-8").splitlines()
        assert sum(not line.startswith("#") for line in lines) - 1 == count, path


def test_snapshot_of_the_documents_is_the_committed_one() -> None:
    """It is the whole file of an example, so its digest is right."""
    [block] = [block.text for block in blocks("docs/reference/snapshot.md") if block.language == "yaml"]
    assert block == (REPOSITORY / "examples" / snapshot.FOLDER / "two-towers.yaml").read_text(encoding="utf-8")


MAP = (REPOSITORY / ".github/CONTRIBUTING.md").read_text(encoding="utf-8")
PACKAGE = REPOSITORY / "pytest_modelbudget"


def test_the_map_has_every_room() -> None:
    """A room that is added or moved is added or moved there."""
    rows = "\n".join(line.split("|")[1] for line in MAP.splitlines() if line.startswith("| `"))
    rooms = {path.name + "/" * path.is_dir() for path in PACKAGE.iterdir() if path.name[0].isalpha()}
    assert {room for room in rooms - {"py.typed"} if f"`{room}`" not in rows} == set()


def test_the_map_leads_to_files_that_are_there() -> None:
    """Whatever is written as a path of this package."""
    named = set(re.findall(r"`([a-z_/]+/(?:[a-z_]+\.(?:py|json))?)`", MAP))
    roots = (PACKAGE, PACKAGE / "backends", REPOSITORY)
    assert len(named) > 30
    assert {name for name in named if not any((root / name).exists() for root in roots)} == set()


def test_quick_start_has_the_two_commands_that_ci_runs() -> None:
    """Each is one sh block, found by the words that the script looks for; README has at most 200 lines."""
    assert len(text_of("README.md").splitlines()) <= 200
    commands = re.findall(
        r"^```sh\n(.*?)^```$", text_of("README.md").partition("## Quick start")[2], re.MULTILINE | re.DOTALL
    )
    script = (REPOSITORY / ".ci/run").read_text(encoding="utf-8")
    wanted = re.findall(r"\$\(readme_command '(.+)'\)", script)
    assert len(commands) == len(wanted) == 2
    assert [sum(word in command for command in commands) for word in wanted] == [1, 1]


def steps(file: Path) -> list[dict[str, Any]]:
    """All steps of a workflow or of the action."""
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    found = data["runs"]["steps"] if "runs" in data else [s for job in data["jobs"].values() for s in job["steps"]]
    assert found
    return found


@pytest.mark.parametrize("file", [ACTION, *WORKFLOWS], ids=lambda path: path.name)
def test_no_expression_stands_in_a_script(file: Path) -> None:
    """Text pasted into a script would be run as code."""
    assert not [step["run"] for step in steps(file) if "${{" in step.get("run", "")]


@pytest.mark.parametrize("file", [ACTION, *WORKFLOWS], ids=lambda path: path.name)
def test_actions_of_others_are_pinned(file: Path) -> None:
    """Each is a commit with its version beside, the same commit everywhere; only an action of the same tree has none."""
    text = "".join(path.read_text(encoding="utf-8") for path in [ACTION, *WORKFLOWS])
    for action in [step["uses"] for step in steps(file) if not step.get("uses", "$/").startswith("$/")]:
        name, _, commit = action.partition("@")
        assert re.fullmatch("[0-9a-f]{40}", commit), action
        assert len(set(re.findall(rf"uses: {name}@(.+)", text))) == 1
        assert re.search(rf"{commit} # v\d+\.\d+\.\d+$", text, re.MULTILINE), action


def test_ci_runs_the_oldest_versions_that_are_allowed() -> None:
    """Each lower bound of `pip install ".[test]"` is a constraint of the job on the oldest Python."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    allowed = [
        *project["dependencies"],
        *(line for extra in extras if extra not in ("dev", "docs") for line in extras[extra]),
    ]
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(allowed), re.MULTILINE))
    oldest = (REPOSITORY / ".github/oldest.txt").read_text(encoding="utf-8").partition("# Without")[0]
    constraints = dict(re.findall(r"^([\w-]+)==([\d.]+)$", oldest, re.MULTILINE))
    newer = {
        "axe-playwright-python",
        "playwright",
        "cmarkgfm",
    }  # they drive or check what is shown; no user has them through this project
    assert constraints.keys() == bounds.keys() - newer
    assert all(f"{constraints[name]}.".startswith(f"{bounds[name]}.") for name in constraints)
    python = project["requires-python"].removeprefix(">=")
    matrix = yaml.safe_load(WORKFLOWS[0].read_text(encoding="utf-8"))["jobs"]["tests"]["strategy"]["matrix"]["include"]
    assert {"python": python, "packages": "oldest"} in matrix
    assert [row["packages"] for row in matrix if row["python"] != python] == ["newest", "newest"]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_only_read(file: Path) -> None:
    """Least permissions, no credentials left behind."""
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert data["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in data[True]  # YAML 1.1 reads the key `on` as true
    checkouts = [step for step in steps(file) if "checkout" in step.get("uses", "")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_only_what_publishes_may_identify_itself() -> None:
    """It runs no code of the project or of its dependencies, and waits for those that do."""
    jobs = yaml.safe_load(RELEASE.read_text(encoding="utf-8"))["jobs"]
    assert {name: job["permissions"] for name, job in jobs.items() if "permissions" in job} == {
        "publish": {"id-token": "write"}
    }
    publish = jobs["publish"]
    assert (publish["environment"]["name"], publish["needs"]) == ("pypi", ["build", "smoke"])
    assert [step["uses"].partition("@")[0] for step in publish["steps"]] == [
        "actions/download-artifact", "pypa/gh-action-pypi-publish",
    ]  # fmt: skip
    assert jobs["smoke"]["strategy"]["matrix"]["python"] == ["3.10", "3.14"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize("installed", [True, False])
def test_action_installs_the_plugin_where_it_is_missing(tmp_path: Path, installed: bool) -> None:
    """With the pip of the job's Python; a name that looks like an option is none."""
    [script] = [step["run"] for step in steps(ACTION) if "pip install" in step.get("run", "")]
    python = tmp_path / "python"
    answer = "exit 0" if installed else "exit 1"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && {answer}\nprintf "%s\\n" "$@" > calls\n', encoding="utf-8")
    python.chmod(0o755)
    environment = {**os.environ, "MODEL_BUDGET_PYTHON": str(python), "MODEL_BUDGET_PLUGIN": "--pre x"}
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=True)
    calls = tmp_path / "calls"
    words = calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []
    assert words == ([] if installed else ["-m", "pip", "install", "--", "--pre x"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_action_hands_its_arguments_on_as_they_are_quoted(tmp_path: Path) -> None:
    """Words stay whole, and nothing in them is run by the shell."""
    [script] = [step["run"] for step in steps(ACTION) if step.get("id") == "check"]
    (tmp_path / "pytest.py").write_text("import sys; print(*sys.argv[1:], sep='\\n')", encoding="utf-8")
    hostile = 'examples -k "edge and not slow" $(touch pwned) `touch pwned` ; touch pwned'
    environment = {**os.environ, "MODEL_BUDGET_PYTHON": sys.executable, "GITHUB_STEP_SUMMARY": "summary.md"}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**environment, "MODEL_BUDGET_ARGS": hostile},
        capture_output=True,
        encoding="utf-8",
        check=True,
        timeout=60,
    )
    assert not (tmp_path / "pwned").exists()
    assert done.stdout.splitlines() == [
        "--model-budget",
        "--model-budget-report=md:summary.md",
        "--model-budget-report=json:modelbudget-report/report.json",
        "--model-budget-report=html:modelbudget-report/report.html",
        "--model-budget-report=comment:modelbudget-report/comment.md",
        *("examples", "-k", "edge and not slow"),
        *("$(touch", "pwned)", "`touch", "pwned`", ";", "touch", "pwned"),
    ]
