"""One thing that changed, as plain data that explains itself in one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from pytest_modelbudget import units
from pytest_modelbudget.diff.words import shown

ChangeKind = Literal[
    "total", "port", "added", "removed", "type", "untied", "tied", "widened", "narrowed", "weights", "buffer", "dtype",
    "frozen", "unfrozen", "calls", "connection", "output", "nesting", "renamed", "moved", "order", "follows",
]  # fmt: skip

_LONGEST = 240
"""Characters of each part of a sentence."""

TOP = "(the top)"
"""Where the rows of a model begin: the other path of a wrapper that came or went."""

_KIND_WORDS: dict[str, str] = {
    "type": "type", "untied": "tie lost", "tied": "tied", "widened": "widened", "narrowed": "narrowed",
    "weights": "weights", "buffer": "buffers", "dtype": "dtype", "frozen": "frozen", "unfrozen": "unfrozen",
    "calls": "calls", "connection": "connection", "output": "output", "nesting": "nesting",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that changed.

    `kind`, and what `path` is:

    - `total`: a metric; `port`: `framework`, `inputs` or `outputs` of the model, or `rows`, the digest of rows of which
      only totals are known on one side
    - `added`, `removed`: a row, with all rows inside it when they came or went with it
    - `type`, `widened`, `narrowed` (shapes of weights), `weights` (weights gained, lost or reshaped), `tied`,
      `untied`, `buffer`, `dtype`, `frozen`, `unfrozen`, `calls`, `connection`, `output` (shape), `nesting`: a row
    - `renamed` (a module, a prefix of many rows, a number), `moved` (to another module): the earlier path is in `was`;
      `order`: rows in another order
    - `follows`: rows in which only what changed elsewhere shows

    A path may stand for several rows: `layers.0-31.norm` for equal changes in `count` blocks, `stem, layer1-4` for one
    change all over these. `rows` is the number of rows it stands for. `before` and `after` are the two values as text,
    `delta` the difference of params (for a total, of that total), of all its rows together, or None where there is
    none; over all changes but the totals these sum to the difference of the model's params. `why` is the arithmetic
    and the cause, or "". `parts` are what moved a total, each cause in words with its difference, largest first; they
    sum to `delta`, and are empty where the split would say the same as that of the params, or is not known (FLOPs).
    """

    kind: ChangeKind
    path: str
    before: str
    after: str
    delta: int | None = None
    was: str = ""
    count: int = 1
    why: str = ""
    rows: int = 1
    parts: tuple[tuple[str, int], ...] = field(default=(), compare=False)

    @property
    def of_the_model(self) -> bool:
        """Whether it is about the model as a whole, not about rows."""
        return self.kind in ("total", "port")

    def __repr__(self) -> str:
        return f"<Change {shown(self._head, 150)}{'' if self.delta is None else f' ({self.delta:+,})'}>"

    def __str__(self) -> str:
        text = f"{self._head}{self._delta}"
        return f"{text}: {shown(self.why, 2 * _LONGEST)}" if self.why else text

    @property
    def _head(self) -> str:
        path, before, after = shown(self.path, _LONGEST), shown(self.before, _LONGEST), shown(self.after, _LONGEST)
        match self.kind:
            case "total":
                return f"{path} {before} -> {after}"
            case "added":
                return f"+ {path}  {after}"
            case "removed":
                return f"- {path}  {before}"
            case "renamed" | "moved":
                rows = f"  ({self.rows:,} rows)" if self.rows > 1 else ""
                if self.was == TOP:
                    return f"~ {path}  wraps what was at the top{rows}"
                if self.path == TOP:
                    return f"~ {shown(self.was, _LONGEST)}  no longer wraps what is at the top{rows}"
                return f"~ {path}  {self.kind} from {shown(self.was, _LONGEST)}{rows}"
            case "follows":
                return f"~ {path}  {self.rows:,} row{'' if self.rows == 1 else 's'} follow{_ending(self.rows)}  {after}"
            case "port" | "order":
                return f"~ {path}  {before} -> {after}"
            case _:
                return f"~ {path}  {_KIND_WORDS[self.kind]}  {before} -> {after}"

    @property
    def _delta(self) -> str:
        if self.kind in ("added", "removed") and self.count > 1 and not self.delta:
            return f"  ({self.count:,} x)"
        if self.delta is None or self.kind in ("port", "follows") or (not self.delta and self.kind != "total"):
            return ""
        if self.kind == "total":
            before = int(self.before.replace(",", ""))
            share = f", {units.rounded(Fraction(self.delta, before), '+.2%')}" if before else ""
            return f"  ({self.delta:+,}{share})"
        if self.count > 1 and self.delta % self.count == 0:
            return f"  ({self.count:,} x {self.delta // self.count:+,} = {self.delta:+,})"
        return "" if self.kind in ("added", "removed") else f"  ({self.delta:+,})"


def _ending(number: int) -> str:
    return "s" if number == 1 else ""


class Changes(tuple[Change, ...]):
    """What changed between two summaries: a tuple with a short `repr`, a line for each in print, and a notebook view.

    A notebook shows bars of what moved, and a table.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        if not self:
            return "<Changes: none>"
        totals = [change for change in self if change.kind == "total"]
        rows = sum(change.rows for change in self if not change.of_the_model)
        texts = [repr(change).removeprefix("<Change ").removesuffix(">") for change in (totals or self)[:1]]
        return f"<Changes: {', '.join([*texts, *rows_changed(rows)])}>"

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "nothing changed"

    def _repr_html_(self) -> str:
        from pytest_modelbudget.diff import notebook  # jinja2 is imported by those who look alone

        return notebook.changes_fragment(self)


def rows_changed(rows: int) -> list[str]:
    """`1 row changed`; nothing for none."""
    return [f"{rows:,} row{'' if rows == 1 else 's'} changed"] if rows else []
