"""What a model is called with: the `inputs` grammar, read into trees of `TensorSpec`.

`"float32[B, 3, 224, 224]"` is one tensor, `[1, 3, 32, 32]` a float32 one, a list of specs positional
arguments, a mapping keyword arguments, `{args: [...], kwargs: {...}}` both; specs nest in lists and
mappings, and `"module:callable"` names a function that returns real example inputs. A list or mapping may be one text,
as a command line has it (`"{user: 'float32[B, 9]'}"`). A tensor's values may be said:
`"int64[B] = T"` (a number, true, false or the size of a dimension), `"int64[B, T] < 32000"` (random ones below that).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from sys import float_info
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ReferenceType

from pytest_modelbudget.errors import ModelBudgetError, did_you_mean
from pytest_modelbudget.loading import InvalidText, read_yaml
from pytest_modelbudget.summary import ITEM_BYTES, Below, Fill, Input, TensorSpec

BATCH = "B"
"""The symbolic dimension that `batch` sizes."""

QUOTE_TENSORS = "write each tensor of a list or mapping in quotes, {x: 'float32[B, 16]'}"
"""The cure of a text that is no YAML: a tensor has brackets and commas of its own."""

_NAMED = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*[A-Za-z]")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_COLLECTION_TEXT = re.compile(r"""\s*(\{|\[.*["'])""", re.DOTALL)
"""A mapping as YAML writes it in one line, or a list of texts; `[B, 3]` is the shape of a tensor."""


@dataclass(frozen=True, slots=True)
class PlainValue:
    """A plain value (bool, None, number, of an example any object) that is handed to the model as it is."""

    value: Any


Tree = TensorSpec | PlainValue | list["Tree"] | tuple["Tree", ...] | dict[Any, "Tree"]
"""A tensor, a plain value, or a list or mapping of these; tuples come from examples alone."""

CallArguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The arguments of one call of the model.

    `example` are the objects themselves where they were given; `args` and `kwargs` then describe the tensors that are
    in plain lists, tuples and mappings of them, for frameworks that need no more.
    """

    args: tuple[Tree, ...] = ()
    kwargs: dict[str, Tree] = field(default_factory=dict)
    example: CallArguments | None = field(default=None, compare=False, repr=False)

    def build(self, make: Callable[[str, TensorSpec], object]) -> CallArguments:
        """Return `(args, kwargs)` with every tensor made by `make(name, spec)` and every plain value as it is."""
        args = tuple(_build(tree, make, str(index)) for index, tree in enumerate(self.args))
        return args, {name: _build(tree, make, name) for name, tree in self.kwargs.items()}

    @property
    def ports(self) -> tuple[Input, ...]:
        """Every tensor with its name: `user`, or its position `0`, or the way to it as `batch.ids`, `0.1`."""
        if self.example is not None:
            return tuple(Input(name, _spec_of(tensor)) for name, tensor in tensors_in(self.example))
        inputs: list[Input] = []

        def note(name: str, spec: TensorSpec) -> None:
            inputs.append(Input(name, spec))

        self.build(note)
        return tuple(inputs)

    @property
    def symbols(self) -> tuple[str, ...]:
        """The names of the symbolic dimensions, in the order first met, those that are only values among them."""
        return symbols_of(self.ports)


@dataclass(frozen=True, slots=True)
class Example:
    """A function that returns real example inputs: a tuple or list is positional, a mapping is by name."""

    call: Callable[[], object] | str


def symbols_of(ports: Sequence[Input]) -> tuple[str, ...]:
    """The names of the symbolic dimensions of these inputs and of their values, in the order first met."""
    names = (name for port in ports for name in (*port.spec.shape, _value_symbol(port.spec)) if isinstance(name, str))
    return tuple(dict.fromkeys(names))


def _value_symbol(spec: TensorSpec) -> bool | int | float | str | None:
    return spec.values.value if isinstance(spec.values, Fill) else None


def _build(tree: Tree, make: Callable[[str, TensorSpec], object], name: str) -> Any:
    match tree:
        case TensorSpec():
            return make(name, tree)
        case PlainValue(value):
            return value
        case dict():
            return {key: _build(item, make, f"{name}.{key}") for key, item in tree.items()}
        case _:
            return _same_container(tree, [_build(item, make, f"{name}.{index}") for index, item in enumerate(tree)])


def _same_container(sequence: Any, items: list[Any]) -> Any:
    """`items` as the same kind of list or tuple; that of a named tuple takes them one by one."""
    return type(sequence)(*items) if hasattr(sequence, "_fields") else type(sequence)(items)


def concrete_shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of `spec` with every symbolic dimension at its size."""
    return tuple(sizes[dim] if isinstance(dim, str) else 1 if dim is None else dim for dim in spec.shape)


def sizes_for(inputs: Inputs, *, batch: int, dims: Mapping[str, int]) -> dict[str, int]:
    """The size of each symbolic dimension, `B` from `batch` and the others from `dims`.

    Raises:
        ModelBudgetError: a dimension has a name and no size.
    """
    sizes = {BATCH: batch, **dims}
    missing = [name for name in inputs.symbols if name not in sizes]
    if missing:
        example = ", ".join(f"{name}: 128" for name in missing)
        raise ModelBudgetError(
            f"the symbolic dimension {missing[0]!r} has no size: give one with dims: {{{example}}} "
            f"in the manifest, or with --dims to the command (batch sizes only {BATCH})"
        )
    return {name: sizes[name] for name in inputs.symbols}


def parse(value: object) -> Inputs | Example | None:
    """Read the `inputs` of a model; None stays None (the model knows its own).

    Raises:
        ModelBudgetError: what does not parse, with the grammar that would.
    """
    if value is None or isinstance(value, (Inputs, Example)):
        return value
    if callable(value):
        return Example(value)
    if isinstance(value, str) and _REFERENCE.fullmatch(value.strip()):
        return Example(value.strip())
    if isinstance(value, str) and _COLLECTION_TEXT.match(value):
        return parse(_read_text(value))
    if isinstance(value, Mapping):
        if value and set(value) <= {"args", "kwargs"}:
            return Inputs(_parse_args(value.get("args") or []), _parse_kwargs(value.get("kwargs") or {}))
        return Inputs((), _parse_kwargs(value))
    if isinstance(value, (TensorSpec, str)) or _is_shape(value):
        return Inputs((_parse_tree(value, "inputs"),))
    return Inputs(_parse_args(value))


def _read_text(text: str) -> object:
    try:
        return read_yaml(text).data
    except InvalidText as error:
        raise ModelBudgetError(f"inputs: {text!r} cannot be read ({error}): {QUOTE_TENSORS}") from None


def _parse_args(value: object) -> tuple[Tree, ...]:
    if _is_shape(value):
        return (_parse_tree(value, "inputs: args"),)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ModelBudgetError(f'inputs: {value!r} is not a list of tensors: write e.g. ["float32[B, 16]"]')
    return tuple(_parse_tree(item, f"inputs: {index}") for index, item in enumerate(value))


def _parse_kwargs(value: object) -> dict[str, Tree]:
    if not isinstance(value, Mapping):
        raise ModelBudgetError(f'inputs: {value!r} is not a mapping of names to tensors: write {{x: "float32[B, 16]"}}')
    return {_checked_name(key): _parse_tree(item, f"inputs: {key}") for key, item in value.items()}


def _checked_name(key: object) -> str:
    if not isinstance(key, str):
        raise ModelBudgetError(f"inputs: the name {key!r} is not text")
    return key


def _is_shape(value: object) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    return all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def _parse_tree(value: object, where: str) -> Tree:
    match value:
        case TensorSpec():
            return _checked_spec(value, where)
        case str():
            return _checked_spec(_parse_spec(value, where), where)
        case None | bool() | float():
            return PlainValue(value)
        case int():
            return PlainValue(value)
        case Mapping():
            return {_checked_name(key): _parse_tree(item, f"{where}.{key}") for key, item in value.items()}
        case Sequence() if _is_shape(value):
            return _checked_spec(TensorSpec(tuple(value)), where)
        case Sequence():
            return [_parse_tree(item, f"{where}.{index}") for index, item in enumerate(value)]
        case _:
            raise ModelBudgetError(f'{where}: {value!r} is not a tensor: write e.g. "float32[B, 16]"')


def _parse_spec(text: str, where: str) -> TensorSpec:
    try:
        return TensorSpec.parse(text)
    except ModelBudgetError as mistake:
        hint = f"; named inputs are a mapping: {{{named[1]}: '...'}}" if (named := _NAMED.match(text)) else ""
        raise ModelBudgetError(f"{where}: {mistake}{hint}") from None


def _checked_spec(spec: TensorSpec, where: str) -> TensorSpec:
    if spec.dtype not in ITEM_BYTES and spec.dtype != "string":
        hint = did_you_mean(spec.dtype, ITEM_BYTES)
        raise ModelBudgetError(f"{where}: {spec}: there is no dtype {spec.dtype!r}{hint}")
    for dim in spec.shape:
        if isinstance(dim, str) and not dim.isidentifier():
            raise ModelBudgetError(f"{where}: {spec}: the dimension {dim!r} is neither a size nor a name")
        if dim is None:
            raise ModelBudgetError(f"{where}: {spec}: name the open dimension, e.g. T, and size it with dims")
    if spec.values is not None and (problem := _why_values_do_not_fit(spec, spec.values)):
        raise ModelBudgetError(f"{where}: {spec}: {problem}")
    return spec


def _why_values_do_not_fit(spec: TensorSpec, values: Fill | Below) -> str | None:
    """Why a tensor of this dtype cannot have these values, with what to write."""
    shape = spec.dims
    if integer_match := re.fullmatch(r"(u?)int([0-9]+)", spec.dtype):
        bits = int(integer_match[2])
        low, high = (0, 2**bits - 1) if integer_match[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        if isinstance(values, Below):
            return None if values.bound <= high + 1 else f"{spec.dtype} ends at {high}: write a bound up to {high + 1}"
        value = values.value
        if isinstance(value, str):
            return None
        if isinstance(value, (bool, float)):
            return f'{spec.dtype} holds whole numbers: write e.g. "{spec.dtype}{shape} = 1"'
        return None if low <= value <= high else f"{spec.dtype} holds numbers from {low} to {high}"
    if isinstance(values, Below):
        return f'a bound is for ids of whole numbers: write e.g. "int64{shape} {values}"'
    if spec.dtype == "bool":
        fits = isinstance(values.value, bool)
        return None if fits else f'a bool is true or false: write e.g. "bool{shape} = true"'
    if not spec.dtype.startswith(("float", "bfloat", "complex")):
        return f"values of {spec.dtype} cannot be given here: give example inputs, as module:callable"
    value = values.value
    number = isinstance(value, str) or (not isinstance(value, bool) and abs(value) <= float_info.max)
    return None if number else f'{spec.dtype} holds numbers: write e.g. "{spec.dtype}{shape} = 0.5"'


def from_example(value: object) -> Inputs:
    """Real example inputs, of whatever framework.

    A tuple or list is positional, a mapping with names of text is by name, anything else (a named tuple, an object) is
    the one argument.
    """
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        call: CallArguments = (), {key: value[key] for key in value}
    else:
        call = tuple(value) if isinstance(value, (tuple, list)) and type(value) in (tuple, list) else (value,), {}
    args, kwargs = call
    return Inputs(
        tuple(map(_describe_example, args)), {name: _describe_example(item) for name, item in kwargs.items()}, call
    )


def _describe_example(value: Any) -> Tree:
    if is_tensor(value):
        return _spec_of(value)
    if isinstance(value, Mapping):
        return {key: _describe_example(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        try:
            return _same_container(value, list(map(_describe_example, value)))  # type: ignore[no-any-return]
        except Exception:  # a tuple of a class that takes nothing but tensors
            return PlainValue(value)
    return PlainValue(value)


def is_tensor(value: Any) -> bool:
    """Whether `value` is a tensor or array of some framework."""
    if isinstance(value, type) or _safe_attribute(value, "dtype") is None:
        return False
    return hasattr(type(value), "shape") or _safe_attribute(value, "shape") is not None  # that of nested tensors raises


def _safe_attribute(value: Any, name: str) -> Any:
    """The attribute, None where there is none; an object may answer the question with any error."""
    try:
        return getattr(value, name, None)
    except Exception:
        return None


def tensors_in(call: CallArguments) -> Iterator[tuple[str, Any]]:
    """Every tensor in the arguments of a call, by the way to it; private names of attributes are no part of the way.

    Looked through are lists, tuples, mappings, and what objects have as attributes.
    """
    args, kwargs = call
    visited: set[int] = set()
    for name, value in (*((str(index), value) for index, value in enumerate(args)), *kwargs.items()):
        yield from _tensors_inside(value, name, visited)


def _tensors_inside(value: Any, name: str, visited: set[int], depth: int = 0) -> Iterator[tuple[str, Any]]:
    if is_tensor(value):
        yield name, value
    elif not isinstance(value, _OPAQUE) and id(value) not in visited and depth < _DEEPEST:
        visited.add(id(value))
        for part, item in _named_parts(value):
            yield from _tensors_inside(item, name if part.startswith("_") else f"{name}.{part}", visited, depth + 1)


_DEEPEST = 32
"""Levels of containers and objects that are looked through."""


_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)
_OPAQUE = (str, bytes, int, float, complex, type(None), type, ModuleType, ReferenceType, *_FUNCTIONS)
"""What holds no tensors to look for."""


def _named_parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if names := _safe_attribute(value, "_fields") if isinstance(value, tuple) else None:
        return list(zip(names, value, strict=True))
    if isinstance(value, (list, tuple, deque)):
        return [(str(index), item) for index, item in enumerate(value)]
    slots = [name for kind in type(value).__mro__ for name in _slot_names(vars(kind).get("__slots__", ()))]
    slot_values = [(name, _safe_attribute(value, name)) for name in slots if not name.startswith("__")]
    return [*slot_values, *(_safe_attribute(value, "__dict__") or {}).items()]


def _slot_names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _spec_of(tensor: Any) -> TensorSpec:
    return TensorSpec(_shape(tensor), _dtype_name(tensor.dtype))


def _shape(tensor: Any) -> tuple[int | None, ...]:
    """The sizes of a tensor; None where its rows have lengths of their own."""
    try:
        return tuple(map(int, tensor.shape))
    except Exception:  # a nested tensor
        return tuple(_size(tensor, axis) for axis in range(tensor.dim()))


def _size(tensor: Any, axis: int) -> int | None:
    try:
        return int(tensor.size(axis))
    except Exception:  # whatever its class says to that
        return None


def _dtype_name(dtype: object) -> str:
    return str(getattr(dtype, "name", dtype)).removeprefix("torch.")
