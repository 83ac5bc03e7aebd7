"""Rows that have another path: a renamed module or a new wrapper is one finding, however many rows it holds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from pytest_modelbudget.diff.align import rising
from pytest_modelbudget.diff.change import TOP, Kind
from pytest_modelbudget.diff.finding import Finding, Rank
from pytest_modelbudget.diff.match import Match
from pytest_modelbudget.diff.tree import ROOT, name, tokens
from pytest_modelbudget.diff.words import listed


def renames(found: Match) -> Iterator[Finding]:
    """One finding for each part of a path that became another."""
    path = {old.path: new.path for old, new in found.partner.items()}
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for _, old, _, new in found.rows:
        if old.path != new.path:
            groups.setdefault(_heads(old.path, new.path), []).append((old.path, new.path))
    for (was, now), paths in groups.items():
        rows = len(paths)
        if rows == 1:  # its whole path says more than the part that differs
            (was, now) = paths[0]
        kind: Kind = "renamed" if _beside(was, now, path) else "moved"
        yield Finding(kind, now or TOP, "", "", rank=Rank.NAME, was=was or TOP, rows=rows)


def _heads(old: str, new: str) -> tuple[str, str]:
    """Both paths without the names they end in alike."""
    ours, theirs = _parts(old), _parts(new)
    ends = zip(reversed(ours), reversed(theirs), strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
    return "".join(tokens(old)[: len(ours) - same]), "".join(tokens(new)[: len(theirs) - same])


def _parts(path: str) -> list[str]:
    return [] if path == ROOT else [name(token) for token in tokens(path)]


def _beside(was: str, now: str, path: dict[str, str]) -> bool:
    """Whether a part only has another name where it was, or is in a wrapper, or out of one."""
    ours, theirs = tokens(was) if was else [], tokens(now) if now else []
    if ours == theirs[: len(ours)] or theirs == ours[: len(theirs)]:
        return True
    above, there = "".join(ours[:-1]), "".join(theirs[:-1])
    return path.get(above, above) == there


def order(found: Match) -> Iterator[Finding]:
    """The rows that stand elsewhere among the others than before."""
    rows = sorted(((old, new) for old, _, new, _ in found.rows), key=lambda pair: pair[1].position)
    pairs = [(new.position, old.position) for old, new in rows]
    kept = set(rising(pairs))
    names = [
        new.path
        for (old, new), pair in zip(rows, pairs, strict=True)
        if pair not in kept and tokens(old.path)[:-1] == tokens(new.path)[:-1]
    ]
    if names:
        text = f"{listed(names)} in another place"
        yield Finding("order", "order of layers", "as before", text, rank=Rank.NAME, rows=len(names))
