"""Weights that a builder would have downloaded only to load them into its model: it goes without them.

Inside, `torch.hub.load_state_dict_from_url` downloads nothing, and gives a `Checkpoint` that `load_state_dict` takes
and that refuses all else: who wants to know anything of it is built again with the real file. So is a model with hooks
that see what is loaded. A file that is there is read as ever. Not noticed: weights that do not fit the model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import nn

from pytest_modelbudget.backends.patching import SharedChange, patch_all
from pytest_modelbudget.backends.torch.model.unknown_values import note_refusal


class UnknownCheckpoint(RuntimeError):
    """A builder did more with weights than to load them into a module."""


def _refuse(*_: Any, **__: Any) -> NoReturn:
    note_refusal()
    raise UnknownCheckpoint("the builder reads weights that are to be downloaded")


class Checkpoint:
    """Stands for a checkpoint that was not downloaded, and for what loading it says; all that is asked is refused."""

    __slots__ = ()
    __getattribute__ = __setattr__ = __delattr__ = _refuse
    __iter__ = __len__ = __contains__ = __bool__ = __getitem__ = __setitem__ = __delitem__ = __reversed__ = _refuse
    __eq__ = __ne__ = __lt__ = __gt__ = __hash__ = __str__ = __repr__ = __format__ = _refuse
    __or__ = __ror__ = __call__ = __int__ = __float__ = __index__ = __copy__ = __deepcopy__ = __reduce_ex__ = _refuse


class _Entries:
    """What a module's own `_load_from_state_dict` gets: it has each key, whose value is refused."""

    def __contains__(self, key: object) -> bool:
        return True

    def __delitem__(self, key: object) -> None:
        """As if it were taken out."""

    def __getattr__(self, name: str) -> Any:
        _refuse()

    __iter__ = __len__ = __bool__ = __getitem__ = _refuse


def _patches() -> Iterator[tuple[Any, str, Any]]:
    paths: set[str] = set()
    download, load = torch.hub.download_url_to_file, torch.load
    load_into, load_from = nn.Module.load_state_dict, nn.Module._load_from_state_dict
    caller = torch.hub.load_state_dict_from_url.__code__

    def download_url_to_file(url: str, dst: str, *args: Any, **kwargs: Any) -> None:
        if sys._getframe(1).f_code is caller:
            paths.add(os.path.abspath(dst))
        else:
            download(url, dst, *args, **kwargs)

    def load_or_stand_in(f: Any, *args: Any, **kwargs: Any) -> Any:
        is_ours = sys._getframe(1).f_code is caller and os.path.abspath(f) in paths
        return Checkpoint() if is_ours and not os.path.exists(f) else load(f, *args, **kwargs)

    def load_state_dict(module: nn.Module, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        if type(state_dict) is not Checkpoint:
            return load_into(module, state_dict, strict, assign)
        if assign or any(map(_has_hooks, module.modules())):
            _refuse()
        for submodule in filter(_loads_itself, module.modules()):
            submodule._load_from_state_dict(_Entries(), "", {}, strict, [], [], [])
        return Checkpoint()

    def load_from_state_dict(module: nn.Module, state_dict: Any, *args: Any) -> None:
        if type(state_dict) is not _Entries:
            load_from(module, state_dict, *args)

    yield torch.hub, "download_url_to_file", download_url_to_file
    yield torch, "load", load_or_stand_in
    yield nn.Module, "load_state_dict", load_state_dict
    yield nn.Module, "_load_from_state_dict", load_from_state_dict


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks)


def _loads_itself(module: nn.Module) -> bool:
    """Whether its class has a way of its own to load, which torch's own modules take only for values."""
    owner = next(kind for kind in type(module).__mro__ if "_load_from_state_dict" in vars(kind))
    return owner is not nn.Module and not owner.__module__.startswith("torch.")


def _change() -> Callable[[], object]:
    return patch_all(_patches())


NO_DOWNLOADS = SharedChange(_change)
