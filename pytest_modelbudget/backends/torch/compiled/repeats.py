"""Which blocks of a model do the same, one after the other: found by a pass that notes each operator.

A block is a module of an `nn.ModuleList` or `nn.Sequential`. What it does is a list of operators, with the shapes of
what they give; what they read is the block's own (a result, a weight by its place), a result of the block before, or
what is there for all blocks. Attributes say nothing here: a block that knows its index is like its neighbours where it
does nothing with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_modelbudget.backends.torch.compat import tree_flatten, tree_leaves
from pytest_modelbudget.backends.torch.model.modules import all_modules
from pytest_modelbudget.backends.torch.model.pytree import storage_key

LEAST_UNITS = 4
"""From so many like units in a row on, leaving out those in the middle pays for the pass that finds them."""

_LONGEST_PERIOD = 8
_CONTAINERS = (nn.ModuleList, nn.Sequential)


@dataclass(frozen=True, slots=True)
class Repeats:
    """`units` like units of `period` blocks each in `container`, from the index `first` on.

    The last of them may be that of the model (`is_last`), which is not like the others where a graph treats its end in
    another way.
    """

    container: nn.Module
    first: int
    period: int
    units: int
    is_last: bool = False

    @property
    def left_out(self) -> range:
        """Indices of the blocks between the first and the last unit."""
        return range(self.first + self.period, self.first + (self.units - 1) * self.period)

    def with_first(self) -> Repeats:
        """These, and the unit before them, whose blocks may begin in another way."""
        return replace(self, first=self.first - self.period, units=self.units + 1)

    def without_last(self) -> Repeats:
        """These, but for the last unit of the model."""
        return replace(self, units=self.units - self.is_last, is_last=False)


def lists_of_blocks(model: nn.Module) -> list[nn.Module]:
    """Where blocks may repeat in `model`."""
    return [module for module in all_modules(model) if isinstance(module, _CONTAINERS) and _may_repeat(module)]


def _may_repeat(container: nn.Module) -> bool:
    """Whether enough modules in `container` have the same weights."""
    shapes = Counter((type(block), *(weight.shape for weight in block.parameters())) for block in container.children())
    return max(shapes.values(), default=0) > LEAST_UNITS


@dataclass(slots=True)
class _Section:
    """What runs from a call of a block to the next one: signatures of operators, of which `inside` are the block's.

    The `outline` says which operators these are, and the shapes that they give.
    """

    block: int
    number: int
    weights: dict[int, int]
    signatures: list[Hashable] = field(default_factory=list)
    outline: list[Hashable] = field(default_factory=list)
    inside: int = 0


class Survey(TorchDispatchMode):  # type: ignore[misc]
    """Notes what `call` runs, in sections: one for each call of a block of `containers` that is in no other."""

    def __init__(self, containers: Sequence[nn.Module], call: Callable[[], Sequence[torch.Tensor]]) -> None:
        super().__init__()
        self.containers = containers
        self._blocks = [block for container in containers for block in container.children()]
        self._depth = 0
        self._section = _Section(0, 0, {})
        self._in_turn = [self._section]
        self._sections: dict[int, list[_Section]] = {}
        self._number = 0
        self._made: dict[int, tuple[torch.Tensor, int, int]] = {}  # by storage: its first tensor, section, and place
        self.returned: Sequence[torch.Tensor] = ()
        if containers:
            with self._watching_blocks(), self:
                self.returned = call()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves, spec = tree_flatten((args, kwargs))
        operands = tuple(map(self._operand, leaves))
        out = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        position = len(self._section.signatures)
        layouts, has_graph = tuple(map(_layout, results)), torch.is_grad_enabled()
        self._section.signatures.append((func, spec, operands, layouts, has_graph))
        plain = tuple([operand for operand, leaf in zip(operands, leaves, strict=True) if not _is_tensor(leaf)])
        self._section.outline.append((func, plain, layouts))
        for index, result in enumerate(results):
            self._made.setdefault(storage_key(result), (result, self._number, (position << 8) + index))
        return out

    def _operand(self, leaf: Any) -> Hashable:
        if not isinstance(leaf, torch.Tensor):
            return type(leaf), repr(leaf) if isinstance(leaf, float) else leaf  # nan is not nan
        if not leaf.numel():  # what a cache begins with
            return "empty", *_layout(leaf)
        key = storage_key(leaf)
        if (weight := self._section.weights.get(key)) is not None:
            return "weight", weight, *_layout(leaf)
        if (origin := self._made.get(key)) is not None and self._number - origin[1] < 2:
            return "made", self._number - origin[1], origin[2], *_layout(leaf)
        return "there", key, *_layout(leaf)

    @contextmanager
    def _watching_blocks(self) -> Iterator[None]:
        """Inside, calls of blocks begin sections."""
        with ExitStack() as stack:
            for block in self._blocks:
                stack.callback(block.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
                stack.callback(block.register_forward_hook(self._leave, always_call=True).remove)
            yield

    def _enter(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        tensors = [*block.parameters(), *block.buffers()]
        self._number += 1
        weights = {storage_key(weight): position for position, weight in enumerate(tensors)}
        self._section = _Section(id(block), self._number, weights)
        self._in_turn.append(self._section)
        self._sections.setdefault(id(block), []).append(self._section)
        leaves, spec = tree_flatten((args, kwargs))
        arguments = tuple([(self._operand(leaf), _needs_gradient(leaf)) for leaf in leaves])
        layouts = tuple([(weight.requires_grad, *_layout(weight)) for weight in tensors])
        modules = tuple([(type(module), module.training) for module in block.modules()])
        self._section.signatures.append((modules, spec, arguments, layouts))

    def _leave(self, block: nn.Module, args: Any, out: Any) -> None:
        self._depth -= 1
        if not self._depth:
            self._section.inside = len(self._section.signatures)

    def outline(self, left_out: Collection[int] = ()) -> list[tuple[int, list[Hashable]]]:
        """The operators of all sections in order, but for those of blocks whose `id` is among those `left_out`."""
        return [(section.block, section.outline) for section in self._in_turn if section.block not in left_out]

    def makers(self, left_out: Collection[int] = ()) -> list[tuple[int, int] | None]:
        """By which block each returned tensor was made, and at which place in its section; without those `left_out`."""
        origins = [self._made.get(storage_key(tensor)) for tensor in self.returned]
        makers = [(self._in_turn[origin[1]].block, origin[2]) if origin else None for origin in origins]
        return [maker for maker in makers if maker is None or maker[0] not in left_out]

    def repeats(self) -> tuple[Repeats, ...]:
        """The like blocks."""
        return tuple([repeats for container in self.containers for repeats in self._repeats(container)])

    def _repeats(self, container: nn.Module) -> Iterator[Repeats]:
        """The like units in `container`, which follow each other in the pass."""
        numbers: dict[Hashable, int] = {}
        signatures: list[int] = []
        sections = [self._sections.get(id(block), []) for block in container.children()]
        for position, (section, *more_calls) in enumerate(sections[:-1] if all(sections) else ()):
            in_turn = not more_calls and section.number == sections[0][0].number + position
            key: Hashable = tuple(section.signatures) if in_turn else ("alone", position)
            signatures.append(numbers.setdefault(key, len(numbers)))
        start_of_run = 0
        while start_of_run < len(signatures):
            period, units = _most_units(signatures, start_of_run)
            end, start = (
                start_of_run + period * units,
                max(start_of_run, period),
            )  # what all share is made in the first blocks
            if (units := (end - start) // period) >= LEAST_UNITS - 1:
                is_last = end == len(signatures) and _ends_alike(sections[-1], sections[-1 - period])
                yield Repeats(container, start, period, units + is_last, is_last)
                start_of_run = end
            else:
                start_of_run += 1


def _ends_alike(last_calls: Sequence[_Section], earlier_calls: Sequence[_Section]) -> bool:
    """Whether the last block does the same as one before it, and something follows that is not mixed with it."""
    section, inside = last_calls[0], last_calls[0].inside
    is_alike = section.signatures[:inside] == earlier_calls[0].signatures[:inside]
    return len(last_calls) == 1 and inside < len(section.signatures) and is_alike


def _most_units(signatures: Sequence[int], first: int) -> tuple[int, int]:
    """The period with which most blocks from `first` on are like those before them, and the number of its units."""

    def units(period: int) -> int:
        end = first + period
        while end < len(signatures) and signatures[end] == signatures[end - period]:
            end += 1
        return (end - first) // period

    every = [(period, units(period)) for period in range(1, _LONGEST_PERIOD + 1)]
    return max(every, key=lambda pair: pair[0] * (pair[1] - 2))


def _layout(tensor: torch.Tensor) -> tuple[Hashable, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def _needs_gradient(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.requires_grad
