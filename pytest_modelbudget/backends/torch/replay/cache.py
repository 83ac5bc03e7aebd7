"""Repeated blocks: a block that was seen twice to do the same is not run a third time; what it did is replayed.

Two calls are alike when their modules have one fingerprint, their arguments have, nothing around them is
switched differently, and what feeds them is arranged alike. A call is replayed only when its like

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
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.nn.parameter import is_lazy

from pytest_modelbudget.backends.torch.model.attributes import ModuleAttributes
from pytest_modelbudget.backends.torch.model.global_state import rng_states
from pytest_modelbudget.backends.torch.model.meta_tensors import META
from pytest_modelbudget.backends.torch.model.modules import all_modules, children, unwrap
from pytest_modelbudget.backends.torch.model.pytree import storage_key, tensors
from pytest_modelbudget.backends.torch.replay.fingerprint import CallSignature, Fingerprints, NotComparable
from pytest_modelbudget.backends.torch.replay.graph import as_result_of, reached_arguments
from pytest_modelbudget.backends.torch.replay.relative import (
    BlockCall,
    EventLog,
    RelativeEvents,
    note_again,
    relative_events,
)
from pytest_modelbudget.backends.torch.replay.results import result_from_template, result_template
from pytest_modelbudget.system.debug import DebugLog

_MIN_REPEATS = 2
_GIVE_UP_AFTER = 6  # calls of one kind of block without a single repetition after which it is left alone


@dataclass(frozen=True, slots=True)
class _RecordedCall:
    """What a call returned and did; the graph of its result leads back to the arguments at the places `reached`.

    `pinned` keeps the tensors that its key names by `id`.
    """

    result: Any
    reached: tuple[int, ...]
    events: RelativeEvents
    pinned: tuple[torch.Tensor, ...] = field(compare=False)


@dataclass(slots=True)
class _ReplayStats:
    """How well replays went with the blocks of one kind."""

    recorded: int = 0
    replayed: int = 0

    @property
    def give_up(self) -> bool:
        return self.recorded >= _GIVE_UP_AFTER + self.replayed


class BlockCache:
    """The blocks of one model that occur again and again: the same for all of its passes.

    `trees` are all modules of each block, by its `id`; `verified` the fingerprints that were seen twice to do the same.
    What becomes of each call of a block is written to `log`.
    """

    def __init__(self, model: nn.Module, attributes: ModuleAttributes, log: DebugLog | None = None) -> None:
        self._log = log
        self._kinds: dict[int, int] = {}
        self.trees: dict[int, list[nn.Module]] = {}
        self.fingerprints = Fingerprints()
        self.verified: set[Hashable] = set()
        self._model = model  # keeps the addresses that are keys
        if sum([bool(module._modules) for module in attributes.modules]) >= _MIN_REPEATS:
            for similar in _similar_blocks(model):
                self.register(similar)

    def register(self, similar: Sequence[nn.Module]) -> None:
        """These modules are of one kind: they look alike from outside."""
        kind = len(self._kinds)
        for module in similar:
            subtree = all_modules(module)
            if len(subtree) - 1 == sum([child is not None for parent in subtree for child in parent._modules.values()]):
                # It is a tree: no module comes twice.
                self._kinds[id(module)] = kind
                self.trees[id(module)] = subtree
                self.fingerprints.register(subtree)

    def kind(self, module: nn.Module) -> int | None:
        """The kind of a module, None when it is the only one."""
        return self._kinds.get(id(module))

    def tell(self, what: str, why: object = "") -> None:
        """Write to the log what became of a call of a block."""
        if self._log is not None:
            self._log.write("replay", f"{what}: {why}" if str(why) else what)

    def start(self, observer: EventLog) -> Replay | None:
        """Replay in one pass; None when someone else wants to see every call."""
        return None if _has_global_hooks() else Replay(self, observer)


class Replay:
    """One pass, that `observer` watches: `call` runs a module, or replays what it did."""

    def __init__(self, block_cache: BlockCache, observer: EventLog) -> None:
        self._block_cache = block_cache
        self._observer = observer
        self._recorded_calls: dict[Hashable, _RecordedCall] = {}
        self._stats: defaultdict[int, _ReplayStats] = defaultdict(_ReplayStats)
        self._calls: Counter[int] = Counter()
        self._recording = 0
        self._rng_state: Hashable = None  # as last seen: what was drawn since then counts against the next block
        self._created: list[weakref.ref[torch.Tensor]] = []
        self._created_storages: list[int] = []
        self._leaf = torch.empty((), device=META, requires_grad=True)

    def note_created(self, created: Any, view: bool) -> None:
        """To be called with what each operator made."""
        if self._recording:
            for tensor in tensors(created):
                self._created.append(weakref.ref(tensor))
                if not view:
                    self._created_storages.append(storage_key(tensor))

    def call(self, module: nn.Module, args: Any, kwargs: Any, run: Callable[[], Any]) -> Any:
        """What the module gives: by `run`, or from an earlier call that was alike."""
        kind = self._block_cache.kind(module)
        if kind is None and (kind := self._called_often(module)) is None:
            return run()
        stats = self._stats[kind]
        if stats.give_up:
            self._block_cache.tell("ran", "blocks of its kind do not repeat")
            return run()
        modules = self._block_cache.trees[id(module)]
        try:
            signature = CallSignature(args, kwargs)
            call = BlockCall(modules, signature.tensors)
            fingerprint, training = self._block_cache.fingerprints.of(modules)
            key = fingerprint, training, signature.key, _mode_flags(), self._observer.context_key(call)
            recorded = self._recorded_calls.get(key)
        except (NotComparable, TypeError) as reason:  # TypeError: something that has no hash
            self._block_cache.tell("ran, and is not comparable", reason)
            stats.recorded += 1
            return run()
        if recorded is not None and fingerprint in self._block_cache.verified:
            self._block_cache.tell("replayed")
            stats.replayed += 1
            return self._replay(recorded, call)
        stats.recorded += 1
        return self._record(key, call, signature, recorded, run)

    def _called_often(self, module: nn.Module) -> int | None:
        """One block that is called again and again is as good as many that are alike."""
        if module._modules:
            self._calls[id(module)] += 1
            if self._calls[id(module)] == _MIN_REPEATS and _is_replayable(module):
                self._block_cache.register([module])
        return self._block_cache.kind(module)

    def _replay(self, recorded: _RecordedCall, call: BlockCall) -> Any:
        reached = [call.arguments[place] for place in recorded.reached]
        train = partial(as_result_of, self._leaf, reached, call.hold) if torch.is_grad_enabled() else _unchanged
        out = result_from_template(recorded.result, call.arguments, train)
        call.results = tensors(out)
        note_again(self._observer, call, recorded.events)
        if self._recording:
            self.note_created(out, view=False)
            self._created_storages += call.created
        return out

    def _record(
        self,
        key: tuple[Hashable, ...],
        call: BlockCall,
        signature: CallSignature,
        earlier: _RecordedCall | None,
        run: Callable[[], Any],
    ) -> Any:
        """Run, and see what it does; twice the same is trusted."""
        rng_before = self._rng_state if self._rng_state is not None else rng_states()
        call.sources = list(map(self._observer.source_of, call.arguments))
        before = len(self._observer.events), len(self._created), len(self._created_storages)
        self._recording += 1
        try:
            out = run()
        finally:
            self._recording -= 1
        try:
            self._rng_state = rng_states()
            if (
                not signature.is_unmodified
                or self._block_cache.fingerprints.of(call.modules) != key[:2]
                or self._rng_state != rng_before
            ):
                raise NotComparable("it changed its arguments or itself, or drew random numbers")
            recorded = self._recorded(call, signature, out, before)
        except (NotComparable, TypeError) as reason:
            self._block_cache.tell("ran, and is refused", reason)
            self._recorded_calls.pop(key, None)
            return out
        finally:
            if not self._recording:
                self._created.clear()
                self._created_storages.clear()
        if earlier == recorded and not torch.is_grad_enabled():
            self._block_cache.tell("ran, and is verified", "it did the same as one like it")
            self._block_cache.verified.add(key[0])
        else:
            self._block_cache.tell("ran, and is recorded")
        self._recorded_calls[key] = recorded
        return out

    def _recorded(
        self, call: BlockCall, signature: CallSignature, out: Any, before: tuple[int, int, int]
    ) -> _RecordedCall:
        """What a call did that returned `out`, since there were so many events, tensors and storages."""
        first_event, first_created, first_storage = before
        call.results = tensors(out)
        call.created.update(self._created_storages[first_storage:])
        self._refuse_escaped(first_created, call.results)
        result = result_template(out, call.results, signature)
        reached = reached_arguments(call.results, call.arguments) if torch.is_grad_enabled() else ()
        events = relative_events(self._observer, call, self._observer.events[first_event:])
        pinned = tuple(tensor for tensor in call.arguments if not tensor.is_meta)
        return _RecordedCall(result, reached, events, pinned)

    def _refuse_escaped(self, first_created: int, results: list[torch.Tensor]) -> None:
        """With gradients, autograd keeps tensors; what escapes was looked for in the pass without."""
        if torch.is_grad_enabled():
            return
        returned = {
            id(tensor) for result_tensor in results for tensor in (result_tensor, result_tensor._base)
        }  # a view holds on to what it is a view of
        if any(
            tensor is not None and id(tensor) not in returned
            for tensor in (ref() for ref in self._created[first_created:])
        ):
            raise NotComparable("a tensor that it made outlives it")


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _similar_blocks(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The modules that hold others, by what they look like from outside; only where there are several."""
    groups: dict[Hashable, list[nn.Module]] = defaultdict(list)
    _structure_hash(model, {}, groups)
    yield from (group for group in groups.values() if len(group) >= _MIN_REPEATS)


def _structure_hash(module: nn.Module, structures: dict[int, int], groups: dict[Hashable, list[nn.Module]]) -> int:
    """A number for what a module looks like; those below it and itself are put into their groups."""
    if (cached := structures.get(id(module))) is not None:
        return cached
    structures[id(module)] = 0  # for a module that holds itself
    child_structures = tuple(
        [_structure_hash(child, structures, groups) for child in module._modules.values() if child is not None]
    )
    shapes = tuple(
        [
            (None if is_lazy(parameter) else parameter.shape)
            for parameter in module._parameters.values()
            if parameter is not None
        ]
    )
    structure = structures[id(module)] = hash((type(module), shapes, child_structures))
    if child_structures and _is_replayable(module):
        groups[structure].append(module)
    return structure


def _is_replayable(module: nn.Module) -> bool:
    if isinstance(module, (torch.jit.ScriptModule, nn.MultiheadAttention, nn.ModuleList, nn.ModuleDict)):
        return False
    return bool(children(module)) and unwrap(module) is module


def _has_global_hooks() -> bool:
    """Whether someone wants to be told of every call of every module."""
    return any(value for name, value in vars(global_hooks).items() if name.startswith("_global_") and "hooks" in name)


def _mode_flags() -> Hashable:
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
