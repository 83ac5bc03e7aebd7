"""What `modelbudget init` proposes to call a builder with, and how a manifest writes it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from pytest_modelbudget.cli.discover.manifest import flow
from pytest_modelbudget.cli.discover.proposals.proposal import Proposal, proposals
from pytest_modelbudget.cli.discover.proposals.sizes import UnknownSize, usual_size
from pytest_modelbudget.loading import read_yaml

NOTHING: dict[str, Any] = {"calls": [], "parsers": [], "settings": [], "yaml_files": []}
HERE = __name__
SIZES = {"small": 1, "large": 9}


@dataclass
class NetConfig:
    """One with all defaults."""

    dim: int = 4
    depth: int = 2


@dataclass
class NetDims:
    """One with none."""

    n_mels: int
    n_state: int


class Net:
    """A model of a configuration."""

    def __init__(self, config: Any) -> None:
        self.size = config.dim * config.depth


class Nested:
    """A model of a configuration that no class has the attributes of; the class knows defaults of its own."""

    def __init__(self, config: Any) -> None:
        config.update(config.n_layer, config.n_head, config.kind)

    @staticmethod
    def get_default_config() -> object: ...


def annotated(dims: NetDims) -> None: ...
def plain(
    pretrained: bool = True, weights: str | None = "imagenet", class_weights: tuple[float, ...] = (1.0,)
) -> None: ...
def named(name: str) -> int:
    return SIZES[name]


def chosen(kind: Literal["a", "b"]) -> None: ...
def sized(dim: int, heads: int, *, causal: bool) -> None: ...
def options(args: Any) -> object:
    return args.hidden_dim, args.heads


def open_ended(loss: Any, dim: int) -> None: ...


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project is none of these tests: other ones that were imported have configurations too."""
    monkeypatch.chdir(tmp_path)


def first(build: Callable[..., Any], **evidence: Any) -> Proposal:
    """The likeliest proposal for a builder."""
    return next(proposals(build, {**NOTHING, **evidence}, {}))


@pytest.mark.parametrize(
    ("build", "kwargs", "guessed"),
    [
        pytest.param(plain, {"pretrained": False, "weights": None}, (), id="weights are not asked for"),
        pytest.param(Net, {"config": {"call": f"{HERE}:NetConfig"}}, (), id="a configuration that has what is read"),
        pytest.param(
            annotated, {"dims": {"call": f"{HERE}:NetDims", "kwargs": {"n_mels": 80, "n_state": 64}}}, ("dims",),
            id="a configuration without defaults",
        ),
        pytest.param(named, {"name": "small"}, (), id="a table of names"),
        pytest.param(chosen, {"kind": "a"}, (), id="the choices of a type"),
        pytest.param(sized, {"dim": 64, "heads": 4, "causal": False}, ("dim", "heads", "causal"), id="sizes by their names"),
    ],
)  # fmt: skip
def test_what_can_be_seen_is_proposed(
    build: Callable[..., Any], kwargs: dict[str, Any], guessed: tuple[str, ...]
) -> None:
    """What is nothing but a guess is marked."""
    proposal = first(build)
    assert (proposal.kwargs, proposal.guessed, proposal.unknown) == (kwargs, guessed, ())


def test_a_class_may_have_defaults_of_its_own() -> None:
    """Else an object of guesses for what is read of it, with None for what is no size."""
    own, guessed = proposals(Nested, NOTHING, {})
    assert own.kwargs == {"config": {"call": f"{HERE}:Nested.get_default_config"}}
    assert guessed.guessed == ("config",)
    assert {"n_layer": 2, "n_head": 4, "kind": None}.items() <= guessed.kwargs["config"]["kwargs"].items()
    assert "update" not in guessed.kwargs["config"]["kwargs"]


def test_what_is_not_known_is_left_open() -> None:
    """Nothing stands in for it."""
    proposal = first(open_ended)
    assert (proposal.kwargs, proposal.unknown) == ({"dim": 64}, ("loss",))


def test_defaults_of_a_command_line_are_a_namespace() -> None:
    """When they have most of what the builder reads."""
    proposal = first(options, parsers=[{"where": "main.py:3", "values": {"hidden_dim": 8, "heads": 2, "lr": 0.1}}])
    assert proposal.kwargs["args"]["call"] == "argparse:Namespace"
    assert proposal.origin == "defaults of main.py:3"


@pytest.mark.parametrize(
    ("target", "taken"),
    [
        pytest.param(f"{HERE}:sized", True, id="this one"),
        pytest.param("elsewhere:sized", False, id="one of another module"),
    ],
)
def test_a_written_call_comes_before_guesses(target: str, taken: bool) -> None:
    """Where it is a call of this very builder."""
    call = {"target": target, "args": [32], "kwargs": {"heads": 8, "causal": True}, "complete": True, "where": "README.md:9", "inputs": ("float32[B, 32]",)}  # fmt: skip
    proposal = first(sized, calls=[call])
    assert (proposal.origin == "as in README.md:9") is taken
    assert proposal.kwargs["dim"] == (32 if taken else 64)
    assert proposal.inputs == (("float32[B, 32]",) if taken else ())


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"call": "shutil:rmtree", "args": ["data"]}, id="a function"),
        pytest.param({"call": "subprocess:Popen", "args": ["true"]}, id="a class of another library"),
        pytest.param([{"inner": {"ref": "antigravity:fly_to"}}], id="a module that would be imported"),
    ],
)
def test_what_a_text_names_is_not_run(value: object) -> None:
    """A README and a settings file are read; what they call may delete, train or fetch."""
    call = {"target": f"{HERE}:open_ended", "args": [value, 3], "kwargs": {}, "complete": True, "where": "README.md:9", "inputs": ()}  # fmt: skip
    assert first(open_ended, calls=[call]).unknown == ("loss",)
    assert first(open_ended, settings=[{"where": "a.yaml", "values": {"loss": value, "dim": 3}}]).unknown == ("loss",)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("name", "size"),
    [("embed_dim", 64), ("dim_head", 16), ("n_audio_head", 4), ("num_layers", 2), ("n_mels", 80), ("vocab_size", 1000),
     ("num_classes", 10), ("img_size", 224), ("in_channels", 3), ("n_text_ctx", 128), ("attn_dropout", 0.0)],
)  # fmt: skip
def test_usual_sizes(name: str, size: float) -> None:
    """Told from the name of an argument."""
    assert usual_size(name) == size


@pytest.mark.parametrize("name", ["encoder_layer", "position_embedding", "backbone", "norm"])
def test_names_of_modules_are_no_sizes(name: str) -> None:
    """A number is never put where a layer belongs."""
    with pytest.raises(UnknownSize):
        usual_size(name)


@pytest.mark.parametrize(
    "value",
    [1e-5, 1e20, 0.5, -3, True, None, "1e6", "on", "null", "a: b # c", [1, [2.0]], {"true": "x", "a-b": {"call": "m:f", "args": [[1]]}}],
)  # fmt: skip
def test_a_value_is_read_back_as_it_was(value: object) -> None:
    """Whatever it looks like."""
    assert read_yaml(f"x: {flow(value)}").data == {"x": value}
