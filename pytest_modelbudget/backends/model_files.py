"""Models that are files: which framework a path is for, told by what is there. Reads no model itself."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from pytest_modelbudget.errors import ModelBudgetError

_READER_MODULES = {
    "keras": "pytest_modelbudget.backends.keras.files",
    "tf_keras": "pytest_modelbudget.backends.tensorflow.legacy_files",
    "tensorflow": "pytest_modelbudget.backends.tensorflow.saved",
}
_HDF5 = b"\x89HDF\r\n\x1a\n"
_GIT_LFS = b"version https://git-lfs"
_KNOWN_FORMATS = "a .keras file, a .h5 file of a whole Keras model, or a SavedModel folder"


class Reader(Protocol):
    """What a module that reads files has to offer."""

    def read(self, path: Path) -> object:
        """The model that the file describes, for the framework's backend to count; no weight of it is loaded.

        Called inside the backend's `abstract()`.

        Raises:
            ModelBudgetError: the file is damaged, or holds something that is not rebuilt from files.
        """
        ...


def builder(path: Path, framework: str | None) -> Callable[[], object]:
    """A builder that reads the model at `path`; the framework of the file is imported here.

    `framework` may say `tf_keras` for a Keras file that Keras 3 is not to read.

    Raises:
        ModelBudgetError: nothing is there, or no model.
    """
    try:
        owner = _framework_of(path)
    except OSError as error:
        raise ModelBudgetError(f"{shown(path)} cannot be read: {error.strerror}") from None
    if owner == "keras" and framework == "tf_keras":
        owner = framework
    reader = cast(Reader, import_module(_READER_MODULES[owner]))
    return lambda: reader.read(path)


def is_model(path: Path) -> bool:
    """Whether a model that `builder` reads is at `path`, whatever its name."""
    try:
        return bool(_framework_of(path))
    except (OSError, ModelBudgetError):
        return False


def shown(path: Path) -> str:
    """`path` as messages name it: from the current folder where it lies below it."""
    relative = os.path.relpath(path)
    return Path(os.path.normpath(path) if relative.startswith("..") else relative).as_posix()


def _framework_of(path: Path) -> str:
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return "tensorflow"
        if (path / "config.json").is_file():  # what a .keras file holds, not zipped
            return "keras"
        raise ModelBudgetError(
            f"{shown(path)} is a folder without saved_model.pb: the path of a model is {_KNOWN_FORMATS}"
        )
    if not path.exists():
        raise ModelBudgetError(f"there is no file {shown(path)}: a path is looked for from the folder of the manifest")
    if not path.is_file():
        raise ModelBudgetError(
            f"{shown(path)} is a pipe or a device, not a file: the path of a model is {_KNOWN_FORMATS}"
        )
    with path.open("rb") as file:
        start = file.read(len(_GIT_LFS))
    if start.startswith(_HDF5) or zipfile.is_zipfile(path):
        return "keras"
    raise ModelBudgetError(f"{shown(path)} {_problem(path, start)}")


def _problem(path: Path, start: bytes) -> str:
    if not start:
        return "is empty"
    if start.startswith(_GIT_LFS):
        return "is a pointer of Git LFS, not the model: run git lfs pull"
    if start.startswith(b"PK"):
        return "is a damaged or truncated .keras file: its zip directory cannot be read"
    if path.name == "saved_model.pb":
        return "is a part of a SavedModel: name its folder"
    return f"is no model that can be read: the path of a model is {_KNOWN_FORMATS}"
