"""Expert parallelism: each rank has some of the experts of every layer, and tokens go to the ranks of theirs and back.

Done as torchtitan's `ExpertParallel` does it, by torch's `distribute_module`: grouped weights are dealt out by experts
(`Shard(0)` of a DTensor); in front of the experts an all-to-all sends the rows that a router sorted by expert, behind
them another one brings them back, and received rows are put in the order of the rank's own experts in between. The
ranks of `ep` are some of those of `fsdp`, which shards what `ep` leaves of the experts, and all other parameters.

How many tokens an expert gets is a value, which is not known: planned is the same number for each (`routing:
balanced`), or that all ranks of `ep` send all of theirs to this one (`routing: one-rank`), the most there can be. Rows
are not padded to what grouped products like.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.compat import no_modes
from pytest_modelbudget.backends.torch.distributed.carried_tensors import CarriedTensor
from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.meta.readings import value_reads_observed
from pytest_modelbudget.backends.torch.model.modules import all_modules
from pytest_modelbudget.backends.torch.trace.arguments import ModelCall
from pytest_modelbudget.backends.torch.training.step import StepRecording
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Recipe


@dataclass(frozen=True, slots=True)
class ExpertPlacement:
    """How the experts of a module are dealt out: the mesh left to shard them, and what they carry to the next pass."""

    rest: Any
    order: CarriedTensor


def expert_dims(sharding: Mapping[str, Any]) -> dict[str, int]:
    """The dimensions of a mesh with `ep`, outermost first: those of `ddp`, if any, and what `ep` leaves of `fsdp`."""
    ranks, replicas = sharding["ep"], sharding.get("ddp", 1)
    return {**({"ddp": replicas} if replicas > 1 else {}), "fsdp": sharding["fsdp"] // ranks, "ep": ranks}


def expert_parallel(
    model: nn.Module, name: str, sharding: Mapping[str, Any], mesh: Any
) -> dict[nn.Module, ExpertPlacement]:
    """Deal the experts of `model` out over `ep` of `mesh`; gives each of their modules with how it is dealt out.

    `mesh` has the dimensions of `expert_dims`.

    Raises:
        ModelBudgetError: no module has grouped weights and is called with rows and their number by expert, or they do
            not divide.
    """
    ranks = sharding["ep"]
    modules = [module for module in all_modules(model) if _experts_in(module)]
    if not modules:
        raise ModelBudgetError(
            f"{name}: training.sharding: ep: no module has weights [experts, ..., ...] and is called with rows sorted "
            "by expert and the number of them for each (as torchtitan's GroupedExperts): shard it yourself with "
            "sharding: module:callable"
        )
    if wrong := next((module for module in modules if _experts_in(module) % ranks), None):
        raise ModelBudgetError(
            f"{name}: training.sharding: ep: {ranks} does not divide the {_experts_in(wrong)} experts of a layer"
        )
    rest = mesh["ddp", "fsdp"] if sharding.get("ddp", 1) > 1 else mesh["fsdp"]
    to_one_rank = sharding.get("routing") == "one-rank"
    return {
        module: ExpertPlacement(rest, _distribute(module, mesh["ep"], to_one_rank=to_one_rank)) for module in modules
    }


def _experts_in(module: nn.Module) -> int:
    """How many experts the weights of `module` itself are of; 0 for any other module."""
    weights = [parameter for parameter in module._parameters.values() if parameter is not None]
    counts = {weight.shape[0] for weight in weights if weight.dim() == 3}
    if len(counts) != 1 or len(weights) < 2 or any(weight.dim() != 3 for weight in weights):
        return 0
    return counts.pop() if len(inspect.signature(module.forward).parameters) == 2 else 0


def _distribute(module: nn.Module, mesh: Any, *, to_one_rank: bool) -> CarriedTensor:
    from torch.distributed.tensor import distribute_module

    exchange = _Exchange(mesh, to_one_rank)
    distribute_module(module, mesh, _deal_out, exchange.dispatch, exchange.combine)
    return exchange.order


def _deal_out(name: str, module: nn.Module, mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    for key, parameter in list(module.named_parameters(recurse=False)):
        part = distribute_tensor(parameter, mesh, [Shard(0)])
        module.register_parameter(key, nn.Parameter(part, parameter.requires_grad))


class _Exchange:
    """Sends rows to the ranks of their experts, and brings back what these made of them."""

    def __init__(self, mesh: Any, to_one_rank: bool) -> None:
        self._group, self._ranks, self._to_one_rank = mesh.get_group(), mesh.size(), to_one_rank
        self._sent: list[int] = []
        self._received: list[int] = []
        self.order = CarriedTensor()  # torchtitan's `ExpertParallel` keeps it so, too

    def dispatch(self, module: nn.Module, inputs: tuple[Any, ...], mesh: Any) -> tuple[Any, Any]:
        """The rows for the rank's own experts, by expert, and their numbers."""
        from torch.distributed._functional_collectives import all_to_all_single, all_to_all_single_autograd

        rows, counts = inputs
        numbers = [int(number) for number in counts.view(self._ranks, -1).sum(1).tolist()]
        with torch.no_grad():
            others = torch.ops._c10d_functional.wait_tensor(all_to_all_single(counts, None, None, self._group))
            by_rank = others.view(self._ranks, -1)
            if self._to_one_rank:
                self._sent = [rows.shape[0], *[0] * (self._ranks - 1)]
                self._received = [rows.shape[0]] * self._ranks
                own = _evenly(sum(self._received), by_rank.shape[1], counts)
            else:
                self._sent = numbers
                self._received = [int(number) for number in by_rank.sum(1).tolist()]
                own = by_rank.sum(0)
        rows = all_to_all_single_autograd(rows, self._received, self._sent, self._group)
        order = torch.empty(rows.shape[0], dtype=torch.int32, device=rows.device)
        self.order.put(order)
        return torch.index_select(rows, 0, order), own

    def combine(self, module: nn.Module, rows: torch.Tensor, mesh: Any) -> torch.Tensor:
        """What experts of all ranks made of this rank's rows."""
        from torch.distributed._functional_collectives import all_to_all_single_autograd

        assert self.order.tensor is not None
        back = rows.new_empty(rows.shape).index_copy_(0, self.order.tensor.long(), rows)
        sent: torch.Tensor = all_to_all_single_autograd(back, self._sent, self._received, self._group)
        return sent


class BalancedStep(StepRecording):
    """A step in which routers give every expert as many tokens as any other; where it asks how many, a note says so."""

    def __init__(self, *args: Any, sharding: Any) -> None:
        super().__init__(*args)
        self._sharding = sharding if isinstance(sharding, Mapping) else {}
        self._assumption = ""

    def prepare(self, recipe: Recipe, kernels: DeviceKernels, stack: ExitStack) -> None:
        """Bring the model and torch into the state of the run, until `stack` is left."""
        super().prepare(recipe, kernels, stack)
        stack.enter_context(value_reads_observed(self._note_read))

    def recorder_for(self, call: ModelCall, kernels: DeviceKernels) -> Recorder:
        """What watches the run of the model."""
        kernels.add_rules(
            {
                **dict.fromkeys((torch.histc, torch.Tensor.histc), self._histogram),
                torch.Tensor.scatter_add_: self._added,
                **dict.fromkeys((torch.bincount, torch.Tensor.bincount), self._counts),
                **dict.fromkeys((torch.Tensor.item, torch.Tensor.__int__), self._read),
            }
        )
        return super().recorder_for(call, kernels)

    def _histogram(self, input: torch.Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Any:
        if input.is_meta or input.is_floating_point():
            return self._even(input, bins)
        with no_modes():  # on a GPU it is one of whole numbers, which there is none of on a CPU
            return torch.histc(input.double(), bins, min, max).to(input.dtype)

    def _counts(self, input: torch.Tensor, weights: Any = None, minlength: int = 0) -> Any:
        return NotImplemented if weights is not None else self._even(input, minlength)

    def _added(self, numbers: torch.Tensor, dim: int, index: torch.Tensor, src: torch.Tensor) -> Any:
        """A one for each row at the number of its expert, as transformers counts them before it sends them."""
        counts_rows = numbers.dim() == 1 and not numbers.is_floating_point() and index.numel() == src.numel()
        if not counts_rows or "ep" not in self._sharding or self._even(index, numbers.numel()) is NotImplemented:
            return NotImplemented
        experts, rows = numbers.numel(), index.numel()
        if self._sharding.get("routing") != "one-rank":
            return _evenly(rows, experts, index)
        own = experts // self._sharding["ep"]
        return torch.cat([_evenly(rows, own, index), torch.zeros(experts - own, dtype=index.dtype)])

    def _even(self, input: torch.Tensor, experts: int) -> Any:
        if not input.is_meta or not experts:
            return NotImplemented
        self._assumption = _routing_note(self._sharding, experts, input.numel())
        return _evenly(input.numel(), experts, input)

    def _read(self, number: torch.Tensor) -> Any:
        self._note_read([number])
        return NotImplemented

    def _note_read(self, tensors: list[torch.Tensor]) -> None:
        in_model = self.doing.startswith("forward")  # optimizers read the numbers of their steps
        if in_model and self._assumption not in ("", *self.notes) and not all(tensor.is_meta for tensor in tensors):
            self.notes.append(self._assumption)


def _routing_note(sharding: Mapping[str, Any], experts: int, rows: int) -> str:
    """What is assumed of values, with how far off it can be."""
    if sharding.get("routing") == "one-rank":
        return f"routing: one-rank: all {sharding['ep'] * rows:,} rows of a layer come to this rank, which is the most"
    even = f"each of {experts} experts is assumed to get as many of the {rows:,} rows of a layer, which values decide"
    return f"{even}: routing: one-rank plans the most that a rank can get" if "ep" in sharding else even


def _evenly(rows: int, experts: int, like: torch.Tensor) -> torch.Tensor:
    """How many of `rows` each expert gets: the first ones one more, where they do not divide."""
    each, rest = divmod(rows, experts)
    return torch.tensor([each + (index < rest) for index in range(experts)], dtype=like.dtype)
