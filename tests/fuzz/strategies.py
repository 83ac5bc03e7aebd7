"""Random models, quantities and names: plausible ones, odd ones, and those that hypothesis thinks of."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import ITEM_BYTES, Flops, Input, Layer, Plan, Summary, TensorSpec, Weight
from tests.hostile import NAMES

Property = Callable[..., None]


def fuzzed(*examples: st.SearchStrategy[object], share: float = 1) -> Callable[[Property], Callable[[str], None]]:
    """Try a property with a few examples in the fast suite, and with many as a slow test; see `tests/conftest.py`.

    A property that takes long for each example has a `share` of them.
    """

    def decorate(check: Property) -> Callable[[str], None]:
        def tried(effort: str) -> Property:
            profile = settings.get_profile(effort)
            return settings(profile, max_examples=round(share * profile.max_examples))(given(*examples)(check))

        tests = {effort: tried(effort) for effort in ("fast", "long")}

        @pytest.mark.parametrize("effort", ["fast", pytest.param("long", marks=pytest.mark.slow)])
        def test(effort: str) -> None:
            tests[effort]()

        test.__name__, test.__doc__, test.__module__ = check.__name__, check.__doc__, check.__module__
        return test

    return decorate


def attempted(act: Callable[..., Any], *args: Any) -> tuple[Any, str]:
    """What `act` gives, or None with the text of the one error that users see."""
    try:
        return act(*args), ""
    except ModelBudgetError as mistake:
        return None, str(mistake)


_PIECES = st.one_of(
    st.sampled_from(sorted(name for name in NAMES.values() if len(name) < 100)),
    st.sampled_from(["::", "##[", "`", "|", "<b", "\n", "\r", "\x1b[", "\u202e", "&amp;", "\\", '"', "'", "{{", "*", ".", " "]),
    st.text(st.characters(), max_size=8),
)  # fmt: skip

names = st.lists(_PIECES, min_size=1, max_size=4).map("".join).filter(bool)
"""Names that someone may have made up to do harm, pieced together in new ways."""

words = st.one_of(
    st.sampled_from(["fc", "conv", "norm", "0", "1", "2", "10", "block", "dense_1", "true", "null", "1e3", "-", "=", "x x2"]),
    st.text(string.printable + "é層🧨\u2028\x85\ufeff", min_size=1, max_size=6),
)  # fmt: skip
"""Names of layers, types, inputs and operators."""

paths = st.lists(words, min_size=1, max_size=4).map(".".join)

dims = st.one_of(
    st.integers(0, 4),
    st.integers(5, 10**15),
    st.none(),
    st.sampled_from(["B", "T", "2*B", "2*T+2", "S+T", "2*((T+1)//2)", "(T+1)//2"]),
)

dtypes = st.sampled_from([*ITEM_BYTES, "string"])

specs = st.builds(TensorSpec, st.lists(dims, max_size=4).map(tuple), dtypes)

calls = st.lists(st.lists(specs, max_size=2).map(tuple), max_size=2).map(tuple)

weights = st.builds(
    Weight,
    name=words,
    shape=st.lists(st.integers(0, 2**28), max_size=3).map(tuple),
    dtype=st.sampled_from(sorted(ITEM_BYTES)),
    trainable=st.booleans(),
    role=st.sampled_from(["param", "param", "buffer"]),
    tied_to=st.none() | st.none() | words,
    packed_bytes=st.none() | st.none() | st.integers(0, 2**50),
).map(lambda weight: replace(weight, trainable=False) if weight.role == "buffer" else weight)

sources = st.lists(st.lists(words, max_size=2).map(tuple), max_size=2).map(tuple)

layers = st.builds(
    Layer,
    path=paths,
    type=words,
    outputs=calls,
    connected_to=sources.map(lambda fed: fed if any(fed) else ()),
    weights=st.lists(weights, max_size=2, unique_by=lambda weight: weight.name).map(tuple),
    calls=st.none() | st.integers(0, 9),
    flops=st.none() | st.integers(0, 10**18),
    container=st.booleans(),
)


@st.composite
def blocks(draw: st.DrawFn) -> list[Layer]:
    """Layers that repeat under numbers that count up, as in a stack of blocks, with some of them altered or left out."""
    stem = draw(st.sampled_from(["h.", "layer", "features.", "b1."]))
    body = draw(st.lists(layers, min_size=1, max_size=2))
    first = draw(st.integers(0, 12))
    rows = [
        replace(
            row,
            path=f"{stem}{number}.{row.path}",
            connected_to=tuple(tuple(f"{stem}{number - 1}.{name}" for name in fed) for fed in row.connected_to),
        )
        for number in range(first, first + draw(st.integers(2, 5)))
        for row in body
    ]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(rows) - 1))
        rows[at] = replace(rows[at], type=draw(words))
    return rows


_ROWS = st.lists(layers.map(lambda layer: [layer]) | blocks(), max_size=3)

plans = st.builds(
    Plan,
    kind=st.sampled_from(["training", "inference"]),
    recipe=words,
    peak_bytes=st.none() | st.integers(0, 2**50),
    reserved_bytes=st.none() | st.integers(0, 2**50),
)

summaries = st.builds(
    Summary,
    model=words,
    framework=st.sampled_from(["torch", "keras", "tf_keras"]),
    layers=_ROWS.map(lambda parts: tuple({row.path: row for part in parts for row in part}.values())),
    inputs=st.lists(st.builds(Input, words, specs), max_size=3).map(tuple),
    outputs=st.lists(specs, max_size=2).map(tuple),
    flops=st.builds(
        Flops,
        st.none() | st.integers(0, 10**18),
        st.dictionaries(words, st.integers(1, 99), max_size=2).map(lambda counts: tuple(counts.items())),
    ),
    plans=st.lists(plans, max_size=2, unique_by=lambda plan: plan.kind).map(tuple),
)
"""Models with everything that a snapshot keeps."""
