"""`modelbudget mlflow send`, through the tracker's own function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.cli import main
from pytest_modelbudget.trackers import mlflow


@pytest.mark.parametrize("left", [0, 1], ids=["all sent", "some left"])
def test_what_waits_below_the_root_is_sent(
    left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The outbox is that of the manifest's root, and the exit code says whether anything is left."""
    roots: list[Path] = []

    def send(root: Path, **_: Any) -> int:
        roots.append(root)
        return left

    (tmp_path / "modelbudget.yaml").write_text("version: 1\nmodels: {a: nets:build}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow, "send_outbox", send)
    assert main(["mlflow", "send"]) == left
    assert roots == [tmp_path]


def test_nothing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty outbox is no failure."""
    monkeypatch.chdir(tmp_path)
    assert main(["mlflow", "send"]) == 0
    assert "mlflow" in capsys.readouterr().out


def test_another_word_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Only `send` is there to do."""
    assert main(["mlflow", "fetch"]) == 2
    assert "send" in capsys.readouterr().err
