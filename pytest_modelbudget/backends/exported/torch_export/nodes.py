"""The operators of an exported graph and of the graphs in it, with the modules that they were called in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from pytest_modelbudget.backends.costs.free.torch_export import ZERO
from pytest_modelbudget.backends.exported import json_parts
from pytest_modelbudget.backends.exported.graph import Module, Operator
from pytest_modelbudget.backends.exported.torch_export.dimensions import dimension
from pytest_modelbudget.backends.exported.torch_export.weights import DTYPES
from pytest_modelbudget.backends.model_files import DamagedFile
from pytest_modelbudget.summary import Dim, TensorSpec

_AGAIN = "export the model again"
_DEEPEST = 30
_MOST_NODES = 150_000
_OPERATORS = "torch.ops."
_HIGHER_ORDER = "torch.ops.higher_order."
_WRAPPERS = ("auto_functionalized", "auto_functionalized_v2", "with_effects", "out_dtype")
"""Higher-order operators that run the operator which is their argument."""

_ONCE = (
    "wrap", "wrap_with_set_grad_enabled", "wrap_with_autocast", "wrap_activation_checkpoint",
    "tag_activation_checkpoint", "invoke_subgraph", "strict_mode", "hints_wrapper", "checkpoint",
)  # fmt: skip
_FOR_EACH = {"map": 0, "map_impl": 0, "scan": 1}
"""Which list of tensors a loop goes through, one step for each element of the first axis."""

_WITH_FORMULA = ("flex_attention", "flex_attention_backward")
"""Operators whose graphs only say what is done to each element."""

_IN_PLACE = re.compile(r"[a-z0-9]_(\.|$)")
"""In the name of an operator that changes its first operand."""

_NO_STACK = "_empty_nn_module_stack"


@dataclass(frozen=True, slots=True)
class _Argument:
    """An argument of an operator: its name, its kind in the file (`as_ints`) and what it is."""

    name: str
    kind: str
    value: Any

    @property
    def tensors(self) -> list[str]:
        """The names of its tensors, empty ones for those that are left out; nothing where it is none."""
        return list(_tensors(self.kind, self.value))


def _tensors(kind: str, value: Any) -> Iterator[str]:
    if kind in ("as_tensor", "as_optional_tensor", "as_token"):
        if kind == "as_optional_tensor":
            value = json_parts.of_kind(value, dict, kind).get("as_tensor") or {"name": ""}
        yield json_parts.field(value, "name", str)
    elif kind in ("as_tensors", "as_optional_tensors"):
        inner = "as_tensor" if kind == "as_tensors" else "as_optional_tensor"
        for item in json_parts.of_kind(value, list, kind):
            yield from _tensors(inner, item)
    elif kind == "as_nested_tensors":
        for item in json_parts.of_kind(value, list, kind):
            yield from _tensors("as_tensors", item)


def argument(value: object, name: str = "") -> _Argument:
    """An argument as it stands in the file, `{"as_int": 3}`."""
    union = json_parts.of_kind(value, dict, name or "argument")
    kinds = [kind for kind in union if union[kind] is not None] or [*union]
    if not kinds:
        raise DamagedFile(f"is damaged: the argument {name[:100]!r} in it is empty: {_AGAIN}")
    return _Argument(name, kinds[0], union[kinds[0]])


def _arguments(node: object) -> list[_Argument]:
    """The arguments of an operator."""
    return [
        argument(json_parts.field(entry, "arg", dict), json_parts.field(entry, "name", str))
        for entry in json_parts.field(node, "inputs", list)
    ]


@dataclass(slots=True)
class Program:
    """What is read of the graphs of one program; names of values in it are unique."""

    symbols: Mapping[str, Dim]
    values: dict[str, TensorSpec] = field(default_factory=dict)
    taken: Counter[str] = field(default_factory=Counter)
    operator_names: Counter[str] = field(default_factory=Counter)
    nodes: int = 0


def _unique(name: str, taken: Counter[str]) -> str:
    """`name`, or that with a number where it is taken; `taken` counts how often each name was asked for."""
    free = name
    while taken[free]:
        taken[name] += 1
        free = f"{name}_{taken[name]}"
    taken[free] += 1
    return free


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph while it is read: the names that its values have in the program, by those in the graph."""

    program: Program
    content: Mapping[str, Any]
    names: dict[str, str]
    prefix: str = ""
    modules: tuple[Module, ...] = ()
    depth: int = 0

    def spec(self, name: str) -> TensorSpec | None:
        """Shape and dtype of a value; None where the file does not say them."""
        meta = json_parts.field(self.content, "tensor_values", dict).get(name)
        if meta is None:
            return None
        dims = tuple(dimension(size, self.program.symbols) for size in json_parts.field(meta, "sizes", list))
        return TensorSpec(dims, DTYPES.get(json_parts.field(meta, "dtype", int), "unknown"))

    def define(self, name: str) -> str:
        """A name of the program for a value that begins here."""
        if not name or name in self.names:
            raise DamagedFile(f"is damaged: it makes the value {name[:100]!r} twice: {_AGAIN}")
        unique = self.names[name] = _unique(self.prefix + name, self.program.taken)
        if (spec := self.spec(name)) is not None:
            self.program.values[unique] = spec
        return unique

    def operators(self) -> tuple[Operator, ...]:
        """The operators of the graph, in order; without those that only reckon with sizes."""
        nodes = json_parts.field(self.content, "nodes", list)
        self.program.nodes += len(nodes)
        if self.program.nodes > _MOST_NODES or self.depth > _DEEPEST:
            raise DamagedFile(
                f"is not read: it has more than {_MOST_NODES:,} operators, or graphs in graphs {_DEEPEST} deep"
            )
        used = set(self._used(nodes))
        return tuple(operator for node in nodes if (operator := self._operator(node, used)) is not None)

    def _used(self, nodes: Sequence[object]) -> Iterator[str]:
        """The values that operators and the graph itself give on."""
        for arg in chain(*map(_arguments, nodes), map(argument, json_parts.field(self.content, "outputs", list))):
            yield from arg.tensors

    def _operator(self, node: object, used: Set[str]) -> Operator | None:
        target, arguments = json_parts.field(node, "target", str), _arguments(node)
        outputs = [
            name for value in json_parts.field(node, "outputs", list) for name in argument(value).tensors if name
        ]
        inputs = tuple(self.known(name) for arg in arguments for name in arg.tensors)
        results = tuple(map(self.define, outputs))
        kind = type_of(target, arguments)
        if not results and (not target.startswith(_OPERATORS) or kind in ZERO):
            return None
        if kind in ZERO and _IN_PLACE.search(target) and used.isdisjoint(outputs):
            results = ()  # a count of batches goes up in its place: nothing comes out of that
        operator = Operator(
            kind,
            inputs,
            results,
            attributes={arg.name: self._plain(arg) for arg in arguments if arg.name and not arg.tensors},
            name=_unique(self.prefix + _name(node, outputs[0] if outputs else kind), self.program.operator_names),
            modules=self._modules(node),
        )
        return self._with_bodies(operator, arguments)

    def known(self, name: str) -> str:
        """The name in the program of a value that is there already."""
        if name and name not in self.names:
            raise DamagedFile(f"is damaged: it uses the value {name[:100]!r} before it is made: {_AGAIN}")
        return self.names[name] if name else ""

    def _plain(self, arg: _Argument) -> Any:
        """An argument that is no tensor, in plain data."""
        if arg.kind == "as_none":
            return None
        if arg.kind == "as_sym_int":
            return self._size(arg.value)
        if arg.kind == "as_sym_ints":
            return [self._size(value) for value in json_parts.of_kind(arg.value, list, arg.name)]
        return arg.value

    def _size(self, value: object) -> Dim:
        if isinstance(value, dict) and "as_name" in value:
            size = json_parts.field(self.content, "sym_int_values", dict).get(value["as_name"])
            return None if size is None else dimension(size, self.program.symbols)
        return json_parts.field(value, "as_int", int)

    def _modules(self, node: object) -> tuple[Module, ...]:
        stack = _get(_get(node, "metadata"), "nn_module_stack")
        return self.modules if not isinstance(stack, str) else tuple(modules_of(stack)) or self.modules

    def _with_bodies(self, operator: Operator, arguments: Sequence[_Argument]) -> Operator:
        graphs = [arg.value for arg in arguments if arg.kind == "as_graph"]
        if not graphs or operator.type in _WITH_FORMULA:
            return operator
        last = max(index for index, arg in enumerate(arguments) if arg.kind == "as_graph")
        operands = [name for arg in arguments[last + 1 :] for name in arg.tensors or [""] * _width(arg)]
        bodies = tuple(self._body(operator, graph, operands) for graph in graphs)
        return Operator(
            operator.type, operator.inputs, operator.outputs, operator.attributes, operator.name, operator.modules,
            bodies, self._trips(operator, arguments[last + 1 :]), operator.type == "cond",
        )  # fmt: skip

    def _body(self, operator: Operator, graph: object, operands: Sequence[str]) -> tuple[Operator, ...]:
        """The operators of a graph in this one, whose inputs are `operands` where they have the same shape."""
        content = json_parts.field(graph, "graph", dict)
        prefix = f"{operator.name}.{json_parts.field(graph, 'name', str)[:100]}."
        body = Graph(self.program, content, {}, prefix, operator.modules, self.depth + 1)
        inputs = [argument(value).tensors for value in json_parts.field(content, "inputs", list)]
        outer = [*operands] if len(operands) >= len(inputs) else [""] * len(inputs)
        for names, operand in zip(inputs, outer[len(outer) - len(inputs) :], strict=True):
            for name in filter(None, names):
                if operand and self.spec(operand) == body.spec(name):
                    body.names[name] = self.names[operand]
                else:
                    body.define(name)
        return body.operators()

    def _trips(self, operator: Operator, arguments: Sequence[_Argument]) -> int | None:
        if operator.type == "cond" or operator.type in _ONCE:
            return 1
        if operator.type not in _FOR_EACH:
            return None
        lists = [arg.tensors for arg in arguments if arg.kind == "as_tensors"]
        place = _FOR_EACH[operator.type]
        spec = self.spec(lists[place][0]) if len(lists) > place and lists[place] else None
        length = spec.shape[0] if spec is not None and spec.shape else None
        return length if isinstance(length, int) else None


def _name(node: object, otherwise: str) -> str:
    """What the file calls an operator; older versions of torch wrote no names."""
    name = _get(node, "name")
    return name[:200] if isinstance(name, str) and name else otherwise


def _width(arg: _Argument) -> int:
    """How many operands an argument without tensors is."""
    return len(arg.value) if isinstance(arg.value, list) else 1


def _get(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None


def type_of(target: str, arguments: Sequence[_Argument] = ()) -> str:
    """`torch.ops.aten.add_.Tensor` as `aten.add`; of a wrapper, that of what it runs."""
    if target.startswith(_HIGHER_ORDER):
        name = target.removeprefix(_HIGHER_ORDER)
        inner = [arg.value for arg in arguments if arg.kind == "as_operator" and isinstance(arg.value, str)]
        return type_of(inner[0]) if name in _WRAPPERS and inner else name
    space, _, rest = target.removeprefix(_OPERATORS).partition(".")
    name = rest.partition(".")[0]
    if not target.startswith(_OPERATORS) or not name:
        return target[:200]
    return f"{space}.{name if name.endswith('__') else name.rstrip('_')}"[:200]


def modules_of(stack: str) -> Iterator[Module]:
    """The modules of `L__self__,,m.Net;L__self__conv,conv,torch.nn.modules.conv.Conv2d`, outermost first.

    The model itself is left out. A key that ends in `@1` is the second call of its module.
    """
    for entry in stack.split(";")[:_DEEPEST]:
        key, _, rest = entry.partition(",")
        path, _, kind = rest.rpartition(",")
        if path and not key.startswith(_NO_STACK):
            call = re.search(r"@([0-9]{1,6})$", key)
            path = path.removeprefix("L['self'].").partition("@")[0]
            yield Module(path[:500], kind.rpartition(".")[2][:200], int(call[1]) if call else 0)
