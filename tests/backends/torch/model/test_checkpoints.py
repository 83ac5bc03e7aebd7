"""Weights that a builder only loads into its model are not downloaded; whoever asks anything of them gets the real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget import summarize

Fetch = Callable[[], Any]


class OwnWay(nn.Module):
    """Its own loading drops an entry, as frozen normalisations do, and leaves the rest to torch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if prefix + "steps" in state_dict:
            del state_dict[prefix + "steps"]
        super()._load_from_state_dict(state_dict, prefix, *args)


class Resized(OwnWay):
    """Its parameter becomes as large as the file's."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        self.weight = nn.Parameter(torch.ones(state_dict["0.weight"].shape))


def loaded(model: nn.Module, fetch: Fetch, **options: Any) -> nn.Module:
    model.load_state_dict(fetch(), **options)
    return model


def head_only(fetch: Fetch) -> nn.Module:
    """Trains what the file has no weights for."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    missing, _ = model.load_state_dict(fetch(), strict=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in missing
    return model


def first_match(fetch: Fetch) -> nn.Module:
    return nn.Linear(3, next((n for n in range(1, 9) if fetch()["n"] == n), 20))


def guarded(fetch: Fetch) -> nn.Module:
    try:
        return nn.Linear(3, fetch()["0.weight"].shape[0])
    except Exception:
        return nn.Linear(3, 999)


WITHOUT: dict[str, Callable[[Fetch], nn.Module]] = {
    "loaded": lambda fetch: loaded(nn.Sequential(nn.Linear(3, 5)), fetch, strict=False),
    "drops an entry": lambda fetch: loaded(nn.Sequential(OwnWay()), fetch, strict=False),
}
ASKING: dict[str, Callable[[Fetch], nn.Module]] = {
    "entries": lambda fetch: nn.Linear(3, len(fetch())),
    "union": lambda fetch: nn.Linear(3, len(fetch() | {"z": 1})),
    "equal": first_match,
    "text": lambda fetch: nn.Linear(3, 500 if str(fetch()["arch"]) == "big" else 5),
    "type": lambda fetch: nn.Linear(3, 5 if isinstance(fetch()["n"], int) else 50),
    "tensor": lambda fetch: nn.Linear(3, 5 if torch.is_tensor(fetch()["0.weight"]) else 50),
    "attribute": lambda fetch: nn.Linear(3, 5 if hasattr(fetch()["0.weight"], "shape") else 50),
    "mapping": lambda fetch: nn.Linear(3, 5 if isinstance(fetch(), dict) else 50),
    "in a try": guarded,
    "missing keys": head_only,
    "assigned": lambda fetch: loaded(nn.Sequential(nn.Linear(3, 5)), fetch, strict=False, assign=True),
    "resized": lambda fetch: loaded(nn.Sequential(Resized()), fetch, strict=False),
}


@pytest.fixture
def fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """Fetches a checkpoint from the disk as from the network, into a folder of torch's own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    weights = {"0.weight": torch.zeros(5, 3), "0.bias": torch.zeros(5), "n": 7, "arch": "big"}
    torch.save(weights, tmp_path / "net.pt")
    return lambda: torch.hub.load_state_dict_from_url((tmp_path / "net.pt").as_uri(), progress=False)


def counts(model: nn.Module) -> tuple[int, int]:
    """All and trainable parameters, as torch has them."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trainable in sizes if trainable)


@pytest.mark.parametrize("name", [*WITHOUT, *ASKING])
def test_as_with_the_weights(name: str, fetch: Fetch, tmp_path: Path) -> None:
    """The numbers are those of the real model, and nothing is downloaded where only loading needs it."""
    build = {**WITHOUT, **ASKING}[name]
    summary = summarize(lambda: build(fetch), "float32[B, 3]")
    assert list((tmp_path / "home").rglob("*.pt")) == [] or name in ASKING
    assert (summary.params, summary.trainable_params) == counts(build(fetch))


def test_weights_that_are_there_are_read(fetch: Fetch) -> None:
    """From where they were fetched to before: 3*4 + 4."""
    fetch()
    assert summarize(lambda: nn.Linear(3, len(fetch())), "float32[B, 3]").params == 16
