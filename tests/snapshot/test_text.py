"""Snapshots as text: the shape of a file, and reading it back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.snapshot import read, render
from pytest_modelbudget.snapshot.text import NewerFormat
from pytest_modelbudget.summary import Flops, Input, Layer, Summary, TensorSpec, Weight
from tests.builders import HOSTILE, gpt, spec, towers

TOWERS = """\
# snapshot of pytest-modelbudget; accept a change with: pytest --model-budget-update
format: 1
model: two-towers
declared: modelbudget.yaml
framework: keras
inputs:
- user float32[B, 100]
- item float32[B, 20]
outputs:
- float32[B, 1]
params: 6201
trainable_params: 6201
non_trainable_params: 0
buffers: 0
weight_bytes: 24804
flops: {rules: 2, value: 12200}
digest: DIGEST
layers:
- {path: user, type: InputLayer, out: "[B, 100]"}
- {path: item, type: InputLayer, out: "[B, 20]"}
- {path: dense, type: Dense, out: "[B, 50]", from: [user], params: 5050, weights: kernel 100x50 + bias 50}
- {path: dense_1, type: Dense, out: "[B, 50]", from: [item], params: 1050, weights: kernel 20x50 + bias 50}
- {path: concatenate, type: Concatenate, out: "[B, 100]", from: [dense, dense_1]}
- {path: dense_2, type: Dense, out: "[B, 1]", from: [concatenate], params: 101, weights: kernel 100x1 + bias 1}
"""


def text(summary: Summary) -> str:
    """A snapshot declared in `modelbudget.yaml`."""
    return render(summary, declared="modelbudget.yaml")


def compared(summary: Summary) -> Summary:
    """What of a summary takes part in the comparison: no FLOPs of rows, no sizes, no notes."""
    layers = tuple(replace(layer, flops=None) for layer in summary.layers)
    return replace(summary, layers=layers, sizes=(), notes=(), samples=None)


def test_the_shape_of_a_file() -> None:
    """One fact a line, as the design says, with a digest of twelve hex digits."""
    lines = text(towers()).splitlines(keepends=True)
    digest = next(line for line in lines if line.startswith("digest: "))
    assert len(digest) == len("digest: ") + 12 + 1
    assert "".join(lines).replace(digest, "digest: DIGEST\n") == TOWERS


NOTHING_SPECIAL = Summary("net", "torch", (Layer("(root)", "Linear", ((),)),))
CALLED_TWICE = Summary(
    "net",
    "torch",
    (
        Layer("conv", "Conv2d", ((spec("B", 1, 16, 16),), (spec("B", 1, 28, 28),)), (("x",), ("y",)), calls=2),
        Layer("never", "Linear", weights=(Weight("w", (2, 2), "float16", False),), calls=0),
        Layer("0", "LSTM", ((spec("B", "T", 8), spec(1, "B", 8, dtype="bfloat16")),), (("conv", "never"),), calls=None),
    ),
    (Input("0", spec("B", None, dtype="int64")), Input("a b", spec())),
    (spec("B", "2*T"), spec("(T+1)//2", "2*(T//2)")),
    Flops(None, (("aten.foo", 3),)),
)


@pytest.mark.parametrize(
    "summary",
    [
        pytest.param(towers(), id="towers"),
        pytest.param(gpt(), id="folded"),
        pytest.param(gpt(12, 8), id="folded in folds"),
        pytest.param(CALLED_TWICE, id="several calls, none, unknown"),
        pytest.param(replace(towers(), flops=Flops(7, (("my op: x", 1),))), id="lower bound"),
        pytest.param(Summary("empty", "keras", ()), id="no layers"),
    ],
)
def test_read_gives_back_what_was_rendered(summary: Summary) -> None:
    """Rendering loses nothing that is compared, and reading and rendering again gives the same bytes."""
    rendered = text(summary)
    assert read(rendered) == compared(summary)
    assert text(read(rendered)) == rendered
    yaml.safe_load(rendered)


@pytest.mark.parametrize("name", [name for name in HOSTILE if name])
def test_hostile_names_stay_data(name: str) -> None:
    """Any name of a layer, type, input or operator is one scalar on one line, and is read back."""
    layer = Layer(name, name, ((spec("B"),),), ((name,),), (Weight("w", (1,)),))
    summary = Summary("net", "torch", (layer,), (Input(name, spec("B")),), (), Flops(1, ((name, 1),)))
    rendered = text(summary)
    assert read(rendered) == compared(summary)
    assert len(rendered.splitlines()) == 17
    assert "\x1b" not in rendered
    assert "\u202e" not in rendered


def test_a_deep_model_is_a_page() -> None:
    """126 blocks of 64 experts are a few lines, not 16,000."""
    rendered = text(gpt(126, 64))
    assert len(rendered.splitlines()) < 110
    assert "- repeat: h.1-125 x125" in rendered
    assert read(rendered) == compared(gpt(126, 64))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda t: t.replace("params: 6201\n", "params: 6202\n", 1), "line 17: the digest does not fit", id="edited total"),
        pytest.param(lambda t: t.replace("kernel 100x50", "kernel 100x51"), "the digest does not fit", id="edited row"),
        pytest.param(lambda t: t.replace("digest: ", "digest: 0"), "the digest does not fit", id="edited digest"),
        pytest.param(lambda t: t.replace("params: 6201\n", "<<<<<<< HEAD\nparams: 6201\n=======\n"), "line 11 has a git conflict", id="conflict"),
        pytest.param(lambda t: t[: t.index("digest")], "cut off or damaged: the field 'layers'", id="cut off between lines"),
        pytest.param(lambda t: t[:-20], "not YAML", id="cut off in a line"),
        pytest.param(lambda t: t[: t.index("- {path: dense_2")], "digest does not fit", id="last row cut off"),
        pytest.param(lambda t: "", "empty, cut off", id="empty"),
        pytest.param(lambda t: "- 1\n", "not a snapshot", id="a list"),
        pytest.param(lambda t: "\x00\x01", "not YAML", id="binary"),
        pytest.param(lambda t: t.replace("format: 1\n", ""), "no 'format' line", id="no format"),
        pytest.param(lambda t: t.replace("value: 12200", "value: lots"), "the digest does not fit", id="a word as number"),
        pytest.param(lambda t: t.replace("- {path: user", "- {path: [user]"), "the digest does not fit", id="a list as path"),
    ],
)  # fmt: skip
def test_damage_is_noticed_and_named(change: object, words: str) -> None:
    """A file that is not what was written says where and how."""
    with pytest.raises(ModelBudgetError) as caught:
        read(change(text(towers())))  # type: ignore[operator]
    assert words in str(caught.value)


def test_a_newer_format_is_not_read() -> None:
    """What a later version wrote is left alone."""
    with pytest.raises(NewerFormat, match="upgrade pytest-modelbudget"):
        read(text(towers()).replace("format: 1", "format: 2"))


def test_the_declaring_file_is_not_part_of_the_digest() -> None:
    """Moving a model from one manifest to another does not change the model."""
    one, other = (render(towers(), declared=name) for name in ("modelbudget.yaml", "pyproject.toml"))
    assert read(one) == read(other)
    assert one.replace("modelbudget.yaml", "pyproject.toml") == other


def test_open_dimensions_are_kept() -> None:
    """`?` is any size, not zero."""
    summary = Summary("net", "keras", (), (Input("x", TensorSpec(("B", None))),))
    assert read(text(summary)).inputs[0].spec.shape == ("B", None)


def test_declared_values_of_inputs_are_kept() -> None:
    """They change what is counted, so they are in the file; inputs without any are written as ever."""
    ports = [f"int64[B] {values}".strip() for values in ("", "= T", "= -3", "< 32000")]
    summary = Summary(
        "net", "torch", (), tuple(Input(f"0.{at}", TensorSpec.parse(one)) for at, one in enumerate(ports))
    )
    written = text(summary)
    assert "- 0.0 int64[B]\n" in written
    assert '- "0.1 int64[B] = T"\n' in written
    assert read(written).inputs == summary.inputs
    assert Summary.from_dict(summary.to_dict()).inputs == summary.inputs
