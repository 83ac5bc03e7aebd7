"""Builders that compute while they build: they run with memory, and their models count like live ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget import summarize
from pytest_modelbudget.backends.torch.model import real_copy
from pytest_modelbudget.errors import ModelBudgetError

PARAMS = 8 * 16 + 16 + 16 * 4 + 4
FLOPS = 2 * (8 * 16 + 16 * 4)


def net() -> nn.Module:
    """Two layers: 212 params, 384 FLOPs a row."""
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def traced() -> Any:
    return torch.jit.trace(net(), torch.randn(1, 8))


def traced_by_its_own_name() -> Any:
    from torch.jit import trace

    return trace(net(), torch.randn(1, 8))


def traced_method() -> Any:
    return torch.jit.trace_module(net(), {"forward": torch.randn(1, 8)})


def exported() -> Any:
    return torch.export.export(net(), (torch.randn(1, 8),))


class TracesInside(nn.Module):
    """Traces a part of itself when it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = traced()

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(x)


def warmed_up() -> nn.Module:
    model = net()
    model(torch.randn(2, 8))
    return model


def scaled_by_its_own_weights() -> nn.Module:
    """Its structure follows from values: every row of weights above the mean stays."""
    model = net()
    first = model[0]
    keep = int((first.weight.abs().sum(1) >= 0).sum())
    return nn.Sequential(nn.Linear(8, keep), nn.ReLU(), nn.Linear(keep, 4))


class Reader(nn.Module):
    """A recurrent layer and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.rnn(x)
        return self.head(hidden)


def of_bytes(*kinds: type[nn.Module]) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(Reader().eval(), set(kinds), dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("freeze", [False, True], ids=["scripted", "frozen"])
@pytest.mark.parametrize(
    ("kinds", "bytes_"),
    [
        pytest.param((), 4 * (64 * 26 + 68), id="floats"),
        pytest.param((nn.Linear,), 4 * 64 * 26 + 64 + 4 * 4, id="packed head"),
        pytest.param((nn.Linear, nn.LSTM), 64 * 24 + 4 * 128 + 64 + 4 * 4, id="all packed"),
    ],
)
def test_scripts_hold_what_their_modules_hold(kinds: tuple[type[nn.Module], ...], bytes_: int, freeze: bool) -> None:
    """Packed weights of a scripted layer, and lists of weights of a frozen one: 4 gates of 16 x 24 and two biases."""

    def build() -> Any:
        scripted = torch.jit.script(of_bytes(*kinds))
        return torch.jit.freeze(scripted) if freeze else scripted

    for model in (build, build()):
        summary = summarize(model, "float32[5, 1, 8]", name="m")
        assert summary.params == 64 * (8 + 16 + 2) + 16 * 4 + 4
        assert summary.weight_bytes == bytes_


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(traced, id="traced"),
        pytest.param(traced_by_its_own_name, id="traced by an imported name"),
        pytest.param(traced_method, id="traced method"),
        pytest.param(lambda: torch.jit.script(net()), id="scripted"),
        pytest.param(lambda: torch.jit.freeze(torch.jit.script(net())), id="frozen"),
        pytest.param(lambda: torch.jit.freeze(traced()), id="frozen trace"),
        pytest.param(lambda: torch.jit.optimize_for_inference(torch.jit.script(net())), id="optimised"),
        pytest.param(lambda: exported().module(), id="exported module"),
        pytest.param(exported, id="exported program"),
        pytest.param(lambda: torch.fx.symbolic_trace(net()), id="fx"),
        pytest.param(TracesInside, id="traces inside"),
        pytest.param(warmed_up, id="warm-up call"),
        pytest.param(scaled_by_its_own_weights, id="structure from values"),
    ],
)
def test_programs_count_like_the_module(build: Callable[[], Any]) -> None:
    """Params and FLOPs are those of the two layers, from a builder and live."""
    for model in (build, build()):
        summary = summarize(model, "float32[1, 8]", name="m")
        assert (summary.params, summary.flops.value, summary.flops.uncounted) == (PARAMS, FLOPS, ())


@pytest.mark.filterwarnings("ignore")
def test_static_quantisation_is_calibrated_with_values() -> None:
    """Observers see numbers while the builder runs: 16 * 8 weights and 8 biases, as live, and a note says why."""
    import torch.ao.quantization as quantization

    def build() -> Any:
        model = nn.Sequential(quantization.QuantStub(), nn.Linear(16, 8), quantization.DeQuantStub()).eval()
        model.qconfig = quantization.get_default_qconfig("fbgemm")  # type: ignore[assignment]
        quantization.prepare(model, inplace=True)
        model(torch.randn(4, 16))
        return quantization.convert(model)

    built, live = (summarize(model, "float32[B, 16]", name="m") for model in (build, build()))
    assert built.params == live.params == 16 * 8 + 8
    assert built.weight_bytes == live.weight_bytes
    assert any("the builder ran with real memory" in note for note in built.notes)


def test_a_builder_that_fails_for_another_reason_shows_its_own_error() -> None:
    """What it raises with memory is what its author would see."""

    def build() -> nn.Module:
        net()
        raise ValueError("no such width")

    with pytest.raises(ValueError, match="no such width"):
        summarize(build, "float32[1, 8]", name="m")


def test_a_builder_that_computes_and_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says that it computes, the limit, and the key that lifts it; a plain failure stays what it is."""
    monkeypatch.setattr(real_copy, "REAL_LIMIT", 100)
    with pytest.raises(ModelBudgetError, match=r"computes with values while it builds.*1 GiB.*`run: real`"):
        summarize(scaled_by_its_own_weights, "float32[1, 8]", name="m")
    assert summarize(scaled_by_its_own_weights, "float32[1, 8]", name="m", run="real").params == PARAMS

    def broken() -> nn.Module:
        net()
        raise ValueError("no such width")

    with pytest.raises(ValueError, match="no such width"):
        summarize(broken, "float32[1, 8]", name="m")


def test_what_a_builder_sets_holds_while_its_model_is_counted() -> None:
    """Its default dtype is that of the tensors which forward makes, and the user's is as before."""

    class Makes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return self.linear(x) + torch.zeros(3)

    def build() -> nn.Module:
        torch.set_default_dtype(torch.float64)
        return Makes()

    assert str(summarize(build, "float64[B, 3]", name="m").outputs[0]) == "float64[B, 3]"
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("live", [False, True], ids=["builder", "live"])
def test_a_program_that_may_not_run_on_values_is_an_error(live: bool) -> None:
    """Nothing can be known of what a script does without running it."""
    script: Any = torch.jit.script(net()) if live else lambda: torch.jit.script(net())
    with pytest.raises((ModelBudgetError, RuntimeError), match="values"):
        summarize(script, "float32[1, 8]", name="m", run="abstract")


def test_a_real_run_needs_inputs() -> None:
    """Without them there is nothing to run on."""
    with pytest.raises(ModelBudgetError, match="`run: real` needs inputs"):
        summarize(net(), name="m", run="real")
