"""What a module holds, remembered: to see whether it changed, and to put it back."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.modules import all_modules

CONTAINERS = frozenset({dict, OrderedDict, list, set})


class Held:
    """The attributes of a module as they are now, with what is in its dicts, lists and sets (not what is in those)."""

    __slots__ = ("_attributes", "_contents", "_empty", "_full")

    def __init__(self, module: nn.Module) -> None:
        self._attributes = vars(module).copy()
        found = [value for value in self._attributes.values() if type(value) in CONTAINERS]
        self._empty: list[Any] = [value for value in found if not value]
        self._full: list[Any] = [value for value in found if value]
        self._contents: list[Any] = [value.copy() for value in self._full]

    def same(self, module: nn.Module) -> bool:
        """Whether it still holds the same objects; its training flag may be another."""
        self._attributes["training"] = module.training
        try:
            return module.__dict__ == self._attributes and not any(self._empty) and self._full == self._contents
        except RuntimeError:  # two tensors were compared, so they are not the same one
            return False

    def put_back(self, module: nn.Module) -> None:
        """Make it hold again what it held, but for its training flag; its containers stay the same objects."""
        if self.same(module):
            return
        vars(module).clear()
        vars(module).update(self._attributes)
        for value in self._empty:
            value.clear()
        for value, content in zip(self._full, self._contents, strict=True):
            value.clear()
            if type(value) is list:
                value.extend(content)
            else:
                value.update(content)


class Holdings:
    """What all modules of a model hold between two passes."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._held: dict[int, tuple[nn.Module, Held]] = {}
        self.refresh()

    def refresh(self) -> None:
        """From now on it is what they hold now."""
        modules = [one for one in all_modules(self._model) if not isinstance(one, torch.jit.ScriptModule)]
        self._held = {id(module): (module, self.of(module)) for module in modules}

    def of(self, module: nn.Module) -> Held:
        """What a module holds now."""
        known = self._held.get(id(module))
        return known[1] if known is not None and known[1].same(module) else Held(module)

    def put_back(self) -> None:
        """Undo what was done to any module."""
        with torch._C._DisableTorchDispatch():
            for module, held in self._held.values():
                held.put_back(module)
