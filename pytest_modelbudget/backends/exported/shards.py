"""Weights in several files, which an index beside them names (`model.safetensors.index.json`), and one of these alone.

An index is JSON: its `weight_map` has the name of each tensor with the name of the file that it is in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pytest_modelbudget.backends.exported import json_parts
from pytest_modelbudget.backends.exported.graph import ExportedModel
from pytest_modelbudget.backends.model_files import DamagedFile

T = TypeVar("T")

_INDEX_BYTES = 24 << 20
_SHARD = re.compile(r"(.+)-(\d{5,})-of-(\d{5,})(\.\w+)")
_AGAIN = "fetch it again, or save the model again"


@dataclass(frozen=True, slots=True)
class Index:
    """What an index says: the shard of each tensor, and where the shards are, by their names."""

    shard_of: Mapping[str, str]
    paths: Mapping[str, Path]
    bytes: int

    def each(self, read: Callable[[Path], T]) -> dict[str, T]:
        """What `read` makes of each shard.

        Raises:
            DamagedFile: one cannot be read.
        """
        return {shard: _read(shard, path, read) for shard, path in self.paths.items()}

    def mapped(self, tensors: Mapping[str, Mapping[str, T]]) -> dict[str, dict[str, T]]:
        """Of the tensors in each shard those that the index says are in it, in the order of the shard.

        Raises:
            DamagedFile: one is not there.
        """
        for name, shard in self.shard_of.items():
            if name not in tensors[shard]:
                raise DamagedFile(f"says that {name[:100]!r} is in {shard[:100]}, which has no such tensor: {_AGAIN}")
        return {
            shard: {name: tensor for name, tensor in inside.items() if self.shard_of.get(name) == shard}
            for shard, inside in tensors.items()
        }

    def notes(self, tensors: Mapping[str, Mapping[str, object]]) -> list[str]:
        """What shards have beside that."""
        extra = [name for shard, inside in tensors.items() for name in inside if self.shard_of.get(name) != shard]
        shown = ", ".join(name[:100] for name in extra[:3]) + (", ..." if len(extra) > 3 else "")
        return [f"{len(extra)} tensors are not counted, since the index does not have them: {shown}"] if extra else []


def is_index(path: Path) -> bool:
    """Whether a file of weights is an index of others."""
    return path.name.endswith(".json")


def index(path: Path) -> Index:
    """The index at `path`, whose shards are all there.

    Raises:
        DamagedFile: it is damaged, or names files that are missing or outside of its folder.
    """
    raw = _small(path)
    shard_of = json_parts.field(json_parts.parsed(raw, "text"), "weight_map", dict)
    shards = {json_parts.of_kind(shard, str, name) for name, shard in shard_of.items()}
    paths = {shard: _beside(path, shard) for shard in sorted(shards)}
    missing = [shard for shard, place in paths.items() if not place.is_file()]
    if missing:
        names = ", ".join(shard[:100] for shard in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DamagedFile(f"names {len(paths)} files, of which {len(missing)} are not there, {names}: fetch them too")
    return Index(shard_of, paths, len(raw))


def marked(model: ExportedModel, path: Path) -> ExportedModel:
    """`model`, with what it lacks where `path` has the name of one shard of several: `model-00001-of-00002.bin`."""
    match = _SHARD.fullmatch(path.name)
    if not match or int(match[3]) < 2:
        return model
    number, count = int(match[2]), int(match[3])
    note = f"this is shard {number} of {count}: name the index ({match[1]}{match[4]}.index.json) to check all"
    return replace(model, unseen=(f"another of its {count} shards",), notes=(*model.notes, note))


def _small(path: Path) -> bytes:
    with path.open("rb") as file:
        raw = file.read(_INDEX_BYTES + 1)
    if len(raw) > _INDEX_BYTES:
        raise DamagedFile(f"is not read: an index has at most {_INDEX_BYTES:,} bytes: split the model")
    return raw


def _beside(path: Path, shard: str) -> Path:
    """Where a shard lies: in the folder of the index, or in that where the index itself is linked to."""
    place = path.parent / shard
    try:
        folders = {path.parent.resolve(), path.resolve().parent}
        is_inside = not os.path.isabs(shard) and any(folder in place.resolve().parents for folder in folders)
    except (OSError, RuntimeError, ValueError):
        is_inside = False
    if not is_inside:
        raise DamagedFile(f"names a file outside of its folder, {shard[:100]!r}: lay all files of the model into one")
    return place


def _read(shard: str, path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except DamagedFile as error:
        raise DamagedFile(f"names {shard[:100]}, which {error}") from None
