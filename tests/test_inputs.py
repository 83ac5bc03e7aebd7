"""The grammar of a model's inputs."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_modelbudget import inputs
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Example, Inputs, Literal
from pytest_modelbudget.summary import TensorSpec

IMAGE = TensorSpec(("B", 3, 8, 8))
IDS = TensorSpec(("B", "T"), "int64")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param("float32[B, 3, 8, 8]", Inputs((IMAGE,)), id="one tensor"),
        pytest.param("[B,3,8,8]", Inputs((IMAGE,)), id="float32 is the rule"),
        pytest.param([1, 3, 8, 8], Inputs((TensorSpec((1, 3, 8, 8)),)), id="bare list of sizes"),
        pytest.param(["float32[B, 3, 8, 8]", "int64[B, T]"], Inputs((IMAGE, IDS)), id="positional"),
        pytest.param([[1, 2], [3, 4]], Inputs((TensorSpec((1, 2)), TensorSpec((3, 4)))), id="two bare lists"),
        pytest.param({"ids": "int64[B, T]"}, Inputs((), {"ids": IDS}), id="by name"),
        pytest.param(
            {"args": ["int64[B, T]"], "kwargs": {"x": [2, 2]}}, Inputs((IDS,), {"x": TensorSpec((2, 2))}), id="both"
        ),
        pytest.param({"args": [{"a": "int64[B, T]"}]}, Inputs(({"a": IDS},)), id="one dict argument"),
        pytest.param({"args": [["int64[B, T]", "[B,3,8,8]"]]}, Inputs(([IDS, IMAGE],)), id="a list argument"),
        pytest.param(
            {"ids": "int64[B, T]", "cache": False}, Inputs((), {"ids": IDS, "cache": Literal(False)}), id="flag"
        ),
        pytest.param({"x": "float32[]"}, Inputs((), {"x": TensorSpec(())}), id="scalar tensor"),
        pytest.param("my.module:example", Example("my.module:example"), id="example inputs"),
        pytest.param(None, None, id="the model knows its own"),
    ],
)
def test_parse(written: Any, expected: object) -> None:
    """Each form of the grammar gives the call it stands for."""
    assert inputs.parse(written) == expected


@pytest.mark.parametrize(
    ("written", "words"),
    [
        pytest.param("float32[B, 3", "dtype[dim, dim]", id="bracket missing"),
        pytest.param("float23[B]", "did you mean 'float32'", id="dtype misspelt"),
        pytest.param("float32[B, -1]", "neither a size nor", id="negative size"),
        pytest.param("float32[B, 2*T]", "neither a size nor a name", id="formula"),
        pytest.param("float32[B, ?]", "name the open dimension", id="open dimension"),
        pytest.param({"x": object()}, "not a tensor", id="object"),
        pytest.param({"args": "float32[B]"}, "not a list", id="args not a list"),
        pytest.param({1: "float32[B]"}, "not text", id="number as a name"),
        pytest.param(3.5, "not a list", id="number"),
    ],
)
def test_bad_inputs_say_what_to_write(written: Any, words: str) -> None:
    """What does not parse is refused with the form that would."""
    with pytest.raises(ModelBudgetError) as caught:
        inputs.parse(written)
    assert words in str(caught.value)


def test_ports_name_every_tensor() -> None:
    """Tensors are named by argument, position and the way down to them."""
    read = inputs.parse({"args": ["float32[B]", {"a": ["int64[B, T]"]}], "kwargs": {"mask": "bool[B, T]"}})
    assert isinstance(read, Inputs)
    assert [str(port) for port in read.ports] == ["0 float32[B]", "1.a.0 int64[B, T]", "mask bool[B, T]"]
    assert read.symbols == ("B", "T")


def test_build_keeps_plain_values_and_nesting() -> None:
    """Building a call replaces tensors only."""
    read = inputs.parse({"args": [{"a": "float32[2]"}], "kwargs": {"scale": 0.5, "cache": None}})
    assert isinstance(read, Inputs)
    assert read.build(lambda name, spec: name) == (({"a": "0.a"},), {"scale": 0.5, "cache": None})


def test_sizes() -> None:
    """`B` is sized by batch, other names by dims."""
    read = Inputs((IDS,))
    assert inputs.sizes_for(read, batch=4, dims={"T": 128}) == {"B": 4, "T": 128}
    with pytest.raises(ModelBudgetError, match=r"'T' has no size.*dims: \{T: 128\}"):
        inputs.sizes_for(read, batch=4, dims={})


class _Tensor:
    shape = (2, 3)
    dtype = "torch.float16"


def test_from_example() -> None:
    """Real example inputs are read by shape and dtype, whatever their framework."""
    half = TensorSpec((2, 3), "float16")
    assert inputs.from_example(_Tensor()) == Inputs((half,))
    assert inputs.from_example((_Tensor(), 3)) == Inputs((half, Literal(3)))
    assert inputs.from_example({"a": [_Tensor()]}) == Inputs((), {"a": [half]})
