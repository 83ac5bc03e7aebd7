"""The levels of a manifest: limits and recipes that several models share, and which models these are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from pytest_modelbudget.budget import Budget, Rule
from pytest_modelbudget.config.tree import Keys
from pytest_modelbudget.entry import ModelEntry, SnapshotKind
from pytest_modelbudget.planner.written import RecipeSection


@dataclass(frozen=True, slots=True)
class ManifestLevel:
    """Budgets that hold for the models that `matches` says, ordered as they were written.

    `keys` leads to the section, `name` is for people (`tag edge`), `sums` limit the sum over these models, and
    `recipes` say what is planned of them, by kind, `snapshot` what is committed of them, None where nothing is said.
    """

    budgets: tuple[Rule, ...]
    matches: Callable[[ModelEntry], bool]
    line: int
    keys: Keys = ()
    sums: tuple[Budget, ...] = ()
    recipes: Mapping[str, RecipeSection] = field(default_factory=dict)
    snapshot: SnapshotKind | None = None

    @property
    def name(self) -> str:
        """`group towers`, `tag edge`, `defaults`."""
        return " ".join(str(key).removesuffix("s") if index == 0 else str(key) for index, key in enumerate(self.keys))


def has_tag(names: Iterable[str]) -> Callable[[ModelEntry], bool]:
    """Whether an entry has one of the tags."""
    tags = frozenset(names)
    return lambda entry: not tags.isdisjoint(entry.tags)


def any_of(*tests: Callable[[ModelEntry], bool]) -> Callable[[ModelEntry], bool]:
    """Whether one of the tests holds for it."""
    return lambda entry: any(test(entry) for test in tests)


def has_id(globs: Iterable[str]) -> Callable[[ModelEntry], bool]:
    """Whether its id is like one of the globs."""
    patterns = tuple(globs)
    return lambda entry: any(fnmatchcase(entry.id, pattern) for pattern in patterns)


def snapshot_of(entry: ModelEntry, levels: Sequence[ManifestLevel]) -> SnapshotKind | None:
    """What is committed of an entry: what it says itself, else the last of its levels that says something."""
    return entry.snapshot or next((level.snapshot for level in reversed(levels) if level.snapshot), None)
