"""The grammar of inputs: whatever is written is read exactly, or refused with one clear error."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import strategies as st

from pytest_modelbudget.inputs import Example, Inputs, parse
from pytest_modelbudget.summary import ITEM_BYTES
from tests.fuzz.strategies import attempted, fuzzed

_TOKENS = st.sampled_from([
    *"[]=<, :?*+-_.", "B", "T", "3", "224", "007", "1_000", "1_", "1__0", "-1", "+2", "0.5", "1e3", "1e-5", "1e999", "inf",
    "nan", "true", "False", "float32", "int64", "uint8", "bool", "complex64", "string", "float8_e4m3fn", "int4", "flaot32",
    "9" * 30, "9" * 400, "9" * 5000, "é", "²", "٣", "\n", "\0", "a:b", "module:name", "{args: []}", "\ud800",
])  # fmt: skip

texts = st.lists(_TOKENS, max_size=8).map("".join) | st.text(max_size=20)
"""What looks like a tensor, a reference or nothing at all."""

_DIMS = st.one_of(st.sampled_from(["B", "T", "heads"]), st.integers(0, 10**6).map(str))
_VALUES = st.one_of(
    st.just(""),
    st.sampled_from([" = 1", "=T", " = 0.5", " = true", " < 32000", "<1_0", " = -3", " = 1e-7", "= 1_", "< 1_"]),
)

tensors = st.builds(
    "{}[{}]{}".format,
    st.sampled_from(["", *ITEM_BYTES, "string"]),
    st.lists(_DIMS, max_size=4).map(", ".join),
    _VALUES,
)
"""Tensors that are mostly right."""

trees = st.recursive(
    st.one_of(tensors, texts, st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=2)),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.one_of(st.sampled_from(["x", "args", "kwargs"]), texts, st.integers()), below, max_size=3),
    max_leaves=6,
)  # fmt: skip
"""What a manifest or a decorator may hold under `inputs`."""


@fuzzed(texts | tensors)
def test_a_text_is_one_tensor_a_reference_or_an_error(text: str) -> None:
    """What is read says itself in a text that is read as the same; an error names the tensor and what to write.

    A mapping or a list in one text is what YAML makes of it.
    """
    read, mistake = attempted(parse, text)
    if mistake:
        assert mistake.startswith("inputs: ")
        return
    if text.lstrip().startswith("{") or (text.lstrip().startswith("[") and ('"' in text or "'" in text)):
        assert read == parse(yaml.safe_load(text))
        return
    if isinstance(read, Example):
        assert read.call == text.strip()
        return
    assert isinstance(read, Inputs)
    [port] = read.ports
    assert parse(str(port.spec)) == read


@fuzzed(st.lists(_DIMS, max_size=4), st.sampled_from(sorted(ITEM_BYTES)), st.sampled_from(["", " ", "\t"]))
def test_no_size_is_another_one(written: list[str], dtype: str, space: str) -> None:
    """Sizes, names and the dtype are those that were written."""
    read = parse(f"{space}{dtype}{space}[{space}{f'{space},{space}'.join(written)}{space}]{space}")
    assert isinstance(read, Inputs)
    [port] = read.ports
    assert [str(dim) for dim in port.spec.shape] == written
    assert port.spec.dtype == dtype


@fuzzed(trees)
def test_any_tree_is_inputs_or_an_error(written: Any) -> None:
    """Lists, mappings and plain values at any depth; nothing else than the one error comes out."""
    read, mistake = attempted(parse, written)
    if mistake:
        assert mistake.startswith("inputs: ")
        return
    assert isinstance(read, Inputs | Example | None)
    if isinstance(read, Inputs):
        assert len(read.ports) == len({id(port) for port in read.ports})
        assert set(read.symbols) <= {
            dim for port in read.ports for dim in (*port.spec.shape, getattr(port.spec.values, "value", None))
        }
