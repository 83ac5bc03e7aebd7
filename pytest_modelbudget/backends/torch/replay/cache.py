"""Repeated blocks: a block that was seen twice to do the same is not run a third time; what it did is told again.

Two calls are alike when their modules have one fingerprint (`prints`), their arguments have, nothing around them is
switched differently, and what feeds them is arranged alike. A call is told again only when its like

- wrote to none of its arguments, changed nothing that its modules hold, drew no random numbers,
- left no tensor behind but those it returned, and called no module that is not a part of it,
- and was seen twice in the first pass, with the same effects.

What a forward does to Python objects outside of its module (a counter in a global variable) is not seen.
"""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.nn.parameter import is_lazy

from pytest_modelbudget.backends.torch.compat import no_dispatch, tree_map_only
from pytest_modelbudget.backends.torch.model.attributes import Holdings
from pytest_modelbudget.backends.torch.model.global_state import random_states
from pytest_modelbudget.backends.torch.model.meta_tensors import META
from pytest_modelbudget.backends.torch.model.modules import all_modules, children, unwrapped
from pytest_modelbudget.backends.torch.model.pytree import storage_key, tensors
from pytest_modelbudget.backends.torch.replay.fingerprint import Given, Prints, Unreadable
from pytest_modelbudget.system.debug import DebugLog

_LIKENESS = 2
_PATIENCE = 6  # calls of one kind of block without a single repetition after which it is left alone


Modules = Sequence[nn.Module]
"""A module and all modules below it, in order."""

Make = Callable[[Callable[[torch.Tensor], torch.Tensor]], Any]


class Log(Protocol):
    """What a watcher of a pass notes, so that it can be noted again for a call that is alike."""

    def surroundings(self, modules: Modules, given: Given) -> Hashable:
        """What else must be equal for two calls to be alike.

        Raises:
            Unreadable: nothing may be told again here.
        """
        ...

    def mark(self, modules: Modules, given: Given) -> Any:
        """Remember where the log stands before a call of the first of `modules`; the others are below it."""
        ...

    def since(self, mark: Any, modules: Modules, given: Given, made: list[torch.Tensor]) -> Any:
        """What the call added to the log, in words of its modules and tensors: equal for calls that did the same.

        Raises:
            Unreadable: something that is not of the call.
        """
        ...

    def again(self, added: Any, modules: Modules, given: Given, make: Make) -> Any:
        """Note for another call what `since` gave, and return what the call returns.

        It is made by `make`, which passes each tensor that needs a gradient through the function it is given.
        """
        ...


@dataclass(frozen=True, slots=True)
class _New:
    """A tensor that a call made: the `storage`th new one, of so many bytes."""

    storage: int
    bytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    trained: bool


@dataclass(frozen=True, slots=True)
class _Same:
    """A tensor that a call was given, and returns."""

    place: int


@dataclass(frozen=True, slots=True)
class Effect:
    """What a call returned, and what it added to the log; `held` keeps the tensors that its key names by `id`."""

    result: Any
    added: Any
    held: tuple[torch.Tensor, ...] = field(compare=False)


@dataclass(slots=True)
class _Luck:
    """How well telling again went with the blocks of one kind."""

    recorded: int = 0
    told: int = 0

    @property
    def hopeless(self) -> bool:
        return self.recorded >= _PATIENCE + self.told


class Repeats:
    """The blocks of one model that occur again and again: the same for all of its passes.

    `below` are all modules of each block, by its `id`; `trusted` the fingerprints that were seen twice to do the same.
    What becomes of each call of a block is written to `log`.
    """

    def __init__(self, model: nn.Module, holdings: Holdings, log: DebugLog | None = None) -> None:
        self._log = log
        self._kinds: dict[int, int] = {}
        self.below: dict[int, list[nn.Module]] = {}
        self.prints = Prints()
        self.trusted: set[Hashable] = set()
        self._model = model  # keeps the addresses that are keys
        if sum([bool(module._modules) for module in holdings.modules]) >= _LIKENESS:
            for alike in _alike(model):
                self.enter(alike)

    def enter(self, alike: Sequence[nn.Module]) -> None:
        """These modules are of one kind: they look alike from outside."""
        kind = len(self._kinds)
        for module in alike:
            below = all_modules(module)
            if len(below) - 1 == sum([child is not None for one in below for child in one._modules.values()]):
                # It is a tree: no module comes twice.
                self._kinds[id(module)] = kind
                self.below[id(module)] = below
                self.prints.enter(below)

    def kind(self, module: nn.Module) -> int | None:
        """The kind of a module, None when it is the only one."""
        return self._kinds.get(id(module))

    def tell(self, what: str, why: object = "") -> None:
        """Write to the log what became of a call of a block."""
        if self._log is not None:
            self._log.write("replay", f"{what}: {why}" if str(why) else what)

    def start(self, log: Log) -> Session | None:
        """Telling again in one pass; None when someone else wants to see every call."""
        return None if _watched_by_others() else Session(self, log)


class Session:
    """One pass: `call` runs a module, or tells what it does."""

    def __init__(self, repeats: Repeats, log: Log) -> None:
        self._repeats = repeats
        self._log = log
        self._effects: dict[Hashable, Effect] = {}
        self._luck: defaultdict[int, _Luck] = defaultdict(_Luck)
        self._calls: Counter[int] = Counter()
        self._recording = 0
        self._chance: Hashable = None  # as last seen: what was drawn since then counts against the next block
        self._born: list[weakref.ref[torch.Tensor]] = []

    def born(self, made: Any) -> None:
        """To be called with what each operator made."""
        if self._recording:
            self._born += [weakref.ref(tensor) for tensor in tensors(made)]

    def call(self, module: nn.Module, args: Any, kwargs: Any, run: Callable[[], Any]) -> Any:
        """What the module gives: by `run`, or from an earlier call that was alike."""
        kind = self._repeats.kind(module)
        if kind is None and (kind := self._called_often(module)) is None:
            return run()
        luck = self._luck[kind]
        if luck.hopeless:
            self._repeats.tell("ran", "blocks of its kind do not repeat")
            return run()
        modules = self._repeats.below[id(module)]
        try:
            given = Given(args, kwargs)
            fingerprint, training = self._repeats.prints.of(modules)
            key = fingerprint, training, given.key, _mood(), self._log.surroundings(modules, given)
            effect = self._effects.get(key)
        except (Unreadable, TypeError) as reason:  # TypeError: something that has no hash
            self._repeats.tell("ran, and is not comparable", reason)
            luck.recorded += 1
            return run()
        if effect is not None and fingerprint in self._repeats.trusted:
            self._repeats.tell("replayed")
            luck.told += 1
            return self._tell(effect, modules, given)
        luck.recorded += 1
        return self._record(key, fingerprint, modules, given, effect, run)

    def _called_often(self, module: nn.Module) -> int | None:
        """One block that is called again and again is as good as many that are alike."""
        if module._modules:
            self._calls[id(module)] += 1
            if self._calls[id(module)] == _LIKENESS and _can_repeat(module):
                self._repeats.enter([module])
        return self._repeats.kind(module)

    def _tell(self, effect: Effect, modules: Modules, given: Given) -> Any:
        def make(train: Callable[[torch.Tensor], torch.Tensor]) -> Any:
            return _made_again(effect.result, given.tensors, train)

        out = self._log.again(effect.added, modules, given, make)
        self.born(out)
        return out

    def _record(
        self,
        key: tuple[Hashable, ...],
        fingerprint: Hashable,
        modules: Modules,
        given: Given,
        before: Effect | None,
        run: Callable[[], Any],
    ) -> Any:
        """Run, and see what it does; twice the same is trusted."""
        chance, first = self._chance if self._chance is not None else random_states(), len(self._born)
        mark = self._log.mark(modules, given)
        self._recording += 1
        try:
            out = run()
        finally:
            self._recording -= 1
        try:
            self._chance = random_states()
            if not given.unwritten or self._repeats.prints.of(modules) != key[:2] or self._chance != chance:
                raise Unreadable("it changed its arguments or itself, or drew random numbers")
            made = tensors(out)
            self._refuse_escaped(first, made)
            result = _recipe(out, made, given)
            named = tuple(tensor for tensor in given.tensors if not tensor.is_meta)
            effect = Effect(result, self._log.since(mark, modules, given, made), named)
        except (Unreadable, TypeError) as reason:
            self._repeats.tell("ran, and is refused", reason)
            self._effects.pop(key, None)
            return out
        finally:
            if not self._recording:
                self._born.clear()
        if before == effect and not torch.is_grad_enabled():
            self._repeats.tell("ran, and is verified", "it did the same as one like it")
            self._repeats.trusted.add(fingerprint)
        else:
            self._repeats.tell("ran, and is recorded")
        self._effects[key] = effect
        return out

    def _refuse_escaped(self, first: int, made: list[torch.Tensor]) -> None:
        """With gradients, autograd keeps tensors; what escapes was looked for in the pass without."""
        if torch.is_grad_enabled():
            return
        ours = {id(tensor) for one in made for tensor in (one, one._base)}  # a view holds on to what it is a view of
        if any(tensor is not None and id(tensor) not in ours for tensor in (ref() for ref in self._born[first:])):
            raise Unreadable("a tensor that it made outlives it")


def _alike(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The modules that hold others, by what they look like from outside; only where there are several."""
    groups: dict[Hashable, list[nn.Module]] = defaultdict(list)
    _look(model, {}, groups)
    yield from (group for group in groups.values() if len(group) >= _LIKENESS)


def _look(module: nn.Module, looks: dict[int, int], groups: dict[Hashable, list[nn.Module]]) -> int:
    """A number for what a module looks like; those below it and itself are put into their groups."""
    if (known := looks.get(id(module))) is not None:
        return known
    looks[id(module)] = 0  # for a module that holds itself
    below = tuple([_look(child, looks, groups) for child in module._modules.values() if child is not None])
    shapes = tuple([(None if is_lazy(one) else one.shape) for one in module._parameters.values() if one is not None])
    found = looks[id(module)] = hash((type(module), shapes, below))
    if below and _can_repeat(module):
        groups[found].append(module)
    return found


def _can_repeat(module: nn.Module) -> bool:
    if isinstance(module, (torch.jit.ScriptModule, nn.MultiheadAttention, nn.ModuleList, nn.ModuleDict)):
        return False
    return bool(children(module)) and unwrapped(module) is module


def _watched_by_others() -> bool:
    """Whether someone wants to be told of every call of every module."""
    return any(value for name, value in vars(global_hooks).items() if name.startswith("_global_") and "hooks" in name)


def _mood() -> Hashable:
    """The switches around a call that its forward may look at."""
    return (
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.get_default_dtype(),
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        torch._C._get_math_sdp_enabled(),
        torch._C._get_flash_sdp_enabled(),
    )


def _recipe(out: Any, made: list[torch.Tensor], given: Given) -> Any:
    """`out` with each tensor replaced by how to make it again."""
    storages: dict[int, int] = {}
    if torch.is_grad_enabled() and sum(tensor.requires_grad for tensor in made) > 1:
        # Each would have to keep its own part of what is held.
        raise Unreadable("several of its results need gradients")
    if len({id(tensor) for tensor in made}) != len(made):
        raise Unreadable("it returns a tensor twice")
    known = {id(tensor): place for place, tensor in enumerate(given.tensors)}

    def one(tensor: torch.Tensor) -> _New | _Same:
        if id(tensor) in known:
            return _Same(known[id(tensor)])
        key = storage_key(tensor)
        plain = type(tensor) is torch.Tensor and tensor.is_meta and tensor.layout == torch.strided
        if not plain or key in given.storages or tensor.is_complex() or tensor.is_neg():
            raise Unreadable("it returns a view of an argument, or a tensor that is not plain")
        return _New(
            storages.setdefault(key, len(storages)),
            tensor.untyped_storage().nbytes(),
            tuple(tensor.shape),
            tensor.stride(),
            tensor.storage_offset(),
            tensor.dtype,
            tensor.requires_grad,
        )

    found = tree_map_only(torch.Tensor, one, out)
    if torch.is_grad_enabled() and len(storages) < sum(1 for tensor in made if id(tensor) not in known):
        raise Unreadable("it returns views of one tensor")  # which autograd would have to know
    _refuse_objects(found)
    return found


def _refuse_objects(value: Any) -> None:
    if type(value) in (tuple, list, torch.Size):
        for item in value:
            _refuse_objects(item)
    elif type(value) is dict:
        for item in value.values():
            _refuse_objects(item)
    elif not (value is None or type(value) in (_New, _Same, int, float, bool, str)):
        raise Unreadable(f"it returns an object of {type(value).__name__}")


def _made_again(result: Any, given: list[torch.Tensor], train: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    storages: dict[int, torch.Tensor] = {}

    def one(recipe: _New | _Same) -> torch.Tensor:
        if isinstance(recipe, _Same):
            return given[recipe.place]
        return train(new(recipe)) if recipe.trained else new(recipe)

    def new(recipe: _New) -> torch.Tensor:
        base = storages.get(recipe.storage)
        if base is None:
            whole = torch.empty_strided(recipe.shape, recipe.strides, dtype=recipe.dtype, device=META)
            storages[recipe.storage] = whole
            if recipe.offset == 0 and whole.untyped_storage().nbytes() == recipe.bytes:
                return whole
            base = storages[recipe.storage] = torch.empty(recipe.bytes, dtype=torch.uint8, device=META)
        view = torch.empty(0, dtype=recipe.dtype, device=META)
        return view.set_(base.untyped_storage(), recipe.offset, recipe.shape, recipe.strides)

    with no_dispatch():
        return one(result) if isinstance(result, (_New, _Same)) else tree_map_only((_New, _Same), one, result)
