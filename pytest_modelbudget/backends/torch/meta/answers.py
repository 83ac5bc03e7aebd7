"""Decisions by values: noted in a real pass, and given in passes on the meta device, which has no values.

Such a decision is a number that leaves torch (`bool(mask.any())`), or how many elements an operator picks (`nonzero`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch

from pytest_modelbudget.backends.torch.compat import OpOverload, tree_map_only
from pytest_modelbudget.backends.torch.meta.dispatch import MetaDispatcher, RealDispatcher
from pytest_modelbudget.backends.torch.meta.readings import read_operands
from pytest_modelbudget.backends.torch.meta.sparse import to_meta
from pytest_modelbudget.backends.torch.model.meta_tensors import META
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.errors import ModelBudgetError

Place = Callable[[], str | None]
"""The path of the module at work; None where no answer of the model's is asked for."""

_INDEX_LISTS = frozenset({"torchvision::nms"})
"""Operators that pick by values though torch does not tag them."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What operators answered in one pass, by the module that asked and the operator, in their order.

    A number is itself; for what has tensors these are on meta. `given` counts what was given of each list.
    """

    noted: Mapping[tuple[str, str], list[Any]]
    given: dict[tuple[str, str], int] = field(default_factory=dict)

    def next(self, path: str, operator: str) -> Any:
        """The answer to the next question of this module: of each pass the same, so they begin anew after the last.

        A block that is recomputed asks outside of its module: it gets an answer that all modules got.

        Raises:
            ModelBudgetError: nothing like it was asked in the real pass.
        """
        key = path, operator
        if answers := self.noted.get(key):
            count = self.given[key] = self.given.get(key, 0) + 1
            return answers[(count - 1) % len(answers)]
        others = [answer for (_, name), answers in self.noted.items() if name == operator for answer in answers]
        if not others or any(isinstance(other, torch.Tensor) or other != others[0] for other in others):
            raise _otherwise()
        return others[0]

    def check(self) -> None:
        """Check that passes asked as the real one did.

        Raises:
            ModelBudgetError: one asked for more or for less.
        """
        if any(count % len(self.noted[key]) for key, count in self.given.items()):
            raise _otherwise()


def _otherwise() -> ModelBudgetError:
    return ModelBudgetError(
        "the model decides by values, and asks for others in the recorded steps than in a pass on values"
    )


class NotingDispatcher(RealDispatcher):
    """Runs operators on values, notes what is decided by them, and refuses results of more than `most` bytes."""

    def __init__(self, place: Place, too_large: Callable[[], Exception], most: float) -> None:
        super().__init__()
        self.noted: defaultdict[tuple[str, str], list[Any]] = defaultdict(list)
        self._place, self._too_large, self._most = place, too_large, most

    def run(self, func: Any, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of `func`; what would be too large is refused before it takes memory, where torch can tell."""
        if self._most < inf and _bytes_to_come(func, args, kwargs) > self._most:
            raise self._too_large()
        out = super().run(func, operands, args, kwargs)
        if not _takes_none(func) and _largest(out) > self._most:  # how much it is follows from values
            raise self._too_large()
        if _decides(func, operands, args):
            answer = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().to(META), out)
            self.noted[self._place() or "", func.name()].append(answer)
        return out


class AnsweringDispatcher(MetaDispatcher):
    """Runs operators on meta; what only values could tell is as it was in a real pass."""

    def __init__(self, answers: Answers, place: Place, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._answers, self._place = answers, place

    def run(self, func: Any, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of `func`."""
        if not _decides(func, operands, args) or (place := self._place()) is None:
            return super().run(func, operands, args, kwargs)
        answer = self._answers.next(place, func.name())
        return tree_map_only(torch.Tensor, torch.empty_like, answer)


def _bytes_to_come(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Bytes of the largest tensor that an operator is going to make; 0 where only running it tells."""
    if _takes_none(func):
        return 0
    try:
        on_meta = tree_map_only(torch.Tensor, to_meta, (args, kwargs))
        where = {"device": META} if "device" in {argument.name for argument in func._schema.arguments} else {}
        return _largest(func(*on_meta[0], **{**on_meta[1], **where}))
    except Exception:  # it has no kernel for meta, or needs values
        return 0


def _takes_none(func: Any) -> bool:
    """Whether an operator gives what is there already."""
    return not isinstance(func, OpOverload) or func.is_view or func._schema.is_mutable


def _largest(results: Any) -> int:
    return max((tensor.numel() * tensor.element_size() for tensor in tensors(results)), default=0)


def _decides(func: Any, operands: list[torch.Tensor], args: tuple[Any, ...]) -> bool:
    """Whether values of operands decide what comes next, or how large a result is."""
    if not isinstance(func, OpOverload):
        return False
    if func.name() in _INDEX_LISTS:
        return True
    read_of = read_operands(func)
    return read_of is not None and any(True for _ in read_of(operands, args))
