"""Graphs of a model with blocks left out, stretched to those of the whole one.

The graphs have two units of a run of like blocks, `near` and `far`, which follow each other there and have those that
were left out between them in the model. Where the two do the same to like operands, each unit between them does, too:
a node reads a value of its own unit, of the one before or after it, or one that all share. Copies of what `near` does
are put between the two, with inputs, saved tensors, gradients and module paths of their own. What is not like that is
refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from torch.fx import Graph, GraphModule, Node

from pytest_modelbudget.backends.torch.compiled.fusion import results_of
from pytest_modelbudget.backends.torch.compiled.span import NotAlike, Span, families_of
from pytest_modelbudget.backends.torch.compiled.two_units import TwoUnits


@dataclass(frozen=True, slots=True)
class Graphs:
    """The graphs of a model: of its forward pass, and, where it is trained, of its backward pass.

    `names` are those of its first inputs, parameters and buffers; it gives back its first `returned` results.
    """

    forward: GraphModule
    backward: GraphModule | None
    names: tuple[str, ...]
    returned: int


def stretch(graphs: Graphs, names: Sequence[str], name_span: Span, span: Span) -> Graphs:
    """`graphs`, which are changed, with all units of `span`.

    `names` are those of all parameters and buffers, in the order of inputs; `name_span` is `span` in these names, which
    have wrappers in them.

    Raises:
        NotAlike: the graphs are not to be used any more.
    """
    families = families_of(graphs.names, names, name_span)
    new_names = _with_families(graphs.names, names, families)
    forward = TwoUnits(graphs.forward.graph, span)
    inputs = _matched_weights(forward, graphs.names, families)
    forward.compare()
    results = results_of(graphs.forward.graph)
    returned, saved = list(results[: graphs.returned]), results[graphs.returned :]
    runs = list(_returned_runs(returned, forward.far_of))
    backward = None
    if graphs.backward is not None:
        backward = TwoUnits(graphs.backward.graph, span)
        saved_there = _match_saved(forward, backward, saved)
        tangents = tangents_of(graphs.backward.graph)
        for run in runs:
            for place in run:
                backward.match(tangents[place], tangents[place + len(run)])
        backward.compare()
    forward.add_weights(inputs, families, new_names)
    forward.add_copies()
    forward.add_seeds()
    whole_returned = list(forward.with_runs_copied(returned, runs))
    forward.finish([*whole_returned, *forward.with_copies(saved)])
    if graphs.backward is not None and backward is not None:
        gradients = list(results_of(graphs.backward.graph))
        backward.add_saved(forward, saved_there)
        backward.add_tangents(tangents, runs)
        backward.add_copies()
        by_name = backward.gradients(dict(zip(graphs.names, gradients, strict=False)), families)
        backward.finish([*(by_name[name] for name in new_names), *gradients[len(graphs.names) :]])
    return replace(graphs, names=new_names, returned=len(whole_returned))


@dataclass(frozen=True, slots=True)
class Joint:
    """A graph of both passes; `names` and `returned` are as those of `Graphs`."""

    module: GraphModule
    names: tuple[str, ...]
    returned: int


def widen(joint: Joint, names: Sequence[str], name_span: Span, span: Span) -> Joint:
    """`joint`, which is changed, with the units of `span` that are wanted; `names` and `name_span` as for `stretch`.

    Raises:
        NotAlike: the graph is not to be used any more.
    """
    families = families_of(joint.names, names, name_span)
    new_names = _with_families(joint.names, names, families)
    both = TwoUnits(joint.module.graph, span)
    inputs = _matched_weights(both, joint.names, families)
    both.match_nodes()
    results, tangents = list(results_of(both.graph)), tangents_of(both.graph)
    returned, gradients = results[: joint.returned], results[joint.returned :]
    runs = list(_returned_runs(returned, both.far_of))
    for run in runs:
        for place in run:
            both.match(tangents[place], tangents[place + len(run)])
    both.check()
    both.add_weights(inputs, families, new_names)
    both.add_tangents(tangents, runs)
    both.add_copies()
    both.add_seeds()
    new_returned = list(both.with_runs_copied(returned, runs))
    by_name = both.gradients(dict(zip(joint.names, gradients, strict=False)), families)
    both.finish([*new_returned, *(by_name[name] for name in new_names), *gradients[len(joint.names) :]])
    return Joint(joint.module, new_names, len(new_returned))


def _with_families(
    shallow: Sequence[str], names: Sequence[str], families: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """The `names` of a shallow model and of the units that are put into it, in order."""
    everything = {*shallow, *(moved for family in families.values() for moved in family)}
    return tuple(name for name in names if name in everything)


def _matched_weights(units: TwoUnits, names: Sequence[str], families: Mapping[str, tuple[str, ...]]) -> dict[str, Node]:
    """The inputs of parameters and buffers by their `names`, of which those of the two units are matched now."""
    inputs = dict(zip(names, units.placeholders, strict=False))
    for near, family in families.items():
        units.match(inputs[near], inputs[family[-1]])
    return inputs


def tangents_of(graph: Graph) -> list[Node]:
    """The inputs of a backward pass that are gradients of what the model returns."""
    return [node for node in graph.nodes if node.op == "placeholder" and node.name.startswith("tangents_")]


def _returned_runs(returned: list[Node], far_of: Mapping[Node, Node]) -> Iterator[range]:
    """The places in `returned` of what the near unit makes, such as a cache; what the far one makes follows each.

    Raises:
        NotAlike: it does not.
    """
    for is_near, group in groupby(range(len(returned)), key=lambda place: returned[place] in far_of):
        if is_near:
            places = list(group)
            run = range(places[0], places[-1] + 1)
            following = returned[run.stop : run.stop + len(run)]
            if [far_of[returned[place]] for place in run] != following:
                raise NotAlike("what one unit makes is not returned like that of the other")
            yield run


def _match_saved(forward: TwoUnits, backward: TwoUnits, saved: Sequence[Node]) -> dict[Node, Node]:
    """Match the inputs of the backward pass that are saved by like nodes; gives back the input of each."""
    inputs = backward.placeholders[: len(saved)]
    if [node.name for node in inputs] != [node.name for node in saved]:
        raise NotAlike("saved tensors are given in another order")
    input_of = dict(zip(saved, inputs, strict=True))
    for node, saved_input in input_of.items():
        if (far := forward.far_of.get(node)) is not None:
            if far not in input_of:
                raise NotAlike(f"{node.name} is saved, {far.name} is not")
            backward.match(saved_input, input_of[far])
        elif (near := forward.near_of.get(node)) is not None and near not in input_of:
            raise NotAlike(f"{node.name} is saved, {near.name} is not")
    return input_of
