"""The files of a project as they travel to the workers of a cluster, and the folder there that they are unpacked to."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pytest_modelbudget import units
from pytest_modelbudget.base.git import Git, NoGit
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.isolation import Surroundings

LIMIT_VARIABLE = "MODELBUDGET_PROJECT_LIMIT"
"""How large a project may be that is sent to a cluster: `200 MiB`."""

_DEFAULT_LIMIT = "64 MiB"
_LARGEST_NAMED = 3
_SKIPPED_FOLDERS = ("node_modules", "site-packages", "__pycache__", "__model_budget__", "mlruns", "mlartifacts")

_FOLDERS: dict[str, Path] = {}
"""Of this process: where the project of each run lies."""

_REFUSALS: dict[str, str] = {}
"""Of this process: why it takes no part in a run."""

_TRAVELLING_VARIABLES = ("CI", "TF_BUILD", "KERAS_BACKEND", "TF_USE_LEGACY_KERAS", "JAX_ENABLE_X64")
"""Those that decide what is counted, beside this project's own."""


def packed_project(root: Path) -> bytes:
    """The files that models may need, in a zip file.

    These are the files that git tracks or would (`.gitignore` holds), else all that are not installed or a cache; never
    hidden ones, snapshots, or what a link outside of `root` leads to.

    Raises:
        ModelBudgetError: they are more than `MODELBUDGET_PROJECT_LIMIT` allows, or cannot be read.
    """
    sizes = {name: (root / name).stat().st_size for name in sorted(_files(root)) if _belongs(root, name)}
    limit = _limit()
    if (total := sum(sizes.values())) > limit:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:_LARGEST_NAMED]
        named = ", ".join(f"{name} ({units.size(sizes[name])})" for name in largest)
        raise ModelBudgetError(
            f"--on: the files of the project are {units.size(total)}, and at most {units.size(limit)} are sent to the "
            f"workers of a cluster; the largest: {named}\n"
            f"what models do not need is left out when git ignores it; {LIMIT_VARIABLE}='200 MiB' allows more"
        )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sizes:
            try:
                archive.writestr(name, (root / name).read_bytes())
            except (OSError, ValueError) as error:  # not to be read, or a name that is no text
                raise ModelBudgetError(f"--on: {name!r} cannot be sent to the cluster ({error})") from None
    return packed.getvalue()


def _limit() -> int:
    text = os.environ.get(LIMIT_VARIABLE) or _DEFAULT_LIMIT
    try:
        return int(units.parse(text, "bytes"))
    except ModelBudgetError as mistake:
        raise ModelBudgetError(f"{LIMIT_VARIABLE}: {mistake}") from None


def _belongs(root: Path, name: str) -> bool:
    """Whether it is a file, and lies in the project by its links too."""
    with suppress(OSError, RuntimeError):
        path = root / name
        left_out = any(part.startswith(".") or part in _SKIPPED_FOLDERS for part in Path(name).parts)
        return not left_out and path.is_file() and path.resolve().is_relative_to(root.resolve())
    return False


def _files(root: Path) -> Iterator[str]:
    """Their paths below `root`."""
    with suppress(NoGit):
        yield from Git(root).work_tree()
        return
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not _is_left_out(Path(folder) / name)]
        yield from (os.path.relpath(os.path.join(folder, name), root) for name in files)


def _is_left_out(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name in _SKIPPED_FOLDERS or (folder / "pyvenv.cfg").exists()


def shipped_surroundings(root: Path) -> Surroundings:
    """Those of this process that mean something elsewhere: folders below `root`, and the variables of this project."""
    here = Surroundings.current()
    path = (part for entry in here.path if (part := _below(Path(entry), root)) is not None)
    environment = {name: value for name, value in here.environment.items() if _travels(name)}
    return Surroundings(tuple(dict.fromkeys(path)), _below(Path(here.folder), root) or ".", environment)


def _below(path: Path, root: Path) -> str | None:
    """`path` as seen from `root`, by its links; None where it leads out, or is installed there."""
    path, root = path.resolve(), root.resolve()
    if not path.is_relative_to(root) or any(_is_left_out(root / part) for part in _parents(path, root)):
        return None
    return path.relative_to(root).as_posix()


def _parents(path: Path, root: Path) -> Iterator[Path]:
    relative = path.relative_to(root)
    yield from (part for part in (relative, *relative.parents) if part != Path("."))


def _travels(name: str) -> bool:
    return name in _TRAVELLING_VARIABLES or name.startswith("MODELBUDGET_")


def unpack(run: str, packed: bytes, parent: Path) -> None:
    """Put the project of a run below `parent`, a folder of this process alone."""
    folder = parent / f"modelbudget-{run}"
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        archive.extractall(folder)
    _FOLDERS[run] = folder


def refuse(run: str, reason: str) -> None:
    """Have all models of a run fail in this process."""
    _REFUSALS[run] = reason


def remove(run: str) -> None:
    """Take the project of a run away again."""
    _REFUSALS.pop(run, None)
    if folder := _FOLDERS.pop(run, None):
        shutil.rmtree(folder, ignore_errors=True)


def unpacked_folder(run: str) -> Path:
    """Where the project of a run was unpacked to in this process.

    Raises:
        ModelBudgetError: it was not, or the run was refused.
    """
    if reason := _REFUSALS.get(run):
        raise ModelBudgetError(reason)
    try:
        return _FOLDERS[run]
    except KeyError:
        raise ModelBudgetError("the files of the project did not reach this worker of the cluster") from None
