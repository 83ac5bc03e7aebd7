"""What has the name of a manifest and is no file is never passed over: the run would be green without its models."""

from __future__ import annotations

import os

import pytest

from tests.project import Project


def test_in_the_root(project: Project) -> None:
    """A usage error, before anything runs."""
    os.mkfifo(project.path / "modelbudget.yaml")
    project.write("test_plain.py", "def test_plain(): pass\n")
    result = project.run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*modelbudget.yaml is a pipe, where a manifest should be: remove it"])


def test_in_a_folder_below(project: Project) -> None:
    """An error of collection; so is a link to nothing."""
    project.write("sub/test_plain.py", "def test_plain(): pass\n")
    (project.path / "sub/modelbudget.yaml").symlink_to("nowhere")
    result = project.run(".")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*modelbudget.yaml is a link to nothing, where a manifest should be: remove it"])


def test_a_manifest_that_was_chosen(project: Project) -> None:
    """Says what it is, and others do not matter then."""
    os.mkfifo(project.path / "pipe.yaml")
    os.mkfifo(project.path / "modelbudget.yaml")
    result = project.run("--model-budget-file=pipe.yaml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*pipe.yaml is a pipe, where a manifest should be"])
