"""A project with models of every kind that an executor has to bring back as a serial run does."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.cli.conftest import Command, modelbudget  # noqa: F401  # a fixture

import_module("pytest_modelbudget.cli.check")  # a test drops what it imported, and here they patch it

FAULTS = (Path(__file__).parents[1] / "isolation" / "faults.py").read_text(encoding="utf-8")
SPEAKERS = """
    import os, sys, time, warnings
    from fakenet import Model
    from pytest_modelbudget import ModelEntry, backends

    backends.BACKENDS["fakenet"] = "fakenet"

    def fails(name):
        print(f"{name} to the one")
        print(f"{name} to the other", file=sys.stderr)
        os.system(f"echo {name} by a child")
        warnings.warn(f"{name} warns")
        raise ValueError(name)

    def of_width(width):
        return Model(dense=(32, width))

    def hashes():
        return of_width(1 + hash("a text") % 97)

    def zoo():
        open("calls", "a").write(f"{os.getpid()}\\n")
        for width in range(4, 8):
            yield ModelEntry(f"zoo{width}", build=lambda width=width: of_width(width), inputs="float32[B, 32]")
"""
MANIFEST = """
    defaults: {limits: {seconds: 20}}
    tags: {some: {sum: {params: 5000}}}
    models:
      first: {build: "faults:good", inputs: "float32[B, 32]", tags: [some]}
      crashes: {build: "faults:segfault", inputs: "float32[B, 32]"}
      second: {build: "speakers:of_width", inputs: "float32[B, 32]", args: [100], tags: [some]}
      slow: {build: "faults:sleeps", inputs: "float32[B, 32]", limits: {seconds: 1}}
      broken-1: {build: "speakers:fails", inputs: "float32[B, 32]", args: [broken-1]}
      broken-2: {build: "speakers:fails", inputs: "float32[B, 32]", args: [broken-2]}
      broken-3: {build: "speakers:fails", inputs: "float32[B, 32]", args: [broken-3]}
      hashes: {build: "speakers:hashes", inputs: "float32[B, 32]"}
      here: {build: "speakers:of_width", inputs: "float32[B, 32]", args: [3], isolate: false}
      missing: {build: "nowhere:net", inputs: "float32[B, 32]"}
      over: {build: "speakers:of_width", inputs: "float32[B, 32]", args: [9], budgets: {params: 10}}
      twice: {build: "faults:good", inputs: "float32[B, 32]"}
      Twice: {build: "faults:good", inputs: "float32[B, 32]"}
    sources: ["speakers:zoo"]
"""


@pytest.fixture
def isolated(modelbudget: Command, monkeypatch: pytest.MonkeyPatch) -> Command:  # noqa: F811
    """The command in that project, with models in processes of their own."""
    monkeypatch.setenv("MODELBUDGET_ISOLATE", "1")
    monkeypatch.setenv("PYTHONHASHSEED", "7")  # by which the model `hashes` has its width
    monkeypatch.delitem(sys.modules, "speakers", raising=False)
    modelbudget.write("faults.py", FAULTS)
    modelbudget.write("speakers.py", SPEAKERS)
    modelbudget.project.manifest(MANIFEST)
    return modelbudget
