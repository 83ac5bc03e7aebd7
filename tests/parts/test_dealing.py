"""Who checks what: the same in all shards, balanced, and everything once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.parts.dealing import Shard, bazel_shard, costs_of, deal, dealing_digest, parse_shard
from pytest_modelbudget.parts.request import requested


@pytest.mark.parametrize(
    ("costs", "count", "hands"),
    [
        pytest.param(
            {"a": 7, "b": 6, "c": 5, "d": 4, "e": 3}, 2, ["ade", "bc"], id="longest first, to the least loaded"
        ),
        pytest.param({"d": 1, "b": 1, "a": 1, "c": 1}, 2, ["ac", "bd"], id="equal costs by name"),
        pytest.param({"a": 0, "b": 0, "c": 0}, 3, ["a", "b", "c"], id="what costs nothing is spread too"),
        pytest.param({"a": 1}, 3, ["a", "", ""], id="more shards than models"),
        pytest.param({}, 2, ["", ""], id="no model"),
    ],
)
def test_dealing(costs: dict[str, float], count: int, hands: list[str]) -> None:
    """By hand: 7 to the first, 6 to the second, 5 to the second (6 < 7), 4 to the first (7 < 11), 3 to either of 11."""
    dealt = ["".join(hand) for hand in deal(costs, count)]
    assert sorted("".join(dealt)) == sorted(costs)
    assert dealt == hands


def test_the_order_in_which_models_are_found_does_not_matter() -> None:
    """Each shard finds them in an order of its own, and all come to the same dealing, whose loads differ by one model at most."""
    costs = {f"m{number}": float(number % 977) for number in range(20_000)}
    backwards = dict(reversed(costs.items()))
    hands = deal(costs, 64)
    assert hands == deal(backwards, 64)
    assert dealing_digest(costs, 64) == dealing_digest(backwards, 64) != dealing_digest(costs, 63)
    loads = [sum(costs[nodeid] for nodeid in hand) for hand in hands]
    assert sum(map(len, hands)) == len(costs)
    assert max(loads) - min(loads) <= 976


def test_unknown_costs_are_the_median() -> None:
    """A model that was never run costs what is usual, and times of models that are gone do not count."""
    assert costs_of(["a", "b", "c", "new"], {"a": 1.0, "b": 2.0, "c": 30.0, "gone": 99.0})["new"] == 2.0
    assert set(costs_of(["a", "b"], {}).values()) == {1.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("9/8", "shards of 8 are 1/8 to 8/8", id="beyond the last"),
        pytest.param("0/4", "shards of 4 are 1/4 to 4/4", id="counted from 0"),
        pytest.param("x", "write I/N, such as 2/8", id="no numbers"),
        pytest.param("1/0", "write I/N, such as 2/8", id="of none"),
        pytest.param("-1/4", "write I/N, such as 2/8", id="negative"),
    ],
)
def test_no_shard(text: str, words: str) -> None:
    """What is wrong, and what would be right."""
    with pytest.raises(ModelBudgetError, match=words):
        parse_shard(text)


def test_bazel_counts_from_0(tmp_path: Path) -> None:
    """Its shard 0 of 3 is the first; it is told that tests are dealt here, by a file that it names."""
    status = tmp_path / "status"
    variables = {"TEST_SHARD_INDEX": "0", "TEST_TOTAL_SHARDS": "3", "TEST_SHARD_STATUS_FILE": str(status)}
    assert bazel_shard({}) is None
    assert not status.exists()
    assert bazel_shard(variables) == Shard(1, 3)
    assert status.exists()
    with pytest.raises(ModelBudgetError, match="the index counts from 0, and is below the total"):
        bazel_shard({**variables, "TEST_SHARD_INDEX": "3"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("[]", "it has to be {nodeid: seconds}", id="a list"),
        pytest.param('{"a": "1"}', "'a' has no seconds but '1'", id="text"),
        pytest.param('{"a": -1}', "'a' has no seconds but '-1'", id="negative"),
        pytest.param("{", "not JSON", id="cut"),
    ],
)
def test_no_times(tmp_path: Path, content: str, words: str) -> None:
    """A file that holds no times is an error that says which commands write one."""
    path = tmp_path / "times.json"
    path.write_text(content)
    with pytest.raises(ModelBudgetError, match=words) as error:
        requested("a.part", "1/2", path, tmp_path)
    assert "modelbudget merge --times writes such a file" in str(error.value)
    with pytest.raises(ModelBudgetError, match="is a folder"):
        requested("a.part", "1/2", tmp_path, tmp_path)


@pytest.mark.parametrize("path", [".", "new/", "new/below/"])
def test_a_folder_gets_a_file_named_after_the_shard(tmp_path: Path, path: str) -> None:
    """Also one that is not there yet, so that the shards of one machine do not overwrite each other."""
    assert requested(path, "2/3", None, tmp_path).path == tmp_path / path / "modelbudget-2.part"


def test_models_are_dealt_by_snapshots_or_times(tmp_path: Path) -> None:
    """Without times the larger snapshot goes first; with them the slower model."""
    for name, size in (("a", 10), ("b", 100), ("c", 60)):
        (tmp_path / name).write_text("x" * size)
    (tmp_path / "times.json").write_text('{"n::a": 9, "n::b": 1, "n::c": 2}')
    snapshots = {f"n::{name}": name for name in "abc"}
    by_size, digest = requested("p.part", "1/2", None, tmp_path).deal(snapshots, tmp_path)
    by_time, other_digest = requested("p.part", "1/2", tmp_path / "times.json", tmp_path).deal(snapshots, tmp_path)
    shared = {"n::d": "b", "n::e": "b", "n::c": "c"}
    assert requested("p.part", "1/2", None, tmp_path).deal(shared, tmp_path)[0] == {"n::c"}
    assert (by_size, by_time) == ({"n::b"}, {"n::a"})
    assert digest != other_digest
    first = requested("p.part", "1/2", tmp_path / "none.json", tmp_path)
    assert first.deal(snapshots, tmp_path) == (by_size, digest)
    assert first.note == "no times yet (none.json): models are dealt by their snapshots"
