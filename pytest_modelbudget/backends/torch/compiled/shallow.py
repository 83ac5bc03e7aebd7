"""Models whose blocks repeat, captured without most of them: their graphs are stretched to those of the whole model.

What AOTAutograd makes of a model is bound to its inputs, so that a stretched pair of graphs is run by a function of
autograd of its own. It knows the plain case: a model that writes into nothing it is given, and gives tensors that are
views of nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.compiled.fusion import results_of
from pytest_modelbudget.backends.torch.compiled.repeats import Repeats
from pytest_modelbudget.backends.torch.compiled.run import Run
from pytest_modelbudget.backends.torch.compiled.span import NotAlike, Span
from pytest_modelbudget.backends.torch.compiled.stretch import Graphs, Joint, stretch, tangents_of, widen
from pytest_modelbudget.backends.torch.model.modules import nodes


class _Ended(BaseException):
    """Ends a capture when its graphs are there; no error, so that nobody on the way takes it for one."""

    def __init__(self, graphs: Graphs) -> None:
        super().__init__()
        self.graphs = graphs


def end_with_forward(names: tuple[str, ...], module: GraphModule, inputs: Any) -> Any:
    """A compiler for the graph of a model that is not trained, with parameters and buffers of these `names`."""
    raise _Ended(Graphs(module, None, names, len(results_of(module.graph))))


def end_with_both(joint: Joint, parts: tuple[GraphModule, GraphModule]) -> Any:
    """What follows the partition of a model that is trained."""
    raise _Ended(Graphs(*parts, joint.names, joint.returned))


def traced(capture: Callable[[], object]) -> Graphs:
    """The graphs that `capture` ends with."""
    try:
        capture()
    except _Ended as end:
        return end.graphs
    raise AssertionError("a capture did not end")


@dataclass(frozen=True, slots=True)
class ShallowModel:
    """A model while blocks are left out of it: names of its parameters and buffers, and places among those it has.

    `left_out` are the blocks, by their `id`.
    """

    names: tuple[str, ...]
    places: tuple[int, ...]
    left_out: frozenset[int]


@contextmanager
def blocks_left_out(model: nn.Module, repeats: Sequence[Repeats]) -> Iterator[ShallowModel]:
    """Inside, `model` has only the first unit and what follows the last one of each run of like blocks."""
    position = {id(weight): position for position, weight in enumerate((*model.parameters(), *model.buffers()))}
    left_out: set[int] = set()
    with ExitStack() as stack:
        for container in {id(run.container): run.container for run in repeats}.values():
            left_out_indices = {index for run in repeats if run.container is container for index in run.left_out}
            blocks = list(container.children())
            remaining = [block for index, block in enumerate(blocks) if index not in left_out_indices]
            left_out.update(id(blocks[index]) for index in left_out_indices)
            stack.enter_context(
                patched(container, "_modules", {str(index): block for index, block in enumerate(remaining)})
            )
        named = [*model.named_parameters(), *model.named_buffers()]
        names, positions = tuple([name for name, _ in named]), tuple([position[id(weight)] for _, weight in named])
        yield ShallowModel(names, positions, frozenset(left_out))


def stretched(graphs: Graphs, names: Sequence[str], spans: Iterable[tuple[Span, Span]]) -> Graphs:
    """The graphs of the whole model, whose parameters and buffers have these `names`, of those of one without blocks.

    Raises:
        NotAlike: what its blocks do is not the same after all.
    """
    for name_span, span in spans:
        graphs = stretch(graphs, names, name_span, span)
    if list(graphs.names) != list(names):
        raise NotAlike("some parameters are of no unit")
    return graphs


def widened(joint: Joint, names: Sequence[str], spans: Iterable[tuple[Span, Span]]) -> Joint:
    """The `joint` graph of a model with the units at both ends of `spans`, and one more after each first one.

    A graph is traced operator by operator, but partitioned as a whole: there units are to have others on both sides.

    Raises:
        NotAlike: the two units do not do the same.
    """
    for name_span, span in spans:
        joint = widen(joint, names, replace(name_span, wanted=1), replace(span, wanted=1))
    return joint


def spans_of(model: nn.Module, repeats: Sequence[Repeats]) -> Iterator[tuple[Span, Span]]:
    """Where each run lies, in names of parameters and in paths of modules."""
    owners = {id(module): name for name, module in model.named_modules()}
    paths = {id(node.module): node.path for node in nodes(model)}
    for run in repeats:
        if id(run.container) not in owners or id(run.container) not in paths:
            raise NotAlike("the list of blocks has no path")
        in_names, in_paths = ("" if run.container is model else where[id(run.container)] for where in (owners, paths))
        first, last = run.first, run.left_out.stop
        yield Span(in_names, first, last, run.period), Span(in_paths, first, last, run.period)


def check_outputs(graphs: Graphs, returned: Sequence[torch.Tensor]) -> None:
    """See that `graphs` are of the plain case, and give what is like the tensors that the model `returned`.

    Raises:
        NotAlike: they are not.
    """
    results = results_of(graphs.forward.graph)[: graphs.returned]
    if len(returned) != graphs.returned or not all(map(_is_made, results)):
        raise NotAlike("the model writes into what it is given, or gives views")
    for result, tensor in zip(results, returned, strict=True):
        value = result.meta["val"]
        if (value.shape, value.dtype) != (tensor.shape, tensor.dtype):
            raise NotAlike(f"{result.name} is not what the model gives")
    if any(node.target is torch.ops.aten.copy_.default for node in graphs.forward.graph.nodes):
        raise NotAlike("the model writes into what it is given")
    if graphs.backward is not None and len(tangents_of(graphs.backward.graph)) != graphs.returned:
        raise NotAlike("some outputs have no gradients")


def _root(node: Node) -> Node:
    """What `node` is a view of."""
    while node.op == "call_function" and getattr(node.target, "is_view", False):
        node = node.all_input_nodes[0]
    return node


def _is_view(output: torch.Tensor) -> bool:
    """Whether AOTAutograd hides that an output is a view, by another view that autograd does not know."""
    base: torch.Tensor | None = output._base
    return bool(base is not None and output.requires_grad and base.requires_grad)


def _is_made(result: Any) -> bool:
    """Whether a graph makes the memory of a result."""
    return isinstance(result, Node) and bool(_root(result).op == "call_function")


def trained(
    graphs: Graphs, returned: Sequence[torch.Tensor], forward: Run, backward: Callable[[], Run]
) -> Callable[[list[torch.Tensor]], Any]:
    """What runs both passes: called with all inputs of the forward pass, it gives back its outputs.

    The model `returned` tensors like these. `backward` makes what runs the backward pass, when it is needed first.
    """
    assert graphs.backward is not None
    results = results_of(graphs.forward.graph)
    is_input = [result.op == "placeholder" for result in results[graphs.returned :]]
    tangents = [node.meta["val"] for node in tangents_of(graphs.backward.graph)]
    views = list(map(_is_view, returned))
    compiled: list[Run] = []

    class Compiled(torch.autograd.Function):  # type: ignore[misc]
        boxed_grads_call = True  # gradients come in a list, so that they can go

        @staticmethod
        def forward(ctx: Any, *inputs: torch.Tensor) -> Any:
            with torch._C._DisableAutocast():
                out = forward(list(inputs))
            saved = zip(out[graphs.returned :], is_input, strict=True)
            ctx.save_for_backward(*[x if is_given or not x._is_view() else x.detach() for x, is_given in saved])
            outputs = zip(out[: graphs.returned], views, strict=True)
            return tuple([torch.ops.aten._unsafe_view(x, x.shape) if view else x for x, view in outputs])

        @staticmethod
        def backward(ctx: Any, *boxed: Any) -> Any:
            gradients = [_lying_as(gradient, like) for gradient, like in zip(boxed[0], tangents, strict=True)]
            boxed[0].clear()
            args = [*ctx.saved_tensors, *gradients]
            del gradients
            ctx.maybe_clear_saved_tensors()
            if not compiled:
                compiled.append(backward())
            with torch._C._DisableAutocast():
                return tuple(compiled[0](args))

    return lambda inputs: Compiled.apply(*inputs)


def _lying_as(gradient: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A gradient in the order of memory for which its pass was traced."""
    if gradient.stride() == like.stride():
        return gradient
    return torch.empty_strided(like.shape, like.stride(), dtype=gradient.dtype, device=gradient.device).copy_(gradient)
