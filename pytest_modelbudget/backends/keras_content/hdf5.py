"""HDF5 files of strangers: texts and shapes of what lies in the file itself.

A file is opened through Python's own file object: by its path, HDF5 would open whatever other files are named in it,
and wait for a pipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import h5py
from h5py import h5d, h5g, h5l, h5o, h5t

from pytest_modelbudget.backends.keras_content.content import Shape
from pytest_modelbudget.backends.keras_content.unpacked import FileUnreadable

_OPTIMIZER_GROUPS = (b"optimizer", b"optimizer_weights")
"""Groups of a file's weights that hold those of its optimizer."""

_MAX_DEPTH = 200
"""Groups within each other, of which Keras makes a few for each level of a model."""


@contextmanager
def open_hdf5(raw: IO[bytes]) -> Iterator[Any]:
    """The HDF5 file in `raw`."""
    with h5py.File(raw, "r") as file:
        yield file


def text(file: Any, name: str, size: int) -> str | None:
    """An attribute that is one text, of a file of `size` bytes; None when there is none.

    Raises:
        Unreadable: it is something else, or longer than the file.
    """
    if name not in file.attrs:
        return None
    attribute = file.attrs.get_id(name)
    kind = attribute.get_type()
    is_text = isinstance(kind, h5t.TypeStringID) and attribute.get_space().get_simple_extent_npoints() == 1
    if not is_text or (not kind.is_variable_str() and kind.get_size() > size):
        raise FileUnreadable(f"is damaged: its {name} is no text")
    value = file.attrs[name]
    value = value if isinstance(value, bytes | str) else value.reshape(-1)[0]
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def shapes(file: Any, group: str = "/") -> list[Shape] | None:
    """The shapes of all datasets of a group, those of the optimizer left out; no dataset is read. None: no such group.

    Raises:
        Unreadable: something lies in another file.
    """
    start = h5g.open(file.id, b"/")
    if group != "/":
        if group not in list(file):
            return None
        start = _member(start, group.encode())
    stored: list[Shape] = []
    visited = set()
    pending = [(start, 0)]
    while pending:
        holder, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise FileUnreadable(f"is damaged: its weights lie more than {_MAX_DEPTH} groups deep")
        for name in holder:
            if depth == 0 and name in _OPTIMIZER_GROUPS:
                continue
            member = _member(holder, name)
            if (address := h5o.get_info(member).addr) in visited:
                continue
            visited.add(address)
            if isinstance(member, h5d.DatasetID):
                stored.append(_shape(member))
            elif isinstance(member, h5g.GroupID):
                pending.append((member, depth + 1))
    return stored


def _member(holder: Any, name: bytes) -> Any:
    if holder.links.get_info(name).type != h5l.TYPE_HARD:
        raise FileUnreadable(
            f"is no file of Keras: {_name_text(name)!r} in it is a link, and its weights lie elsewhere"
        )
    return h5o.open(holder, name)


def _shape(dataset: Any) -> Shape:
    creation = dataset.get_create_plist()
    if creation.get_layout() == h5d.VIRTUAL or creation.get_external_count():
        raise FileUnreadable("is no file of Keras: weights in it lie in other files")
    return tuple(map(int, dataset.shape))


def _name_text(name: bytes) -> str:
    return name[:100].decode("utf-8", "replace")
