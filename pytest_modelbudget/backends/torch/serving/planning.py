"""The plan of an engine that serves a model: its weights, the cache of its requests, and its largest pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from pytest_modelbudget import units
from pytest_modelbudget.backends.torch.distributed.fake_world import fake_world
from pytest_modelbudget.backends.torch.distributed.sharding import copy_with_own_parameters
from pytest_modelbudget.backends.torch.model.dtensors import local_part
from pytest_modelbudget.backends.torch.serving.arithmetic import larger, only_weights, with_more, with_work_of
from pytest_modelbudget.backends.torch.serving.packed import refuse_packed_weights
from pytest_modelbudget.backends.torch.serving.passes import ServedModel
from pytest_modelbudget.backends.torch.serving.ranks import cut_over_ranks
from pytest_modelbudget.backends.torch.serving.sampler import logits_of
from pytest_modelbudget.backends.torch.serving.sightings import CacheLaws, read_laws
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.checkpointing import repeated_blocks
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import BATCH
from pytest_modelbudget.planner.advice import largest_fitting_size
from pytest_modelbudget.planner.devices import device_by_name
from pytest_modelbudget.planner.margins import fit_bytes
from pytest_modelbudget.planner.memory import memory_plan
from pytest_modelbudget.planner.recipe import Precision, Serving, describe
from pytest_modelbudget.planner.serving import (
    SMALL,
    block_of,
    cache_of,
    most_tokens,
    pooled_tokens,
    request_bytes,
    stored_as,
)
from pytest_modelbudget.summary import Fit, LargestSize, Part, Plan, ServingCache

_ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1}
_RUNS_IN: Mapping[str, Precision] = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "fp8": "bf16"}
"""The precision of a pass, by that of the recipe: what is stored in fp8 is computed with in bf16."""


_NO_MATRICES = (
    *(nn.Embedding, nn.EmbeddingBag, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
"""Layers whose weights are tables and filters."""


def serving_plan(runnable: RunnableModel, sizes: Mapping[str, int], recipe: Serving, devices: Sequence[str]) -> Plan:
    """What one rank takes when `runnable`, a model on meta, is served by `recipe`, and what fits `devices`.

    The peak is weights, cache and the larger of two passes: of a chunk of a prompt, and of one token of each request.
    The paths of attention with a paged cache are those of the model's own forward pass, without what it does to hold
    its cache together. Not counted: graphs and buffers that an engine keeps beside, and communication.

    Raises:
        ModelBudgetError: the model returns no cache, does not run, or cannot be cut over so many ranks.
    """
    with _served(runnable, recipe) as model:
        return _Plans(model, sizes, recipe, tuple(devices)).plan()


@contextmanager
def _served(runnable: RunnableModel, recipe: Serving) -> Iterator[ServedModel]:
    """The model, or what the first of `tp` ranks has of it."""
    precision = _RUNS_IN[recipe.precision]
    if recipe.tp == 1:
        yield ServedModel(runnable, precision)
        return
    with fake_world() as world, _tp_explained(recipe.tp):
        refuse_packed_weights(runnable.model, runnable.name)
        copy = copy_with_own_parameters(runnable.model)
        if precision != "fp32":
            copy = copy.to(torch.bfloat16 if precision == "bf16" else torch.float16)
        facts = cut_over_ranks(copy, world.mesh(tp=recipe.tp), recipe.tp, runnable.name)
        yield ServedModel(RunnableModel(runnable.name, copy, runnable.inputs), "fp32", facts)


@contextmanager
def _tp_explained(ranks: int) -> Iterator[None]:
    """Inside, a pass that does not run is told what tensor parallelism asks of a model."""
    try:
        yield
    except ModelBudgetError as error:
        if error.__cause__ is None or isinstance(error.__cause__, ModelBudgetError):
            raise
        raise ModelBudgetError(
            f"{error}: where the model runs with tp: 1, it is serving.tp: {ranks}: each rank has a part of the heads: "
            "it must divide them, those of keys too (or these must divide it: they are repeated then, in attention as "
            "transformers writes it), and the model must find their number from the width it gets"
        ) from error


@dataclass(frozen=True, slots=True)
class _Plans:
    """One plan in the making."""

    model: ServedModel
    sizes: Mapping[str, int]
    recipe: Serving
    devices: tuple[str, ...]

    def plan(self) -> Plan:
        cache_laws = read_laws(self.model, self.sizes, self.recipe.tokens, farther=bool(self.devices))
        tokens = self.recipe.tokens or self.sizes[cache_laws.symbol]
        cache_laws = self._stored(cache_laws)
        cache = cache_of(cache_laws.laws, self.recipe, tokens)
        try:
            largest_pass = self._largest_pass(cache_laws, tokens, self.recipe.requests)
        except ModelBudgetError as error:
            reason = f"the memory of its passes is not known: {error}"
            notes = (reason, *self._notes(cache_laws))
            return Plan("serving", describe(self.recipe), None, ranks=self.recipe.tp, notes=notes, cache=cache)
        plan = with_more(largest_pass, Part("cache", "", cache.bytes), self._saved_bytes())
        plan = replace(plan, fits=tuple(self._fit(plan, device) for device in self.devices))
        return replace(
            plan,
            cache=cache,
            ranks=self.recipe.tp,
            notes=(*plan.notes, *self._notes(cache_laws)),
            largest=tuple(self._largest(cache_laws, tokens, plan, cache)),
        )

    def _fit(self, plan: Plan, device: str) -> Fit:
        """Whether a peak fits the engine's share of a device, beside the context, as engines reckon when they start.

        Without margins: nearly all of it are weights and blocks, which are known to the byte.
        """
        fit = fit_bytes(plan.peak_bytes, device_by_name(device))
        return Fit(device, int(fit.capacity * self.recipe.utilization), fit.needs)

    def _stored(self, cache_laws: CacheLaws) -> CacheLaws:
        """The laws in the precision of the cache."""
        recipe = self.recipe
        precision = recipe.precision if recipe.cache_precision == "auto" else recipe.cache_precision
        return replace(cache_laws, laws=stored_as(cache_laws.laws, cache_laws.sighting, _ITEM_BYTES[precision]))

    def _largest_pass(self, cache_laws: CacheLaws, tokens: int, requests: int) -> Plan:
        """The larger one of a pass over a chunk of a prompt and one over a token of each request."""
        chunk = min(self.recipe.prefill, tokens)
        too_long = cache_laws.by_token and chunk > cache_laws.seen
        passes = [self._longer_pass(cache_laws, chunk) if too_long else self._pass(cache_laws, 1, chunk)]
        if not self._prompts_apart(cache_laws):
            passes.append(self._pass(cache_laws, requests, 1))
        largest = larger(*passes)
        return larger(largest, *(with_work_of(largest, plan) for plan in self._sampling(cache_laws, tokens)))

    def _sampling(self, cache_laws: CacheLaws, tokens: int) -> Iterator[Plan]:
        """The sampler at work, beside the weights; none where the recipe has none."""
        if self.recipe.sampler:
            sizes = {**self.sizes, BATCH: 1, cache_laws.symbol: SMALL[0]}
            logits = logits_of(self.model, sizes)
            rows = min(self.recipe.prefill, tokens)
            part = Part("temporary", "sampler", logits.sampler_bytes(self.recipe.sampler, rows))
            yield replace(with_more(only_weights(self._pass(cache_laws, 1, 1)), part), path=part.path)

    def _longer_pass(self, cache_laws: CacheLaws, tokens: int) -> Plan:
        """A pass of more tokens than are run, when what shorter ones take lies on a line.

        Raises:
            ModelBudgetError: it does not.
        """
        lengths = (cache_laws.seen // 2, 3 * cache_laws.seen // 4, cache_laws.seen)
        plans = [self._pass(cache_laws, 1, length) for length in lengths]
        first, second, third = (plan.peak_bytes or 0 for plan in plans)
        each, remainder = divmod(third - second, lengths[2] - lengths[1])
        if remainder or (second - first) != each * (lengths[1] - lengths[0]):
            raise ModelBudgetError(
                f"the model goes token by token, a pass of {tokens:,} tokens is too long to be recorded, and shorter "
                f"ones do not lie on a line: write prefill: {cache_laws.seen}"
            )
        note = (
            f"a pass of {tokens:,} tokens is too long to be recorded: it takes {units.size(each)} for each token more, "
            f"as passes of up to {cache_laws.seen:,} tokens do"
        )
        longer = with_more(plans[2], Part("temporary", plans[2].path, each * (tokens - cache_laws.seen)))
        return replace(longer, timeline=(), notes=(*longer.notes, note))

    def _prompts_apart(self, cache_laws: CacheLaws) -> bool:
        """Whether the model takes prompts beside its tokens, which each of its passes would encode again."""
        symbols = [
            {str(dim) for dim in port.spec.shape if isinstance(dim, str)} for port in self.model.runnable.inputs.ports
        ]
        return any(BATCH in names and cache_laws.symbol not in names for names in symbols)

    def _pass(self, cache_laws: CacheLaws, batch: int, tokens: int) -> Plan:
        trace = self.model.record({**self.sizes, BATCH: batch, cache_laws.symbol: tokens})
        text, devices = describe(self.recipe), self.devices[:1]  # whose workspaces count
        plan = memory_plan(trace, "serving", text, torch=torch.__version__, devices=devices)
        return replace(plan, fits=(), notes=trace.notes)

    def _saved_bytes(self) -> int:
        """What weights take less than in the precision of the passes."""
        if self.recipe.precision != "fp8":
            return 0
        matrices = {id(matrix): matrix for matrix in _matrices(self.model.runnable.model)}
        return sum(local_part(matrix).numel() for matrix in matrices.values())

    def _whole_weights(self) -> Iterator[nn.Parameter]:
        """Matrices that each of several ranks has as a whole."""
        if self.recipe.tp > 1:
            for parameter in self.model.runnable.model.parameters():
                is_cut = local_part(parameter) is not parameter or id(parameter) in self.model.rank.cut
                if not is_cut and parameter.dim() > 1:
                    yield parameter

    def _notes(self, cache_laws: CacheLaws) -> Iterator[str]:
        """What to know of the numbers."""
        if self.recipe.precision == "fp8":
            yield (
                "fp8: matrices of the repeated blocks and what is kept of each token take one byte a number, all else "
                "is bf16; scales are not counted"
            )
        if (whole := sum(parameter.nbytes for parameter in self._whole_weights())) > 0:
            yield (
                f"{units.size(whole)} of the weights have no rule of tensor parallelism, and are whole on each of "
                f"{self.recipe.tp} ranks"
            )
        if (heads := self.model.rank.repeated_heads) is not None:
            yield (
                f"{heads} {'head' if heads == 1 else 'heads'} of keys on {self.recipe.tp} ranks: each rank has one, "
                "which others have, too"
            )
        states = any(law.constant and not law.per_token for law in cache_laws.laws if not law.shared)
        if states and self.recipe.tp > 1 and not self.model.rank.states:
            yield "states that no token adds to are as the model's own cut leaves them; engines cut them by heads"
        if cache_laws.by_token or cache_laws.by_chunk:
            steps = "token by token" if cache_laws.by_token else "chunk by chunk"
            yield (
                f"the model goes {steps}, so its cache was looked at up to {cache_laws.seen:,} tokens: a window "
                "that is larger was not seen"
            )
        if self.devices:
            yield (
                f"what fits: an engine takes {self.recipe.utilization:g} of a device, for weights, cache, its largest "
                "pass and the context of the device; not counted are graphs that it captures, buffers of "
                "communication, and what the allocator cannot use"
            )

    def _largest(self, cache_laws: CacheLaws, tokens: int, plan: Plan, cache: ServingCache) -> Iterator[LargestSize]:
        """How many requests of these tokens, how many tokens of each, and how many in all fit each device."""
        block = block_of(self.recipe)
        for fit in plan.fits:
            if fit.room is None:
                continue
            free = fit.room + cache.bytes
            if (requests := self._most_requests(cache_laws, tokens, fit, free)) is not None:
                yield LargestSize("requests", requests, fit.device)
            longest = most_tokens(cache_laws.laws, free, self.recipe.requests, block, most=cache_laws.seen)
            if longest < cache_laws.seen:  # more were not looked at
                yield LargestSize("tokens", longest, fit.device)
            if (pooled := pooled_tokens(cache_laws.laws, free, block)) is not None:
                yield LargestSize("tokens in all", pooled, fit.device)

    def _most_requests(self, cache_laws: CacheLaws, tokens: int, fit: Fit, free: int) -> int | None:
        """The most requests that fit, with the pass that so many need; None when it is not known."""
        each = request_bytes(cache_laws.laws, tokens, block_of(self.recipe))
        sampling = tuple(self._sampling(cache_laws, tokens))

        def room(requests: int) -> int | None:
            try:
                needs = self._fit(larger(self._pass(cache_laws, requests, 1), *sampling), fit.device).needs
            except ModelBudgetError:  # so many the model does not take
                return None
            return None if needs is None else fit.capacity - needs + self._saved_bytes() - requests * each

        if not each:  # nothing is kept of a request
            return None
        most = max(free, 0) // each  # beside the pass over a prompt, or over the requests of the recipe
        if most <= self.recipe.requests or self._prompts_apart(cache_laws):
            return most
        left = room(most)
        return most if left is not None and left >= 0 else largest_fitting_size(room, most)


def _matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    """The matrices of products in the repeated blocks of a model; tables and filters are none."""
    for block in repeated_blocks(model):
        for module in block.modules():
            if not isinstance(module, _NO_MATRICES):
                weights = module.parameters(recurse=False)
                yield from (weight for weight in weights if weight.dim() > 1 and weight.is_floating_point())
