"""A part as it is asked for, of pytest and of the command alike."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.parts import file, times
from pytest_modelbudget.parts.dealing import (
    Shard,
    bazel_shard,
    costs_of,
    deal,
    dealing_digest,
    parse_shard,
    snapshot_sizes,
)

WITHOUT_PART = (
    "deals models to parts of a run, none of which is a verdict: say where this part goes ({part}), and give the parts "
    "of all shards to modelbudget merge"
)
"""What is said of an option that only parts have."""


@dataclass(frozen=True, slots=True)
class PartRequest:
    """Where a part goes, which shard it is (None where something else chooses), and the times that it is dealt by.

    `note` says that there are no such times yet, as in the first run of all.
    """

    path: Path
    shard: Shard | None = None
    times: Mapping[str, float] | None = None
    note: str = ""

    def deal(self, snapshots: Mapping[str, str], root: Path) -> tuple[frozenset[str], str]:
        """The nodes of this shard, and the digest of the dealing.

        `snapshots` has every node of the registry, with the path of its snapshot below `root`, or an empty one.
        """
        if self.shard is None:
            return frozenset(snapshots), ""
        paths = {nodeid: path for nodeid, path in snapshots.items() if path}
        known = snapshot_sizes(root, paths) if self.times is None else self.times
        costs = costs_of(snapshots, known)
        chosen = deal(costs, self.shard.count)[self.shard.number - 1]
        return frozenset(chosen), dealing_digest(costs, self.shard.count)


def requested(path: str, shard: str | None, times_path: Path | None, folder: Path) -> PartRequest:
    """The part that goes to `path`, relative to `folder`; without `shard` Bazel may say which one it is.

    A folder, which need not be there where the path ends with a slash, gets a file that is named after the shard.

    Raises:
        ModelBudgetError: there is no such shard, or what is in the file are no times.
    """
    chosen = parse_shard(shard) if shard else bazel_shard(os.environ)
    target = folder / path
    if target.is_dir() or path.endswith(("/", os.sep)):
        target /= f"modelbudget-{chosen.number}{file.SUFFIX}" if chosen else f"modelbudget{file.SUFFIX}"
    if times_path is None:
        return PartRequest(target, chosen)
    if os.path.lexists(times_path):
        return PartRequest(target, chosen, times.read(times_path))
    return PartRequest(target, chosen, note=f"no times yet ({times_path.name}): models are dealt by their snapshots")


def refuse_beside_part(options: Mapping[str, object], cure: str) -> None:
    """Nothing, unless an option (its name -> its value) is set that a part cannot do; `cure` says what can.

    Raises:
        ModelBudgetError: one is set.
    """
    for name, value in options.items():
        if value:
            raise ModelBudgetError(f"{name} cannot be used with a part, which is no verdict: {cure}")
