"""The grammar of a model's inputs."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest

from pytest_modelbudget import inputs
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Example, Inputs, PlainValue
from pytest_modelbudget.summary import Below, Fill, TensorSpec

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
            {"ids": "int64[B, T]", "cache": False}, Inputs((), {"ids": IDS, "cache": PlainValue(False)}), id="flag"
        ),
        pytest.param({"x": "float32[]"}, Inputs((), {"x": TensorSpec(())}), id="scalar tensor"),
        pytest.param("int64[] = 3", Inputs((TensorSpec((), "int64", Fill(3)),)), id="a value"),
        pytest.param("int64[B]=-1_000", Inputs((TensorSpec(("B",), "int64", Fill(-1000)),)), id="a value below zero"),
        pytest.param("int64[B] = T", Inputs((TensorSpec(("B",), "int64", Fill("T")),)), id="the size of a dimension"),
        pytest.param("bool[B] = True", Inputs((TensorSpec(("B",), "bool", Fill(True)),)), id="a word"),
        pytest.param("[B] = 1e-3", Inputs((TensorSpec(("B",), "float32", Fill(0.001)),)), id="a float"),
        pytest.param("int64[B, T] < 32_000", Inputs((TensorSpec(("B", "T"), "int64", Below(32000)),)), id="a bound"),
        pytest.param("my.module:example", Example("my.module:example"), id="example inputs"),
        pytest.param(
            "{ids: 'int64[B, T]', x: false}", Inputs((), {"ids": IDS, "x": PlainValue(False)}), id="a mapping as text"
        ),
        pytest.param('["float32[B, 3, 8, 8]", "int64[B, T]"]', Inputs((IMAGE, IDS)), id="a list as text"),
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
        pytest.param("ids=int64[B, T]", "named inputs are a mapping: {ids: '...'}", id="a name"),
        pytest.param("float23[B]", "did you mean 'float32'", id="dtype misspelt"),
        pytest.param("float32[B, -1]", "neither a size nor", id="negative size"),
        pytest.param("float32[B, 2*T]", "neither a size nor a name", id="formula"),
        pytest.param("float32[B, ?]", "name the open dimension", id="open dimension"),
        pytest.param({"x": object()}, "not a tensor", id="object"),
        pytest.param(
            ["[B]", "int64[B] = 1.5"],
            '1: int64[B] = 1.5: int64 holds whole numbers: write e.g. "int64[B] = 1"',
            id="half a number",
        ),
        pytest.param("int64[B] = true", "int64 holds whole numbers", id="a word for numbers"),
        pytest.param("bool[B] = 1", 'a bool is true or false: write e.g. "bool[B] = true"', id="a number for words"),
        pytest.param("bool[B] = T", "a bool is true or false", id="a dimension for words"),
        pytest.param(
            "float32[B] = true", 'float32 holds numbers: write e.g. "float32[B] = 0.5"', id="a word for floats"
        ),
        pytest.param("float32[B] = -inf", "float32 holds numbers", id="no number"),
        pytest.param("uint8[B] = 256", "uint8 holds numbers from 0 to 255", id="too large a value"),
        pytest.param("int64[B] < 0", 'write a whole number above 0, e.g. "< 32000"', id="nothing below a bound"),
        pytest.param("int64[B] < 1_", "'1_' is no bound", id="a bound that ends in a line"),
        pytest.param("float32[B] = " + "9" * 5000, "float32 holds numbers", id="a value of 5,000 digits"),
        pytest.param("float32[" + "9" * 5000 + "]", "a size has at most 18 digits", id="a size of 5,000 digits"),
        pytest.param("int64[B] < V", "'V' is no bound", id="a bound by name"),
        pytest.param("uint8[B] < 300", "uint8 ends at 255: write a bound up to 256", id="too large a bound"),
        pytest.param(
            "float32[B] < 3", 'a bound is for ids of whole numbers: write e.g. "int64[B] < 3"', id="a bound of floats"
        ),
        pytest.param("bool[B] < 2", "a bound is for ids", id="a bound of words"),
        pytest.param("int64[B] = 2 * T", "write a number, true, false or the name of a dimension", id="a formula"),
        pytest.param("int64[B] =", "dtype[dim, dim]", id="a value missing"),
        pytest.param("string[B] = 3", "give example inputs", id="a value of text"),
        pytest.param(
            "{ids: 'int64[B, T]'", "inputs: \"{ids: 'int64[B, T]'\" cannot be read (not YAML", id="half a mapping"
        ),
        pytest.param(
            "{ids: int64[B, T]}", "): write each tensor of a list or mapping in quotes", id="a mapping without quotes"
        ),
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


def test_a_dimension_that_is_only_a_value_has_to_be_sized() -> None:
    """Its name is a symbol like any other."""
    read = inputs.parse(["float32[B]", "int64[B] = T"])
    assert isinstance(read, Inputs)
    assert inputs.sizes_for(read, batch=4, dims={"T": 9}) == {"B": 4, "T": 9}
    with pytest.raises(ModelBudgetError, match=r"'T' has no size.*dims: \{T: 128\}"):
        inputs.sizes_for(read, batch=4, dims={})


@pytest.mark.parametrize(
    "text", ["int64[B] = T", "int64[] = -3", "bool[B, T] = true", "float32[] = 0.5", "int64[B] < 9"]
)
def test_values_are_read_back_as_they_are_written(text: str) -> None:
    """A spec with values is one line of text, and the same spec again."""
    assert str(TensorSpec.parse(text)) == text
    assert TensorSpec.parse(str(TensorSpec.parse(text))) == TensorSpec.parse(text)
    assert "=" not in TensorSpec.parse(text).brief


def test_a_size_of_zero_is_a_size() -> None:
    """A batch of none stays one; a dimension of any size is taken as 1."""
    assert inputs.concrete_shape(TensorSpec((0, None, "T", 3)), {"T": 5}) == (0, 1, 5, 3)


class _Tensor:
    shape = (2, 3)
    dtype = "torch.float16"


def test_from_example() -> None:
    """Real example inputs are read by shape and dtype, whatever their framework."""
    half = TensorSpec((2, 3), "float16")
    assert inputs.from_example(_Tensor()) == Inputs((half,))
    assert inputs.from_example((_Tensor(), 3)) == Inputs((half, PlainValue(3)))
    assert inputs.from_example({"a": [_Tensor()]}) == Inputs((), {"a": [half]})


Pair = namedtuple("Pair", "left right")


class _Holder:
    """Holds a tensor, and itself."""

    def __init__(self) -> None:
        self.x = _Tensor()
        self._hidden = {"y": _Tensor()}
        self.own = self

    def __getattr__(self, name: str) -> object:
        raise KeyError(name)


HALF = TensorSpec((2, 3), "float16")


@pytest.mark.parametrize(
    ("example", "names"),
    [
        pytest.param(Pair(_Tensor(), 3), ["0.left"], id="a named tuple is one argument"),
        pytest.param({8: _Tensor()}, ["0.8"], id="keys that are no text make one argument"),
        pytest.param({"a": (_Tensor(), [_Tensor()])}, ["a.0", "a.1.0"], id="containers"),
        pytest.param((_Holder(),), ["0.x", "0.y"], id="an object that holds itself"),
        pytest.param(("high", None, {1}), [], id="no tensors"),
    ],
)
def test_tensors_of_an_example_are_named(example: object, names: list[str]) -> None:
    """By position, key, field and attribute, whatever holds them; everything is kept as it is."""
    read = inputs.from_example(example)
    assert [port.name for port in read.ports] == names
    assert all(port.spec == HALF for port in read.ports)
    assert read.symbols == ()


def test_an_example_is_built_with_its_containers() -> None:
    """For frameworks that take specs: tuples stay tuples, named ones too, and objects are handed over."""
    text = object()
    read = inputs.from_example(((_Tensor(), [_Tensor()]), Pair(_Tensor(), text)))
    assert read.build(lambda name, spec: name) == ((("0.0", ["0.1.0"]), Pair("1.0", text)), {})
