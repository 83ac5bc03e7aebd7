"""Why a layer has the params it has: the classic counts by formula, everything else by its weights."""

from __future__ import annotations

import pytest

from pytest_modelbudget.summary import Layer, Summary, Weight
from pytest_modelbudget.summary.formulas import why
from pytest_modelbudget.summary.show import notebook, table
from tests.builders import towers


def layer(kind: str, **weights: tuple[int, ...]) -> Layer:
    """A layer with these weights; `__` in a name stands for `/`."""
    return Layer("x", kind, weights=tuple(Weight(name.replace("__", "/"), shape) for name, shape in weights.items()))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        pytest.param(layer("Dense", kernel=(100, 50), bias=(50,)), "in*out + out: 100*50 + 50 = 5,050", id="dense"),
        pytest.param(layer("Linear", weight=(50, 100), bias=(50,)), "in*out + out: 100*50 + 50 = 5,050", id="linear"),
        pytest.param(layer("Linear", weight=(50, 100)), "in*out: 100*50 = 5,000", id="linear without bias"),
        pytest.param(layer("Dense", kernel=(1600, 128), bias=(128,)), "in*out + out: 1600*128 + 128 = 204,928", id="the dense layer of the classic CNN"),
        pytest.param(layer("Conv2D", kernel=(3, 3, 3, 32), bias=(32,)), "k*k*in/groups*out + out: 3*3*3*32 + 32 = 896", id="Keras convolution"),
        pytest.param(layer("Conv2d", weight=(32, 3, 3, 3), bias=(32,)), "k*k*in/groups*out + out: 3*3*3*32 + 32 = 896", id="torch convolution"),
        pytest.param(layer("Conv2D", kernel=(3, 3, 32, 64), bias=(64,)), "k*k*in/groups*out + out: 3*3*32*64 + 64 = 18,496", id="second convolution of the classic CNN"),
        pytest.param(layer("Conv1d", weight=(8, 2, 5)), "k*in/groups*out: 5*2*8 = 80", id="grouped convolution of one axis"),
        pytest.param(layer("ConvTranspose2d", weight=(4, 8, 2, 2), bias=(8,)), "k*k*in*out/groups + out: 2*2*4*8 + 8 = 136", id="torch transposed convolution"),
        pytest.param(layer("Conv2DTranspose", kernel=(2, 2, 8, 4), bias=(8,)), "k*k*in*out/groups + out: 2*2*4*8 + 8 = 136", id="Keras transposed convolution"),
        pytest.param(layer("LSTM", kernel=(1, 256), recurrent_kernel=(64, 256), bias=(256,)), "4*units*(inputs + units + 1): 4*64*(1 + 64 + 1) = 16,896", id="Keras LSTM"),
        pytest.param(layer("LSTM", weight_ih_l0=(256, 1), weight_hh_l0=(256, 64), bias_ih_l0=(256,), bias_hh_l0=(256,)), "4*units*(inputs + units + 2): 4*64*(1 + 64 + 2) = 17,152", id="torch LSTM"),
        pytest.param(layer("GRU", kernel=(64, 96), recurrent_kernel=(32, 96), bias=(2, 96)), "3*units*(inputs + units + 2): 3*32*(64 + 32 + 2) = 9,408", id="Keras GRU"),
        pytest.param(layer("RNN", weight_ih_l0=(32, 64), weight_hh_l0=(32, 32)), "units*(inputs + units): 32*(64 + 32) = 3,072", id="torch RNN without biases"),
        pytest.param(layer("Embedding", embeddings=(50257, 256)), "vocabulary*width: 50257*256 = 12,865,792", id="embedding"),
        pytest.param(layer("BatchNormalization", gamma=(64,), beta=(64,), moving_mean=(64,), moving_variance=(64,)), "(scale + shift + mean + variance)*channels: 4*64 = 256", id="Keras batch norm"),
        pytest.param(layer("BatchNorm2d", weight=(64,), bias=(64,)), "(scale + shift)*channels: 2*64 = 128", id="torch batch norm"),
        pytest.param(layer("LayerNorm", weight=(8, 32), bias=(8, 32)), "(scale + shift)*width: 2*256 = 512", id="layer norm of two axes"),
        pytest.param(layer("MultiheadAttention", in_proj_weight=(192, 64), in_proj_bias=(192,)), "3*(width*width + width): 3*(64*64 + 64) = 12,480", id="torch attention, its output layer in a row of its own"),
    ],
)  # fmt: skip
def test_a_common_type_is_explained_by_its_formula(row: Layer, text: str) -> None:
    """Words first, then the numbers in their places, then the count."""
    assert why(row) == text


@pytest.mark.parametrize(
    ("row", "text"),
    [
        pytest.param(layer("Custom", kernel=(3, 3, 3, 32), bias=(32,)), "kernel 3x3x3x32 + bias 32 = 896", id="a type of the user"),
        pytest.param(layer("Dense", kernel=(10, 5), bias=(5,), lora_a=(10, 2), lora_b=(2, 5)), "kernel 10x5 + bias 5 + lora_a 10x2 + lora_b 2x5 = 85", id="low-rank additions"),
        pytest.param(layer("Linear", **{"bias": (4,), "weight.original0": (4, 1), "weight.original1": (4, 3)}), "bias 4 + weight.original0 4x1 + weight.original1 4x3 = 20", id="weight norm"),
        pytest.param(layer("LSTM", weight_ih_l0=(256, 1), weight_hh_l0=(256, 2), weight_hr_l0=(2, 64)), "weight_ih_l0 256x1 + weight_hh_l0 256x2 + weight_hr_l0 2x64 = 896", id="a projected LSTM"),
        pytest.param(layer("Dense", kernel=(2, 3, 4)), "kernel 2x3x4 = 24", id="an unusual shape"),
        pytest.param(layer("RMSNorm", weight=(5,)), "weight 5 = 5", id="a single vector"),
        pytest.param(layer("Scale", factor=()), "factor scalar = 1", id="a scalar"),
        pytest.param(layer("Bank", **{f"w{index}": (2,) for index in range(9)}), "w0 2 + w1 2 + w2 2 + w3 2 + w4 2 + w5 2 + 3 more weights = 18", id="many weights"),
        pytest.param(layer("ReLU"), "", id="no weights"),
        pytest.param(Layer("x", "BatchNorm2d", weights=(Weight("running_mean", (4,), role="buffer"),)), "", id="buffers only"),
        pytest.param(Layer("x", "Linear", weights=(Weight("weight", (50, 8), tied_to="wte.weight"),)), "weight 50x8 is wte.weight, counted there", id="tied"),
        pytest.param(Layer("x", "Linear", weights=(Weight("weight", (50, 8), tied_to="wte.weight"), Weight("bias", (50,)))), "bias 50 = 50; weight 50x8 is wte.weight, counted there", id="tied but for its bias"),
    ],
)  # fmt: skip
def test_any_other_layer_is_explained_by_its_weights(row: Layer, text: str) -> None:
    """A formula that does not give the count is not shown."""
    assert why(row) == text


@pytest.mark.parametrize("extra", [(1,), (2, 3), ()], ids=["a vector", "a matrix", "a scalar"])
@pytest.mark.parametrize("kind", ["Dense", "Linear", "Conv2d", "LSTM", "Embedding", "LayerNorm", "MultiHeadAttention"])
def test_a_weight_too_many_is_never_left_out(kind: str, extra: tuple[int, ...]) -> None:
    """Whatever the type says, the explanation ends in the real count."""
    row = layer(kind, weight=(4, 5), bias=(4,), surplus=extra)
    assert why(row).endswith(f" = {row.params}")
    assert "surplus" in why(row)


def test_tables_explain_when_asked() -> None:
    """The text table has one more column, and only then; the page has it always."""
    plain, explained = table.summary_text(towers()), table.summary_text(towers(), width=120, why=True)
    assert "5,050  user" in plain
    assert "in*out" not in plain
    assert plain.splitlines()[3].split() == ["Layer", "(type)", "Output", "Shape", "Param", "#", "Connected", "to"]
    line = next(line for line in explained.splitlines() if line.startswith("dense_2"))
    assert line.split("  ")[-1].strip() == "in*out + out: 100*1 + 1 = 101"
    assert ">in*out + out: 100*50 + 50 = 5,050</td>" in notebook.summary_fragment(towers())


def test_text_of_a_model_is_harmless_in_an_explanation() -> None:
    """Names of weights are data: control characters are shown, markup is escaped."""
    row = Layer("x", "Custom", weights=(Weight("<b>\x1b[2J", (2,)),))
    summary = Summary(model="m", framework="torch", layers=(row,))
    assert "\x1b" not in table.summary_text(summary, why=True)
    assert "<b>" not in notebook.summary_fragment(summary)
