"""What a module holds, remembered: to see whether it changed, and to put it back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.modules import all_modules, all_tensors, parts_among
from pytest_modelbudget.backends.torch.stored import has_class_of_its_own, is_wrapper

CONTAINERS = frozenset({dict, OrderedDict, list, set})


class Held:
    """The attributes of a module as they are now, with what is in its dicts, lists and sets (not what is in those)."""

    __slots__ = ("_contents", "_empty", "_full", "_names", "_other", "_values")

    def __init__(self, module: nn.Module, names: dict[tuple[str, ...], tuple[str, ...]]) -> None:
        found = tuple(vars(module))
        self._names = names.setdefault(found, found)  # once for all modules of a class: models have many
        self._values = tuple(vars(module).values())
        self._other: tuple[Any, ...] = ()  # the same with the other training flag, once it was seen
        containers = [value for value in self._values if type(value) in CONTAINERS]
        self._empty: list[Any] = [value for value in containers if not value]
        self._full: list[Any] = [value for value in containers if value]
        self._contents: list[Any] = [value.copy() for value in self._full]

    def same(self, module: nn.Module) -> bool:
        """Whether it still holds the same objects, in the same order; its training flag may be another."""
        own = module.__dict__
        try:
            return (
                tuple(own) == self._names
                and (
                    (values := tuple(own.values())) == self._values
                    or values == self._other
                    or self._but_for_training(values)
                )
                and not any(self._empty)
                and self._full == self._contents
            )
        except (RuntimeError, ValueError):  # two tensors or arrays were compared, so they are not the same one
            return False

    def _but_for_training(self, values: tuple[Any, ...]) -> bool:
        if "training" not in self._names:
            return False
        place = self._names.index("training")
        self._other = (*self._values[:place], values[place], *self._values[place + 1 :])
        return values == self._other

    def put_back(self, module: nn.Module) -> None:
        """Make it hold again what it held, but for its training flag; its containers stay the same objects."""
        if self.same(module):
            return
        training = module.training
        vars(module).clear()
        vars(module).update(zip(self._names, self._values, strict=True))
        if "training" in self._names:
            vars(module)["training"] = training
        for value in self._empty:
            value.clear()
        for value, content in zip(self._full, self._contents, strict=True):
            value.clear()
            if type(value) is list:
                value.extend(content)
            else:
                value.update(content)


class Holdings:
    """What all modules of a model hold between two passes.

    `modules` are these modules, and `parts` those that are a part of another one, by id; `has_kernels` when classes of
    weights choose themselves what runs, so that on another device it is other code.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._held: dict[int, tuple[nn.Module, Held]] = {}
        held = all_tensors(all_modules(model))
        own = [tensor for tensor in held if has_class_of_its_own(tensor)]
        self._weights = [(tensor, tensor.data, dict(vars(tensor))) for tensor in own]
        self.has_kernels = bool(own) or any(map(is_wrapper, held))
        self.refresh()

    def refresh(self) -> None:
        """From now on it is what they hold now; a weight that a layer packed while it ran is again as it was."""
        self._put_back_weights()
        if self._held and all(held.same(module) for module, held in self._held.values()):
            return
        self.modules: Sequence[nn.Module] = all_modules(self._model)
        self.parts = parts_among(self.modules)
        held = [module for module in self.modules if not isinstance(module, torch.jit.ScriptModule)]
        self._held = {id(module): (module, self.of(module)) for module in held}

    def of(self, module: nn.Module) -> Held:
        """What a module holds now."""
        known = self._held.get(id(module))
        return known[1] if known is not None and known[1].same(module) else Held(module, self._names)

    def put_back(self) -> None:
        """Undo what was done to any module."""
        self._put_back_weights()
        with torch._C._DisableTorchDispatch():
            for module, held in self._held.values():
                held.put_back(module)

    def _put_back_weights(self) -> None:
        with torch._C._DisableTorchDispatch():
            for tensor, data, attributes in self._weights:
                tensor.data = data
                vars(tensor).clear()
                vars(tensor).update(attributes)
