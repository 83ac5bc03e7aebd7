"""Passes of a model that is served, by the recorder of steps: with a cache to see that, without for their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from pytest_modelbudget.backends.torch.costs.rules import Cost
from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.model.dtensors import local_part
from pytest_modelbudget.backends.torch.model.pytree import storage_key
from pytest_modelbudget.backends.torch.serving.attention import fused_attention
from pytest_modelbudget.backends.torch.serving.ranks import WHOLE, RankFacts
from pytest_modelbudget.backends.torch.trace.arguments import ModelCall
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.caches import takes
from pytest_modelbudget.backends.torch.training.step import StepRecording, record_step
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Inference, MemoryEvent, MemoryTrace
from pytest_modelbudget.planner.recipe import Precision

Seen = TypeVar("Seen")
Look = Callable[["ServingPass", ModelCall, Any], Seen]
"""What looks at a pass when it is over, and gives back what it sees: the pass, its call, what the model returned."""


class _OperatorCounter(Recorder):
    """Counts the operators of a pass, and notes nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.operators = 0

    def operator(self, *facts: Any) -> None:
        """One more."""
        self.operators += 1


class EngineRecorder(Recorder):
    """Lets go of what a table looked up after its last reader, as the models of engines do.

    Those of transformers hold it, as `inputs_embeds`, until all blocks have run; in vLLM's the result of a block takes
    its place (`hidden_states = self.embed_input_ids(input_ids)`, then `hidden_states, residual = layer(...)`).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._tables = {self._paths[id(module)] for module in model.modules() if isinstance(module, nn.Embedding)}
        self._last_reader: dict[int, int] = {}

    def operator(self, cost: Cost, view: bool, operands: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """Note one operator, and which of what was looked up it reads."""
        super().operator(cost, view, operands, args, kwargs, out)
        if view:
            return
        last = len(self._events) - 1
        if (event := self._events[last]).path in self._tables:
            self._last_reader.update((number, last) for number, _ in event.made)
        for tensor in operands:
            number = self._numbers.get(storage_key(local_part(tensor)))
            if number in self._last_reader:
                self._last_reader[number] = last

    def memory_trace(self) -> MemoryTrace:
        """What was noted, with what was looked up let go of early."""
        trace = super().memory_trace()
        return replace(trace, events=tuple(self._freed_early(trace.events)))

    def _freed_early(self, events: tuple[MemoryEvent, ...]) -> Iterator[MemoryEvent]:
        let_go = {number for event in events for number in event.freed} & self._last_reader.keys()
        readers = {number: index for number, index in self._last_reader.items() if number in let_go}
        for index, event in enumerate(events):
            freed = (number for number in event.freed if number not in readers)
            early = (number for number, reader in readers.items() if reader == index - 1)
            yield replace(event, freed=(*freed, *early))


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model on meta that is served in one precision, and what its forward pass takes of the usual switches.

    `rank` says what one of several ranks has of it.
    """

    runnable: RunnableModel
    precision: Precision
    rank: RankFacts = WHOLE

    @property
    def name(self) -> str:
        """The model's name."""
        return self.runnable.name

    def look(self, sizes: Mapping[str, int], look: Look[Seen]) -> tuple[Seen, int]:
        """Run one pass with a cache: what `look` sees of it, and the number of its operators.

        A pass in which modules were imported is run twice (`record_step`): both are those of the last run.
        """
        counters: list[_OperatorCounter] = []
        seen: list[Seen] = []

        def recorder(model: nn.Module) -> Recorder:
            counters.append(_OperatorCounter(model))
            return counters[-1]

        def noted(serving_pass: ServingPass, call: ModelCall, out: Any) -> None:
            seen.append(look(serving_pass, call, out))

        self._run(sizes, {"use_cache": True}, recorder, noted)
        return seen[-1], counters[-1].operators

    def record(self, sizes: Mapping[str, int]) -> MemoryTrace:
        """The memory of one pass whose cache goes to the engine's own: keys and values are temporaries of it.

        Of the tokens of a request the last one's result alone is made, where the model can be told so.
        """
        switches = {"use_cache": False, "logits_to_keep": 1}
        with fused_attention(self.runnable.model) as is_changed:
            try:
                return self._run(sizes, switches, EngineRecorder, None)
            except ModelBudgetError:
                if not is_changed:
                    raise
        return self._run(sizes, switches, EngineRecorder, None)  # its attention is not made for that kernel

    def _run(
        self,
        sizes: Mapping[str, int],
        switches: Mapping[str, Any],
        recorder: Callable[[nn.Module], Recorder],
        look: Look[None] | None,
    ) -> MemoryTrace:
        accepted = {name: value for name, value in switches.items() if takes(self.runnable.model, name)}
        recording = partial(ServingPass, switches=accepted, look=look)
        recipe = Inference(precision=self.precision)
        return record_step(self.runnable, sizes, recipe, recorder=recorder, recording=recording)


class ServingPass(StepRecording):
    """One forward pass with these `switches` among its arguments."""

    def __init__(self, *facts: Any, switches: Mapping[str, Any], look: Look[None] | None) -> None:
        super().__init__(*facts)
        self.switches, self.look = switches, look

    def infer(self, recipe: Inference, call: ModelCall, recorder: Recorder, kernels: DeviceKernels) -> Any:
        """Run the pass; gives back what is alive when it is over."""
        with torch.no_grad():
            out = self.model(*call.args, **{**call.kwargs, **self.switches})
            if self.look is not None:
                self.look(self, call, out)
        return out

    def again(self, sizes: Mapping[str, int], **arguments: Any) -> Any:
        """What the model returns for other sizes, called inside of a pass."""
        self.sizes = {**self.sizes, **sizes}
        call = self.inputs()
        return self.model(*call.args, **{**call.kwargs, **self.switches, **arguments})
