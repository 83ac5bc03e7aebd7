"""The project that a command works on: its root and its manifests."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_modelbudget.config import MANIFEST_NAMES, holds_manifest
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import UnreadableFile, is_file, non_file_kind, read_bytes
from pytest_modelbudget.session.registry import make_importable
from pytest_modelbudget.summary.show.folding import hanging

NO_MANIFEST = (
    "there is no manifest (modelbudget.yaml, or [tool.modelbudget] in pyproject.toml) here or in a folder above: "
    "modelbudget init writes one, --file names one elsewhere"
)

_PYTEST_FILES = {
    "pytest.ini": "",
    ".pytest.ini": "",
    "pyproject.toml": r"^\[tool\.pytest\b",
    "tox.ini": r"^\[pytest\]",
    "setup.cfg": r"^\[tool:pytest\]",
}
"""Files that make a folder pytest's root, and what has to be in them."""

_ROOT_MARKERS = (".git", "pyproject.toml", "setup.py")


@dataclass(frozen=True, slots=True)
class Project:
    """`manifests` are those of one folder, none when it has none; `root` is the folder that paths are below."""

    root: Path
    manifests: tuple[Path, ...] = ()


def find_project(chosen: str | None, start: Path) -> Project:
    """The project of the manifest `chosen`, else of the nearest manifest at or above `start`; importable from now on.

    Raises:
        ModelBudgetError: there is no such manifest.
    """
    project = _chosen_project(Path(chosen)) if chosen else _nearest_project(start)
    for folder in dict.fromkeys((start, project.root)):
        make_importable(folder)
    return project


def _chosen_project(path: Path) -> Project:
    path = path.resolve()
    if path.is_dir():
        manifests = tuple(_manifests_in(path))
        if not manifests:
            raise ModelBudgetError(f"there is no manifest in {path}: its name is modelbudget.yaml")
        return Project(root_of(path), manifests)
    if not is_file(path):
        kind = non_file_kind(path)
        raise ModelBudgetError(
            f"{path} is {kind}, where a manifest should be" if kind else f"there is no manifest {path}"
        )
    return Project(root_of(path.parent), (path,))


def _nearest_project(start: Path) -> Project:
    for folder in (start, *start.parents):
        if manifests := tuple(_manifests_in(folder)):
            return Project(root_of(folder), manifests)
        if (folder / ".git").exists():
            break
    return Project(root_of(start))


def _manifests_in(folder: Path) -> Iterator[Path]:
    for name in (*MANIFEST_NAMES, "pyproject.toml"):
        if is_file(folder / name) and holds_manifest(folder / name):
            yield folder / name
        elif name in MANIFEST_NAMES and (kind := non_file_kind(folder / name)):
            raise ModelBudgetError(f"{folder / name} is {kind}, where a manifest should be: remove it")


def root_of(folder: Path) -> Path:
    """The root that pytest would take: the nearest folder with its configuration, else the project's, else `folder`."""
    above = (folder, *folder.parents)
    configured = (
        candidate
        for candidate in above
        if any(_has_pattern(candidate / name, pattern) for name, pattern in _PYTEST_FILES.items())
    )
    other = (candidate for candidate in above if any((candidate / name).exists() for name in _ROOT_MARKERS))
    return next(configured, None) or next(other, None) or folder


def _has_pattern(path: Path, pattern: str) -> bool:
    if not is_file(path):
        return False
    if not pattern:
        return True
    try:
        text = read_bytes(path).decode("utf-8", "replace")
    except (OSError, UnreadableFile):
        return False
    return bool(re.search(pattern, text, re.MULTILINE))


def terminal_width() -> int:
    """Columns of the terminal, 80 when there is none."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines, folded between words for a terminal; whole for files and other programs, which search them."""
    if sys.stdout.isatty():
        lines = (part for line in lines for part in hanging(line, terminal_width()))
    print("\n".join(lines))
