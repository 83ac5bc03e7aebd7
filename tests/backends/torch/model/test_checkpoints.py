"""Weights that a builder would have fetched are not: nothing reads their values."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pytest_modelbudget import summarize
from pytest_modelbudget.errors import ModelBudgetError

URL = "https://example.invalid/net.pt"


def pretrained() -> nn.Module:
    """As most projects write it: a part of what is fetched goes into the model."""
    model = nn.Linear(3, 2)
    model.load_state_dict(torch.hub.load_state_dict_from_url(URL)["model"], strict=False)
    return model


def inspected() -> nn.Module:
    """One whose size is in the checkpoint."""
    return nn.Linear(3, len(torch.hub.load_state_dict_from_url(URL)))


def assigned() -> nn.Module:
    """One that takes the tensors of the checkpoint, whatever their type is."""
    model = nn.Linear(3, 2)
    model.load_state_dict(torch.hub.load_state_dict_from_url(URL), assign=True)
    return model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch keeps what it fetches; nobody is asked for it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    return tmp_path


def test_weights_are_not_fetched(cache: Path) -> None:
    """The model is counted as if they were there; 3*2 + 2 = 8, and nothing is left on the disk."""
    assert summarize(pretrained, "float32[B, 3]").params == 8
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    with pytest.raises(OSError, match="no network"):
        pretrained()


@pytest.mark.parametrize("build", [inspected, assigned])
def test_a_model_that_depends_on_them_fetches_them(build: Callable[[], nn.Module]) -> None:
    """Nothing stands in for what is read of them."""
    with pytest.raises((OSError, ModelBudgetError), match="no network"):
        summarize(build, "float32[B, 3]")


def test_weights_that_are_there_are_read(cache: Path) -> None:
    """From where they were fetched to before."""
    folder = cache / "hub" / "checkpoints"
    os.makedirs(folder)
    torch.save({"a": torch.zeros(1), "b": torch.zeros(1)}, folder / "net.pt")
    assert summarize(inspected, "float32[B, 3]").params == 3 * 2 + 2
