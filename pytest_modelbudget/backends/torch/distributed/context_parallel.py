"""Context parallelism: each rank has a part of every sequence, and attention of the parts runs as a ring.

torch's own `context_parallel` runs around the step. It deals a sequence out in twice as many pieces as ranks, a piece
from its head and one from its tail to each, so that under a causal mask all have the same work; and it runs every
`scaled_dot_product_attention` as a ring: queries of a rank meet keys and values of one rank after the other, and
results are merged in float32. By default (`rotate: allgather`) keys and values of all ranks are gathered behind the
first block of attention; with `alltoall` they go from rank to rank. What is kept for the backward pass is one result
and its logsumexp, as without a ring; where it was merged of pieces, the next layer keeps a copy in another layout.

Inputs are cut in place, as torch does it, so that their memory stays that of the whole sequence; a target that the
recipe's own loss makes is that of the rank's part. Tensors that the model keeps itself (a cache of rotary angles) are
not cut. The rank is the first one, which takes no less than others: these meet half of the keys where it meets all of
them with half of its queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.compat import no_modes
from pytest_modelbudget.backends.torch.distributed.fake_world import FakeWorld
from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels, fused_attention
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.memory.repeating import RepeatingRecorder
from pytest_modelbudget.backends.torch.model.dtensors import is_sharded
from pytest_modelbudget.backends.torch.model.meta_tensors import META
from pytest_modelbudget.backends.torch.trace.arguments import ModelCall
from pytest_modelbudget.backends.torch.training.step import StepRecording
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Recipe, Training
from pytest_modelbudget.planner.recipe import SHARDING_DIMS

_FLOAT32_ROWS = 32
"""What the kernel for float32 (memory-efficient attention) rounds its statistics up to (`kAlignLSE`)."""

_ATTENTION = functional.scaled_dot_product_attention
"""torch's own, which a ring has another function in front of."""

_PARAMETERS_OVER = ("fsdp", "zero2", "ddp")
_SEQUENCE = 1
"""The dimension of the inputs that is dealt out: behind that of the batch."""


def is_context_parallel(sharding: Any) -> bool:
    """Whether each rank has a part of every sequence."""
    return isinstance(sharding, Mapping) and sharding.get("cp", 1) > 1


def parameter_dims(ranks: Mapping[str, int]) -> dict[str, int]:
    """The dimensions over which parameters are dealt out, or are replicas; ranks of one sequence are more of them.

    As torchtitan has it, FSDP shards over both (`dp_shard_cp`); where nothing shards they are replicas.
    """
    dims = {dim: size for dim, size in ranks.items() if dim != "cp"}
    if ranks.get("cp", 1) > 1:
        over = next((dim for dim in _PARAMETERS_OVER if dim in dims), "ddp")
        dims[over] = dims.get(over, 1) * ranks["cp"]
    return {dim: dims[dim] for dim in SHARDING_DIMS if dims.get(dim, 1) > 1}


class ContextParallelStep(StepRecording):
    """The step of the first of the ranks of `sharding`, which share the sequences of a batch.

    Raises:
        ModelBudgetError: a recipe, or attention, that torch does not run as a ring; sequences that do not divide.
    """

    def __init__(self, *args: Any, world: FakeWorld, sharding: Mapping[str, Any]) -> None:
        super().__init__(*args)
        self._world, self._rotate = world, sharding.get("rotate", "allgather")
        self._ranks = {dim: int(sharding[dim]) for dim in SHARDING_DIMS if sharding.get(dim, 1) > 1}
        self._scores = _ScoresRefused(self.runnable.name)
        self._rings = 0
        self._recorder: Recorder | None = None

    def prepare(self, recipe: Recipe, kernels: DeviceKernels, stack: ExitStack) -> None:
        """Bring the model and torch into the state of the run, until `stack` is left."""
        if not self.on_cuda:
            raise ModelBudgetError(
                f"training.sharding: cp with kernels: {recipe.kernels} is not planned, since torch's ring attention "
                "has no kernel for the CPU: leave kernels out"
            )
        super().prepare(recipe, kernels, stack)
        self.doing = "sharding"
        stack.enter_context(_ring_attention(self._world.mesh(**self._ranks)["cp"], self._rotate))
        stack.enter_context(_rings_repeated(lambda: self._recorder))
        ring = functional.scaled_dot_product_attention
        stack.enter_context(patched(functional, "scaled_dot_product_attention", self._checked(ring)))
        stack.enter_context(self._scores)

    def inputs(self) -> ModelCall:
        """What the model is called with: the rank's part of each sequence, in the memory of the whole."""
        call, ranks = super().inputs(), self._ranks["cp"]
        whole = next((tensor.shape[_SEQUENCE] for _, tensor in call.ports if tensor.dim() > _SEQUENCE), 0)
        if not whole or whole % (2 * ranks):
            raise ModelBudgetError(
                f"{self.runnable.name}: training.sharding: cp: {ranks} deals dimension 1 of the first input out in "
                f"{2 * ranks} pieces, two for each rank, and {whole} does not divide: give a size that does"
            )
        with no_modes():
            for _, tensor in call.ports:
                _keep_part_of_first_rank(tensor, whole, ranks)
        self._scores.tokens = whole // ranks
        return call

    def recorder_for(self, call: ModelCall, kernels: DeviceKernels) -> Recorder:
        """What watches the run of the model, with attention as torch's ring runs it."""
        kernels.add_rules({_ATTENTION: self._attention})
        self._recorder = super().recorder_for(call, kernels)
        return self._recorder

    def forward(self, recipe: Training, call: ModelCall, *args: Any) -> None:
        """Run the model, and look whether its attention ran as a ring."""
        super().forward(recipe, call, *args)
        if not self._rings:
            raise ModelBudgetError(
                f"{self.runnable.name}: training.sharding: cp: the model calls no scaled_dot_product_attention, which "
                "is what torch runs over the ranks of a sequence: each rank would see its own part alone"
            )

    def _checked(self, ring: Callable[..., Any]) -> Callable[..., Any]:
        def attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
            named = dict(zip(("attn_mask", "dropout_p", "is_causal"), args, strict=False)) | kwargs
            if named.get("attn_mask") is not None:
                raise self._refusal("it has a mask: pass is_causal=True in its place")
            if not named.get("is_causal"):
                raise self._refusal("it is not causal, and the sequence is dealt out for causal masks: use fsdp or tp")
            return ring(query, key, value, *args, **kwargs)

        return attention

    def _attention(self, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not is_sharded(query):
            raise self._refusal("it was imported by its name: call torch.nn.functional.scaled_dot_product_attention")
        tokens = query.shape[-2] // (2 * self._ranks["cp"])
        if query.dtype is torch.float32 and tokens % _FLOAT32_ROWS:
            raise self._refusal(
                f"its float32 kernel keeps statistics of {_FLOAT32_ROWS} tokens at a time, and a piece has {tokens}: "
                f"give a multiple of {2 * self._ranks['cp'] * _FLOAT32_ROWS} tokens, or train in half precision"
            )
        self._rings += 1
        if (out := fused_attention(query, *args, **kwargs)) is NotImplemented:
            raise self._refusal(
                "no fused kernel takes its operands (float32 with fewer heads of keys than of queries?)"
            )
        return out

    def _refusal(self, problem: str) -> ModelBudgetError:
        return ModelBudgetError(
            f"{self.runnable.name}: training.sharding: cp: torch runs no ring of this attention: {problem}"
        )


def _keep_part_of_first_rank(tensor: torch.Tensor, whole: int, ranks: int) -> None:
    """Leave of a `tensor` with a sequence of `whole` its first and last piece of twice as many as `ranks`, in place."""
    dim = next((dim for dim in (_SEQUENCE, 0) if tensor.dim() > dim and tensor.shape[dim] == whole), None)
    if dim is None or (dim == 0 and tensor.dim() > 1):
        return
    piece = whole // (2 * ranks)
    part = torch.cat([tensor.narrow(dim, 0, piece), tensor.narrow(dim, whole - piece, piece)], dim)
    tensor.resize_(part.shape).copy_(part)  # which keeps the memory there is


@contextmanager
def _ring_attention(mesh: Any, rotate: str) -> Iterator[None]:
    """Inside, torch runs attention as a ring over the ranks of `mesh`."""
    try:
        from torch.distributed.tensor.experimental import context_parallel
        from torch.distributed.tensor.experimental._attention import _cp_options, _RotateMethod
    except ImportError as error:
        raise ModelBudgetError(
            f"training.sharding: torch {torch.__version__} has no context parallelism: update to 2.14 or later"
        ) from error
    method = _RotateMethod.ALL_TO_ALL if rotate == "alltoall" else _RotateMethod.ALL_GATHER
    sequence = torch.empty(2 * mesh.size(), device=META)
    with ExitStack() as stack:
        stack.enter_context(patched(_cp_options, "enable_load_balance", True))
        stack.enter_context(patched(_cp_options, "rotate_method", method))
        with no_modes():
            stack.enter_context(context_parallel(mesh, buffers=[sequence], buffer_seq_dims=[0]))
        yield


@contextmanager
def _rings_repeated(recorder_of: Callable[[], Recorder | None]) -> Iterator[None]:
    """Inside, a ring like two earlier ones, those of other layers, is repeated: most operators are in rings."""
    from torch.distributed.tensor.experimental._context_parallel import _attention

    def repeating(ring: Callable[..., Any]) -> Callable[..., Any]:
        def attention(*args: Any, **kwargs: Any) -> Any:
            recorder = recorder_of()
            if isinstance(recorder, RepeatingRecorder):
                return recorder.repeating(ring, args, kwargs)
            return ring(*args, **kwargs)

        return attention

    with ExitStack() as stack:
        for name in ("_templated_ring_attention", "_templated_ring_attention_backward"):
            stack.enter_context(patched(_attention, name, repeating(getattr(_attention, name))))
        yield


class _ScoresRefused(TorchFunctionMode):  # type: ignore[misc]
    """Inside, a softmax of scores between the tokens of one rank is refused: it should have seen those of all.

    `tokens` are how many of a sequence this rank has; none before the inputs are there.
    """

    _FUNCTIONS = frozenset({functional.softmax, torch.softmax, torch.Tensor.softmax, torch._softmax})

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name, self.tokens = name, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._FUNCTIONS:
            scores, tokens = args[0] if args else kwargs["input"], self.tokens
            if scores.dim() > 2 and scores.shape[-2:] == (tokens, tokens):
                raise ModelBudgetError(
                    f"{self._name}: training.sharding: cp: a softmax of {tokens} x {tokens} scores is attention among "
                    "the tokens of one rank alone, which is wrong over a sequence that is dealt out: use "
                    "scaled_dot_product_attention (attn_implementation: sdpa)"
                )
        return func(*args, **kwargs)
