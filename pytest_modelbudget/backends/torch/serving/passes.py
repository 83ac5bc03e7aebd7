"""Passes of a model that is served, by the recorder of steps: with a cache to see that, without for their memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.trace.arguments import ModelCall
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.caches import takes
from pytest_modelbudget.backends.torch.training.step import StepRecording, record_step
from pytest_modelbudget.planner import Inference, MemoryTrace
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


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model on meta that is served in one precision, and what its forward pass takes of the usual switches."""

    runnable: RunnableModel
    precision: Precision

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
        return self._run(sizes, {"use_cache": False, "logits_to_keep": 1}, Recorder, None)

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
