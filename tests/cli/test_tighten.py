"""`modelbudget tighten`: the change to the manifest, shown and written."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Command

RATCHET = """
    # limits of the team
    models:
      small:
        build: zoo:small   # 32 * 64
        inputs: "float32[B, 32]"
        budgets: {params: {max: 3k, ratchet: {slack: 2%}}, flops: 1 MFLOPs}
"""


@pytest.fixture
def loose(modelbudget: Command) -> Command:
    """A model of 2,048 params with a max of 3,000 that follows with 2%: 2,089."""
    modelbudget.project.manifest(RATCHET)
    modelbudget("update")
    return modelbudget


def test_it_shows_and_writes_nothing_at_first(loose: Command) -> None:
    """Code 1, with a diff of the manifest."""
    before = (loose.project.path / "modelbudget.yaml").read_bytes()
    done = loose("tighten")
    assert (done.code, done.err) == (1, "")
    lines = done.out.splitlines()
    assert "-    budgets: {params: {max: 3k, ratchet: {slack: 2%}}, flops: 1 MFLOPs}" in lines
    assert "+    budgets: {params: {max: 2_089, ratchet: {slack: 2%}}, flops: 1 MFLOPs}" in lines
    assert "small: params max 3k -> 2_089  [modelbudget.yaml:6]" in lines
    assert (loose.project.path / "modelbudget.yaml").read_bytes() == before


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["no mark", "a mark before it"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_it_writes_one_number_and_nothing_else(loose: Command, end: str, mark: str) -> None:
    """Comments, line ends and what an editor put before the text stay; then there is nothing left to do."""
    path = loose.project.path / "modelbudget.yaml"
    text = f"{mark}# ä 😀\n{path.read_text(encoding='utf-8')}".replace("\n", end)
    path.write_bytes(text.encode())
    assert loose("tighten", "--write").code == 0
    assert path.read_bytes() == text.replace("3k", "2_089").encode()
    done = loose("tighten")
    assert (done.code, done.out) == (0, "nothing to tighten\n")
    assert loose("check").code == 0


def test_a_model_that_fails_is_left_alone(loose: Command) -> None:
    """It has no number to follow, which is said."""
    loose.write("zoo.py", "from fakenet import Model\ndef small(): return Model(dense=(32, 60))\n")
    done = loose("tighten", "--write")
    assert (done.code, done.out) == (0, "nothing to tighten\n")
    assert "left alone: small: params: small is CHANGED" in done.err


def test_without_a_manifest(modelbudget: Command) -> None:
    """Code 2, and how to get one."""
    done = modelbudget("tighten")
    assert done.code == 2
    assert "modelbudget init writes one" in done.err
