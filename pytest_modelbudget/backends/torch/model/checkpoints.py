"""Weights that a builder would have fetched, although nobody reads their values: it goes without them.

`torch.hub` downloads a file and `torch.load` reads it. Inside, nothing is downloaded, the file that is not there is a
`Checkpoint` whatever is asked of it, and `load_state_dict` of one does nothing. A file that is there is read as ever.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import nn

from pytest_modelbudget.backends.patching import SharedChange, patch_all
from pytest_modelbudget.backends.torch.model.unknown_values import note_refusal


class UnknownCheckpoint(RuntimeError):
    """A builder did more with weights than to load them into a module."""


class Checkpoint(dict[Any, Any]):
    """Stands for a checkpoint that was not fetched, and for each part of one."""

    def __getitem__(self, key: Any) -> Checkpoint:
        return self

    def get(self, key: Any, default: Any = None) -> Checkpoint:
        """A part of it."""
        return self

    def pop(self, key: Any, *default: Any) -> Checkpoint:
        """A part of it."""
        return self

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        note_refusal()
        raise UnknownCheckpoint("the builder reads weights that are to be downloaded")

    __iter__ = __len__ = __contains__ = __bool__ = keys = values = items = copy = update = _refuse


class _Downloads:
    """The files that would have been downloaded."""

    def __init__(self) -> None:
        self.paths: set[str] = set()

    def patches(self) -> Iterator[tuple[Any, str, Any]]:
        load, load_into = torch.load, nn.Module.load_state_dict

        def download(url: str, dst: str, *args: Any, **kwargs: Any) -> None:
            self.paths.add(os.path.abspath(dst))

        def load_or_stand_in(f: Any, *args: Any, **kwargs: Any) -> Any:
            return Checkpoint() if self._is_missing(f) else load(f, *args, **kwargs)

        def load_state_dict(module: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(state_dict, Checkpoint):
                return load_into(module, state_dict, *args, **kwargs)
            if kwargs.get("assign") or len(args) > 1:
                state_dict._refuse()
            return type(load_into(nn.Module(), {}))([], [])

        yield torch.hub, "download_url_to_file", download
        yield torch, "load", load_or_stand_in
        yield nn.Module, "load_state_dict", load_state_dict

    def _is_missing(self, file: Any) -> bool:
        return isinstance(file, (str, os.PathLike)) and os.path.abspath(file) in self.paths and not os.path.exists(file)


def _change() -> Callable[[], object]:
    return patch_all(_Downloads().patches())


NO_DOWNLOADS = SharedChange(_change)
