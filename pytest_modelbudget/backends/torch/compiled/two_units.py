"""One graph with two like units: nodes are matched, and copies of what the near one does are put between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node, map_arg

from pytest_modelbudget.backends.torch.compiled.run import PATH
from pytest_modelbudget.backends.torch.compiled.span import NotAlike, Span

_LOOKUP = "inductor_lookup_seed"


class TwoUnits:
    """One graph that is stretched: first nodes of the two units are matched, then copies are put between them."""

    def __init__(self, graph: Graph, span: Span) -> None:
        self.graph, self.span = graph, span
        self.placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        self.far_of: dict[Node, Node] = {}
        self.near_of: dict[Node, Node] = {}
        self._segments: list[tuple[list[Node], list[Node], bool]] = []  # near, far, and whether near runs first
        self._operands: dict[Node, list[Node]] = {}
        self._copies: dict[Node, list[Node]] = {}
        self._blocks: dict[Node, int | None] = {}

    def match(self, near: Node, far: Node) -> None:
        """Note that `far` is to the far unit what `near` is to the near one."""
        if _layout(near) != _layout(far):
            raise NotAlike(f"{near.name} and {far.name} have other shapes")
        self.far_of[near], self.near_of[far] = far, near

    def compare(self) -> None:
        """Match all nodes of the two units, and see that they read the same.

        Raises:
            NotAlike: they do not do the same.
        """
        self.match_nodes()
        self.check()

    def match_nodes(self) -> None:
        """Match all nodes of the two units."""
        self._segments = list(self._matched_segments())
        for near_nodes, far_nodes, _ in self._segments:
            for near, far in zip(near_nodes, far_nodes, strict=True):
                self.match(near, far)
                self._compare(near, far)

    def check(self) -> None:
        """See that matched nodes read the same, and that nobody else looks into the units."""
        for near_nodes, far_nodes, near_first in self._segments:
            for near, far in zip(near_nodes, far_nodes, strict=True):
                for operand, far_operand in zip(self._operands[near], self._operands[far], strict=True):
                    self._relation(operand, far_operand)
                self._check_users(near, allowed=not near_first, is_near=True)
                self._check_users(far, allowed=near_first, is_near=False)
        for near, far in self.far_of.items():
            if near.op == "placeholder":
                self._check_users(near, allowed=False, is_near=True)
                self._check_users(far, allowed=True, is_near=False)

    def _matched_segments(self) -> Iterator[tuple[list[Node], list[Node], bool]]:
        """What the near unit runs without anything between, the like nodes of the far one, and whether these are later.

        Among those of the last block of a model may be others, which all blocks share.
        """
        position = {node: number for number, node in enumerate(self.graph.nodes)}
        near_segments, remaining = self._near_segments()
        following = iter(remaining)
        for near_nodes in near_segments:
            far_nodes: list[Node] = []
            for near in near_nodes:
                far = next((node for node in following if self._matches(near, node)), None)
                if far is None:
                    raise NotAlike(f"nothing is like {near.name}")
                far_nodes.append(far)
            yield near_nodes, far_nodes, position[near_nodes[0]] < position[far_nodes[0]]
        if any(self.span.unit(self.span.index(_path(node))) == 1 for node in following):
            raise NotAlike("the far unit does more")

    def _near_segments(self) -> tuple[list[list[Node]], list[Node]]:
        """What the near unit runs, and what is of no block but those of the far one."""
        segments: list[list[Node]] = []
        remaining: list[Node] = []
        block = None
        for node in self.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            path = _path(node)
            index = self.span.index(path)
            if index is not None or not self.span.is_around(path):
                was_near, block = self.span.unit(block) == 0, index
                if self.span.unit(block) == 0 and not was_near:
                    segments.append([])
            self._blocks[node] = index if self.span.unit(block) == 1 else block
            if self.span.unit(block) == 0:
                segments[-1].append(node)
            elif index is None or self.span.unit(index) == 1:
                remaining.append(node)
        return segments, remaining

    def _matches(self, near: Node, node: Node) -> bool:
        """Whether `node` is the next of the far unit; others on the way are of no block."""
        path = _path(node)
        if path == self.span.moved(_path(near), self.span.between + 1) and node.target == near.target:
            return True
        if (
            self.span.unit(self.span.index(path)) == 1 and node.all_input_nodes
        ):  # constants are made where they are first
            raise NotAlike(f"{near.name} and {node.name} do something else")
        return False

    def _compare(self, near: Node, far: Node) -> None:
        constants = []
        for node in (near, far):
            operands: list[Node] = []
            constants.append(map_arg((node.args, node.kwargs), operands.append))
            self._operands[node] = operands
        if constants[0] != constants[1] and not _looks_up_seed(near):
            raise NotAlike(f"{near.name} and {far.name} do something else")
        if len(self._operands[near]) != len(self._operands[far]):
            raise NotAlike(f"{near.name} and {far.name} read something else")

    def _relation(self, near: Node, far: Node) -> Callable[[int], Node]:
        """What a unit so many turns from the near one reads, where the near and the far one read these."""
        last_turn = self.span.between + 1
        if near is far:
            return lambda turn: near
        if self.far_of.get(near) is far:
            return lambda turn: self._of_unit(near, turn)
        if far in self.far_of and near not in self.near_of and _layout(near) == _layout(far):
            return lambda turn: self._of_unit(far, turn - 1) if turn else near
        if near in self.near_of and far not in self.far_of and _layout(near) == _layout(far):
            return lambda turn: self._of_unit(self.near_of[near], turn + 1) if turn < last_turn else far
        raise NotAlike(f"{near.name} and {far.name} are read in the same place")

    def _of_unit(self, near: Node, turn: int) -> Node:
        if turn == 0:
            return near
        if turn > self.span.between:
            return self.far_of[near]
        copies = self._copies.get(near, ())
        if len(copies) < self.span.between or copies[turn - 1] is None:
            raise NotAlike(f"{near.name} is read before it is made")
        return copies[turn - 1]

    def _check_users(self, node: Node, *, allowed: bool, is_near: bool) -> None:
        """The rest of the graph reads a unit only from its own side, and only where that is `allowed`."""
        for user in node.users:
            if user in self.far_of or user in self.near_of or user.op == "output":
                continue
            block = self._blocks[user]
            on_its_side = block is None or (block < self.span.near if is_near else block > self.span.far)
            if not (allowed and on_its_side):
                raise NotAlike(f"{user.name} reads {node.name}")

    def add_weights(
        self, inputs: Mapping[str, Node], families: Mapping[str, tuple[str, ...]], names: Sequence[str]
    ) -> None:
        """Add inputs for parameters and buffers, so that these are in the order of `names`."""
        near = {moved: (name, turn) for name, family in families.items() for turn, moved in enumerate(family[:-1], 1)}
        anchor = next(node for node in self.graph.nodes if node not in set(inputs.values()))
        for name in reversed(names):
            if name in inputs:
                anchor = inputs[name]
            else:
                source, turn = near[name]
                anchor = self._placeholder(inputs[source], turn, anchor, f"{inputs[source].name}copy{turn}")

    def add_saved(self, forward: TwoUnits, input_of: Mapping[Node, Node]) -> None:
        """Add inputs for what a stretched forward pass saves, each after that of the near unit."""
        for node, saved_input in input_of.items():
            saved_input.meta["val"] = node.meta["val"]  # of seeds there are more
            if saved_input in self.far_of:
                anchor = saved_input.next
                for turn in range(1, self.span.between + 1):
                    self._placeholder(saved_input, turn, anchor, forward._copies[node][turn - 1].name)

    def add_tangents(self, tangents: Sequence[Node], runs: Iterable[range]) -> None:
        """Add gradients of what copies in the forward pass return, after each of the `runs` of the near unit."""
        for run in runs:
            for turn in range(1, self.span.between + 1):
                for place in run:
                    self._placeholder(tangents[place], turn, tangents[run.stop], f"{tangents[place].name}copy{turn}")

    def _placeholder(self, near: Node, turn: int, anchor: Node, name: str) -> Node:
        with self.graph.inserting_before(anchor):
            copy = self.graph.create_node("placeholder", name, name=name)
        if copy.name != name:
            raise NotAlike(f"{name} is the name of two inputs")
        copy.meta = dict(near.meta)
        self._note(near, turn, copy)
        return copy

    def _note(self, near: Node, turn: int, copy: Node) -> None:
        self._copies.setdefault(near, [None] * self.span.between)[turn - 1] = copy

    def add_copies(self) -> None:
        """Put what units between the two do between them."""
        turns = range(1, self.span.between + 1)
        for near_nodes, far_nodes, near_first in self._segments:
            relations = {
                near: [
                    self._relation(operand, far_operand)
                    for operand, far_operand in zip(self._operands[near], self._operands[far], strict=True)
                ]
                for near, far in zip(near_nodes, far_nodes, strict=True)
            }
            anchor = near_nodes[-1].next if near_first else near_nodes[0]
            with self.graph.inserting_before(anchor):
                for turn in turns if near_first else reversed(turns):
                    for near in near_nodes:
                        self._copy(near, turn, [relation(turn) for relation in relations[near]])
            for near, far in zip(near_nodes, far_nodes, strict=True):
                _read(near, [relation(0) for relation in relations[near]])
                _read(far, [relation(turns[-1] + 1) for relation in relations[near]])

    def _copy(self, near: Node, turn: int, operands: Iterable[Node]) -> None:
        following = iter(operands)
        args, kwargs = map_arg((near.args, near.kwargs), lambda _: next(following))
        copy = self.graph.create_node(near.op, near.target, args, kwargs, f"{near.name}copy{turn}")
        copy.meta = dict(near.meta)
        path = _path(near)
        if (moved := self.span.moved(path, turn)) != path:
            copy.meta["custom"] = {**near.meta["custom"], PATH: moved}
        self._note(near, turn, copy)

    def add_seeds(self) -> None:
        """Make the table of seeds longer by what copies look up."""
        lookups = [node for node in self._copies if _looks_up_seed(node)]
        for seeds in {node.all_input_nodes[0] for node in lookups}:
            count, *other_args = seeds.args
            for copy in [copy for node in lookups if node.all_input_nodes[0] is seeds for copy in self._copies[node]]:
                copy.args = (seeds, count)  # of equal ones the partition would leave one
                count += 1
            seeds.args = (count, *other_args)
            seeds.meta = {**seeds.meta, "val": torch.empty(count, dtype=seeds.meta["val"].dtype, device="meta")}

    def with_copies(self, nodes: Iterable[Node]) -> Iterator[Node]:
        """`nodes`, and after each of the near unit its copies."""
        for node in nodes:
            yield node
            yield from self._copies.get(node, ())

    def with_runs_copied(self, nodes: Sequence[Node], runs: Iterable[range]) -> Iterator[Node]:
        """`nodes`, and after each of the `runs` of the near unit those of its copies, unit by unit."""
        run_of = {run[-1]: run for run in runs}
        for place, node in enumerate(nodes):
            yield node
            for turn in range(1, self.span.between + 1):
                yield from (self._of_unit(nodes[near], turn) for near in run_of.get(place, ()))

    def gradients(
        self, shallow_gradients: Mapping[str, Node | None], families: Mapping[str, tuple[str, ...]]
    ) -> dict[str, Node | None]:
        """Gradients by the names of parameters and buffers, with those of the units between."""
        everything = dict(shallow_gradients)
        for name, family in families.items():
            near, far = shallow_gradients[name], shallow_gradients[family[-1]]
            if near is None or far is None:
                if near is not far:
                    raise NotAlike(f"one of {name} and {family[-1]} is trained")
                everything.update(dict.fromkeys(family))
                continue
            relation = self._relation(near, far)
            everything.update({moved: relation(turn) for turn, moved in enumerate((name, *family))})
        matched_names = {*families, *(family[-1] for family in families.values())}
        other_gradients = [
            node for name, node in shallow_gradients.items() if name not in matched_names and node is not None
        ]
        for node in other_gradients:
            if node in self.near_of or (node in self.far_of and node.op == "placeholder"):
                raise NotAlike(f"{node.name} of a block is the gradient of something else")
        return everything

    def finish(self, results: Sequence[Any]) -> None:
        """Give back `results`."""
        output = next(node for node in reversed(self.graph.nodes) if node.op == "output")
        output.args = (tuple(results),)
        output.meta.pop("desc", None)  # one for each result that there was


def _read(node: Node, operands: Sequence[Node]) -> None:
    """Let `node` read these operands."""
    following = iter(operands)
    node.args, node.kwargs = map_arg((node.args, node.kwargs), lambda _: next(following))


def _looks_up_seed(node: Node) -> bool:
    return getattr(node.target, "_opname", "") == _LOOKUP


def _path(node: Node) -> str | None:
    custom: Mapping[str, Any] = node.meta.get("custom") or {}
    return custom.get(PATH)


def _layout(node: Node) -> Any:
    return _layout_of(node.meta.get("val"))


def _layout_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple(map(_layout_of, value)) if isinstance(value, list | tuple) else value
