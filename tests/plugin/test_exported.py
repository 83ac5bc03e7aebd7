"""Models that are files, from the manifest to the verdict; the files are written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_modelbudget import backends
from pytest_modelbudget.cli import main
from tests.project import Project

MANIFEST = """
    models:
      net: {build: zoo:two_layers, inputs: "float32[B, 32]"}
      shipped:
        build: ./net.safetensors
        exported_from: net
        budgets: {file_bytes: 10 kB, export: {weight_bytes: 60%}}
"""


def write(path: Path, dtype: str, size: int, **shapes: tuple[int, int]) -> None:
    """A file of matrices: the length of its header, the header, and room for the numbers."""
    header, end = {}, 0
    for name, (rows, columns) in shapes.items():
        begin, end = end, end + rows * columns * size
        header[f"{name}.weight"] = {"dtype": dtype, "shape": [rows, columns], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


@pytest.fixture
def shipped(project: Project) -> Project:
    """A model, and the file of its weights in half the bytes."""
    backends.BACKENDS["exported"] = "pytest_modelbudget.backends.exported"
    project.manifest(MANIFEST)
    write(project.path / "net.safetensors", "F16", 2, body=(32, 64), head=(64, 10))
    return project


def test_a_file_is_a_model_with_a_snapshot_of_its_own(shipped: Project) -> None:
    """It has rows and its bytes, and is said to hold weights alone; a change of the file is a change of the model."""
    shipped.update().stdout.fnmatch_lines(["snapshots: wrote 2, 0 unchanged"])
    text = (shipped.path / "__model_budget__/shipped.yaml").read_text(encoding="utf-8")
    assert f"file: {{file_bytes: {(shipped.path / 'net.safetensors').stat().st_size}}}" in text
    result = shipped.run()
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["note: shipped holds weights alone: shapes, connections and FLOPs are not checked"])
    write(shipped.path / "net.safetensors", "F16", 2, body=(32, 65), head=(65, 10))
    result = shipped.run()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*file_bytes*+84*"])


def test_a_file_that_is_more_than_its_share_of_its_model_fails_with_the_reason(shipped: Project) -> None:
    shipped.update()
    write(shipped.path / "net.safetensors", "F32", 4, body=(32, 64), head=(64, 10))
    result = shipped.run()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*weight_bytes of the export: 10,752 bytes, 100% of the 10,752 bytes of net; 60% is allowed*"]
    )


@pytest.mark.parametrize(
    ("original", "reason"),
    [
        ("nett", "there is no model 'nett'*net*"),
        ("shipped", "'shipped' is an exported file itself: name the model that it was made from"),
    ],
)
def test_an_original_that_is_none_is_an_error_with_its_line(shipped: Project, original: str, reason: str) -> None:
    shipped.manifest(MANIFEST.replace("exported_from: net", f"exported_from: {original}"))
    shipped.run().stdout.fnmatch_lines([f"*modelbudget.yaml:*: shipped: exported_from: {reason}*"])


def test_only_files_are_exported_from_a_model(shipped: Project) -> None:
    shipped.manifest(MANIFEST.replace("./net.safetensors", "zoo:small"))
    shipped.run().stdout.fnmatch_lines(["*shipped: exported_from: it is for models that are files*"])


def test_diff_prints_how_a_file_stands_to_a_model(
    shipped: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shipped.path)
    monkeypatch.setitem(backends.BACKENDS, "fakenet", "fakenet")  # as the project's conftest.py does for pytest
    assert main(["diff", "net", "./net.safetensors"]) == 1
    assert capsys.readouterr().out.splitlines()[1:4] == [
        "  Exported from: net",
        "    params: 2,688, the same",
        "    weight_bytes: 5,376 bytes of 10,752 bytes (-50.0%): float32 -> float16 -5,376",
    ]
