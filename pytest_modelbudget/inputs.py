"""What a model is called with: the `inputs` grammar, read into trees of `TensorSpec`.

`"float32[B, 3, 224, 224]"` is one tensor, `[1, 3, 32, 32]` a float32 one, a list of specs positional
arguments, a mapping keyword arguments, `{args: [...], kwargs: {...}}` both; specs nest in lists and
mappings, and `"module:callable"` names a function that returns real example inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import ITEM_BYTES, Input, TensorSpec

BATCH = "B"
"""The symbolic dimension that `batch` sizes."""

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True, slots=True)
class Literal:
    """A plain value (bool, None, number) that is handed to the model as it is."""

    value: bool | int | float | None


Tree = TensorSpec | Literal | tuple["Tree", ...] | dict[str, "Tree"]
"""A tensor, a plain value, or a list or mapping of these."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The arguments of one call of the model."""

    args: tuple[Tree, ...] = ()
    kwargs: dict[str, Tree] = field(default_factory=dict)

    def build(self, make: Callable[[str, TensorSpec], object]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return `(args, kwargs)` with every tensor made by `make(name, spec)` and every plain value as it is."""
        args = tuple(_build(tree, make, str(index)) for index, tree in enumerate(self.args))
        return args, {name: _build(tree, make, name) for name, tree in self.kwargs.items()}

    @property
    def ports(self) -> tuple[Input, ...]:
        """Every tensor with its name: `user`, or its position `0`, or the way to it as `batch.ids`, `0.1`."""
        found: list[Input] = []

        def note(name: str, spec: TensorSpec) -> None:
            found.append(Input(name, spec))

        self.build(note)
        return tuple(found)

    @property
    def symbols(self) -> tuple[str, ...]:
        """The names of the symbolic dimensions, in the order first met."""
        dims = (dim for port in self.ports for dim in port.spec.shape)
        return tuple(dict.fromkeys(dim for dim in dims if isinstance(dim, str)))


@dataclass(frozen=True, slots=True)
class Example:
    """A function that returns real example inputs: a tuple or list is positional, a mapping is by name."""

    call: Callable[[], object] | str


def _build(tree: Tree, make: Callable[[str, TensorSpec], object], name: str) -> Any:
    match tree:
        case TensorSpec():
            return make(name, tree)
        case Literal(value):
            return value
        case dict():
            return {key: _build(item, make, f"{name}.{key}") for key, item in tree.items()}
        case _:
            return [_build(item, make, f"{name}.{index}") for index, item in enumerate(tree)]


def concrete(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of `spec` with every symbolic dimension at its size."""
    return tuple(sizes[dim] if isinstance(dim, str) else int(dim or 1) for dim in spec.shape)


def sizes_for(inputs: Inputs, *, batch: int, dims: Mapping[str, int]) -> dict[str, int]:
    """The size of each symbolic dimension, `B` from `batch` and the others from `dims`.

    Raises:
        ModelBudgetError: a dimension has a name and no size.
    """
    known = {BATCH: batch, **dims}
    missing = [name for name in inputs.symbols if name not in known]
    if missing:
        wanted = ", ".join(f"{name}: 128" for name in missing)
        raise ModelBudgetError(
            f"the symbolic dimension {missing[0]!r} has no size: give one with dims: {{{wanted}}} "
            f"(batch sizes only {BATCH})"
        )
    return {name: known[name] for name in inputs.symbols}


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
    if isinstance(value, Mapping):
        if value and set(value) <= {"args", "kwargs"}:
            return Inputs(_args(value.get("args") or []), _kwargs(value.get("kwargs") or {}))
        return Inputs((), _kwargs(value))
    if isinstance(value, (TensorSpec, str)) or _is_shape(value):
        return Inputs((_tree(value, "inputs"),))
    return Inputs(_args(value))


def _args(value: object) -> tuple[Tree, ...]:
    if _is_shape(value):
        return (_tree(value, "args"),)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ModelBudgetError(f'inputs: {value!r} is not a list of tensors: write e.g. ["float32[B, 16]"]')
    return tuple(_tree(item, str(index)) for index, item in enumerate(value))


def _kwargs(value: object) -> dict[str, Tree]:
    if not isinstance(value, Mapping):
        raise ModelBudgetError(f'inputs: {value!r} is not a mapping of names to tensors: write {{x: "float32[B, 16]"}}')
    return {_name(key): _tree(item, str(key)) for key, item in value.items()}


def _name(key: object) -> str:
    if not isinstance(key, str):
        raise ModelBudgetError(f"inputs: the name {key!r} is not text")
    return key


def _is_shape(value: object) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    return all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def _tree(value: object, where: str) -> Tree:
    match value:
        case TensorSpec():
            return _checked(value, where)
        case str():
            return _checked(_spec(value, where), where)
        case None | bool() | float():
            return Literal(value)
        case int():
            return Literal(value)
        case Mapping():
            return {_name(key): _tree(item, f"{where}.{key}") for key, item in value.items()}
        case Sequence() if _is_shape(value):
            return _checked(TensorSpec(tuple(value)), where)
        case Sequence():
            return tuple(_tree(item, f"{where}.{index}") for index, item in enumerate(value))
        case _:
            raise ModelBudgetError(f'inputs: {where}: {value!r} is not a tensor: write e.g. "float32[B, 16]"')


def _spec(text: str, where: str) -> TensorSpec:
    try:
        return TensorSpec.parse(text)
    except ModelBudgetError as mistake:
        raise ModelBudgetError(f"inputs: {where}: {mistake}") from None


def _checked(spec: TensorSpec, where: str) -> TensorSpec:
    if spec.dtype not in ITEM_BYTES and spec.dtype != "string":
        from difflib import get_close_matches

        near = get_close_matches(spec.dtype, ITEM_BYTES, n=1)
        hint = f", did you mean {near[0]!r}" if near else ""
        raise ModelBudgetError(f"inputs: {where}: {spec}: there is no dtype {spec.dtype!r}{hint}")
    for dim in spec.shape:
        if isinstance(dim, str) and not dim.isidentifier():
            raise ModelBudgetError(f"inputs: {where}: {spec}: the dimension {dim!r} is neither a size nor a name")
        if dim is None:
            raise ModelBudgetError(f"inputs: {where}: {spec}: name the open dimension, e.g. T, and size it with dims")
    return spec


def from_example(value: object) -> Inputs:
    """The specs of real example inputs, of whatever framework; only shapes, dtypes and plain values are kept.

    A tuple or list is positional, a mapping is by name, anything else is the one argument.

    Raises:
        ModelBudgetError: something is neither a tensor nor a plain value.
    """
    if isinstance(value, Mapping):
        return Inputs((), {_name(key): _example(item, str(key)) for key, item in value.items()})
    items = value if isinstance(value, (tuple, list)) else (value,)
    return Inputs(tuple(_example(item, str(index)) for index, item in enumerate(items)))


def _example(value: Any, where: str) -> Tree:
    if value is None or isinstance(value, (bool, int, float)):
        return Literal(value)
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return TensorSpec(tuple(map(int, value.shape)), _dtype_name(value.dtype))
    if isinstance(value, Mapping):
        return {_name(key): _example(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_example(item, f"{where}.{index}") for index, item in enumerate(value))
    raise ModelBudgetError(f"example inputs: {where} is a {type(value).__name__}, neither a tensor nor a plain value")


def _dtype_name(dtype: object) -> str:
    return str(getattr(dtype, "name", dtype)).removeprefix("torch.")
