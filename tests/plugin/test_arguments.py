"""Builders that take a config: a manifest writes the call that makes it."""

from __future__ import annotations

import sys

import pytest

from tests.project import Project

NETS = """
    from dataclasses import dataclass, field

    from fakenet import Model

    calls = []
    number = 7

    @dataclass
    class Rope:
        scale: int

    @dataclass
    class Config:
        width: int
        rope: Rope = None
        kind: type = None

        def __post_init__(self):
            calls.append(self.width)

    def build(config, *others, extra=None):
        assert len(calls) == 1, calls
        assert config.kind in (None, Model)
        return Model(dense=(config.rope.scale, config.width))

    def picky(width):
        if width % 2:
            raise ValueError("width must be even")
        return width
"""
YAML = """
    models:
      net:
        build: nets:build
        args:
          - call: nets:Config
            kwargs:
              width: 64
              rope: {call: "nets:Rope", args: [32]}
              kind: {ref: "fakenet:Model"}
        kwargs: {extra: {literal: {call: "nets:Config"}}}
        inputs: "float32[B, 32]"
"""
TOML = """
    [tool.modelbudget.models.net]
    build = "nets:build"
    inputs = "float32[B, 32]"
    kwargs = {extra = [{ref = "nets:Rope"}]}

    [[tool.modelbudget.models.net.args]]
    call = "nets:Config"
    kwargs = {width = 64, rope = {call = "nets:Rope", args = [32]}}
"""
SOURCE = """
    from pytest_modelbudget import ModelEntry

    def models():
        config = {"call": "nets:Config", "kwargs": {"width": 64, "rope": {"call": "nets:Rope", "args": [32]}}}
        yield ModelEntry("net", "nets:build", args=(config,), inputs="float32[B, 32]")
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("modelbudget.yaml", YAML, id="yaml"),
        pytest.param("pyproject.toml", TOML, id="toml"),
        pytest.param("modelbudget.yaml", "sources: [zoo:models]", id="a source"),
    ],
)
def test_a_builder_takes_a_config(project: Project, name: str, text: str) -> None:
    """A layer of 32 * 64 params: the config with what is in it is made once, wherever it is written."""
    project.write("nets.py", NETS)
    project.write("zoo.py", SOURCE)
    project.write(name, text)
    sys.modules.pop("nets", None)
    project.update().assert_outcomes(passed=1)
    assert "params: 2048\n" in project.snapshot("net").read_text()


def args(written: str) -> str:
    """A manifest whose line 5 has the written argument."""
    return f"""
    models:
      net:
        build: nets:build
        args:
          - {written}
        inputs: "float32[B, 32]"
    """


@pytest.mark.parametrize(
    ("written", "words"),
    [
        pytest.param(
            '{call: "nowhere:Config"}',
            ["modelbudget.yaml:5: args.0.call: there is no module 'nowhere' (for 'nowhere:Config')*"],
            id="no module",
        ),
        pytest.param('{call: "nets:Confix"}', ["modelbudget.yaml:5: args.0.call: nets has no 'Confix'*"], id="no name"),
        pytest.param('[{ref: "nets:Confix"}]', ["modelbudget.yaml:5: args.0.0.ref: nets has no 'Confix'*"], id="ref"),
        pytest.param(
            '{call: "nets:number"}',
            ["modelbudget.yaml:5: args.0.call: nets:number is a int, not something to call"],
            id="not callable",
        ),
        pytest.param(
            '{call: "nets:Config", kwargs: {widht: 3}}',
            ["modelbudget.yaml:5: args.0.call: nets:Config cannot be called like this: *'wid*'*args or kwargs"],
            id="wrong arguments",
        ),
        pytest.param(
            '{call: "nets:Config", kwargs: {width: 1, rope: {call: "nets:Rope"}}}',
            ["modelbudget.yaml:5: args.0.kwargs.rope.call: nets:Rope cannot be called like this: *'scale'*"],
            id="wrong arguments inside",
        ),
        pytest.param(
            '{call: "nets:picky", args: [3]}',
            [
                "nets.py:*: in picky",
                "note: nets:picky is called at modelbudget.yaml:5: args.0.call",
                "E   ValueError: width must be even",
                "BUILD ERROR modelbudget.yaml::net - ValueError: width must be even",
            ],
            id="raises",
        ),
    ],
)
def test_a_call_that_fails_is_named_with_its_line(project: Project, written: str, words: list[str]) -> None:
    """The line of the call itself, what it names, and what is wrong with it."""
    project.write("nets.py", NETS)
    project.manifest(args(written))
    sys.modules.pop("nets", None)
    result = project.update()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["net: BUILD ERROR", *words])
    result.stdout.no_fnmatch_line("*pytest_modelbudget/*.py*")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        pytest.param(
            "{call: nets.Config}", "5: args.0.call: 'nets.Config' is not a reference*'nets:Config'*", id="dots"
        ),
        pytest.param(
            '{call: "nets:Config", kwarg: {}}', "5: args.0: unknown key 'kwarg', did you mean 'kwargs'*", id="key"
        ),
        pytest.param("{ref: 3}", "5: args.0.ref: 3 is not a reference: write module:name*", id="ref"),
    ],
)
def test_a_call_that_is_written_wrong_is_a_mistake(project: Project, written: str, words: str) -> None:
    """Before anything is built, at its line."""
    project.write("nets.py", NETS)
    project.manifest(args(written))
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{words}"])


def test_a_config_of_a_missing_framework_skips(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a builder of it would."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("CI", "")
    project.write("nets.py", NETS)
    project.manifest(args('{ref: "torch:float16"}'))
    sys.modules.pop("nets", None)
    project.run("-rs").assert_outcomes(skipped=1)
