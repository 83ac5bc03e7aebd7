"""JSON that anybody may have written."""

from __future__ import annotations

import pytest

from pytest_modelbudget.loading import InvalidText, read_json


def test_what_json_says_is_read() -> None:
    """Numbers of both kinds, words and containers."""
    assert read_json('{"a": [1, 2.5, null, true, "x"], "b": {}}') == {"a": [1, 2.5, None, True, "x"], "b": {}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("[" * 900_000, "nested too deeply", id="brackets"),
        pytest.param('{"a":' * 150_000, "nested too deeply", id="braces"),
        pytest.param("1" * 900_000, "a number of 900,000 characters", id="a long number"),
        pytest.param("1e999", "is too large", id="a large number"),
        pytest.param("NaN", "NaN is no number of JSON", id="no number"),
        pytest.param("-Infinity", "-Infinity is no number of JSON", id="infinity"),
        pytest.param('{"a": 1, "a": 2}', "the key 'a' is used twice", id="a key twice"),
        pytest.param("[1,\n2,\n}", "not JSON: Expecting value, column 1", id="no JSON"),
        pytest.param("\ufeff{}", "not JSON", id="a mark that was not taken away"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    """At once, with one reason."""
    with pytest.raises(InvalidText, match=words):
        read_json(text)
