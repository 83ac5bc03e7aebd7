"""A program of ExecuTorch as plain data: its methods, their values and instructions. Fields by `schema/program.fbs`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, prod
from typing import TypeVar

from pytest_modelbudget.backends.exported.executorch import xnnpack
from pytest_modelbudget.backends.exported.executorch.container import Container, Span, damaged
from pytest_modelbudget.loading.flatbuffer import Table
from pytest_modelbudget.summary import ITEM_BYTES

DTYPES = {
    0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 11: "bool",
    12: "qint8", 13: "quint8", 14: "qint32", 15: "bfloat16", 22: "uint16", 23: "float8_e5m2", 24: "float8_e4m3fn",
    25: "float8_e5m2fnuz", 26: "float8_e4m3fnuz", 27: "uint16", 28: "uint32", 29: "uint64",
}  # fmt: skip
"""The dtype of each `ScalarType`; those of packed elements of less than a byte are not written by any exporter."""

_Item = TypeVar("_Item")
_MOST_DIMS = 64
_STATIC, _UPPER_BOUND = 0, 1


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor among the values of a method.

    `shape` has sizes, where `is_bounded` the largest ones, where `is_unbounded` none that mean anything. `buffer` is
    the index of its content in the program, 0 for none, and `planned` where it lies in which planned memory. `name` is
    what the file calls the tensor, mostly nothing; content that `is_external` has that name in another file.
    """

    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool
    buffer: int
    planned: tuple[int, int] | None
    is_bounded: bool
    is_unbounded: bool
    is_external: bool
    name: str
    mutable_segment: int = 0

    @property
    def is_constant(self) -> bool:
        """Whether its content is in the file, or in one beside it."""
        return self.is_external or self.buffer > 0

    @property
    def content(self) -> Hashable:
        """Where its content lies, for a constant: views of one tensor and equal tensors have the same."""
        if self.is_external:
            return self.name
        return None if self.planned is None else self.mutable_segment, self.buffer

    @property
    def bytes(self) -> int:
        """Those of its elements."""
        return ceil(Fraction(prod(self.shape)) * ITEM_BYTES[self.dtype])


@dataclass(frozen=True, slots=True)
class Indices:
    """A list of values by their indices: of tensors, optional tensors (-1 for none) or whole numbers."""

    items: tuple[int, ...]


Value = Tensor | Indices | int | float | str | tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel or a delegate that runs on values by their indices."""

    type: str
    args: tuple[int, ...]
    delegate: int | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """One value becomes another."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class JumpIfFalse:
    """What runs next where a value is false."""

    condition: int
    destination: int


Instruction = Call | Move | JumpIfFalse | None
"""None for what frees memory."""


@dataclass(frozen=True, slots=True)
class Delegate:
    """A part of a method that another backend runs, the bytes of what it was compiled to, and what that says."""

    backend: str
    blob_bytes: int
    graph: xnnpack.Graph | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """One entry point of a program."""

    name: str
    values: tuple[Value, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    chains: tuple[tuple[Instruction, ...], ...]
    delegates: tuple[Delegate, ...]
    planned_bytes: int

    @property
    def calls(self) -> tuple[Call, ...]:
        """What runs, wherever it stands."""
        return tuple(item for chain in self.chains for item in chain if isinstance(item, Call))


def methods(container: Container) -> tuple[Method, ...]:
    """The methods of a program, each tensor held against the bytes that the file has for it.

    Raises:
        DamagedFile: an index, a size or a dtype is none.
    """
    contents = _Contents(container)
    methods = tuple(_method(plan, contents) for plan in container.root.tables(1))
    if not methods:
        raise damaged("it has no method")
    return methods


def named_segments(container: Container) -> dict[str, int]:
    """The bytes of what the program stores by names, for its delegates."""
    sizes = {}
    for entry in container.root.tables(7):
        index = entry.integer(1, "uint32")
        sizes[entry.string(0) or ""] = _at(container.segment_sizes, index, "a segment")
    return sizes


def _method(plan: Table, contents: _Contents) -> Method:
    sizes = plan.integers(8, "int64")
    if any(size < 0 for size in sizes):
        raise damaged("a planned memory has a negative size")
    values = tuple(_value(value, sizes, contents) for value in plan.tables(2))
    delegates = tuple(_delegate(delegate, contents) for delegate in plan.tables(7))
    operators = tuple(_operator_name(operator) for operator in plan.tables(6))
    reader = _InstructionReader(len(values), operators, tuple(delegate.backend for delegate in delegates))
    return Method(
        name=plan.string(0) or "",
        values=values,
        inputs=reader.indices(plan.integers(3)),
        outputs=reader.indices(plan.integers(4)),
        chains=tuple(reader.chain(chain) for chain in plan.tables(5)),
        delegates=delegates,
        planned_bytes=sum(sizes[1:]),  # the first is reserved
    )


def _value(value: Table, planned: Sequence[int], contents: _Contents) -> Value:
    kind, content = value.union(0)
    if content is None:
        return None
    match kind:
        case 2:
            return content.integer(0, "int64")
        case 3:
            return bool(content.integer(0, "bool"))
        case 4:
            return content.real(0, "float64")
        case 5:
            return _tensor(content, planned, contents)
        case 6:
            return content.string(0) or ""
        case 7:
            return Indices(content.integers(0, "int64"))
        case 8:
            return content.reals(0, "float64")
        case 9:
            return content.integers(0, "bool")
        case 10 | 11:
            return Indices(content.integers(0))
    return None


def _tensor(table: Table, planned: Sequence[int], contents: _Contents) -> Tensor:
    shape = table.integers(2)
    if len(shape) > _MOST_DIMS or any(size < 0 for size in shape):
        raise damaged(f"a tensor has the sizes {', '.join(map(str, shape[:_MOST_DIMS]))}")
    code = table.integer(0, "int8")
    if code not in DTYPES:
        raise damaged(f"a tensor has the dtype {code}, which is not known")
    allocation, extra, dynamism = table.table(6), table.table(9), table.integer(8, "int8")
    tensor = Tensor(
        shape=shape,
        dtype=DTYPES[code],
        requires_grad=bool(table.integer(4, "bool")),
        buffer=table.integer(5, "uint32"),
        planned=_planned(allocation),
        is_bounded=dynamism == _UPPER_BOUND,
        is_unbounded=dynamism not in (_STATIC, _UPPER_BOUND),
        is_external=extra is not None and extra.integer(2, "int8") == 1,
        name=(extra.string(1) or "") if extra else "",
        mutable_segment=extra.integer(0, "uint64") if extra else 0,
    )
    if not tensor.is_unbounded:
        _check_planned(tensor, planned)
    contents.check(tensor)
    return tensor


def _planned(allocation: Table | None) -> tuple[int, int] | None:
    """Which memory, and the offset in it."""
    if allocation is None:
        return None
    return allocation.integer(0, "uint32"), allocation.integer(1, "uint32") + (allocation.integer(2, "uint32") << 32)


def _check_planned(tensor: Tensor, sizes: Sequence[int]) -> None:
    if tensor.planned is None:
        return
    memory, offset = tensor.planned
    size = _at(sizes, memory, "a planned memory")
    if offset + tensor.bytes > size:
        raise damaged(f"a tensor ends at byte {offset + tensor.bytes:,} of a planned memory of {size:,}")


class _Contents:
    """What the file stores for its tensors, by their indices: how many bytes from where the content of each begins."""

    def __init__(self, container: Container) -> None:
        root = container.root
        self.container = container
        self.segment_sizes = container.segment_sizes
        self.named = named_segments(container)
        self._inline = [(buffer.span(0) or (0, 0))[1] for buffer in root.tables(2)]
        self._delegates = [blob.span(0) or (0, 0) for blob in root.tables(3)]
        constants = root.table(5)
        self._constants = self._inline if self._inline else self._sizes(constants)
        self._mutable = [self._sizes(segment) for segment in root.tables(6)]

    def check(self, tensor: Tensor) -> None:
        """Nothing, where the file has as many bytes for the tensor as it needs."""
        if tensor.is_external:
            if not tensor.name:
                raise damaged("a tensor is in another file, and has no name there")
            return
        if not tensor.buffer:
            return
        sizes = self._constants
        if tensor.planned is not None:
            sizes = _at(self._mutable, tensor.mutable_segment, "a segment of mutable tensors")
        size = _at(sizes, tensor.buffer, "the content of a tensor")
        if tensor.bytes > size:
            raise damaged(f"a tensor of {tensor.bytes:,} bytes has {size:,} in the file")

    def delegate(self, *, is_segment: bool, index: int) -> Span:
        """Where the bytes of a delegate lie."""
        return _at(self.container.segments if is_segment else self._delegates, index, "the program of a delegate")

    def _sizes(self, segment: Table | None) -> list[int]:
        """The most bytes that each tensor of a segment may have: up to where the next one begins."""
        if segment is None or not (offsets := segment.integers(1, "uint64")):
            return []
        size = _at(self.segment_sizes, segment.integer(0, "uint32"), "a segment")
        ends = sorted({*offsets, size})
        if ends[-1] > size:
            raise damaged(f"a tensor begins at byte {ends[-1]:,} of a segment of {size:,}")
        return [ends[bisect_right(ends, offset)] - offset if offset < size else 0 for offset in offsets]


def _delegate(table: Table, contents: _Contents) -> Delegate:
    backend, reference = table.string(0) or "", table.table(1)
    if reference is None:
        return Delegate(backend, 0)
    span = contents.delegate(is_segment=reference.integer(0, "int8") == 1, index=reference.integer(1, "uint32"))
    is_known = backend == xnnpack.BACKEND
    graph = xnnpack.graph(contents.container, span, contents.named) if is_known else None
    return Delegate(backend, span[1], graph)


def _operator_name(operator: Table) -> str:
    """`aten.convolution` for `aten::convolution`, without the mark of what works in place.

    Overloads differ in their arguments, not in their work.
    """
    name = (operator.string(0) or "").replace("::", ".")
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _at(items: Sequence[_Item], index: int, what: str) -> _Item:
    if not 0 <= index < len(items):
        raise damaged(f"it names {what} {index:,}, and has {len(items):,}")
    return items[index]


@dataclass(frozen=True, slots=True)
class _InstructionReader:
    values: int
    operators: tuple[str, ...]
    backends: tuple[str, ...]

    def chain(self, chain: Table) -> tuple[Instruction, ...]:
        instructions = tuple(self._instruction(instruction) for instruction in chain.tables(2))
        for instruction in instructions:
            if isinstance(instruction, JumpIfFalse) and not 0 <= instruction.destination <= len(instructions):
                raise damaged(f"it jumps to instruction {instruction.destination:,} of {len(instructions):,}")
        return instructions

    def indices(self, items: tuple[int, ...]) -> tuple[int, ...]:
        """`items`, which are indices of values."""
        for index in items:
            if not 0 <= index < self.values:
                raise damaged(f"it names value {index:,}, and has {self.values:,}")
        return items

    def _instruction(self, instruction: Table) -> Instruction:
        kind, content = instruction.union(0)
        if content is None:
            raise damaged("an instruction is empty")
        match kind:
            case 1:
                name = _at(self.operators, content.integer(0), "an operator")
                return Call(name, self.indices(content.integers(1)))
            case 2:
                index = content.integer(0)
                name = _at(self.backends, index, "a delegate")
                return Call(name, self.indices(content.integers(1)), index)
            case 3:
                source, target = self.indices((content.integer(0), content.integer(1)))
                return Move(source, target)
            case 4:
                [condition] = self.indices((content.integer(0),))
                return JumpIfFalse(condition, content.integer(1))
            case 5:
                return None
        raise damaged(f"an instruction is of the kind {kind}, which is not known")
