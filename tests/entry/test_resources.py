"""What building and counting one model may take, as it is written in `limits`."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_modelbudget import ModelEntry
from pytest_modelbudget.config import read
from pytest_modelbudget.entry.resources import parse
from pytest_modelbudget.errors import ModelBudgetError


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param({}, {}, id="nothing said"),
        pytest.param(None, {"seconds": None, "memory": None}, id="none at all"),
        pytest.param({"seconds": 2.5}, {"seconds": 2.5}, id="part of a second"),
        pytest.param({"seconds": None, "memory": "8 GiB"}, {"seconds": None, "memory": 8 << 30}, id="memory alone"),
        pytest.param({"memory": "8 GB"}, {"memory": 8 * 10**9}, id="decimal"),
    ],
)
def test_limits_are_read(written: Any, expected: dict[str, Any]) -> None:
    """Seconds and bytes; read again they stay what they are."""
    assert parse(written) == expected
    assert parse(parse(written)) == expected


@pytest.mark.parametrize(
    ("written", "message"),
    [
        pytest.param(300, "limits: 300 is not a mapping: write limits: {seconds: 300, memory: 8 GiB}", id="a number"),
        pytest.param({"second": 3}, "limits: unknown key 'second'; known are seconds, memory", id="a typo"),
        pytest.param({"seconds": 0}, "limits.seconds: 0 is not a number of seconds above 0", id="no time"),
        pytest.param({"seconds": "5 min"}, "limits.seconds: '5 min' is not a number of seconds", id="a text"),
        pytest.param({"seconds": True}, "limits.seconds: True is not a number of seconds", id="a bool"),
        pytest.param({"seconds": float("nan")}, "limits.seconds: nan is not a number of seconds", id="no number"),
        pytest.param({"memory": 8}, "limits.memory: 8 has no unit", id="no unit"),
        pytest.param({"memory": "8 gigs"}, "limits.memory: ", id="another unit"),
        pytest.param({"memory": "0 B"}, "limits.memory: '0 B' is nothing", id="no memory"),
    ],
)
def test_mistakes_say_what_to_write(written: Any, message: str) -> None:
    """Each with an example."""
    with pytest.raises(ModelBudgetError, match=message.replace("(", r"\(")) as mistake:
        parse(written)
    assert "limits" in str(mistake.value)


def test_a_model_overrides_defaults_key_by_key() -> None:
    """And a mistake is at its line."""
    text = """
        defaults: {limits: {seconds: 20, memory: 4 GiB}, isolate: false}
        models:
          all: {build: "zoo:net"}
          some: {build: "zoo:net", limits: {seconds: 5}, isolate: true}
          none: {build: "zoo:net", limits: null}
          wrong: {build: "zoo:net", limits: {memory: 4}}
    """
    loaded = read(text, file="modelbudget.yaml")
    assert {entry.id: (entry.limits, entry.isolate) for entry in loaded.entries} == {
        "all": ({"seconds": 20, "memory": 4 << 30}, False),
        "some": ({"seconds": 5, "memory": 4 << 30}, True),
        "none": ({"seconds": None, "memory": None}, False),
    }
    assert [str(mistake) for mistake in loaded.mistakes] == [
        "modelbudget.yaml:7: limits.memory: 4 has no unit: write limits: {seconds: 300, memory: 8 GiB}"
    ]


def test_an_entry_reads_its_own() -> None:
    """Of a source or a decorator."""
    assert ModelEntry(id="a", build="zoo:net", limits={"seconds": 3}).limits == {"seconds": 3}
