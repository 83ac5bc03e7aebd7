"""Builders that fail in every way: the model fails with the cure, the good one beside it passes, nothing is written."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from tests.project import Project

MANIFEST = """\
models:
  good: {build: zoo:small, inputs: "float32[B, 32]"}
"""
BUILDERS = """
    import sys

    from fakenet import Model

    number = 7

    def nothing():
        pass

    def text():
        return "a model"

    def the_class():
        return Model

    def needs_width(width):
        return Model(dense=(32, width))

    def raises():
        return deeper()

    def deeper():
        raise ValueError("width must be even")

    def chained():
        try:
            raises()
        except ValueError as error:
            raise RuntimeError("no such preset") from error

    def leaves():
        sys.exit("bye")

    def leaves_quietly():
        raise SystemExit

    def examples_raise():
        raise OSError("no data here")

    def small():
        return Model(dense=(32, 64))
"""


def run(project: Project, model: str) -> pytest.RunResult:
    """An update run over the good model and a bad one in line 3."""
    project.write("nets.py", BUILDERS)
    project.write("broken.py", "def oops(:\n")
    project.write("needs.py", "import no_such_package\n")
    project.write("modelbudget.yaml", f"{MANIFEST}  bad: {model}\n")
    return project.update()


def build(reference: str, more: str = "inputs: 'float32[B, 32]'") -> str:
    """The fields of the bad model."""
    return f"{{build: '{reference}', {more}}}"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        pytest.param(
            build("nowhere:net"), ["modelbudget.yaml:3: build: there is no module 'nowhere'*"], id="no module"
        ),
        pytest.param(build("nets:net"), ["modelbudget.yaml:3: build: nets has no 'net'*"], id="no such name"),
        pytest.param(
            build("nets:number"),
            ["modelbudget.yaml:3: build: nets:number is a int, not something to call"],
            id="not callable",
        ),
        pytest.param(build("broken:net"), ["*E   SyntaxError: *"], id="syntax error"),
        pytest.param(
            build("needs:net"),
            ["needs.py:1: in <module>", "E   ModuleNotFoundError: No module named 'no_such_package'"],
            id="an import of its own",
        ),
        pytest.param(
            build("nets:nothing"),
            ["*nets:nothing returned None, which is no model*let it return the model"],
            id="returns None",
        ),
        pytest.param(build("nets:text"), ["*nets:text returned a builtins.str, which is no model*"], id="returns text"),
        pytest.param(
            build("nets:the_class"),
            ["*nets:the_class returned the class Model, not a model: call it*"],
            id="returns a class",
        ),
        pytest.param(
            build("nets:needs_width"),
            [
                "modelbudget.yaml:3: nets:needs_width cannot be called like this: missing a required argument: 'width'; its arg*"
            ],
            id="needs an argument",
        ),
        pytest.param(
            build("nets:small", "args: [1], inputs: 'float32[B, 32]'"),
            ["*too many positional arguments*"],
            id="takes none",
        ),
        pytest.param(
            build("nets:small", "kwargs: {wide: 1}, inputs: 'float32[B, 32]'"),
            ["*nets:small cannot be called like this: got an unexpected keyword argument 'wide'*"],
            id="unknown argument",
        ),
        pytest.param(
            build("nets:raises"),
            [
                "nets.py:20: in raises",
                "    return deeper()",
                "nets.py:23: in deeper",
                "E   ValueError: width must be even",
            ],
            id="raises",
        ),
        pytest.param(
            build("nets:chained"),
            [
                "E   ValueError: width must be even",
                "The error above led to this one:",
                "E   RuntimeError: no such preset",
            ],
            id="raises from",
        ),
        pytest.param(
            build("nets:leaves"),
            ["nets.py:32: in leaves", "the builder called sys.exit('bye'): let it return a model"],
            id="sys.exit",
        ),
        pytest.param(
            build("nets:leaves_quietly"), ["the builder called sys.exit(None): let it return a model"], id="SystemExit"
        ),
        pytest.param(
            build("nets:small", "tags: []"),
            ["*bad: the model does not know its inputs: write e.g. inputs: *"],
            id="no inputs",
        ),
        pytest.param(
            build("nets:small", "inputs: 'float32[B, 31]'"),
            ["*inputs do not fit: layer 'dense' takes [[]B, 32], got [[]B, 31]"],
            id="inputs do not fit",
        ),
        pytest.param(
            build("nets:small", "inputs: 'float32[B, T, 32]'"),
            ["*the symbolic dimension 'T' has no size: give one with dims: {T: 128}*"],
            id="no size",
        ),
        pytest.param(
            build("nets:small", "inputs: 'nets:no_examples'"),
            ["modelbudget.yaml:3: inputs: nets has no 'no_examples'*"],
            id="no example",
        ),
        pytest.param(
            build("nets:small", "inputs: 'nets:examples_raise'"),
            ["nets.py:*: in examples_raise", "E   OSError: no data here"],
            id="example raises",
        ),
    ],
)
def test_a_builder_that_fails_is_a_build_error(project: Project, model: str, words: list[str]) -> None:
    """Exit 1; the message has the place and, for a raise, the user's frames alone."""
    result = run(project, model)
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["bad: BUILD ERROR", *words, "registered at modelbudget.yaml:3; not counted*"])
    result.stdout.fnmatch_lines(["BUILD ERROR modelbudget.yaml::bad - *"])
    for frame in ("*pluggy*.py*", "*_pytest/*", "*pytest_modelbudget/*.py*", "*importlib/*"):
        result.stdout.no_fnmatch_line(frame)
    assert list(project.snapshots()) == ["__model_budget__/good.yaml"]


def test_the_short_line_of_a_raise_is_the_error_itself(project: Project) -> None:
    """As pytest shows a failing test."""
    result = run(project, build("nets:raises"))
    result.stdout.fnmatch_lines(["BUILD ERROR modelbudget.yaml::bad - ValueError: width must be even"])


def test_a_build_error_keeps_the_committed_snapshot(small: Project) -> None:
    """What could not be counted is not gone: the file stays, and is not obsolete."""
    before = small.snapshots()
    small.write("zoo.py", "def small():\n    raise ValueError\n")
    small.update().assert_outcomes(failed=1)
    small.plain("--model-budget-prune").assert_outcomes(failed=1)
    assert small.snapshots() == before


def test_a_builder_that_prints_megabytes_does_not_flood_the_terminal(project: Project) -> None:
    """What it printed is cut, also in the JUnit file, and also with two workers."""
    project.write(
        "noisy.py",
        """
        from fakenet import Model

        def net():
            print("spam " * 1_000_000)
            return Model(dense=(32, 64))
        """,
    )
    project.manifest('models: {net: {build: "noisy:net", inputs: "float32[B, 32]", budgets: {params: 1}}}')
    result = project.update("--junitxml=junit.xml", "-o", "junit_logging=all")
    result.assert_outcomes(failed=1)
    assert len(result.stdout.str()) < 50_000
    assert (project.path / "junit.xml").stat().st_size < 100_000
    result.stdout.fnmatch_lines(["... 4,9* characters cut ..."])


MISSING = {
    "at the top": "import torch\ndef net(): pass\n",
    "inside the builder": "def net():\n    import torch\n",
    "by a helper": "def load():\n    from torch import nn\ndef net():\n    load()\n",
}


@pytest.mark.parametrize("source", [pytest.param(text, id=name) for name, text in MISSING.items()])
@pytest.mark.parametrize(
    ("ci", "optional", "outcome"),
    [
        pytest.param("", "", "skipped", id="locally"),
        pytest.param("true", "", "failed", id="in CI"),
        pytest.param("false", "", "skipped", id="CI is false"),
        pytest.param("true", "optional: true", "skipped", id="in CI and optional"),
    ],
)
def test_a_framework_that_is_not_installed(
    project: Project, monkeypatch: pytest.MonkeyPatch, source: str, ci: str, optional: str, outcome: str
) -> None:
    """Skipped with the reason and the place, but a failure in CI unless the model is optional."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("CI", ci)
    project.write("nets.py", source)
    project.manifest(f"models:\n  net: {{build: nets:net, inputs: '[1]', {optional}}}\n  good: zoo:small\n")
    result = project.run("-rs", "modelbudget.yaml::net")
    assert result.parseoutcomes() == {outcome: 1}
    if outcome == "skipped":
        result.stdout.fnmatch_lines(["SKIPPED [[]1] modelbudget.yaml:2: torch is not installed: pip install torch*"])
    else:
        result.stdout.fnmatch_lines(
            ["torch is not installed: pip install torch*", "*set optional: true for this model"]
        )


def test_a_part_of_a_framework_that_does_not_exist_is_no_missing_framework(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typo in an import fails, on every machine."""
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    project.write("nets.py", "import torch.nnn\n")
    project.manifest("models: {net: nets:net}")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E   ModuleNotFoundError: No module named 'torch.nnn'*"])


def test_a_framework_that_is_named_and_not_installed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """`framework: torch` says it before the builder is even imported."""
    monkeypatch.setitem(sys.modules, "torch", None)
    project.manifest("models: {net: {build: nowhere:net, framework: torch}}")
    project.run().assert_outcomes(skipped=1)


@pytest.mark.slow
def test_a_builder_that_dies_takes_only_its_worker(project: Project) -> None:
    """With xdist the others go on, and the model fails; its snapshot is untouched."""
    project.write("deadly.py", "import os\ndef net():\n    os._exit(11)\n")
    project.write("modelbudget.yaml", f"{MANIFEST}  bad: {{build: deadly:net}}\n")
    result = project.alone("--model-budget-update", "-n", "2", "-p", "no:cacheprovider")
    assert result.ret == 1
    assert result.parseoutcomes()["passed"] == 1
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(["*crashed while running 'modelbudget.yaml::bad'*"])
    assert list(project.snapshots()) == ["__model_budget__/good.yaml"]


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("import torch\ndef models(): return []\n", id="at the top"),
        pytest.param("def models():\n    import torch\n", id="inside"),
    ],
)
def test_a_source_without_its_framework_is_skipped_like_a_model(
    small: Project, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Skipped locally, a failure in CI; what it would have registered is not pruned meanwhile."""
    monkeypatch.setitem(sys.modules, "torch", None)
    small.write("registry.py", source)
    small.manifest("sources: [registry:models]\n")
    result = small.run("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED [[]1] modelbudget.yaml:1: torch is not installed*"])
    pruned = small.plain("--model-budget-prune")
    pruned.assert_outcomes(skipped=1, failed=1)
    pruned.stdout.fnmatch_lines(["nothing is pruned: the source registry:models lacks its framework"])
    assert list(small.snapshots()) == ["__model_budget__/small.yaml"]
    monkeypatch.setenv("CI", "1")
    small.run().assert_outcomes(failed=1)
