"""JSON and archives of strangers, read within bounds."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

JSON_BYTES = 8 << 20
"""What a config may take at most in a small file; Keras stores parts as they are, so that a large one has more."""

WEIGHTS_BYTES = 64 << 20
"""What compressed weights may unpack to in a small file."""

_MAX_JSON_BYTES = 64 << 20
"""What a config may take at most anywhere; it takes several times as much once it is read."""

_MAX_DEPTH = 300
"""Levels of a config: Keras needs more than three calls within each other for each."""

_TOO_DEEP = f"is damaged: its config has more than {_MAX_DEPTH} levels, and no model has so many"
_KNOWN_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1


class FileUnreadable(Exception):
    """Why a file is not read, as the end of a sentence that begins with its name."""


class FileParts:
    """The parts of a `.keras` file by name, or those of a folder.

    What takes more memory than the file could mean is refused, by what it declares and by what comes out.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile | None) -> None:
        self._path = path
        self._archive = archive
        self._size = path.stat().st_size
        infos = [] if archive is None else archive.infolist()
        self._infos = {info.filename: info for info in infos}
        self._counts = Counter(info.filename for info in infos)

    def __contains__(self, name: str) -> bool:
        return (self._path / name).is_file() if self._archive is None else name in self._infos

    def json(self, name: str) -> Any:
        """The content of a part that is JSON."""
        with self._opened(name, JSON_BYTES) as raw:
            text = raw.read(_MAX_JSON_BYTES + 1)
        if len(text) > _MAX_JSON_BYTES:
            raise FileUnreadable(f"is damaged: {name} in it has more than {_MAX_JSON_BYTES:,} bytes")
        return parse_json(text)

    @contextmanager
    def seekable(self, name: str) -> Iterator[IO[bytes]]:
        """A part to read here and there; a compressed one is unpacked, since each step back would do that anew."""
        with self._opened(name, WEIGHTS_BYTES) as raw:
            if self._archive is None or self._infos[name].compress_type == zipfile.ZIP_STORED:
                yield raw
                return
            with tempfile.SpooledTemporaryFile(WEIGHTS_BYTES) as unpacked:
                shutil.copyfileobj(raw, unpacked)
                unpacked.seek(0)
                yield unpacked

    def _opened(self, name: str, least: int) -> IO[bytes]:
        if self._archive is None:
            return (self._path / name).open("rb")
        info = self._infos[name]
        if self._counts[name] > 1:
            raise FileUnreadable(f"is damaged: there is more than one {name} in it")
        if info.flag_bits & _ENCRYPTED:
            raise FileUnreadable("is encrypted, and Keras does not read such files: save the model again")
        if info.compress_type not in _KNOWN_COMPRESSIONS:
            raise FileUnreadable(f"is no file of Keras: {name} is compressed in another way, save the model again")
        if info.file_size > max(least, self._size):
            raise FileUnreadable(
                f"is not unpacked: {name} would take {info.file_size:,} bytes, of a file of {self._size:,}. Save the "
                "model again, since Keras does not compress its files"
            )
        return self._archive.open(info)


def parse_json(raw: bytes) -> Any:
    """What JSON says."""
    try:
        content = json.loads(raw.decode("utf-8"))
    except RecursionError:
        raise FileUnreadable(_TOO_DEEP) from None
    level = [content]
    for _ in range(_MAX_DEPTH):
        level = [item for value in level for item in _items(value)]
        if not level:
            return content
    raise FileUnreadable(_TOO_DEEP)


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
