"""A user's repository, a branch, and what a run says of the base: growth, loosened limits, deleted snapshots."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gitrepo import CI_VARIABLES, ENVIRONMENT, Repository, repository
from tests.project import Project

MANIFEST = """
    defaults:
      budgets: {{params: {{growth: "+2%"}}}}
    models:
      net:
        build: zoo:of_width
        args: [{width}]
        inputs: "float32[B, 32]"
        budgets: {{{budgets}}}
"""


@pytest.fixture
def repo(project: Project, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A project whose model `net` (100 * 32 = 3,200 params, at most 9k) is committed on main."""
    for name in CI_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    project.write(".gitignore", "__pycache__\n.pytest_cache\n")
    written(project)
    assert project.update("--model-budget-base=off").ret == 0
    made = repository(project.path)
    made.commit("first")
    return made


def written(project: Project, width: int = 100, budgets: str = "params: 9k") -> None:
    """The manifest, with a `net` of that width."""
    project.manifest(MANIFEST.format(width=width, budgets=budgets))


def short(repo: Repository, ref: str = "HEAD") -> str:
    """The commit as it is shown."""
    return repo.git("rev-parse", "--short=7", ref)


def report(project: Project) -> dict[str, Any]:
    """The JSON report of the last run."""
    found: dict[str, Any] = json.loads((project.path / "report.json").read_text())
    return found


JSON = "--model-budget-report=json:report.json"


def test_growth_fails_also_when_the_snapshot_is_updated(repo: Repository, project: Project) -> None:
    """The pull request's own update does not hide it: it is held against what main has."""
    repo.git("checkout", "--quiet", "-b", "feature")
    written(project, 103)
    project.update()
    repo.commit("wider")
    result = project.run(JSON)
    base = short(repo, "main")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            f"  params growth: 3,296 is +96 (+3.0%) on 3,200 (main {base}); +2% is allowed: 32 too many  [[]modelbudget.yaml:2]",
            f"base: main {base} (where this branch left it)",
            "OVER BUDGET modelbudget.yaml::net - params growth: 3,296 is +96*",
        ]
    )
    data = report(project)
    [model] = data["models"]
    assert data["base"] == f"main {base} (where this branch left it)"
    assert (model["violations"][0]["base"], model["violations"][0]["actual"]) == (3200, 3296)
    assert model["since"]["totals"]["params"] == 3200
    assert [one["delta"] for one in model["since"]["changes"] if one["path"] == "params"] == [96]
    assert model["changes"] == []


def test_growth_that_is_allowed(repo: Repository, project: Project) -> None:
    """2% of 3,200 are 64 params, and so two of width."""
    written(project, 102)
    result = project.update()
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"base: HEAD {short(repo)} (what is committed on the default branch)"])


@pytest.mark.parametrize(
    "workers",
    [pytest.param([], id="one process"), pytest.param(["-n", "2"], id="two workers", marks=pytest.mark.slow)],
)
def test_a_pull_requests_merge_commit(repo: Repository, project: Project, workers: list[str]) -> None:
    """Detached, as a CI service checks it out: its first parent is the base, in every process."""
    repo.git("checkout", "--quiet", "-b", "feature")
    written(project, 110)
    project.update()
    repo.commit("wider")
    repo.git("checkout", "--quiet", "main")
    repo.commit("main went on", other="1")
    repo.git("checkout", "--quiet", "--detach")
    repo.git("merge", "--quiet", "--no-ff", "--message", "trial", "feature")
    base = short(repo, "main")
    result = (project.alone if workers else project.plain)("--model-budget", *workers)
    result.stdout.fnmatch_lines(
        [
            f"base: HEAD^1 {base} (the first parent of the pull request's merge commit)",
            "OVER BUDGET modelbudget.yaml::net - params growth: 3,520 is *",
        ]
    )


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        pytest.param("no repository", "not a git repository", id="no repository"),
        pytest.param("no commit", "there is no commit yet", id="before the first commit"),
        pytest.param("shallow", "HEAD^1 (*) is not in this shallow clone: fetch two commits (actions/checkout: fetch-depth: 2*", id="shallow clone in CI"),
        pytest.param("first", "this is the first commit", id="first commit in CI"),
        pytest.param("off", "--model-budget-base is off", id="off"),
    ],
)  # fmt: skip
def test_no_base(project: Project, monkeypatch: pytest.MonkeyPatch, prepare: str, words: str) -> None:
    """Growth is not enforced, which is said once, and fails nothing; other limits hold."""
    for name in CI_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    written(project)
    assert project.update().ret == 0
    if prepare != "no repository":
        repo = repository(project.path)
    if prepare in ("shallow", "first"):
        monkeypatch.setenv("CI", "true")
        repo.commit("first")
    if prepare == "shallow":
        repo.commit("second")
        (project.path / ".git" / "shallow").write_text(f"{repo.git('rev-parse', 'HEAD')}\n")
        repo.git("reflog", "expire", "--expire=now", "--all")
        repo.git("gc", "--quiet", "--prune=now")
    result = project.run(*(["--model-budget-base=off"] if prepare == "off" else []), JSON)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [f"base: none: {words}", f"note: growth not enforced: 1 model, there is no base ({words.rstrip('*')}*): net"]
    )
    assert "100" not in "".join(line for line in result.outlines if "growth" in line)
    assert report(project)["findings"][-1]["kind"] == "growth not enforced"
    written(project, 300)
    project.update().stdout.fnmatch_lines(["  params: 9,600 > 9,000 *"])


def test_a_new_model_has_nothing_to_grow_from(repo: Repository, project: Project) -> None:
    """It is named once, with the base."""
    path = project.path / "modelbudget.yaml"
    one = "  {0}: {{build: zoo:small, inputs: 'float32[B, 32]'}}\n"
    path.write_text(path.read_text() + "".join(map(one.format, ("new1", "new2"))))
    result = project.update()
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [f"note: growth not enforced: 2 models, not in the base (HEAD {short(repo)}): new1, new2"]
    )


def test_a_snapshot_of_the_base_that_is_damaged(repo: Repository, project: Project) -> None:
    """It says nothing of the model; that is not a failure of this change."""
    snapshot = project.snapshot("net")
    good = snapshot.read_text()
    snapshot.write_text(good.replace("params: 3200", "params: 32"))
    repo.commit("damage")
    snapshot.write_text(good)
    result = project.run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["note: growth not enforced: 1 model, __model_budget__/net.yaml of the base (HEAD *) cannot be read: *: net"]
    )


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        pytest.param("params: 9k", "params: 10k", "warn: budget loosened: net: params max 9,000 -> 10,000 (+1,000, +11.1%)  [[]modelbudget.yaml:8]", id="max"),
        pytest.param("params: 9k", "", "warn: budget loosened: net: params max 9,000 -> no limit  [[]modelbudget.yaml:4]", id="removed"),
        pytest.param("params: 9k", "params: {max: 9k, growth: +50%}", "warn: budget loosened: net: params growth +2% -> +50%  [[]modelbudget.yaml:8]", id="growth"),
        pytest.param("params: 9k", "params: {max: 3k, waive: {max: 4k, until: 2099-12-31, reason: ABC-1}}", "warn: waiver added: net: params up to 4,000 until 2099-12-31: ABC-1  [[]modelbudget.yaml:8]", id="waiver"),
    ],
)  # fmt: skip
def test_a_guard_that_is_widened_is_reported(
    repo: Repository, project: Project, before: str, now: str, words: str
) -> None:
    """Beside the result, on the terminal and in JSON; it does not fail by itself."""
    assert before
    written(project, budgets=now)
    result = project.run(JSON)
    assert result.ret == 0
    result.stdout.fnmatch_lines([words])
    [finding] = report(project)["models"][0]["findings"]
    assert words.replace("[[]", "[").removeprefix("warn: ").startswith(f"{finding['kind']}: net: {finding['text']}")
    assert finding["place"]["file"] == "modelbudget.yaml"


def test_a_default_that_is_widened_is_told_once(repo: Repository, project: Project) -> None:
    """Not once for each model that it holds for; JSON has it with each."""
    path = project.path / "modelbudget.yaml"
    path.write_text(path.read_text() + "  two: {build: zoo:small, inputs: 'float32[B, 32]'}\n")
    project.update()
    repo.commit("two models")
    path.write_text(path.read_text().replace("+2%", "+3%"))
    result = project.run(JSON)
    assert [line for line in result.outlines if "loosened" in line] == [
        "warn: budget loosened: net, two: params growth +2% -> +3%  [modelbudget.yaml:2]"
    ]
    assert [len(model["findings"]) for model in report(project)["models"]] == [1, 1]


def test_models_and_sums_that_went(repo: Repository, project: Project) -> None:
    """A model that is registered no more, its snapshot, and a group's sum."""
    path = project.path / "modelbudget.yaml"
    full = path.read_text()
    path.write_text(
        f"tags: {{edge: {{sum: {{params: 9k}}}}}}\n{full}  gone: {{build: zoo:small, inputs: 'float32[B, 32]'}}\n"
    )
    project.update()
    repo.commit("two models and a sum")
    path.write_text(full)
    project.snapshot("gone").unlink()
    result = project.run(JSON)
    assert result.ret == 0
    base = short(repo)
    result.stdout.fnmatch_lines(
        [
            "note: model removed: gone: was registered at the base (modelbudget.yaml:10), and is no more",
            "warn: budget loosened: sum of tag edge: params max 9,000 -> no limit  [[]modelbudget.yaml]",
            f"warn: snapshot deleted: __model_budget__/gone.yaml is in the base (HEAD {base}); no model of this run has it",
        ]
    )
    assert [one["kind"] for one in report(project)["findings"]] == [
        "model removed",
        "budget loosened",
        "snapshot deleted",
    ]


def test_a_snapshot_that_was_deleted_to_be_written_anew(repo: Repository, project: Project) -> None:
    """A check says both: no snapshot, and that there was one."""
    project.snapshot("net").unlink()
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            f"warn: snapshot deleted: net: __model_budget__/net.yaml is in the base (HEAD {short(repo)})",
            "NO SNAPSHOT modelbudget.yaml::net*",
        ]
    )
    project.update().stdout.no_fnmatch_line("*snapshot deleted*")


@pytest.mark.parametrize("name", ["modelbudget.yml", "conf/modelbudget.yaml", "nets.yaml"])
def test_a_manifest_with_another_usual_name_or_folder(repo: Repository, project: Project, name: str) -> None:
    """It is found again, with its limits, and its models with their snapshots."""
    written(project, 110, "params: 10k")
    (project.path / name).parent.mkdir(exist_ok=True)
    (project.path / "modelbudget.yaml").rename(project.path / name)
    if "/" in name:
        (project.path / "__model_budget__").rename(project.path / "conf" / "__model_budget__")
    result = project.update(f"--model-budget-file={name}")
    result.stdout.fnmatch_lines(
        [
            "  params growth: 3,520 is +320 (+10.0%) on 3,200 *",
            f"warn: budget loosened: net: params max 9,000 -> 10,000 *[[]{name}:8]",
        ]
    )
    result.stdout.no_fnmatch_line("*snapshot deleted*")


def test_a_manifest_with_a_name_of_its_own(repo: Repository, project: Project) -> None:
    """What it was called before cannot be told, nor that a second one is new: that is said."""
    project.write("nets.yaml", "models: {new: {build: zoo:small, inputs: 'float32[B, 32]'}}")
    result = project.update("--model-budget-file=nets.yaml")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            f"note: base manifest: nets.yaml is not in the base (HEAD {short(repo)}), so it is new or renamed: loosened "
            "limits cannot be told  [[]nets.yaml]"
        ]
    )


@pytest.mark.parametrize("door", ["flag", "ini"])
def test_a_base_that_is_not_there_is_a_usage_error(repo: Repository, project: Project, door: str) -> None:
    """Before anything is built."""
    if door == "ini":
        project.write("pytest.ini", "[pytest]\nmodel_budget_base = nope\n")
    result = project.run(*(["--model-budget-base=nope"] if door == "flag" else []))
    assert result.ret == 4
    result.stderr.fnmatch_lines(
        ["ERROR: model-budget: the base 'nope' is no commit of this clone: write auto, off, or a branch, tag or commit"]
    )


def test_the_flag_comes_before_the_ini_file(repo: Repository, project: Project) -> None:
    """A named base is used as it is."""
    project.write("pytest.ini", "[pytest]\nmodel_budget_base = nope\n")
    repo.git("tag", "v1")
    written(project, 110)
    project.update("--model-budget-base=v1").stdout.fnmatch_lines(
        [f"  params growth: 3,520 is +320 (+10.0%) on 3,200 (v1 {short(repo)})*", f"base: v1 {short(repo)}"]
    )


def test_inherited_limits_warn(repo: Repository, project: Project) -> None:
    """Over on main already, and no worse here: the change passes; worse, and it fails."""
    strict = "params: {max: 3k, inherited: warn}"
    written(project, budgets=strict)
    result = project.run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [f"warn: net: params: 3,200 > 3,000 (+200, +6.7%); inherited: HEAD {short(repo)} has 3,200*"]
    )
    written(project, 101, strict)
    result = project.update()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["  params: 3,232 > 3,000 (+232, +7.7%); worse than inherited: HEAD * has 3,200*"])


def test_waivers_are_told_at_every_run_and_end_by_themselves(repo: Repository, project: Project) -> None:
    """Needed, not needed, and over."""
    waiver = "params: {{max: {}, waive: {{max: 4k, until: {}, reason: ABC-1}}}}"
    written(project, budgets=waiver.format("3k", "2099-12-31"))
    assert project.run().ret == 0
    project.run().stdout.fnmatch_lines(
        ["warn: net: params: 3,200 > 3,000 (+200, +6.7%); waived up to 4,000 until 2099-12-31: ABC-1*"]
    )
    written(project, budgets=waiver.format("3.5k", "2099-12-31"))
    project.run().stdout.fnmatch_lines(
        ["warn: waiver: net: params up to 4,000 until 2099-12-31: ABC-1 (not needed now)*"]
    )
    written(project, budgets=waiver.format("3k", "2020-12-31"))
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["  params: 3,200 > 3,000 (+200, +6.7%); its waiver ended on 2020-12-31: ABC-1*"])


def test_models_of_a_source_and_of_test_modules(repo: Repository, project: Project) -> None:
    """Growth holds for every door; limits of the manifest's levels are compared for models of sources too."""
    project.write("registry.py", """
        import zoo
        from pytest_modelbudget import ModelEntry

        def models():
            yield ModelEntry("listed", zoo.of_width, args=(10,), inputs="float32[B, 32]")
        """)  # fmt: skip
    project.manifest("defaults: {budgets: {params: 1k}}\nsources: [registry:models]\n")
    project.write("test_nets.py", """
        from fakenet import Model
        from pytest_modelbudget import model

        @model(inputs="float32[B, 32]", budgets={"params": {"growth": "+0"}})
        def decorated():
            return Model(dense=(32, 10))

        def test_fixture(model_budget):
            model_budget.check(Model(dense=(32, 10)), inputs="float32[B, 32]", params={"growth": "+0"})
        """)  # fmt: skip
    project.update()
    repo.commit("other doors")
    for name in ("registry.py", "test_nets.py"):
        path = project.path / name
        path.write_text(path.read_text().replace("10", "11"))
    project.manifest("defaults: {budgets: {params: 2k}}\nsources: [registry:models]\n")
    result = project.update()
    grew = f"params growth: 352 is +32 (+10.0%) on 320 (HEAD {short(repo)}); +0 is allowed: 32 too many"
    assert sum(line.removeprefix("E").strip().startswith(grew) for line in result.outlines) == 2
    result.stdout.fnmatch_lines(
        ["warn: budget loosened: listed: params max 1,000 -> 2,000 (+1,000, +100.0%)  [[]modelbudget.yaml:1]"]
    )


def test_a_ratchet_says_what_can_be_tightened(repo: Repository, project: Project) -> None:
    """A note; the tool changes no limit by itself."""
    written(project, budgets="params: {max: 9k, ratchet: {slack: 10%}}")
    before = (project.path / "modelbudget.yaml").read_bytes()
    result = project.run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["note: ratchet: net: params max 9,000 can be 3,520: modelbudget tighten  [[]modelbudget.yaml:8]"]
    )
    assert (project.path / "modelbudget.yaml").read_bytes() == before
