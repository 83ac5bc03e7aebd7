"""Who checks what: models are dealt to shards, the longest first, the same in all shards without talking."""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pytest_modelbudget.errors import ModelBudgetError

BAZEL = ("TEST_SHARD_INDEX", "TEST_TOTAL_SHARDS")
"""Variables in which Bazel says which shard (counted from 0) of how many a test is."""

_BAZEL_STATUS_FILE = "TEST_SHARD_STATUS_FILE"
_SHARD = re.compile(r"(\d{1,5})/(\d{1,5})")
_UNKNOWN = 1.0
"""What each costs where nothing is known of any."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` shards, counted from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Read `2/8`.

    Raises:
        ModelBudgetError: it is no shard.
    """
    match = _SHARD.fullmatch(text)
    shard = Shard(int(match[1]), int(match[2])) if match else Shard(0, 0)
    if not 1 <= shard.number <= shard.count:
        bound = f"shards of {shard.count} are 1/{shard.count} to {shard.count}/{shard.count}" if shard.count else ""
        raise ModelBudgetError(f"{text!r} is no shard: {bound or 'write I/N, such as 2/8 for the second of eight'}")
    return shard


def bazel_shard(environment: Mapping[str, str]) -> Shard | None:
    """The shard that Bazel runs this test as; it is told that tests are dealt here.

    Raises:
        ModelBudgetError: its variables are no shard.
    """
    index, count = (environment.get(name, "") for name in BAZEL)
    if not index and not count:
        return None
    try:
        shard = parse_shard(f"{int(index) + 1}/{count}")
    except (ValueError, ModelBudgetError):
        text = f"{BAZEL[0]}={index} {BAZEL[1]}={count}"
        raise ModelBudgetError(f"{text} is no shard: the index counts from 0, and is below the total") from None
    if status_file := environment.get(_BAZEL_STATUS_FILE):
        with suppress(OSError):
            Path(status_file).touch()
    return shard


def snapshot_sizes(root: Path, paths: Mapping[str, str]) -> dict[str, float]:
    """Bytes of the committed snapshot of each node, where there is one: the more rows, the longer a model takes.

    Nodes whose snapshots share a file have equal shares of it.
    """
    sizes = {}
    for path, count in Counter(paths.values()).items():
        with suppress(OSError, ValueError):
            sizes[path] = os.stat(root / path).st_size / count
    return {nodeid: sizes[path] for nodeid, path in paths.items() if path in sizes}


def costs_of(nodeids: Iterable[str], known: Mapping[str, float]) -> dict[str, float]:
    """What each node costs, in seconds or any other unit; the median of the others where that is not known."""
    nodeids = sorted(set(nodeids))
    values = [known[nodeid] for nodeid in nodeids if nodeid in known]
    usual = median(values) if values else _UNKNOWN
    return {nodeid: known.get(nodeid, usual) for nodeid in nodeids}


def deal(costs: Mapping[str, float], count: int) -> list[list[str]]:
    """The nodes of each of `count` shards: the next longest goes to the shard that has least to do.

    Equal costs are taken in the order of node ids. Of shards with equally much to do the one with fewer nodes gets it,
    then the first. The longest shard takes at most 4/3 of the time of the best dealing there is (Graham 1969).
    """
    hands: list[list[str]] = [[] for _ in range(count)]
    loads = [(0.0, 0, index) for index in range(count)]
    for nodeid, cost in sorted(costs.items(), key=lambda pair: (-pair[1], pair[0])):
        load, nodes, index = loads[0]
        hands[index].append(nodeid)
        heapq.heapreplace(loads, (load + cost, nodes + 1, index))
    return hands


def dealing_digest(costs: Mapping[str, float], count: int) -> str:
    """The same in all shards that were dealt alike."""
    text = json.dumps([count, sorted(costs.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def missing_shards(shards: Sequence[Shard]) -> list[Shard]:
    """The shards that are not there, of as many as those that are there say."""
    counts = {shard.count for shard in shards}
    numbers = {shard.number for shard in shards}
    return [Shard(number, count) for count in counts for number in range(1, count + 1) if number not in numbers]
