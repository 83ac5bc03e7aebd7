"""State dicts and checkpoints that `torch.save` wrote, by their pickles and the sizes of their storages.

A file is a zip archive since torch 1.6: `data.pkl`, and one member for each storage. Older ones are pickles one after
the other, then the storages. Weights are not read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from pytest_modelbudget.backends.exported import archives, checkpoints, pickles, shards
from pytest_modelbudget.backends.exported.archives import Archive
from pytest_modelbudget.backends.exported.graph import ExportedModel
from pytest_modelbudget.backends.exported.safetensors import BUFFERS_NOTE
from pytest_modelbudget.backends.exported.torch_tensors import CALLS, Storage, Tensor, bytes_of
from pytest_modelbudget.backends.model_files import DamagedFile

FORMAT = "state dict"

_PICKLE_BYTES = 32 << 20
_PICKLE = "data.pkl"
_AGAIN = "fetch it again, or save the model again"
_TARRED = (b"storages", b"tensors", b"pickle")
_OLD_MAGIC, _OLD_VERSION = 0x1950A86A20F9469CFC6C, 1001


def read(path: Path) -> ExportedModel:
    """The tensors of the model in a file, or in all files that the index at `path` names (`model.bin.index.json`).

    Of a checkpoint only those of the model are read, and what else it has is named in a note.

    Raises:
        DamagedFile: it is damaged, no state dict, or cannot be read without running code.
    """
    return _of_shards(path) if shards.is_index(path) else shards.marked(_of_file(path), path)


def _of_shards(path: Path) -> ExportedModel:
    index = shards.index(path)
    models = index.each(_of_file)
    tensors = {shard: model.constants for shard, model in models.items()}
    constants = {
        name: replace(tensor, storage=(shard, tensor.storage))  # storages are counted from 0 in each
        for shard, inside in index.mapped(tensors).items()
        for name, tensor in inside.items()
    }
    notes = dict.fromkeys(note for model in models.values() for note in model.notes)
    file_bytes = index.bytes + sum(model.file_bytes for model in models.values())
    return ExportedModel(FORMAT, file_bytes, constants, notes=(*notes, *index.notes(tensors)))


def _of_file(path: Path) -> ExportedModel:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    return _of_zip(path) if is_zip else _of_old_file(path)


def _of_zip(path: Path) -> ExportedModel:
    with archives.opened(path) as archive:
        _refuse_others(archive)
        tensors, notes = checkpoints.model_in(_content(archive))
        _check_records(tensors, archive)
        return _model(tensors, archive.file_bytes, (*notes, *_unused_bytes(tensors)))


def tensors_of(archive: Archive) -> dict[str, Tensor]:
    """The tensors of a mapping that `torch.save` wrote into an archive.

    Raises:
        DamagedFile: it is damaged, or has something else.
    """
    if _PICKLE not in archive.members or not isinstance(content := _content(archive), dict):
        raise DamagedFile(f"is damaged: the weights in it are no mapping of tensors: {_AGAIN}")
    tensors = checkpoints.tensors_of(content)
    _check_records(tensors, archive)
    return tensors


def _content(archive: Archive) -> object:
    return pickles.read(archive.read(_PICKLE, _PICKLE_BYTES), CALLS)[0]


def _check_records(tensors: Mapping[str, Tensor], archive: Archive) -> None:
    _check(tensors, lambda storage: archive.stored_bytes(f"data/{storage.key}"))


def _refuse_others(archive: Archive) -> None:
    """Other archives of torch, by what they are."""
    names = archive.members
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise DamagedFile(
            "is TorchScript, whose programs are not read: save model.state_dict(), or torch.export.save the model"
        )
    if _PICKLE not in names:
        raise DamagedFile("is a zip archive, but no file of torch.save: save model.state_dict()")


def _model(tensors: Mapping[str, Tensor], file_bytes: int, notes: tuple[str, ...]) -> ExportedModel:
    constants = {name: tensor.constant for name, tensor in tensors.items()}
    return ExportedModel(FORMAT, file_bytes, constants, notes=(BUFFERS_NOTE, *notes))


def _check(tensors: Mapping[str, Tensor], stored_bytes: Callable[[Storage], int | None]) -> None:
    """Whether every storage has the size that its tensors say."""
    for name, tensor in tensors.items():
        stored = stored_bytes(tensor.storage)
        if stored is None:
            raise DamagedFile(f"is damaged: it lacks the weights of {name[:100]!r}: {_AGAIN}")
        if stored != tensor.storage.bytes:
            raise DamagedFile(
                f"is damaged: {name[:100]!r} in it has {stored:,} bytes, and {tensor.storage.bytes:,} were declared: "
                f"{_AGAIN}"
            )


def _unused_bytes(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """A note of what storages keep beside the tensors: `torch.save(x[:2])` writes all of x."""
    views = {tensor.constant.storage: tensor for tensor in tensors.values()}
    used: Counter[Storage] = Counter()
    for view in views.values():
        used[view.storage] += view.stored_bytes
    unused = sum(max(storage.bytes - taken, 0) for storage, taken in used.items())
    if unused:
        yield f"{unused:,} bytes are in no tensor of the model: a view was saved with all that it is a view of"


def _of_old_file(path: Path) -> ExportedModel:
    with path.open("rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        raw = file.read(_PICKLE_BYTES)
        content, keys, place = _old_pickles(raw)
        stored = dict(_old_storages(file, place, keys, {storage.key: storage for storage in _storages_in(content)}))
    tensors, notes = checkpoints.model_in(content)
    _check(tensors, lambda storage: stored.get(storage.key))
    return _model(tensors, file_bytes, (*notes, *_unused_bytes(tensors)))


def _old_pickles(raw: bytes) -> tuple[object, list[object], int]:
    """What was saved, the keys of its storages in the order in which they follow, and where they begin."""
    if not raw.startswith(b"\x80"):
        is_tar = raw[:8].startswith(_TARRED) or raw[257:262] == b"ustar"
        what = "is an archive of torch before 0.2" if is_tar else "is no file of torch.save"
        raise DamagedFile(f"{what}: save model.state_dict() with a torch of today")
    magic, place = pickles.read(raw, CALLS)
    version, place = pickles.read(raw, CALLS, place) if magic == _OLD_MAGIC else (None, place)
    if version != _OLD_VERSION:
        raise DamagedFile("is a pickle, but none of torch.save, and pickles are not run: save model.state_dict()")
    _, place = pickles.read(raw, CALLS, place)
    content, place = pickles.read(raw, CALLS, place)
    keys, place = pickles.read(raw, CALLS, place)
    if not isinstance(keys, list):
        raise DamagedFile(f"is damaged: it has no list of storages: {_AGAIN}")
    return content, keys, place


def _old_storages(
    file: BinaryIO, place: int, keys: list[object], storages: Mapping[str, Storage]
) -> Iterator[tuple[str, int]]:
    """The bytes of each storage: a number of elements in 8 bytes, then these."""
    file_bytes = os.fstat(file.fileno()).st_size
    for key in keys:
        file.seek(place)
        elements = int.from_bytes(file.read(8), "little")
        if not isinstance(key, str) or key not in storages:
            raise DamagedFile("holds tensors that are not read beside those of a model: save model.state_dict()")
        stored = bytes_of(storages[key].dtype, elements)
        place += 8 + stored
        if place > file_bytes:
            raise DamagedFile(f"is damaged: it ends after {file_bytes:,} of at least {place:,} bytes: {_AGAIN}")
        yield key, stored


def _storages_in(content: object) -> Iterator[Storage]:
    """Every storage of what was saved, at any depth."""
    pending, seen = [content], set[int]()
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            yield value.storage
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(value.values() if isinstance(value, dict) else value)
