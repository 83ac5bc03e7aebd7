"""Snapshots by their addresses, in words: files, and lines of files of totals (`zoo@nets.totals.yaml::id`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def counted_addresses(addresses: Sequence[str]) -> str:
    """`1 snapshot file has`, `2 snapshot files and 3 lines of totals have`."""
    lines = sum("::" in address for address in addresses)
    files = len(addresses) - lines
    parts = [f"{files} snapshot file{'s' if files > 1 else ''}"] if files else []
    if lines:
        parts.append(f"{lines:,} line{'s' if lines > 1 else ''} of totals")
    return f"{' and '.join(parts)} ha{'ve' if len(addresses) > 1 else 's'}"


def folded_addresses(addresses: Iterable[str], most: int = 5) -> Iterator[str]:
    """Each file, and of a file of totals the first ids: `zoo@nets.totals.yaml: a, b and 97 more`."""
    ids_by_file: dict[str, list[str]] = {}
    for address in addresses:
        path, _, model = address.partition("::")
        ids_by_file.setdefault(path, []).extend([model] if model else [])
    for path, ids in ids_by_file.items():
        more = f" and {len(ids) - most:,} more" if len(ids) > most else ""
        yield f"{path}: {', '.join(ids[:most])}{more}" if ids else path
