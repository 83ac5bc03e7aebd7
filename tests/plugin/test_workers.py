"""The same files, reports and exit codes on one process and on two."""

from __future__ import annotations

import json
import re

import pytest

from tests.project import Project

MANY = """
    defaults: {budgets: {params: 1_000}}
    sources: [registry:models]
    models:
      over: {build: zoo:small, inputs: "float32[B, 32]"}
      broken: {build: zoo:nowhere}
      typo: {buld: zoo:small}
"""
REGISTRY = """
    import zoo
    from pytest_modelbudget import ModelEntry

    def models():
        return [ModelEntry(f"net-{n}", zoo.of_width, args=(n,), inputs="float32[B, 32]") for n in range(8, 0, -1)]
"""
MODULE = """
    from pytest_modelbudget import model
    from fakenet import Model

    @model(inputs="float32[B, 32]")
    def decorated():
        return Model(dense=(32, 2))

    def test_fixture(model_budget):
        model_budget.check(Model(dense=(32, 3)), inputs="float32[B, 32]", params="1")
"""


def shown(result: pytest.RunResult) -> list[str]:
    """The table and the short summary, without times."""
    lines = result.outlines
    start = next(index for index, line in enumerate(lines) if "model budgets" in line)
    return sorted(re.sub(r"[0-9.]+ ?s\b", "", line.strip("= ")) for line in lines[start:])


def test_two_workers_do_what_one_process_does(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots, reports and words: bytes, exit codes and tables are the same; a snapshot is missing before, one differs."""
    project.manifest(MANY)
    project.write("registry.py", REGISTRY)
    project.write("test_models.py", MODULE)
    project.plain("--model-budget-update", "-p", "no:cacheprovider")
    committed = {file: (project.path / file).read_text(encoding="utf-8") for file in project.snapshots()}
    changed, missing, *_ = sorted(file for file in committed if "net-" in file)
    committed[changed] = committed[changed].replace("params: ", "params: 1", 1)
    del committed[missing]
    seen = []
    for name, workers, run in (("one", [], project.plain), ("two", ["-n", "2"], project.alone)):
        (project.path / missing).unlink()
        for file, text in committed.items():
            (project.path / file).write_text(text, encoding="utf-8")
        if workers:  # they are started without the options of the command line, and other plugins are slow to import
            monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
            monkeypatch.setenv("PYTEST_PLUGINS", "xdist.plugin,pytest_modelbudget.plugin")
        report = f"--model-budget-report=json:{name}.json"
        done = run("--model-budget-update", *workers, "-p", "no:cacheprovider", report)
        models = json.loads((project.path / f"{name}.json").read_text())["models"]
        for model in models:
            model["seconds"] = 0
        seen.append((done.ret, project.snapshots(), shown(done), models))
    one, two = seen
    assert one[0] == two[0] == 1
    assert len(one[1]) == 11
    assert one[1:] == two[1:]
    assert "OVER BUDGET modelbudget.yaml::over - params: 2,048 > 1,000 (+1,048, +104.8%)" in two[2]
    assert "OVER BUDGET test_models.py::test_fixture - params: 96 > 1 (+95, +9500.0%)" in two[2]


@pytest.mark.slow
def test_a_root_manifest_beside_testpaths_reaches_the_workers(project: Project) -> None:
    """Each worker collects it, so that it is not left out silently."""
    project.write("pytest.ini", "[pytest]\ntestpaths = tests\n")
    project.write("tests/test_plain.py", "def test_plain(): pass\n")
    project.manifest('models: {small: {build: zoo:small, inputs: "float32[B, 32]"}}')
    result = project.alone("--model-budget", "-n", "2")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["NO SNAPSHOT modelbudget.yaml::small*"])
