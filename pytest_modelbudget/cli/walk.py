"""The folders of a project that are its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_FOREIGN = frozenset(("node_modules", "__pycache__", "site-packages", "build", "dist"))


def project_files(root: Path) -> Iterator[Path]:
    """Every file below `root` in order, without hidden folders, environments, build results and installed packages."""
    for folder, folders, names in os.walk(root):
        parent = Path(folder)
        folders[:] = sorted(name for name in folders if not _is_foreign(parent / name))
        yield from (parent / name for name in sorted(names))


def _is_foreign(folder: Path) -> bool:
    name = folder.name
    return name.startswith(".") or name in _FOREIGN or name.endswith(".egg-info") or (folder / "pyvenv.cfg").exists()
