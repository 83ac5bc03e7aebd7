"""What a module holds, remembered: to see whether it changed, and to put it back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import compress, filterfalse, islice
from operator import is_
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.compat import no_dispatch
from pytest_modelbudget.backends.torch.model.modules import all_modules, all_tensors, part_ids_among
from pytest_modelbudget.backends.torch.model.packed_layers import is_ordinary
from pytest_modelbudget.backends.torch.model.stored_tensors import has_class_of_its_own, is_wrapper

CONTAINERS = frozenset({dict, OrderedDict, list, set})


class AttributeSnapshot:
    """The attributes of modules as they are now, with what is in their dicts, lists and sets (not what is in those).

    `sizes` says how many each of the modules has; `names` and `values` are all of them in a row, which is compared many
    times faster than module by module.
    """

    __slots__ = ("_contents", "_empty", "_full", "_other", "modules", "names", "sizes", "values")

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        self.sizes, self.names, self.values = _attributes(modules)
        self._other: list[Any] = []  # the same with other training flags, once these were seen
        containers = list(compress(self.values, map(CONTAINERS.__contains__, map(type, self.values))))
        self._empty: list[Any] = list(filterfalse(None, containers))
        self._full: list[Any] = list(filter(None, containers))
        self._contents: list[Any] = [value.copy() for value in self._full]

    def is_unchanged(self) -> bool:
        """Whether they still hold the same objects, in the same order; their training flags may be others."""
        sizes, names, values = _attributes(self.modules)
        try:
            return (
                sizes == self.sizes
                and names == self.names
                and (values == self.values or values == self._other or self._but_for_training(values))
                and not any(self._empty)
                and self._full == self._contents
            )
        except (RuntimeError, ValueError):  # two tensors or arrays were compared, so they are not the same one
            return False

    def _but_for_training(self, values: list[Any]) -> bool:
        self._other = self.values.copy()
        for place in [place for place, name in enumerate(self.names) if name == "training"]:
            self._other[place] = values[place]
        return values == self._other

    def restore(self) -> None:
        """Make them hold again what they held, but for their training flags; containers stay the same objects."""
        if self.is_unchanged():
            return
        attributes = zip(self.names, self.values, strict=True)
        for module, size in zip(self.modules, self.sizes, strict=True):
            current, saved = vars(module), dict(islice(attributes, size))
            if "training" in saved:
                saved["training"] = module.training
            if [*current] != [*saved] or not all(map(is_, current.values(), saved.values())):
                current.clear()
                current.update(saved)
        for value in self._empty:
            value.clear()
        for value, content in zip(self._full, self._contents, strict=True):
            value.clear()
            if type(value) is list:
                value.extend(content)
            else:
                value.update(content)


def _attributes(modules: Sequence[nn.Module]) -> tuple[list[int], list[str], list[Any]]:
    """How many attributes each module holds, the names of all of them, and their values."""
    sizes: list[int] = []
    names: list[str] = []
    values: list[Any] = []
    for module in modules:
        dicts = module.__dict__
        sizes.append(len(dicts))
        names += dicts
        values += dicts.values()
    return sizes, names, values


class ModuleAttributes:
    """What all modules of a model hold between two passes.

    `modules` are these modules, `unusual` those among them that may hold packed weights, and `parts` those that are a
    part of another one, by id; `has_kernels` when classes of weights choose themselves what runs, so that on another
    device it is other code.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._read()
        tensors = all_tensors(self.modules)
        custom = [tensor for tensor in tensors if has_class_of_its_own(tensor)]
        self._weights = [(tensor, tensor.data, dict(vars(tensor))) for tensor in custom]
        self.has_kernels = bool(custom) or any(map(is_wrapper, tensors))

    def _read(self) -> None:
        self.modules: Sequence[nn.Module] = all_modules(self._model)
        self.unusual = [module for module in self.modules if not is_ordinary(module)]
        self.parts = part_ids_among(self.modules)
        self._snapshot = AttributeSnapshot(
            [module for module in self.modules if not isinstance(module, torch.jit.ScriptModule)]
        )

    def refresh(self) -> None:
        """From now on it is what they hold now; a weight that a layer packed while it ran is again as it was."""
        self._restore_weights()
        if not self._snapshot.is_unchanged():
            self._read()

    def restore(self) -> None:
        """Undo what was done to any module."""
        self._restore_weights()
        with no_dispatch():
            self._snapshot.restore()

    def _restore_weights(self) -> None:
        with no_dispatch():
            for tensor, data, attributes in self._weights:
                tensor.data = data
                vars(tensor).clear()
                vars(tensor).update(attributes)
