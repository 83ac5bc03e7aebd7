"""A model as torch.compile with Inductor would run it: its graphs, captured on fake tensors, without any kernel.

AOTAutograd traces forward and backward pass in one, with Inductor's decompositions; Inductor's own `partition_fn`
(its passes over that graph, among them the one that makes random numbers anew, and the min-cut rematerialisation)
decides what is saved for the backward pass and what is computed again. The rest of the loop stays as it is: the model
is one function of autograd, whose two graphs are run by `run`.

The whole model is one graph, as with `fullgraph=True`: where TorchDynamo would break it, more is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.compat import no_functions, no_modes, tree_flatten, tree_unflatten
from pytest_modelbudget.backends.torch.compiled.fusion import donated_names, results_of
from pytest_modelbudget.backends.torch.compiled.layouts import copy_what_is_given, reordered, reorders
from pytest_modelbudget.backends.torch.compiled.outputs import Rebuild, taken_apart
from pytest_modelbudget.backends.torch.compiled.random_states import leave_out_random_states
from pytest_modelbudget.backends.torch.compiled.regions import Recomputation, recomputed_regions_tagged
from pytest_modelbudget.backends.torch.compiled.repeats import Repeats, Survey, lists_of_blocks
from pytest_modelbudget.backends.torch.compiled.run import PATH, At, Run, runner, traced_results
from pytest_modelbudget.backends.torch.compiled.schedule import schedule_of
from pytest_modelbudget.backends.torch.compiled.shallow import (
    blocks_left_out,
    check_outputs,
    end_with_both,
    end_with_forward,
    spans_of,
    stretched,
    traced,
    trained,
    widened,
)
from pytest_modelbudget.backends.torch.compiled.span import NotAlike
from pytest_modelbudget.backends.torch.compiled.stretch import Graphs, Joint
from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels
from pytest_modelbudget.backends.torch.model.modules import nodes
from pytest_modelbudget.errors import ModelBudgetError

Captured = Callable[..., Any]
"""Runs a captured model: called with its parameters and buffers, and with the tensors it is given."""


class CompiledModel:
    """Calls a model as compiled for the device of `kernels`; its first call captures it.

    `at` enters the place of each kernel that runs; `recomputation` is told what is recomputed.
    """

    def __init__(self, model: nn.Module, at: At, kernels: DeviceKernels, recomputation: Recomputation) -> None:
        self._model, self._at, self._kernels, self._recomputation = model, at, kernels, recomputation
        self._cpu = not kernels.cuda
        self._reorders = False
        self._names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
        self._paths = {id(node.module): node.path for node in nodes(model)}
        self._compiled: Captured | None = None
        self._rebuild: Rebuild
        self._output_count = 0
        self._regions: list[int] = []
        self._donated: Collection[str] = ()
        self._capturing = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        weights = [*self._model.parameters(), *self._model.buffers()]
        inputs = [leaves[index] for index in places]

        def caller(names: Sequence[str]) -> Callable[..., Any]:
            """What calls the model with weights of these `names`, and gives back its tensors."""

            def call(weights: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> Any:
                values = list(leaves)
                for index, tensor in zip(places, inputs, strict=True):
                    values[index] = tensor
                args, kwargs = tree_unflatten(values, spec)
                named = dict(zip(names, weights, strict=True))
                tensors, self._rebuild = taken_apart(torch.func.functional_call(self._model, named, args, kwargs))
                return tensors

            return call

        if self._compiled is None:
            with torch.autograd.graph.saved_tensors_hooks(_same, _same):  # not those of a region around the model
                self._compiled = _without_breaks(
                    lambda: (
                        self._stretched(caller, weights, inputs) or self._captured(caller(self._names), weights, inputs)
                    )
                )
            for index in places:  # what was captured keeps its caller
                leaves[index] = None
        return self._rebuild(self._compiled(weights, inputs))

    def share(self, captured_model: CompiledModel) -> None:
        """Run what was captured of `other`, a model that does the same."""
        self._compiled, self._rebuild = captured_model._compiled, captured_model._rebuild

    def _captured(
        self, call: Callable[..., Any], weights: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
    ) -> Captured:
        compiled = self._compiling(call, self._names)
        with self._tracing() as mode:
            self._capturing = True
            compiled([_fake(tensor, mode) for tensor in weights], [_fake(tensor, mode) for tensor in inputs])
            self._capturing = False
        self._recomputation.seen |= bool(self._regions)
        return compiled

    def _stretched(
        self, caller: Callable[..., Any], weights: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
    ) -> Captured | None:
        """What runs the model as captured without most of its blocks; None where these are not all alike."""
        for fake in (False, True):  # on meta, which is quicker, and where that fails as the model is captured
            try:
                survey = self._survey(lists_of_blocks(self._model), caller(self._names), weights, inputs, fake=fake)
            except Exception:  # whatever the model's code raises
                continue
            if self._regions or not (repeats := survey.repeats()):  # what is recomputed of a block goes by its depth
                return None
            rebuild = self._rebuild
            is_trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
            every_runs = dict.fromkeys((repeats, tuple([run.without_last() for run in repeats])))
            for runs, widens in product(every_runs, (True, False) if is_trained else (False,)):
                try:
                    graphs = self._shallow_graphs(survey, runs, caller, weights, inputs, fake=fake, widens=widens)
                    self._rebuild = rebuild
                    return self._running(graphs, survey.returned)
                except Exception:  # whatever the model's code raises without some of its blocks
                    continue
            return None
        return None

    def _survey(
        self,
        containers: Sequence[nn.Module],
        call: Callable[..., Any],
        weights: Sequence[torch.Tensor],
        inputs: Sequence[torch.Tensor],
        *,
        fake: bool,
    ) -> Survey:
        if not fake:
            with ExitStack() as stack:
                stack.enter_context(no_modes())
                stack.enter_context(patched(torch.compiler, "_is_compiling_flag", True))
                stack.enter_context(self._kernels.traced())
                self._regions = stack.enter_context(recomputed_regions_tagged())
                return Survey(containers, lambda: call(weights, inputs))
        with self._tracing() as mode:
            fakes, fake_inputs = ([_fake(tensor, mode) for tensor in tensors] for tensors in (weights, inputs))
            return Survey(containers, lambda: call(fakes, fake_inputs))

    def _shallow_graphs(
        self,
        survey: Survey,
        repeats: Sequence[Repeats],
        caller: Callable[..., Any],
        weights: Sequence[torch.Tensor],
        inputs: Sequence[torch.Tensor],
        *,
        fake: bool,
        widens: bool,
    ) -> Graphs:
        """The graphs of the whole model, of those of one that has of each run the unit before it, its first, its last.

        Where it `widens`, the first one is not traced: it is a copy of the unit before it.
        """
        spans = list(spans_of(self._model, repeats))
        joint_repeats = [run.with_first() for run in repeats] if widens else []
        joint_spans = list(spans_of(self._model, joint_repeats))
        with blocks_left_out(self._model, joint_repeats or repeats) as shallow:
            shallow_weights = [weights[position] for position in shallow.places]
            shallow_survey = self._survey(survey.containers, caller(shallow.names), shallow_weights, inputs, fake=fake)
            if shallow_survey.outline() != survey.outline(shallow.left_out):
                raise NotAlike("the rest of the model does something else without some of its blocks")
            if shallow_survey.makers() != survey.makers(shallow.left_out):
                raise NotAlike("the model returns what other blocks make without some of them")
            with self._tracing() as mode:
                names = [self._names[position] for position in shallow.places]
                widen = partial(widened, names=self._names, spans=joint_spans)
                compiled = self._compiling(caller(shallow.names), names, widen)
                fakes, fake_inputs = (
                    [_fake(tensor, mode) for tensor in tensors] for tensors in (shallow_weights, inputs)
                )
                graphs = traced(lambda: compiled(fakes, fake_inputs))
        with no_modes():
            graphs = stretched(graphs, self._names, spans)
            check_outputs(graphs, survey.returned)
            return graphs

    def _running(self, graphs: Graphs, returned: Sequence[torch.Tensor]) -> Captured:
        """What runs stretched `graphs` of the model, which `returned` tensors like these."""
        self._output_count = graphs.returned if graphs.backward else 0
        with no_modes():
            forward = self._forward(graphs.forward, ())
        backward = graphs.backward
        run = trained(graphs, returned, forward, lambda: self._backward(backward, ())) if backward else forward
        return lambda weights, inputs: run([*weights, *inputs])

    def _compiling(
        self, call: Callable[..., Any], names: Sequence[str], widen: Callable[[Joint], Joint] | None = None
    ) -> Captured:
        """What captures `call`, whose weights have these `names`, when it is called.

        It runs it then, or ends with graphs: those of a joint graph that is made wider first.
        """
        from torch._functorch.aot_autograd import aot_function  # a second and more of imports
        from torch._inductor.decomposition import select_decomp_table

        def partition(
            module: GraphModule, joint_inputs: Any, *, num_fwd_outputs: int, **options: Any
        ) -> tuple[GraphModule, GraphModule]:
            joint = Joint(module, tuple(names), num_fwd_outputs)
            joint, parts = self._partitioned(joint, joint_inputs, widen or (lambda joint: joint))
            return end_with_both(joint, parts) if widen else parts

        compiled: Captured = aot_function(
            call,
            fw_compiler=partial(end_with_forward, tuple(names)) if widen else self._forward,
            bw_compiler=self._backward,
            partition_fn=partition,
            decompositions=select_decomp_table(),
            keep_inference_input_mutations=True,
            enable_log=False,
            _disable_torch_fn_metadata_mode=True,  # which function of torch called a node is not asked
        )
        return compiled

    @contextmanager
    def _tracing(self) -> Iterator[Any]:
        """Inside, the model is traced on tensors of the mode that is given."""
        import torch._inductor.lowering
        from torch._inductor.virtualized import V
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx._lazy_graph_module import _use_lazy_graph_module

        mode = FakeTensorMode()
        with ExitStack() as stack:
            stack.enter_context(no_modes())
            stack.enter_context(patched(torch.compiler, "_is_compiling_flag", True))  # asked before values are read
            stack.enter_context(V.set_fake_mode(mode))
            stack.enter_context(_paths_noted(self._paths))
            stack.enter_context(self._kernels.traced())
            self._regions = stack.enter_context(recomputed_regions_tagged())
            stack.enter_context(_use_lazy_graph_module(True))  # nobody runs the code of the graphs
            stack.enter_context(mode)
            yield mode

    def _partitioned(
        self, joint: Joint, joint_inputs: Any, widen: Callable[[Joint], Joint]
    ) -> tuple[Joint, tuple[GraphModule, GraphModule]]:
        """What `widen` makes of a joint graph after Inductor's passes over it, and Inductor's partition of that."""
        from torch._functorch.partitioners import min_cut_rematerialization_partition
        from torch._inductor.compile_fx import partition_fn

        def partition(module: GraphModule, joint_inputs: Any, **options: Any) -> Any:
            module.graph.eliminate_dead_code()
            with no_modes():
                whole = widen(replace(joint, module=module))
            # Parameters and buffers are there anyway, so that saving them costs nothing.
            options = {**options, "static_lifetime_input_indices": list(range(len(whole.names)))}
            options["num_fwd_outputs"] = self._output_count = whole.returned
            return whole, min_cut_rematerialization_partition(module, joint_inputs, compiler="inductor", **options)

        with no_functions():
            whole, parts = partition_fn(
                joint.module, joint_inputs, partitioner_fn_override=partition, num_fwd_outputs=joint.returned
            )
        for part in parts:
            leave_out_random_states(part.graph, cpu=self._cpu)
        return whole, parts

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
            is_scheduled = bool(self._regions) and not self._capturing
            schedule = schedule_of(module) if is_scheduled else None
            self._recomputation.scheduled |= schedule is not None
            self._recomputation.by_rule |= is_scheduled and schedule is None
            run = runner(module, donated, self._at, cpu=self._cpu, reordered=order, fixed=returned, schedule=schedule)

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


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _fake(tensor: torch.Tensor, mode: Any) -> torch.Tensor:
    """A tensor like this one that the mode takes for one on the CPU, so that it goes with constants of the model."""
    from torch._subclasses.fake_tensor import FakeTensor

    meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    fake: torch.Tensor = FakeTensor(mode, meta, torch.device("cpu"))
    return fake.requires_grad_(tensor.requires_grad)


@contextmanager
def _paths_noted(paths: Mapping[int, str]) -> Iterator[None]:
    """Inside, nodes that are traced know which module called them, as far as torch lets them keep it.

    `paths` are those of modules, by their `id`.
    """
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
