"""The rows of an exported model: its operators, by the modules of the source where the exporter kept them.

A module that holds no other is one row with all its operators, as it is in the source's own summary; one that does is a
container, and operators in its own code are rows below it, as are all operators of a file that knows no modules. A
constant stands in the row of the module that its name begins with, else in that of the first operator that works with
it; what only unpacks constants (a `DequantizeLinear` of a weight) hands them on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_modelbudget.backends.assemble import PartCalls, layer_of, unique
from pytest_modelbudget.backends.dimensions import Specs
from pytest_modelbudget.backends.exported.costs import OperatorCost
from pytest_modelbudget.backends.exported.graph import Constant, ExportedModel, Operator
from pytest_modelbudget.summary import Layer, Weight

UNUSED_TYPE = "Tensors"
"""The type of a row of tensors that nothing in the file works with: all of them, in a file of weights alone."""

_NAMELESS = "operator"
"""The type of one whose file gives it none."""

ROOT = "(root)"
"""The row of tensors that no module holds."""


@dataclass(slots=True)
class _Group:
    """The operators of one row, or below one, as they run."""

    path: str
    type: str
    container: bool = False
    costs: list[OperatorCost] = field(default_factory=list)
    calls: dict[int, list[Operator]] = field(default_factory=lambda: defaultdict(list))

    def add(self, cost: OperatorCost, call: int) -> None:
        self.costs.append(cost)
        self.calls[call].append(cost.operator)


def rows(model: ExportedModel, costs: Sequence[OperatorCost], *, counted: bool) -> tuple[Layer, ...]:
    """One row for each module and for each operator that is in none, in the order of their first operators.

    Each row has the FLOPs of its own operators, None for all when they are not `counted`. Rows of what nothing works
    with come last.
    """
    groups, owners = _groups(costs)
    weights = _weights(model, costs, owners, groups)
    flow = _Flow(model, costs, owners)
    layers = [
        layer_of(
            group.path,
            group.type,
            flow.part_calls(group, counted=counted),
            flow.names,
            weights.pop(group.path, ()),
            container=group.container,
        )
        for group in groups.values()
    ]
    never = None if model.operators is None else 0
    return (*layers, *(Layer(path, UNUSED_TYPE, weights=held, calls=never) for path, held in weights.items()))


def _groups(costs: Sequence[OperatorCost]) -> tuple[dict[str, _Group], dict[int, str]]:
    """The groups by their paths, containers before what they hold, and the path of each operator by its identity."""
    holders = {module.path for cost in costs for module in cost.operator.modules[:-1]}
    used = {module.path for cost in costs for module in cost.operator.modules}
    groups: dict[str, _Group] = {}
    owners: dict[int, str] = {}
    for cost in costs:
        modules = cost.operator.modules
        for module in modules:
            container = module.path in holders
            group = groups.setdefault(module.path, _Group(module.path, module.type or "Module", container))
            if container:
                group.calls[module.call].append(cost.operator)
        innermost = modules[-1] if modules else None
        if innermost is not None and innermost.path not in holders:
            path, call = innermost.path, innermost.call
        else:
            path, call = unique(_operator_path(cost.operator), used), 0
            groups[path] = _Group(path, _short_type(cost.operator.type))
        groups[path].add(cost, call)
        owners[id(cost.operator)] = path
    return _in_tree_order(groups), owners


def _in_tree_order(groups: Mapping[str, _Group]) -> dict[str, _Group]:
    """Groups below a container right after it, each level in the order in which it was first met."""
    children: dict[str, list[str]] = defaultdict(list)
    for path in groups:
        children[_holder(path, groups)].append(path)
    ordered: dict[str, _Group] = {}
    pending = list(reversed(children[""]))
    while pending:
        path = pending.pop()
        ordered[path] = groups[path]
        pending += reversed(children[path] if path else [])  # a file may name a row so that it stands at the top itself
    return ordered


def _holder(path: str, groups: Mapping[str, _Group]) -> str:
    """The innermost container that a path is below; empty for none."""
    for position in range(len(path) - 1, 0, -1):
        if path[position] in "./" and (outer := groups.get(path[:position])) is not None and outer.container:
            return outer.path
    return ""


def _operator_path(operator: Operator) -> str:
    """The path of an operator that has a row of its own."""
    if not operator.modules:
        return operator.name or _short_type(operator.type)
    return f"{operator.modules[-1].path}.{_short_type(operator.type)}"


def _short_type(type_name: str) -> str:
    """`add` of `aten.add`."""
    return type_name.rpartition(".")[2] or type_name or _NAMELESS


@dataclass(slots=True)
class _Flow:
    """What rows get and give: tensors that are made in one and used in another, or outside."""

    model: ExportedModel
    costs: Sequence[OperatorCost]
    owners: Mapping[int, str]
    makers: dict[str, str] = field(default_factory=dict)
    users: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    def __post_init__(self) -> None:
        for cost in self.costs:
            for name in cost.operator.outputs:
                self.makers[name] = self.owners[id(cost.operator)]
            for name in cost.operator.inputs:
                self.users[name].add(id(cost.operator))
        outside = {port.name for port in self.model.outputs}
        for name in outside:
            self.users[name].add(0)

    @property
    def names(self) -> Mapping[str, str]:
        """The path or the name of an input behind each tensor that a row may get."""
        return {**{port.name: port.name for port in self.model.inputs}, **self.makers}

    def part_calls(self, group: _Group, *, counted: bool) -> PartCalls:
        """What the calls of a group got and gave, and what made that."""
        calls = list(group.calls.values())
        arriving = [list(_arriving(operators)) for operators in calls]
        return PartCalls(
            inputs=[self._specs(names) for names in arriving],
            outputs=[self._specs(self._leaving(operators)) for operators in calls],
            makers=[[name for name in names if name not in self.model.constants] for names in arriving],
            calls=_times(group, len(calls)),
            flops=_flops(group) if counted else None,
        )

    def _leaving(self, operators: Sequence[Operator]) -> Iterator[str]:
        inside = {id(operator) for operator in operators}
        for operator in operators:
            for name in operator.outputs:
                if name and (not self.users[name] or self.users[name] - inside):
                    yield name

    def _specs(self, names: Iterable[str]) -> Specs:
        specs = [self.model.values.get(name) for name in dict.fromkeys(names) if name not in self.model.constants]
        return tuple(spec for spec in specs if spec is not None)


def _arriving(operators: Sequence[Operator]) -> Iterator[str]:
    """The tensors that operators get and do not make among themselves."""
    inner = {name for operator in operators for name in operator.outputs}
    yield from dict.fromkeys(name for operator in operators for name in operator.inputs if name and name not in inner)


def _times(group: _Group, calls: int) -> int | None:
    """How often a row is called; None for what a body of unknown runs holds."""
    if group.container or not group.costs:
        return calls
    return calls * max(cost.times for cost in group.costs)


def _flops(group: _Group) -> int | None:
    """The FLOPs of all calls of a group; None where none of them is known."""
    total = sum(cost.cost.flops * cost.times for cost in group.costs)
    unknown = any(cost.cost.uncounted and cost.times for cost in group.costs)
    return None if unknown and not total else total


def _weights(
    model: ExportedModel, costs: Sequence[OperatorCost], owners: Mapping[int, str], groups: Mapping[str, _Group]
) -> dict[str, tuple[Weight, ...]]:
    """The weights of each row by its path; what is stored once and used in several is tied to the first."""
    users = _constant_users(model, costs, owners)
    held: dict[str, list[Weight]] = defaultdict(list)
    names: dict[str, set[str]] = defaultdict(set)
    first: dict[object, str] = {}
    for full_name, constant in model.constants.items():
        home, name = _home(full_name, users[full_name], groups)
        for path in dict.fromkeys((home, *users[full_name])):
            own_name = unique(name if path == home else full_name, names[path])
            owner = first.setdefault(constant.storage, f"{path}.{own_name}")
            tied_to = None if owner == f"{path}.{own_name}" else owner
            held[path].append(_weight(own_name, constant, tied_to))
    return {path: tuple(weights) for path, weights in held.items()}


def _home(full_name: str, users: Sequence[str], groups: Mapping[str, _Group]) -> tuple[str, str]:
    """The row that a constant stands in, and its name there."""
    for position in range(len(full_name) - 1, 0, -1):
        if full_name[position] in "./" and (group := groups.get(full_name[:position])) is not None:
            name = full_name[position + 1 :]
            if not group.container or not any(sign in name for sign in "./"):
                return group.path, name
            break  # what it is of is no module of the file any more, and who works with it says more than its holder
    if users:
        return users[0], full_name
    path, _, name = full_name.rpartition(".")
    return (path, name) if path and name else (ROOT, full_name)


def _constant_users(
    model: ExportedModel, costs: Sequence[OperatorCost], owners: Mapping[int, str]
) -> dict[str, list[str]]:
    """The rows that work with each constant; through operators that have nothing but constants, those behind them."""
    behind: dict[str, tuple[str, ...]] = {name: (name,) for name in model.constants}
    users: dict[str, list[str]] = {name: [] for name in model.constants}
    for cost in costs:
        operator = cost.operator
        sources = [name for name in operator.inputs if name]
        constants = tuple(dict.fromkeys(name for source in sources for name in behind.get(source, ())))
        if constants and all(source in behind for source in sources) and not operator.bodies:
            behind |= dict.fromkeys(operator.outputs, constants)
            continue
        for name in constants:
            if (path := owners[id(operator)]) not in users[name]:
                users[name].append(path)
    return users


def _weight(name: str, constant: Constant, tied_to: str | None) -> Weight:
    return Weight(
        name,
        constant.shape,
        constant.dtype,
        trainable=constant.trainable,
        role=constant.role,
        tied_to=tied_to,
        packed_bytes=constant.stored_bytes,
    )
