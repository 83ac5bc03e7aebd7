"""Checkpointed regions of a model that is captured, tagged as torch.compile tags them.

Under torch.compile a region of `torch.utils.checkpoint.checkpoint` is not run again: its operators stand once in the
joint graph, each with its number and a policy in its metadata (`TagActivationCheckpoint`), by which the partitioner
decides what the backward pass computes anew. So it is with the reentrant kind, too: Dynamo takes both for the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from pytest_modelbudget.backends.patching import all_patched
from pytest_modelbudget.errors import ModelBudgetError


@dataclass(slots=True)
class Recomputation:
    """What a run of compiled graphs tells of its checkpointed regions.

    `seen` says that there are such, `scheduled` that Inductor's scheduler took one of their graphs, `by_rule` that it
    did not take one, which has the order of a rule. Regions around compiled modules have no graphs.
    """

    seen: bool = False
    scheduled: bool = False
    by_rule: bool = False


@contextmanager
def regions_noted(recomputation: Recomputation) -> Iterator[None]:
    """Inside, regions that are around compiled modules are noted; they run as they are."""
    module = torch.utils.checkpoint
    run, apply = module._checkpoint_without_reentrant_generator_impl, module.CheckpointFunction.apply

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            recomputation.seen = True
            return function(*args, **options)

        return call

    with all_patched([
        (module, "_checkpoint_without_reentrant_generator_impl", noted(run)),
        (module, "CheckpointFunction", SimpleNamespace(apply=noted(apply))),
    ]):  # fmt: skip
        yield


@contextmanager
def recomputed_regions_tagged() -> Iterator[list[int]]:
    """Inside, what is traced of a checkpointed region is tagged, and nothing of it runs again; gives their numbers.

    Raises:
        ModelBudgetError: on a call with a `context_fn` of another kind than that of selective checkpointing.
    """
    numbers: list[int] = []

    def tagged(
        function: Any, args: Any, kwargs: Any, *, context_fn: Callable[[], Any] = noop_context_fn, **options: Any
    ) -> Iterator[None]:
        tagging = _tagging(context_fn)
        tagging.ac_graph_id = len(numbers)
        numbers.append(tagging.ac_graph_id)
        with torch.fx.traceback.preserve_node_meta(), tagging:
            yield

    def reentrant(function: Any, preserves_random_state: bool, *args: Any) -> Any:
        return checkpoint(function, *args, use_reentrant=False)

    module = torch.utils.checkpoint
    with all_patched([
        (module, "_checkpoint_without_reentrant_generator_impl", tagged),
        (module, "CheckpointFunction", SimpleNamespace(apply=reentrant)),
    ]):  # fmt: skip
        yield numbers


def _tagging(context_fn: Callable[[], Any]) -> Any:
    """What tags operators by the policy in `context_fn`; without one all of them are to be recomputed."""
    context, _ = context_fn()
    if isinstance(context, torch.utils.checkpoint._CachingTorchDispatchMode):
        return context
    if isinstance(context, nullcontext):
        return create_selective_checkpoint_contexts(_recompute)[0]
    raise ModelBudgetError(
        f"compile: inductor: a checkpointed region has a context of {type(context).__name__}, which torch.compile does "
        "not take: only those of create_selective_checkpoint_contexts are planned"
    )


def _recompute(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.PREFER_RECOMPUTE
