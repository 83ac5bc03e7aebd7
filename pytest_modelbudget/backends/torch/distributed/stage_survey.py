"""What a stage of a pipeline needs of a model: found in one forward pass of the whole, which is not recorded.

The model's repeated blocks run one after another; a *position* is the number of blocks that have begun, less one: -1 in
what comes before the first. What runs at the positions of a stage is the stage's, and so is each parameter, buffer or
input that an operator reads there. One that two stages need, such as a tied table, is on both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.patching import all_patched
from pytest_modelbudget.backends.torch.compat import tree_map_only
from pytest_modelbudget.backends.torch.costs.rules import Cost
from pytest_modelbudget.backends.torch.distributed.stage_tensors import CallsSeen, Crossing, Origin
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.model.pytree import storage_key, tensors
from pytest_modelbudget.backends.torch.training.checkpointing import repeated_blocks
from pytest_modelbudget.errors import ModelBudgetError


def blocks_of(model: nn.Module, split: tuple[str, ...] = ()) -> list[str]:
    """The names of the blocks that stages are made of: the repeated ones of the list with most parameters.

    With `split` the children of the module that the first of these names is in.

    Raises:
        ModelBudgetError: there are none.
    """
    parent = split[0].rpartition(".")[0] if split else _largest_list(model)
    modules = dict(model.named_modules())
    if parent is None or parent not in modules:
        raise ModelBudgetError(
            "training.pipeline: the model has no repeated blocks (lists of two or more modules of one class) that "
            "stages could be made of: name the first block of each later stage, split: [layers.8, layers.16]"
            if parent is None
            else f"training.pipeline: split: the model has no module {parent}"
        )
    names = [f"{parent}.{name}" if parent else name for name, _ in modules[parent].named_children()]
    if split:
        return names
    repeated = {id(block) for block in repeated_blocks(model)}
    return [name for name in names if id(modules[name]) in repeated]


def _largest_list(model: nn.Module) -> str | None:
    repeated = {id(block) for block in repeated_blocks(model)}
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        if id(module) in repeated:
            parent = name.rpartition(".")[0]
            sizes[parent] = sizes.get(parent, 0) + sum(parameter.numel() for parameter in module.parameters())
    return max(sizes, key=sizes.__getitem__, default=None)


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found: `hidden` is what each block takes over from the one before, `returned` what it gives.

    `place` is where the former is among the tensors that a block is called with. `used` are the positions at which an
    operator reads each parameter, buffer (by name) and input (by its number). `crossing` are tensors that depend on
    parameters and are read at a later position than they are made at, in the order in which they are made.
    """

    blocks: tuple[str, ...]
    hidden: tuple[torch.Tensor, ...]
    place: int
    returned: tuple[Any, ...]
    used: Mapping[str | int, frozenset[int]]
    crossing: tuple[Crossing, ...]

    def check(self, cut: int) -> None:
        """Refuse a stage that begins with the block `cut`, where what goes on to it cannot be followed.

        Raises:
            ModelBudgetError: naming the block.
        """
        if not all(crossing.origins for crossing in self.handed_on(cut)):
            raise ModelBudgetError(
                f"training.pipeline: {self.blocks[cut]} cannot begin a stage: it needs what earlier blocks made and "
                "did not return (they left it in an attribute, or in a list that they got?): choose other blocks with "
                "split"
            )

    def handed_on(self, cut: int) -> tuple[Crossing, ...]:
        """What a stage that begins with the block `cut` gets of earlier ones beside the first argument of the block."""
        return tuple(
            crossing for crossing in self.crossing if not crossing.is_handed_on(cut) and cut not in crossing.carried
        )

    def is_followed(self, cut: int) -> bool:
        """Whether other code of such a stage than its blocks, one after another, needs what it gets."""
        return not all(crossing.is_handed_on(cut) for crossing in self.crossing)

    def in_range(self, name: str | int, first: int, last: int) -> bool:
        """Whether the stage of blocks from `first` to before `last` needs a tensor.

        One that nobody reads is where its block is; without a block a parameter is at the end, an input at the start.
        """
        positions = self.used.get(name, frozenset())
        if not positions:
            named = (index for index, block in enumerate(self.blocks) if str(name).startswith(f"{block}."))
            positions = frozenset([next(named, len(self.blocks) - 1 if isinstance(name, str) else -1)])
        return any(first <= position < last for position in positions)


class SurveyRecorder(Recorder):
    """Notes at which position each tensor is made and read, instead of what is allocated."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.position = -1
        self._names: dict[int, str | int] = {}
        self._used: dict[str | int, set[int]] = {}
        self._made: dict[int, int] = {}
        self._made_inside: set[int] = set()
        self._origins: dict[int, dict[Origin, torch.Tensor]] = {}
        self.is_inside = False
        self._inside: dict[int, set[int]] = {}
        self._between: dict[int, set[int]] = {}
        self._carried: dict[int, set[int]] = {}
        self._outputs: list[torch.Tensor] = []  # a storage that went could have its key again
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self._names[storage_key(tensor)] = name
        self._parameters = {storage_key(parameter) for parameter in model.parameters()}

    def begin(self, inputs: list[torch.Tensor]) -> None:
        """The pass begins, on these inputs."""
        for number, tensor in enumerate(inputs):
            self._names.setdefault(storage_key(tensor), number)

    def operator(self, cost: Cost, view: bool, operands: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """Note what it reads, and that what it makes depends on parameters where an operand does."""
        depends = False
        for tensor in operands:
            key = storage_key(tensor)
            if (name := self._names.get(key)) is not None and not view:
                self._used.setdefault(name, set()).add(self.position)
            depends = depends or key in self._parameters or key in self._made
            if key in self._made and not view:
                (self._inside if self.is_inside else self._between).setdefault(key, set()).add(self.position)
        for tensor in tensors(out):
            key = storage_key(tensor)
            self._outputs.append(tensor)
            if depends and tensor.is_floating_point() and key not in self._names and key not in self._made:
                self._made[key] = self.position
                if self.is_inside:
                    self._made_inside.add(key)

    def seen(self, origin: Origin, tensor: torch.Tensor) -> None:
        """It shows up there. What a block makes is not known before the block returns it, nor what it keeps."""
        key = storage_key(tensor)
        origins = self._origins.setdefault(key, {})
        is_return = origin.call < 0
        if key in self._made and (is_return or (not origins and key not in self._made_inside)):
            origins[origin] = tensor

    def read(self, parameters: Sequence[torch.Tensor]) -> tuple[str, ...]:
        """What runs now reads these, whatever operators do; gives their names."""
        names = tuple(str(self._names[storage_key(parameter)]) for parameter in parameters)
        for name in names:
            self._used.setdefault(name, set()).add(self.position)
        return names

    def enters(self, index: int, hidden: torch.Tensor) -> None:
        """The block `index` is called with `hidden`."""
        self.position = index
        self._carried.setdefault(storage_key(hidden), set()).add(index)

    def depends(self, tensor: torch.Tensor) -> bool:
        """Whether it was made of parameters."""
        return storage_key(tensor) in self._made

    def survey(self, blocks: tuple[str, ...], calls: BlockCalls) -> Survey:
        """What was noted."""
        return Survey(
            blocks,
            tuple(calls.hidden),
            calls.place,
            tuple(calls.returned),
            {name: frozenset(positions) for name, positions in self._used.items()},
            tuple(self._crossing()),
        )

    def _crossing(self) -> Iterator[Crossing]:
        for key, made_at in self._made.items():
            inside, between = frozenset(self._inside.get(key, ())), frozenset(self._between.get(key, ()))
            if max(inside | between, default=-1) > made_at:
                origins = self._origins.get(key, {})
                first = next(iter(origins.values()), torch.empty(0)).detach()
                yield Crossing(
                    made_at, inside, between, frozenset(self._carried.get(key, ())), tuple(origins), first
                )  # fmt: skip


@dataclass(slots=True)
class BlockCalls:
    """What the blocks of a model took over and gave, in one pass; see `Survey`."""

    place: int = -1
    hidden: list[torch.Tensor] = field(default_factory=list)
    returned: list[Any] = field(default_factory=list)


class _CallsNoted(CallsSeen):
    """Tells a recorder."""

    def __init__(self, recorder: SurveyRecorder) -> None:
        super().__init__()
        self._recorder = recorder

    def seen(self, origin: Origin, tensor: torch.Tensor) -> None:
        self._recorder.seen(origin, tensor)


@contextmanager
def calls_noted(model: nn.Module, blocks: tuple[str, ...], recorder: SurveyRecorder) -> Iterator[BlockCalls]:
    """Inside, `recorder` hears of each block that is called.

    Raises:
        ModelBudgetError: blocks that are called in another order than they are in, or more than once.
    """
    calls, around = BlockCalls(), _CallsNoted(recorder)

    def noting(index: int, original: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if index != len(calls.hidden):
                raise ModelBudgetError(
                    f"training.pipeline: {blocks[index]} is called out of order, or once more, and stages run blocks "
                    "one after another: choose others with split"
                )
            call_tensors = list(tensors((args, kwargs)))
            if calls.place < 0:
                calls.place = _place_of_hidden(call_tensors, recorder.depends)
            hidden = call_tensors[calls.place].detach()
            recorder.enters(index, hidden)
            calls.hidden.append(hidden)
            recorder.is_inside = True
            around.enter_block()
            out = original(*args, **kwargs)
            recorder.is_inside = False
            around.leave_block(index, out)
            calls.returned.append(tree_map_only(torch.Tensor, torch.Tensor.detach, out))
            return out

        return forward

    modules = [model.get_submodule(name) for name in blocks]
    with all_patched([(block, "forward", noting(index, block.forward)) for index, block in enumerate(modules)]), around:
        yield calls
    if len(calls.hidden) != len(blocks):
        raise ModelBudgetError(
            f"training.pipeline: {blocks[len(calls.hidden)]} is not called in a forward pass: choose others with split"
        )


def _place_of_hidden(call_tensors: list[torch.Tensor], depends: Callable[[torch.Tensor], bool]) -> int:
    """The first tensor of floats, and of those that are made of parameters where there is one."""
    floats = [place for place, tensor in enumerate(call_tensors) if tensor.is_floating_point()]
    for place in (*(place for place in floats if depends(call_tensors[place])), *floats):
        return place
    raise ModelBudgetError("training.pipeline: a block is called with no tensor of floats, which stages could hand on")
