"""A model as torch.compile with Inductor would run it: its graphs, captured on fake tensors, without any kernel.

AOTAutograd traces forward and backward pass in one, with Inductor's decompositions; Inductor's own `partition_fn`
(its passes over that graph, among them the one that makes random numbers anew, and the min-cut rematerialisation)
decides what is saved for the backward pass and what is computed again. The rest of the loop stays as it is: the model
is one function of autograd, whose two graphs are run by `run`.

The whole model is one graph, as with `fullgraph=True`: where TorchDynamo would break it, more is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.compat import no_modes
from pytest_modelbudget.backends.torch.compiled.fusion import donated_names, results_of
from pytest_modelbudget.backends.torch.compiled.layouts import copy_what_is_given, reordered, reorders
from pytest_modelbudget.backends.torch.compiled.outputs import Rebuild, taken_apart
from pytest_modelbudget.backends.torch.compiled.random_states import leave_out_random_states
from pytest_modelbudget.backends.torch.compiled.regions import recomputed_regions_tagged
from pytest_modelbudget.backends.torch.compiled.run import PATH, At, Run, runner, traced_results
from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels
from pytest_modelbudget.backends.torch.model.modules import nodes
from pytest_modelbudget.errors import ModelBudgetError

Captured = Callable[..., Any]
"""Runs a captured model: called with its parameters and buffers, and with the tensors it is given."""


class CompiledModel:
    """Calls a model as compiled for the device of `kernels`; its first call captures it.

    `at` enters the place of each kernel that runs.
    """

    def __init__(self, model: nn.Module, at: At, kernels: DeviceKernels) -> None:
        self._model, self._at, self._kernels = model, at, kernels
        self._cpu = not kernels.cuda
        self._reorders = False
        self._names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
        self._compiled: Captured | None = None
        self._rebuild: Rebuild
        self._output_count = 0
        self._donated: Collection[str] = ()
        self._capturing = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = torch.utils._pytree.tree_flatten((args, kwargs))
        places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        weights = [*self._model.parameters(), *self._model.buffers()]
        inputs = [leaves[index] for index in places]

        def call(weights: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> Any:
            values = list(leaves)
            for index, tensor in zip(places, inputs, strict=True):
                values[index] = tensor
            args, kwargs = torch.utils._pytree.tree_unflatten(values, spec)
            named = dict(zip(self._names, weights, strict=True))
            tensors, self._rebuild = taken_apart(torch.func.functional_call(self._model, named, args, kwargs))
            return tensors

        if self._compiled is None:
            self._compiled = _without_breaks(lambda: self._captured(call, weights, inputs))
        return self._rebuild(self._compiled(weights, inputs))

    def share(self, other: CompiledModel) -> None:
        """Run what was captured of `other`, a model that does the same."""
        self._compiled, self._rebuild = other._compiled, other._rebuild

    def _captured(
        self, call: Callable[..., Any], weights: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
    ) -> Captured:
        import torch._inductor.lowering
        from torch._functorch.aot_autograd import aot_function  # a second and more of imports
        from torch._inductor.decomposition import select_decomp_table
        from torch._inductor.virtualized import V
        from torch._subclasses.fake_tensor import FakeTensorMode

        mode = FakeTensorMode()
        compiled: Captured = aot_function(
            call,
            fw_compiler=self._forward,
            bw_compiler=self._backward,
            partition_fn=self._partitioned,
            decompositions=select_decomp_table(),
            keep_inference_input_mutations=True,
            enable_log=False,
        )
        with ExitStack() as stack:
            stack.enter_context(no_modes())
            stack.enter_context(patched(torch.compiler, "_is_compiling_flag", True))  # asked before values are read
            stack.enter_context(V.set_fake_mode(mode))
            stack.enter_context(_paths_noted(self._model))
            stack.enter_context(self._kernels.traced())
            stack.enter_context(recomputed_regions_tagged())
            stack.enter_context(mode)
            self._capturing = True
            compiled([_fake(tensor, mode) for tensor in weights], [_fake(tensor, mode) for tensor in inputs])
            self._capturing = False
        return compiled

    def _partitioned(self, *args: Any, **options: Any) -> tuple[GraphModule, GraphModule]:
        """Inductor's partition; parameters and buffers are there anyway, so that saving them costs nothing."""
        from torch._inductor.compile_fx import partition_fn

        self._output_count = options["num_fwd_outputs"]
        static = list(range(len(self._names)))
        parts: tuple[GraphModule, GraphModule] = partition_fn(
            *args, **{**options, "static_lifetime_input_indices": static}
        )
        for part in parts:
            leave_out_random_states(part.graph, cpu=self._cpu)
        return parts

    def _forward(self, module: GraphModule, inputs: Sequence[Any]) -> Run:
        self._reorders = reorders(module.graph, cpu=self._cpu)
        if self._reorders:
            copy_what_is_given(module.graph, results_of(module.graph), self._output_count)
        self._donated = donated_names(module.graph, self._output_count)
        return self._runner(module, (), self._output_count or None)

    def _backward(self, module: GraphModule, inputs: Sequence[Any]) -> Run:
        return self._runner(module, self._donated)

    def _runner(self, module: GraphModule, donated: Collection[str], output_count: int | None = None) -> Run:
        """What runs `module`, whose first `output_count` results (None: all) lie as the model's code says."""
        results = results_of(module.graph)[:output_count]
        returned = {result.name for result in results if isinstance(result, Node)}
        order = reordered if self._reorders else None
        with no_modes():  # the backward pass is compiled in the run
            run = runner(module, donated, self._at, cpu=self._cpu, reordered=order, fixed=returned)

        def run_or_capture(args: list[Any]) -> list[Any]:
            return traced_results(module.graph) if self._capturing else run(args)

        vars(run_or_capture)["_boxed_call"] = True  # so torch knows that it empties its list
        return run_or_capture


def _without_breaks(capture: Callable[[], Captured]) -> Captured:
    """What `capture` gives.

    Raises:
        ModelBudgetError: the model asks for values, or torch has not what captures it.
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    try:
        return capture()
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ModelBudgetError(
            f"compile: inductor: the model decides by values ({error.func}), where torch.compile breaks its graph: "
            "only models that are one graph (fullgraph=True) are planned"
        ) from None
    except ImportError as error:
        raise ModelBudgetError(f"compile: inductor is not planned with torch {torch.__version__}: {error}") from None


def _fake(tensor: torch.Tensor, mode: Any) -> torch.Tensor:
    """A tensor like this one that the mode takes for one on the CPU, so that it goes with constants of the model."""
    from torch._subclasses.fake_tensor import FakeTensor

    meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    fake: torch.Tensor = FakeTensor(mode, meta, torch.device("cpu"))
    return fake.requires_grad_(tensor.requires_grad)


@contextmanager
def _paths_noted(model: nn.Module) -> Iterator[None]:
    """Inside, nodes that are traced know which module called them, as far as torch lets them keep it."""
    paths = {id(node.module): node.path for node in nodes(model)}
    running: list[Any] = []

    def enter(module: nn.Module, args: Any) -> None:
        if id(module) in paths:
            running.append(torch.fx.traceback.annotate({PATH: paths[id(module)]}))
            running[-1].__enter__()

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        if id(module) in paths:
            running.pop().__exit__(None, None, None)

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]  # fx goes past `__call__`
    try:
        with torch.fx.traceback.preserve_node_meta():
            try:
                yield
            finally:
                while running:  # a call that failed
                    running.pop().__exit__(None, None, None)
    finally:
        for hook in hooks:
            hook.remove()
