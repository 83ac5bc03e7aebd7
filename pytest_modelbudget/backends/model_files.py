"""Models that are files: which kind a path is, told by what is there and not by its name. Reads no model itself."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from pytest_modelbudget.backends import zip_directory
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.system.escape import printable

_EXPORTED = "pytest_modelbudget.backends.exported"
_READER_MODULES = {
    "keras": "pytest_modelbudget.backends.keras.files",
    "tf_keras": "pytest_modelbudget.backends.tensorflow.legacy_files",
    "tensorflow": "pytest_modelbudget.backends.tensorflow.saved",
    "onnx": f"{_EXPORTED}.onnx",
    "litert": f"{_EXPORTED}.litert",
    "executorch": f"{_EXPORTED}.executorch",
    "torch.export": f"{_EXPORTED}.torch_export",
    "state dict": f"{_EXPORTED}.state_dict",
    "safetensors": f"{_EXPORTED}.safetensors",
}
_HEAD_BYTES = 4096
_HDF5 = b"\x89HDF\r\n\x1a\n"
_GIT_LFS = b"version https://git-lfs"
_GIT_ANNEX = re.compile(rb"(\.\./)*(\.git)?/annex/objects/")
_KNOWN_FORMATS = (
    "a .keras file, a .h5 file of a whole Keras model, a SavedModel folder, an .onnx, .tflite, .pt2, .pte or "
    ".safetensors file, or a state dict (.pt, .pth)"
)


class DamagedFile(Exception):
    """Why a file is not read, as the end of a sentence that begins with its name, with the cure after a colon.

    `is damaged: its header says 8,192 bytes, and the file has 100: fetch it again, or export the model again`
    """


class Reader(Protocol):
    """What a module that reads files has to offer."""

    def read(self, path: Path) -> object:
        """The model that the file describes, for the framework's backend to count; no weight of it is loaded.

        Called inside the backend's `abstract()`.

        Raises:
            DamagedFile, ModelBudgetError: the file is damaged, or holds something that is not rebuilt from files.
        """
        ...


def builder(path: Path, framework: str | None) -> Callable[[], object]:
    """A builder that reads the model at `path`; the framework of the file is imported here.

    `framework` may say `tf_keras` for a Keras file that Keras 3 is not to read.

    Raises:
        ModelBudgetError: nothing is there, or no model.
    """
    try:
        kind = _kind(path)
    except OSError as error:
        raise ModelBudgetError(f"{shown(path)} cannot be read: {error.strerror}") from None
    if kind == "keras" and framework == "tf_keras":
        kind = framework
    reader = cast(Reader, import_module(_READER_MODULES[kind]))
    return partial(_read, reader, path)


def _read(reader: Reader, path: Path) -> object:
    try:
        return reader.read(path)
    except DamagedFile as problem:
        raise ModelBudgetError(f"{shown(path)} {printable(str(problem))}") from None  # it may name what the file names
    except OSError as error:
        raise ModelBudgetError(f"{shown(path)} cannot be read: {error.strerror or error}") from None


def is_model(path: Path) -> bool:
    """Whether a model that `builder` reads is at `path`, whatever its name."""
    try:
        return bool(_kind(path))
    except (OSError, ModelBudgetError):
        return False


def shown(path: Path) -> str:
    """`path` as messages name it: from the current folder where it lies below it."""
    relative = os.path.relpath(path)
    return Path(os.path.normpath(path) if relative.startswith("..") else relative).as_posix()


def _kind(path: Path) -> str:
    """The reader of what is at `path`.

    Raises:
        ModelBudgetError: there is none, with the cure.
        OSError: it cannot be opened.
    """
    if path.is_dir():
        return _kind_of_folder(path)
    if not path.exists():
        if _GIT_ANNEX.match(os.fsencode(_link_target(path))):
            raise ModelBudgetError(f"{shown(path)} {_ANNEXED}")
        if path.is_symlink():
            raise ModelBudgetError(f"{shown(path)} is a link to nothing: {_link_target(path)} is not there")
        raise ModelBudgetError(f"there is no file {shown(path)}: a path is looked for from the folder of the manifest")
    if not path.is_file():
        raise ModelBudgetError(
            f"{shown(path)} is a pipe or a device, not a file: the path of a model is {_KNOWN_FORMATS}"
        )
    with path.open("rb") as file:
        start = file.read(_HEAD_BYTES)
    content = _Content(path, start, _members(path) if start.startswith(b"PK") else ())
    for is_kind, kind in _KINDS:
        if is_kind(content):
            return kind
    raise ModelBudgetError(f"{shown(path)} {_problem(content)}")


def _kind_of_folder(path: Path) -> str:
    if (path / "saved_model.pb").is_file():
        return "tensorflow"
    if (path / "Manifest.json").is_file():
        raise ModelBudgetError(f"{shown(path)} {_COREML}")
    indexes = sorted(path.glob("*.safetensors.index.json"))
    if not indexes and (path / "config.json").is_file() and not (path / "model.safetensors").is_file():
        return "keras"  # what a .keras file holds, not zipped
    cure = f": name {shown(indexes[0])}" if indexes else f": the path of a model is {_KNOWN_FORMATS}"
    raise ModelBudgetError(f"{shown(path)} is a folder without saved_model.pb{cure}")


def _link_target(path: Path) -> str:
    return os.readlink(path) if path.is_symlink() else ""


@dataclass(frozen=True, slots=True)
class _Content:
    """How a file begins, and the names in it where it is a zip archive."""

    path: Path
    start: bytes
    members: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether it begins as a text does, as pointers to files do, and pages that say that there is none."""
        return bool(self.start) and all(byte >= 32 or byte in b"\t\n\r\f" for byte in self.start[:64])

    def has_member(self, pattern: str) -> bool:
        """Whether the archive has a member of such a name."""
        return any(re.fullmatch(pattern, name) for name in self.members)


def _members(path: Path) -> tuple[str, ...]:
    """The names in a zip archive; none in one whose directory cannot be read.

    Raises:
        ModelBudgetError: its directory is larger than that of any model.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if problem := zip_directory.problem(zip_directory.directory_bytes(file, size) or 0, size):
                raise ModelBudgetError(f"{shown(path)} {problem}: fetch it again, or save the model again")
        with zipfile.ZipFile(path) as archive:
            return tuple(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return ()


def _is_keras(content: _Content) -> bool:
    is_zip_of_keras = content.path.suffix.lower() not in _TORCH_SUFFIXES and bool(content.members)
    return content.start.startswith(_HDF5) or is_zip_of_keras


_TORCH_SUFFIXES = (".pt", ".pth", ".pt2", ".ckpt", ".bin")


def _is_torch_export(content: _Content) -> bool:
    return content.has_member(r"(?:[^/]*/)?(?:models/.*\.json|serialized_exported_program\.json)")


def _is_state_dict(content: _Content) -> bool:
    pickled = content.start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
    return pickled or content.has_member(r"(?:[^/]*/)*data\.pkl")


def _is_safetensors(content: _Content) -> bool:
    """The length of a header, which is an object of JSON; some lengths begin as pickles do."""
    length = int.from_bytes(content.start[:8], "little")
    is_object = re.match(rb'\{\s*["}]', content.start[8:]) is not None
    return is_object and (length < 1 << 24 or content.path.suffix.lower() == ".safetensors")


def _is_index(suffix: str, content: _Content) -> bool:
    """Whether it names shards with that suffix; a variant may be in its name (`model.safetensors.index.fp16.json`)."""
    is_named = re.search(rf"\.{suffix}\.index(\.\w+)?\.json$", content.path.name)
    return content.start.lstrip()[:1] == b"{" and is_named is not None


def _is_litert(content: _Content) -> bool:
    return content.start[4:8] == b"TFL3"


def _is_executorch(content: _Content) -> bool:
    return re.fullmatch(rb"ET\d\d", content.start[4:8]) is not None


_ONNX_START = re.compile(rb"\x08[\x01-\x40](?:[\x3a\x42]|\x12[\x01-\x7f][ -~]{1,127}[\x1a\x22\x2a\x32\x3a])")
"""The version of the format, then the operator sets, the graph, or the name of the producer in ASCII."""


def _is_onnx(content: _Content) -> bool:
    """A protocol buffer has no magic number: it is told by its name, or by how all exporters begin."""
    if content.path.suffix.lower() in (".onnx", ".mlmodel"):
        is_other = content.is_text or content.start.startswith(b"PK")
        return content.path.suffix.lower() == ".onnx" and bool(content.start) and not is_other
    return _ONNX_START.match(content.start) is not None


_KINDS: tuple[tuple[Callable[[_Content], bool], str], ...] = (
    (_is_litert, "litert"),
    (_is_executorch, "executorch"),
    (_is_safetensors, "safetensors"),
    (_is_torch_export, "torch.export"),
    (_is_state_dict, "state dict"),
    (_is_keras, "keras"),
    (partial(_is_index, "safetensors"), "safetensors"),
    (partial(_is_index, "(bin|pt|pth)"), "state dict"),
    (_is_onnx, "onnx"),
)
"""What is looked for, in this order, and the reader."""

_ANNEXED = "is a pointer of git-annex, not the model: run git annex get"
_COREML = "is a Core ML model, which is not read: check the model that it was made from, or its .onnx"
"""Why such files are refused."""


def _problem(content: _Content) -> str:
    start, name = content.start, content.path.name
    if not start:
        return "is empty"
    if start.startswith(_GIT_LFS):
        return "is a pointer of Git LFS, not the model: run git lfs pull"
    if _GIT_ANNEX.match(start):
        return _ANNEXED
    if start.startswith(b"GGUF"):
        return "is a GGUF file, which is not read: check the checkpoint that it was made from (.safetensors)"
    if name.lower().endswith(".mlmodel"):
        return _COREML
    if content.members:
        inside = _few(content.members)
        return f"is a zip archive without a program or a state dict (in it are {inside}): save the model again"
    if start.startswith(b"PK"):
        return "is a damaged or truncated zip archive (.keras, .pt, .pt2): its directory cannot be read"
    if name == "saved_model.pb":
        return "is a part of a SavedModel: name its folder"
    kind = "text, and no model" if content.is_text else "no model"
    return f"is {kind} that can be read: the path of a model is {_KNOWN_FORMATS}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
