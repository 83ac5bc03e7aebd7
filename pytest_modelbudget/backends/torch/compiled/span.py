"""Two like units of blocks, and those between them: their indices, module paths and parameters' names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_modelbudget.backends.torch.model.modules import ROOT


class NotAlike(Exception):
    """The two units do not do the same, or the rest of the model looks into them; the message says where."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where the two units lie: the `path` of their list, the index of the first block of each, `period` blocks each.

    `wanted` is how many of the units that are left out between them are wanted; None for all.
    """

    path: str
    near: int
    far: int
    period: int
    wanted: int | None = None

    @property
    def between(self) -> int:
        """How many units are put between them."""
        return (self.far - self.near) // self.period - 1 if self.wanted is None else self.wanted

    def index(self, path: str | None) -> int | None:
        """The index of the block that a module at `path` is or lies in."""
        if path is None or not path.startswith(f"{self.path}." if self.path else ""):
            return None
        index = path[len(self.path) + 1 if self.path else 0 :].partition(".")[0]
        return int(index) if index.isdecimal() else None

    def unit(self, index: int | None) -> int | None:
        """0 for a block of the near unit, 1 for one of the far one, None for others."""
        starts = enumerate((self.near, self.far))
        return next((unit for unit, start in starts if index is not None and 0 <= index - start < self.period), None)

    def is_around(self, path: str | None) -> bool:
        """Whether a module at `path` holds the blocks; what it does between them goes with the one before."""
        return path in (None, ROOT) or f"{self.path}.".startswith(f"{path}.")

    def moved(self, path: str | None, turns: int) -> str | None:
        """The path of what is at `path` in the near unit, so many units further, the far one last; others as it is."""
        index = self.index(path)
        if path is None or index is None or self.unit(index) != 0:
            return path
        start = len(self.path) + 1 if self.path else 0
        distance = self.far - self.near if turns > self.between else turns * self.period
        return f"{path[:start]}{index + distance}{path[start + len(str(index)) :]}"


def families_of(shallow: Sequence[str], names: Sequence[str], span: Span) -> dict[str, tuple[str, ...]]:
    """For each of the near unit's own parameters and buffers those of the following units, the far one's last."""
    all_names, shallow_names = set(names), set(shallow)
    families = {}
    for name in shallow:
        if span.unit(span.index(name)) == 0:
            family = tuple(str(span.moved(name, turn)) for turn in range(1, span.between + 2))
            owned = [moved in all_names for moved in family]
            if any(owned):
                if not all(owned) or family[-1] not in shallow_names:
                    raise NotAlike(f"some blocks share {name}")
                families[name] = family
    return families
