"""Real runs in which choices by values fall otherwise than in the plain run, to see what depends on them.

How many elements a mask picks is no number of the model, and two runs on other values may pick as many by chance, or
take the same side of a branch. What is perturbed was computed from weights or inputs without given values:

- masks: where a mask is first used to pick, only its first element goes on to be picked (of a mask that picks at most
  one, one more is), and of a list of indices chosen by scores the first stays, so that shapes that follow are others,
  also where a model caps their number; where values themselves are counted (`unique`), there is one more;
- decisions: a condition that is read is answered the other way, a number that is read is another one. That a mask picks
  nothing where it does pick something is not said: what was to be picked would be done nowhere.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_modelbudget.backends.torch.compat import tree_map_only
from pytest_modelbudget.backends.torch.model.pytree import storage_key, tensors

Perturbation = Literal["masks", "decisions"]

_MAX_PERTURBATIONS = 8
"""How often each operator is answered otherwise: a loop may go on until the answer is another."""

_INDEX_LIST_OPERATORS = {"torchvision::nms"}
"""Operators that give a list of indices chosen by values, though torch does not tag them."""

_MASKS = (torch.bool, torch.uint8)

_READ_SCALAR = torch.ops.aten._local_scalar_dense.default
_FIXED_REDUCTIONS = {"aten::any": True, "aten::all": False}
"""Reductions that ask whether a mask picks anything, and the answer that is kept."""


class PerturbingRunner:
    """Runs operators on values, with masks or decisions that are not those of the plain run."""

    def __init__(self, kind: Perturbation, roots: list[torch.Tensor]) -> None:
        self.operators: dict[Any, Any] = {}
        self._kind = kind
        self._uncertain: dict[int, StorageWeakRef] = {}  # a weak reference holds the address, not the memory
        self._perturbed_masks: set[int] = set()
        self._fixed_answers: dict[int, bool] = {}  # answers that are kept, by the storage that holds them
        self._counts: Counter[str] = Counter()
        for tensor in roots:
            self._mark_uncertain(tensor)

    def run(self, func: Any, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of `func`, perturbed."""
        uncertain = [tensor for tensor in operands if storage_key(tensor) in self._uncertain]
        has_dynamic_shape = bool(uncertain) and torch.Tag.dynamic_output_shape in getattr(func, "tags", ())
        masks = (
            [tensor for tensor in uncertain if tensor.dtype in _MASKS]
            if has_dynamic_shape and self._kind == "masks"
            else []
        )
        if masks:
            args, kwargs = self._perturb_masks(func, masks, args, kwargs)
        out = func(*args, **kwargs)
        if has_dynamic_shape and self._kind == "masks" and not masks and "index" not in str(func.name()):
            out = _with_last_twice(out)
        if uncertain or (not operands and "rand" in str(func)):
            self._propagate(func, out)
        if not uncertain:
            return out
        if self._kind == "decisions":
            return self._perturb_read(out, uncertain[0]) if func is _READ_SCALAR else out
        return out[:1] if str(func.name()) in _INDEX_LIST_OPERATORS else out

    def note_read(self, read_tensors: list[torch.Tensor]) -> None:
        """Values that leave torch without an operator are what they are."""

    def _mark_uncertain(self, tensor: torch.Tensor) -> None:
        key = storage_key(tensor)
        if key > 0 and key not in self._uncertain:
            self._uncertain[key] = StorageWeakRef(tensor.untyped_storage())

    def _propagate(self, func: Any, out: Any) -> None:
        """What comes from uncertain values is uncertain."""
        fixed_answer = _FIXED_REDUCTIONS.get(str(getattr(func, "_schema", func)).partition("(")[0].partition(".")[0])
        for tensor in tensors(out):
            self._mark_uncertain(tensor)
            if fixed_answer is not None:
                self._fixed_answers[storage_key(tensor)] = fixed_answer

    def _perturb_read(self, value: Any, tensor: torch.Tensor) -> Any:
        """Another value than the one that was read."""
        if self._counts["read"] >= _MAX_PERTURBATIONS or (
            isinstance(value, bool) and self._fixed_answers.get(storage_key(tensor)) is value
        ):
            return value
        self._counts["read"] += 1
        if isinstance(value, bool):
            return not value
        return (value - 1 if value > 0 else value + 1) if isinstance(value, int) else value

    def _perturb_masks(self, func: Any, masks: list[torch.Tensor], args: Any, kwargs: Any) -> tuple[Any, Any]:
        perturbed: dict[int, torch.Tensor] = {}
        for mask in masks:
            if mask.numel() and storage_key(mask) not in self._perturbed_masks:
                perturbed[id(mask)] = self._perturb_mask(str(func.name()), mask)
                self._mark_uncertain(perturbed[id(mask)])
                self._perturbed_masks.add(storage_key(perturbed[id(mask)]))

        def swap(tensor: torch.Tensor) -> torch.Tensor:
            return perturbed.get(id(tensor), tensor)

        return tree_map_only(torch.Tensor, swap, args), tree_map_only(torch.Tensor, swap, kwargs)

    def _perturb_mask(self, name: str, mask: torch.Tensor) -> torch.Tensor:
        """`mask` changed in place, so that who uses it once more sees the same one."""
        picked = mask.nonzero()
        if len(picked) <= 1 and self._counts[name] >= _MAX_PERTURBATIONS:
            return mask
        self._counts[name] += len(picked) <= 1
        perturbed = mask if 0 not in mask.stride() else mask.clone()
        if len(picked) > 1:
            perturbed.zero_()[tuple(picked[0].tolist())] = 1
        elif (unpicked := (~perturbed.bool()).nonzero()).numel():
            perturbed[tuple(unpicked[0].tolist())] = 1
        return perturbed


def _with_last_twice(out: Any) -> Any:
    """The distinct values (and how often each occurs) with the last one twice; indices into them go on being right."""
    if isinstance(out, torch.Tensor):
        return torch.cat((out, out[-1:])) if out.dim() and len(out) else out
    values, inverse, *counts = out
    return _with_last_twice(values), inverse, *map(_with_last_twice, counts)
