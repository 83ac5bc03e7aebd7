"""Rows that have another path: a renamed module or a new wrapper is one finding, however many rows it holds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from pytest_modelbudget.diff.align import longest_rising
from pytest_modelbudget.diff.change import TOP, ChangeKind
from pytest_modelbudget.diff.finding import Rank, RowFinding
from pytest_modelbudget.diff.match import Match
from pytest_modelbudget.diff.tree import ROOT, bare_name, tokens
from pytest_modelbudget.diff.words import list_text


def renames(matched: Match) -> Iterator[RowFinding]:
    """One finding for each part of a path that became another."""
    new_paths = {old.path: new.path for old, new in matched.partner.items()}
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for _, old, _, new in matched.rows:
        if old.path != new.path:
            groups.setdefault(_without_common_end(old.path, new.path), []).append((old.path, new.path))
    for (old_path, new_path), paths in groups.items():
        rows = len(paths)
        if rows == 1:  # its whole path says more than the part that differs
            (old_path, new_path) = paths[0]
        kind: ChangeKind = "renamed" if _is_rename(old_path, new_path, new_paths) else "moved"
        yield RowFinding(kind, new_path or TOP, "", "", rank=Rank.NAME, was=old_path or TOP, rows=rows)


def _without_common_end(old: str, new: str) -> tuple[str, str]:
    """Both paths without the names they end in alike."""
    old_parts, new_parts = _part_names(old), _part_names(new)
    ends = zip(reversed(old_parts), reversed(new_parts), strict=False)
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
    return "".join(tokens(old)[: len(old_parts) - common]), "".join(tokens(new)[: len(new_parts) - common])


def _part_names(path: str) -> list[str]:
    return [] if path == ROOT else [bare_name(token) for token in tokens(path)]


def _is_rename(old_path: str, new_path: str, new_paths: dict[str, str]) -> bool:
    """Whether a part only has another name where it was, or is in a wrapper, or out of one."""
    old_tokens, new_tokens = tokens(old_path) if old_path else [], tokens(new_path) if new_path else []
    if old_tokens == new_tokens[: len(old_tokens)] or new_tokens == old_tokens[: len(new_tokens)]:
        return True
    old_parent, new_parent = "".join(old_tokens[:-1]), "".join(new_tokens[:-1])
    return new_paths.get(old_parent, old_parent) == new_parent


def order_change(matched: Match) -> Iterator[RowFinding]:
    """The rows that stand elsewhere among the others than before."""
    rows = sorted(((old, new) for old, _, new, _ in matched.rows), key=lambda pair: pair[1].position)
    pairs = [(new.position, old.position) for old, new in rows]
    in_order = set(longest_rising(pairs))
    names = [
        new.path
        for (old, new), pair in zip(rows, pairs, strict=True)
        if pair not in in_order and tokens(old.path)[:-1] == tokens(new.path)[:-1]
    ]
    if names:
        text = f"{list_text(names)} in another place"
        yield RowFinding("order", "order of layers", "as before", text, rank=Rank.NAME, rows=len(names))
