"""A change of one row while it is still counted with others: what it moved, what caused it, how it ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from pytest_modelbudget.diff.change import ChangeKind
from pytest_modelbudget.summary import Layer, Weight


class Rank(IntEnum):
    """Causes come first, what only follows from them last."""

    CAUSE = 0
    CAUSED = 1
    NAME = 2
    FOLLOWS = 3


@dataclass(frozen=True, slots=True)
class MetricDelta:
    """Differences of the metrics, in elements and bytes."""

    params: int = 0
    trainable_params: int = 0
    buffers: int = 0
    weight_bytes: int = 0

    @property
    def non_trainable_params(self) -> int:
        """The difference of the params that are not trained."""
        return self.params - self.trainable_params

    def __add__(self, other: MetricDelta) -> MetricDelta:
        return MetricDelta(
            self.params + other.params,
            self.trainable_params + other.trainable_params,
            self.buffers + other.buffers,
            self.weight_bytes + other.weight_bytes,
        )

    def __bool__(self) -> bool:
        return bool(self.params or self.trainable_params or self.buffers or self.weight_bytes)


def weight_counts(weight: Weight | None) -> MetricDelta:
    """What a weight counts for where it is held; nothing for a tied one and for none."""
    if weight is None or weight.tied_to is not None:
        return MetricDelta()
    if weight.role == "buffer":
        return MetricDelta(buffers=weight.elements, weight_bytes=weight.bytes)
    return MetricDelta(weight.elements, weight.elements if weight.trainable else 0, 0, weight.bytes)


def difference(new: MetricDelta, old: MetricDelta) -> MetricDelta:
    """The difference of two counts."""
    return MetricDelta(
        new.params - old.params,
        new.trainable_params - old.trainable_params,
        new.buffers - old.buffers,
        new.weight_bytes - old.weight_bytes,
    )


def moved(old: Iterable[Weight], new: Iterable[Weight]) -> MetricDelta:
    """The difference between two sets of weights."""
    return difference(sum(map(weight_counts, new), MetricDelta()), sum(map(weight_counts, old), MetricDelta()))


@dataclass(frozen=True, slots=True)
class RowFinding:
    """One change of one row, or of several once folded.

    `cause` is what the totals are split by; `source` is the row whose output made this one change, `through` how
    that output changed; `block` is the run of blocks it was folded over (`layers.0-31`, 32). `old` and `new` are the
    row before and after (the first of several).
    """

    kind: ChangeKind
    path: str
    before: str
    after: str
    moved: MetricDelta = MetricDelta()
    rank: Rank = Rank.CAUSE
    why: str = ""
    source: str = ""
    through: str = ""
    cause: str = ""
    was: str = ""
    count: int = 1
    rows: int = 1
    block: tuple[str, int] | None = None
    old: Layer | None = None
    new: Layer | None = None
