"""Marks on the calls of modules in a trace: `flow.py` reads them again from the finished jaxpr.

A call of a module is a scope of names, so that every equation in it knows it whatever transformation it goes through,
and its tensors are marked where they go in and come out (`checkpoint_name`, which does nothing), so that the jaxpr
tells how often it runs and where its inputs come from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from pytest_modelbudget.backends.calls import ShapeDtype

_SCOPE = re.compile(r"modelbudget_call_(\d+)")
_TENSOR = re.compile(r"modelbudget (\d+) (in|out) (\d+)")
_SERIALS = count()
"""Calls are numbered through the process: what a cached trace tells of an earlier model is nobody's."""


@dataclass(slots=True)
class ModuleCall:
    """One call of the module at `path`, as Python saw it; `inputs` and `outputs` are its tensors."""

    serial: int
    path: str
    type: str
    inputs: tuple[ShapeDtype, ...] = ()
    outputs: tuple[ShapeDtype, ...] = ()


@dataclass(frozen=True, slots=True)
class TensorMark:
    """Which tensor of which call was marked, and on which side of it."""

    serial: int
    side: str
    index: int


class CallRecorder:
    """Writes down the calls of modules in one trace; with `tensors`, their tensors are marked too."""

    def __init__(self, *, tensors: bool = True) -> None:
        self.calls: dict[int, ModuleCall] = {}
        self._tensors = tensors
        self._open_paths: list[str] = []

    def call(self, path: str, kind: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What `function` gives, noted as a call of the module at `path`; one of itself is a part of it."""
        if self._open_paths and self._open_paths[-1] == path:
            return function(*args, **kwargs)
        call = ModuleCall(next(_SERIALS), path, kind)
        self.calls[call.serial] = call
        self._open_paths.append(path)
        try:
            with jax.named_scope(f"modelbudget_call_{call.serial}"):
                call.inputs = tuple(map(shape_dtype, tensors_in((args, kwargs))))
                args, kwargs = self._marked((args, kwargs), call.serial, "in")
                outputs = function(*args, **kwargs)
                call.outputs = tuple(map(shape_dtype, tensors_in(outputs)))
                return self._marked(outputs, call.serial, "out")
        finally:
            self._open_paths.pop()

    def _marked(self, tree: Any, serial: int, side: str) -> Any:
        if not self._tensors:
            return tree
        numbers = count()
        return _map_tensors(
            lambda tensor: checkpoint_name(tensor, f"modelbudget {serial} {side} {next(numbers)}"), tree
        )


def innermost_call(scope: str) -> int | None:
    """The serial of the innermost call of a module whose scope this is."""
    serials = _SCOPE.findall(scope)
    return int(serials[-1]) if serials else None


def tensor_mark(name: str) -> TensorMark | None:
    """What a name says that was given to a tensor here; None for a name of the user's."""
    match = _TENSOR.fullmatch(name)
    return None if match is None else TensorMark(int(match[1]), match[2], int(match[3]))


def shape_dtype(tensor: Any) -> ShapeDtype:
    """Shape and dtype as plain data."""
    return tuple(map(int, tensor.shape)), str(tensor.dtype)


def tensors_in(tree: Any) -> list[Any]:
    """The traced tensors in lists, tuples and mappings."""
    tensors: list[Any] = []
    _map_tensors(lambda tensor: tensors.append(tensor) or tensor, tree)  # type: ignore[func-returns-value]
    return tensors


def _map_tensors(change: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` with its traced tensors changed; keys and objects of other classes, modules too, are left as they are."""
    if isinstance(tree, jax.core.Tracer):
        return tree if jax.dtypes.issubdtype(tree.dtype, jax.dtypes.extended) else change(tree)
    if type(tree) in (list, tuple):
        return type(tree)([_map_tensors(change, item) for item in tree])
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[_map_tensors(change, item) for item in tree])
    if type(tree) is dict:
        return {key: _map_tensors(change, item) for key, item in tree.items()}
    return tree
