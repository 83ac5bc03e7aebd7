"""Values that nobody gave: which inputs of unknown values a forward pass reads.

An input that is only declared (`int64[2]`) is zeros in a pass. That is as good as any other value while it is looked
up, added or compared; as soon as code asks for a value (`int(n)`, `lengths.tolist()`, `mask.all()` in a condition, the
number of what a mask selects) the pass goes a way that the zeros chose.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, wraps
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.model.pytree import storage_key, tensors
from pytest_modelbudget.summary import Below, Input

_READING_TAGS = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
_MASKS = (torch.bool, torch.uint8)


class Readings:
    """The inputs whose values are assumed in one pass, what is made of them, and which of them were read.

    `drew` says that random numbers were drawn, too, `refused` that a value was asked for which there is not.
    """

    def __init__(self) -> None:
        self.assumed: dict[str, Input] = {}
        self.read_inputs: dict[str, Input] = {}
        self.drew = self.refused = False
        self._labels: dict[int, frozenset[str]] = {}
        self._pinned: dict[int, StorageWeakRef] = {}  # holds addresses, not memory: no key is used twice

    def assume(self, port: Input, tensor: torch.Tensor) -> None:
        """The values of `tensor`, an input, were not given."""
        self.assumed[port.name] = port
        self._label(tensor, frozenset({port.name}))

    def note_read(self, tensors: Iterable[torch.Tensor]) -> None:
        """Values of these tensors are read."""
        if self._labels:
            self.read_inputs |= {name: self.assumed[name] for name in self._names(tensors)}

    def before_operator(self, func: Any, operands: list[torch.Tensor], args: tuple[Any, ...]) -> None:
        """An operator is about to run on `operands`."""
        if self._labels and (read_of := read_operands(func)) is not None:
            self.note_read(read_of(operands, args))

    def after_operator(self, func: Any, operands: list[torch.Tensor], out: Any) -> None:
        """An operator made `out` of `operands`: of assumed values come assumed values."""
        if self._labels and not _reads_shape_only(func) and (names := self._names(operands)):
            for tensor in tensors(out):
                self._label(tensor, names | self._labels.get(storage_key(tensor), frozenset()))

    def is_assumed(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` was made of assumed values."""
        return storage_key(tensor) in self._labels

    def _names(self, operands: Iterable[torch.Tensor]) -> frozenset[str]:
        return frozenset().union(*(self._labels.get(storage_key(tensor), ()) for tensor in operands))

    def _label(self, tensor: torch.Tensor, names: frozenset[str]) -> None:
        if (key := storage_key(tensor)) > 0:
            if key not in self._pinned:
                self._pinned[key] = StorageWeakRef(tensor.untyped_storage())
            self._labels[key] = names


def cure(port: Input) -> str:
    """How a user says the values of this input; one of more than one dimension is rather a mask than a length."""
    value = "true" if port.spec.dtype == "bool" else "1" if len(port.spec.shape) > 1 else "3"
    return f'give its value, as in "{port.spec.without_values} = {value}"'


def assumed_value(port: Input, *, real: bool = False) -> str:
    """What the values of this input were that nobody gave, in words."""
    if isinstance(port.spec.values, Below):
        return f"numbers below {port.spec.values.bound} were drawn"
    zero_text, one_text = ("false", "true") if port.spec.dtype == "bool" else ("0", "1")
    return f"{zero_text} and {one_text} were drawn" if real else f"{zero_text} was assumed"


_ReadOperands = Callable[[list[torch.Tensor], tuple[Any, ...]], Iterable[torch.Tensor]]


@cache
def read_operands(func: Any) -> _ReadOperands | None:
    """Which operands' values decide what an operator gives back, beyond the values in it; None where none do."""
    name = func._schema.name
    if name == "aten::index":
        return lambda read, args: [index for index in tensors(args[1]) if index.dtype in _MASKS]
    if name in ("aten::masked_select", "aten::_pack_padded_sequence"):
        return lambda read, args: [args[1]]
    return (lambda read, args: read) if _READING_TAGS & set(func.tags) else None


@cache
def reads_shape_only(operator: str) -> bool:
    """Whether only the shape of what it reads matters, as for `zeros_like`."""
    base = operator.rpartition(".")[2]
    return base.endswith("_like") or base.startswith("new_")


@cache
def _reads_shape_only(func: Any) -> bool:
    """Whether only the shape of what it reads matters, as for `zeros_like`."""
    return reads_shape_only(func._schema.name.removeprefix("aten::"))


def _all_arguments(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def _after_first(_: Any, *args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def _listed_data(data: Any, *_: Any, **__: Any) -> Any:
    """A tensor is copied by an operator; those in a list are numbers of the new tensor."""
    return () if isinstance(data, torch.Tensor) else data


def _formatted(tensor: Any, format_spec: str) -> Any:
    """A number in a text, as in `f"{loss:.3f}"`; without a format the tensor is shown, as `print` does."""
    return tensor if format_spec else ()


_UNDISPATCHED: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (torch.Tensor, "tolist", _all_arguments),
    (torch.Tensor, "numpy", _all_arguments),
    (torch.Tensor, "__dlpack__", _all_arguments),
    (torch.Tensor, "__format__", _formatted),
    (torch.Tensor, "tensor_split", _after_first),
    (torch, "tensor_split", _after_first),
    (torch, "tensor", _listed_data),
    (torch, "as_tensor", _listed_data),
)
"""Functions that read values without an operator, and which of their arguments."""


@contextmanager
def value_reads_observed(on_read: Callable[[list[torch.Tensor]], object]) -> Iterator[None]:
    """Inside, `on_read` is called with the tensors whose values leave torch without an operator, before they do."""
    thread = threading.get_ident()

    def telling(original: Callable[..., Any], read_of: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def read(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == thread:
                on_read(tensors(read_of(*args, **kwargs)))
            return original(*args, **kwargs)

        return read

    def show(tensor: torch.Tensor, **kwargs: Any) -> str:
        if threading.get_ident() == thread:
            with suppress(RuntimeError):  # what has no values is shown all the same
                on_read([] if tensor.is_meta else [tensor])
        return original_repr(tensor, **kwargs)

    original_repr: Callable[..., str] = torch.Tensor.__repr__
    with ExitStack() as stack:
        for owner, name, read_of in _UNDISPATCHED:
            stack.enter_context(patched(owner, name, telling(getattr(owner, name), read_of)))
        stack.enter_context(patched(torch.Tensor, "__repr__", show))
        yield
