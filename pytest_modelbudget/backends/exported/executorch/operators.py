"""The operators of a method, from its instructions on numbered values.

An instruction names what it reads and then what it writes. A value that is written again, in place or in a loop, has
another name from there on, as has what a branch or a loop leaves behind.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_modelbudget.backends.exported.executorch import xnnpack
from pytest_modelbudget.backends.exported.executorch.constants import StoredTensors
from pytest_modelbudget.backends.exported.executorch.flow import Branch, Loop, Step, steps
from pytest_modelbudget.backends.exported.executorch.program import Call, Indices, Method, Move, Tensor, Value
from pytest_modelbudget.backends.exported.graph import Operator
from pytest_modelbudget.summary import Input, TensorSpec

MOVE, VIEW, BRANCH, LOOP = "executorch.move", "executorch.view", "executorch.branch", "executorch.loop"
"""What the runtime does itself; a view is two values at one place, and no instruction."""

NUMBERS = ("executorch_prim.", "aten.sym_", "aten._local_scalar_dense")
"""How the names of what works out numbers begin, such as sizes; without a tensor to give, it has no row."""

DELEGATE = "delegate."
"""Before the name of a backend, which is no operator of that name."""

_ATTRIBUTES = {
    "aten.convolution": {"transposed": 6},
    "aten.convolution_backward": {"transposed": 7, "output_mask": 10},
    "aten._fft_c2c": {"dim": 1, "normalization": 2, "forward": 3},
    "aten._fft_r2c": {"dim": 1, "normalization": 2, "onesided": 3},
    "aten._fft_c2r": {"dim": 1, "normalization": 2, "last_dim_size": 3},
}
"""The positions of arguments that FLOP rules ask for."""

_IN_PLACE = frozenset(("executorch_prim.et_copy_index",))
"""What returns nothing, and writes its first argument."""

_NUMBER_DTYPES: tuple[tuple[type, str], ...] = ((bool, "bool"), (int, "int64"), (float, "float64"))


@dataclass(frozen=True, slots=True)
class Graph:
    """The operators of a method, the tensors between them, and what goes in and out."""

    operators: tuple[Operator, ...]
    values: Mapping[str, TensorSpec]
    inputs: tuple[Input, ...]
    outputs: tuple[Input, ...]


def graph(method: Method, stored: StoredTensors) -> Graph:
    """The graph of a method, whose stored tensors have names."""
    naming = _Naming(method, set(stored.names.values()))
    names = dict(stored.names)
    inputs: list[Input] = []
    for position, index in enumerate(method.inputs):
        if (spec := _spec(method.values[index])) is not None:
            names[index] = naming.named(index, str(position))
            inputs.append(Input(names[index], spec))
    writer = _Writer(method, stored.delegated, naming, _Places.of(method, stored), ChainMap({}, names))
    operators = [operator for chain in method.chains for operator in writer.listed(steps(chain, method.values))]
    outputs = [(writer.name(index), _spec(method.values[index])) for index in method.outputs]
    return Graph(
        (*operators, *writer.pending),
        naming.values,
        tuple(inputs),
        tuple(Input(name, spec) for name, spec in outputs if spec is not None),
    )


def _spec(value: Value) -> TensorSpec | None:
    """Shape and dtype of a tensor or a number; None for anything else."""
    if isinstance(value, Tensor):
        return TensorSpec((None,) * len(value.shape) if value.is_unbounded else value.shape, value.dtype)
    return next((TensorSpec((), dtype) for kind, dtype in _NUMBER_DTYPES if isinstance(value, kind)), None)


@dataclass(frozen=True, slots=True)
class _Naming:
    """The names of tensors, each given once, and what is known of them."""

    method: Method
    taken: set[str]
    values: dict[str, TensorSpec] = field(default_factory=dict)

    def named(self, index: int, name: str = "") -> str:
        """A name for what is written as a value from now on."""
        name = self.unique(name or f"tensor_{index}")
        if (spec := _spec(self.method.values[index])) is not None:
            self.values[name] = spec
        return name

    def unique(self, name: str) -> str:
        """`name`, or one like it where that is taken."""
        unique, again = name, 1
        while unique in self.taken:
            again += 1
            unique = f"{name}.{again}"
        self.taken.add(unique)
        return unique


@dataclass(frozen=True, slots=True)
class _Places:
    """Which value was last written at a place, by which values that nothing writes are known as views of others."""

    values: Sequence[Value]
    views: Mapping[int, int]
    last: dict[tuple[int, int], int]

    @classmethod
    def of(cls, method: Method, stored: StoredTensors) -> _Places:
        places = cls(method.values, stored.views, {})
        places.write(method.inputs)
        return places

    def write(self, indices: Iterable[int]) -> None:
        """Note that values were written."""
        for index in indices:
            value = self.values[index]
            if isinstance(value, Tensor) and value.planned is not None:
                self.last[value.planned] = index

    def source(self, index: int) -> int | None:
        """The value that one which nothing wrote is a view of; None for a state, which has a place of its own."""
        value = self.values[index]
        if index in self.views or not isinstance(value, Tensor) or value.planned is None:
            return self.views.get(index)
        source = self.values[last] if (last := self.last.get(value.planned)) is not None else None
        return last if isinstance(source, Tensor) and source.bytes == value.bytes else None


@dataclass(slots=True)
class _Writer:
    """Operators in order.

    `current` are the names of tensors: of what this body wrote, then those of the bodies around it, at last those of
    inputs, constants, and what is read before it is written (a state, or what a loop leaves for its next run).
    """

    method: Method
    delegated: Mapping[tuple[int, int], str]
    naming: _Naming
    places: _Places
    current: ChainMap[int, str]
    pending: list[Operator] = field(default_factory=list)
    read: dict[str, int] = field(default_factory=dict)

    @property
    def values(self) -> Sequence[Value]:
        """The values of the method."""
        return self.method.values

    def listed(self, body: Iterable[Step]) -> Iterator[Operator]:
        """An operator for each step that does something with tensors."""
        for step in body:
            operator = self._operator(step)
            yield from self.pending
            self.pending.clear()
            if operator is not None:
                yield operator

    def _operator(self, step: Step) -> Operator | None:
        match step:
            case Call():
                operator = self._call(step)
                return None if operator.type.startswith(NUMBERS) and not operator.outputs else operator
            case Move(source, target):
                is_tensor = isinstance(self.values[target], Tensor)
                return Operator(MOVE, self._names((source,)), self._written((target,))) if is_tensor else None
            case Branch():
                return self._with_bodies(BRANCH, step.bodies, chooses=True, condition=(step.condition,))
            case Loop():
                return self._with_bodies(LOOP, (step.body,), trips=None)

    def name(self, index: int) -> str:
        """What a value is called now; a view is made when it is first read."""
        if index not in self.current:
            source = self.places.source(index)
            if source is None or source not in self.current:
                self.current.maps[-1][index] = self.naming.named(index)
            else:
                names = (self.name(source),)
                self.current.maps[0][index] = self.naming.named(index)
                self.pending.append(Operator(VIEW, names, (self.current[index],)))
        name = self.current[index]
        self.read.setdefault(name, index)
        return name

    def _call(self, call: Call) -> Operator:
        if call.delegate is not None:
            return self._delegate(call, call.delegate)
        read, written = self._kernel_args(call)
        attributes = {name: self._attribute(call, at) for name, at in _ATTRIBUTES.get(call.type, {}).items()}
        inputs = self._names(read)
        return Operator(call.type, inputs, self._written(written), attributes)

    def _delegate(self, call: Call, index: int) -> Operator:
        """An operator that runs what a delegate says of itself, or an unknown one."""
        inside = self.method.delegates[index].graph
        if inside is None:
            read, written = self._delegate_args(call)
            return Operator(f"{DELEGATE}{call.type}", self._names(read), self._written(written))
        positions = {inside.externals[value] for value in inside.inputs if value in inside.externals}
        read = tuple(arg for position, arg in enumerate(call.args) if position in positions)
        written = tuple(arg for position, arg in enumerate(call.args) if position not in positions)
        inputs = self._names(read)
        body = tuple(self._inside(inside, call, index))
        return Operator(f"{DELEGATE}{call.type}", inputs, self._written(written), bodies=(body,))

    def _inside(self, inside: xnnpack.Graph, call: Call, index: int) -> Iterator[Operator]:
        """The operators of a delegate, whose first values are arguments of the call."""
        names: dict[int, str] = {}
        for value, spec in inside.specs.items():
            position = inside.externals.get(value, len(call.args)) if value in inside.inputs else len(call.args)
            if (index, value) in self.delegated:
                names[value] = self.delegated[index, value]
            elif position < len(call.args):
                [names[value]] = self._names(call.args[position : position + 1]) or [""]
            else:
                names[value] = self.naming.unique(f"{call.type}_{index}.{value}")
                self.naming.values[names[value]] = spec
        for node in inside.nodes:
            inputs = tuple(names.get(value, "") for value in node.inputs)
            yield Operator(node.type, inputs, (names.get(node.output, ""),), node.attributes)

    def _kernel_args(self, call: Call) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What a kernel reads and writes: its last argument is what it returns, before that stands where it does so."""
        if call.type in _IN_PLACE or not call.args:
            return call.args, call.args[:1]
        *args, returned = call.args
        written = self._tensors((returned,))
        while len(args) > 1 and (last := self._tensors(args[-1:])) and set(last) <= set(written):
            args.pop()
        return tuple(args), written

    def _delegate_args(self, call: Call) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What a delegate reads is there before it runs; what is not, it writes."""
        tensors = self._tensors(call.args)
        read = tuple(index for index in tensors if index in self.current)
        return read, tuple(index for index in tensors if index not in self.current)

    def _tensors(self, indices: Iterable[int]) -> tuple[int, ...]:
        """The tensors among values, those of lists one by one."""
        tensors: list[int] = []
        for index in indices:
            value = self.values[index]
            if isinstance(value, Indices):
                tensors += [item for item in value.items if self._is_tensor(item)]
            elif isinstance(value, Tensor):
                tensors.append(index)
        return tuple(tensors)

    def _is_tensor(self, index: int) -> bool:
        return 0 <= index < len(self.values) and isinstance(self.values[index], Tensor)

    def _names(self, indices: Iterable[int]) -> tuple[str, ...]:
        return tuple(self.name(index) for index in self._tensors(indices))

    def _written(self, indices: Iterable[int]) -> tuple[str, ...]:
        tensors = dict.fromkeys(self._tensors(indices))
        self.current.maps[0].update({index: self.naming.named(index) for index in tensors})
        self.places.write(tensors)
        return tuple(self.current[index] for index in tensors)

    def _attribute(self, call: Call, position: int) -> Any:
        value = self.values[call.args[position]] if position < len(call.args) else None
        if isinstance(value, Indices):
            return tuple(self.values[item] if 0 <= item < len(self.values) else item for item in value.items)
        return value

    def _with_bodies(
        self, type_name: str, bodies: Sequence[Sequence[Step]], condition: tuple[int, ...] = (), **running: Any
    ) -> Operator:
        """An operator that runs bodies, reads the tensors that they read from outside, and leaves what they write."""
        inputs = dict.fromkeys(self._names(condition))
        moved = {step.target for body in bodies for step in body if isinstance(step, Move)}
        written: dict[int, None] = {}
        listed: list[tuple[Operator, ...]] = []
        for body in bodies:
            inner = _Writer(self.method, self.delegated, self.naming, self.places, self.current.new_child({}))
            listed.append(tuple(inner.listed(body)))
            outside = (name for name, index in inner.read.items() if self.current.get(index) == name)
            inputs |= {name: None for name in outside if name in self.naming.values}
            known = (index for index in inner.current.maps[0] if index in self.current or index in moved)
            written |= dict.fromkeys(known)
        self.read |= {name: -1 for name in inputs if name not in self.read}
        return Operator(type_name, tuple(inputs), self._written(written), bodies=tuple(listed), **running)
