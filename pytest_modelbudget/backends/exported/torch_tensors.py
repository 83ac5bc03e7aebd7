"""The tensors in pickles of torch: what stands for them, and the names that make them.

`torch._utils` rebuilds a tensor from a storage, an offset, sizes and strides; these are kept as numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod

from pytest_modelbudget.backends.exported import json_parts
from pytest_modelbudget.backends.exported.graph import Constant
from pytest_modelbudget.backends.exported.pickles import Call, Inert, Name, Stored
from pytest_modelbudget.backends.model_files import DamagedFile
from pytest_modelbudget.summary.tensors import ITEM_BYTES

_AGAIN = "fetch it again, or save the model again"
_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
    "ComplexFloat": "complex64", "ComplexDouble": "complex128", "Untyped": "uint8",
}  # fmt: skip
_STORAGE_DTYPES = {
    f"{module}.{kind}Storage": dtype
    for kind, dtype in _STORAGES.items()
    for module in ("torch", "torch.storage", "torch.cuda")
}
_DTYPES = {f"torch.{dtype}": dtype for dtype in ITEM_BYTES}


@dataclass(frozen=True, slots=True)
class Storage:
    """The bytes of one or several tensors, by the key under which they are stored."""

    key: str
    dtype: str
    elements: int

    @property
    def bytes(self) -> int:
        """What they take."""
        return bytes_of(self.dtype, self.elements)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view into a storage; sizes, strides and offset count elements of `dtype`."""

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    trainable: bool = False
    is_parameter: bool = False

    @property
    def span(self) -> int:
        """The bytes from the beginning of the storage to the last element."""
        return bytes_of(self.dtype, last_element(self.shape, self.strides, self.offset))

    @property
    def stored_bytes(self) -> int:
        """What its elements take; of one that repeats them, what is stored."""
        return min(bytes_of(self.dtype, prod(self.shape)), self.storage.bytes)

    @property
    def constant(self) -> Constant:
        """As a model has it."""
        repeats = self.stored_bytes < bytes_of(self.dtype, prod(self.shape))
        return Constant(
            self.shape,
            self.dtype,
            storage=(self.storage.key, self.offset, self.shape, self.strides),
            stored_bytes=self.stored_bytes if repeats else None,
            trainable=self.trainable,
        )


def bytes_of(dtype: str, elements: int) -> int:
    """What elements of a dtype take, in whole bytes."""
    return -int(-elements * ITEM_BYTES[dtype] // 1)


def last_element(shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> int:
    """How many elements lie before the end of a view."""
    if 0 in shape:
        return 0
    return offset + 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def storage_of(stored: object) -> Storage:
    """The storage that a persistent id names: `("storage", class, key, device, elements)`.

    Files before torch 1.6 have a sixth item, None where a storage is no view of another.
    """
    content = stored.content if isinstance(stored, Stored) else None
    if not isinstance(content, tuple) or len(content) not in (5, 6) or content[5:] not in ((), (None,)):
        raise DamagedFile(f"is damaged: a tensor in it has no storage: {_AGAIN}")
    _, kind, key, _, elements = content[:5]
    dtype = _STORAGE_DTYPES.get(kind.text) if isinstance(kind, Name) else None
    if dtype is None or not isinstance(key, str):
        raise DamagedFile(f"is damaged: a storage in it has no dtype or no key: {_AGAIN}")
    return Storage(key, dtype, json_parts.size(elements, f"storage {key}"))


def _rebuilt(stored: object, offset: object, sizes: object, strides: object, *_: object) -> Tensor:
    storage = storage_of(stored)
    return _view(storage, storage.dtype, offset, sizes, strides)


def _rebuilt_v3(
    stored: object,
    offset: object,
    sizes: object,
    strides: object,
    _grad: object,
    _hooks: object,
    dtype: object,
    *_: object,
) -> Tensor:
    name = _DTYPES.get(dtype.text) if isinstance(dtype, Name) else None
    if name is None:
        raise DamagedFile(f"is damaged: a tensor in it has no dtype: {_AGAIN}")
    return _view(storage_of(stored), name, offset, sizes, strides)


def _view(storage: Storage, dtype: str, offset: object, sizes: object, strides: object) -> Tensor:
    place = f"tensor of storage {storage.key}"
    if not isinstance(sizes, tuple) or not isinstance(strides, tuple) or len(sizes) != len(strides):
        raise DamagedFile(f"is damaged: a {place} in it has no shape: {_AGAIN}")
    shape = json_parts.shape([*sizes], place)
    steps = tuple(json_parts.size(stride, place) for stride in strides)
    tensor = Tensor(storage, dtype, shape, steps, json_parts.size(offset, place), trainable=_is_trainable(dtype))
    if tensor.span > storage.bytes:
        raise DamagedFile(
            f"is damaged: a {place} in it ends after {tensor.span:,} of {storage.bytes:,} bytes: {_AGAIN}"
        )
    return tensor


def _is_trainable(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat", "complex"))


def _parameter(tensor: object, requires_grad: object, *_: object) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise DamagedFile(f"is damaged: a parameter in it is no tensor: {_AGAIN}")
    return replace(tensor, trainable=bool(requires_grad), is_parameter=True)


def _of_type(function: object, kind: object, arguments: object, *_: object) -> object:
    """A tensor with attributes of its own, or of a subclass, whose name refuses the file before this is called."""
    if not isinstance(function, Name) or not isinstance(arguments, tuple) or not isinstance(kind, Name):
        raise TypeError(function)
    return CALLS[function.text](*arguments)


def _refused(what: str, cure: str, *_: object) -> object:
    raise DamagedFile(f"holds {what}, which are not read: {cure}")


def _mapping(*arguments: object) -> dict[object, object]:
    pairs = arguments[0] if arguments else ()
    if not isinstance(pairs, (list, tuple)):
        raise TypeError(pairs)
    return dict(pairs)


def _sizes(sizes: object = ()) -> tuple[object, ...]:
    if not isinstance(sizes, (list, tuple)):
        raise TypeError(sizes)
    return tuple(sizes)


def _inert(name: str) -> Callable[..., Inert]:
    return lambda *_: Inert(name)


_DENSE = "save them as dense tensors of plain dtypes"
_REFUSED = {
    "_rebuild_qtensor": ("quantised tensors", _DENSE),
    "_rebuild_sparse_tensor": ("sparse tensors", _DENSE),
    "_rebuild_nested_tensor": ("nested tensors", _DENSE),
    "_rebuild_wrapper_subclass": ("tensors of a subclass", _DENSE),
    "_rebuild_device_tensor_from_numpy": ("tensors of another device", "move the model to the CPU and save it again"),
    "_rebuild_meta_tensor_no_storage": ("tensors of the meta device", "save the model with its weights"),
}
_INERT = """
    argparse.Namespace pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath types.SimpleNamespace
    datetime.datetime datetime.date datetime.timedelta datetime.timezone collections.Counter collections.deque
    numpy.dtype numpy.ndarray numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct
    numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct _codecs.encode builtins.set builtins.frozenset
    builtins.complex builtins.slice builtins.range builtins.bytearray __builtin__.set __builtin__.frozenset
    __builtin__.complex __builtin__.slice __builtin__.xrange __builtin__.bytearray torch.device
    torch.serialization._get_layout torch.memory_format torch.Tensor torch.nn.parameter.Parameter
    torch.nn.parameter.Buffer
    pytorch_lightning.utilities.parsing.AttributeDict lightning.fabric.utilities.data.AttributeDict
    lightning_fabric.utilities.data.AttributeDict lightning.pytorch.utilities.parsing.AttributeDict
"""
"""Plain objects that checkpoints have beside their tensors, of which nothing is read."""

CALLS: dict[str, Call] = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *_: {},
    "builtins.dict": _mapping,
    "__builtin__.dict": _mapping,
    "builtins.list": lambda *_: [],
    "__builtin__.list": lambda *_: [],
    "torch.Size": _sizes,
    "torch._utils._rebuild_tensor": _rebuilt,
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_tensor_v3": _rebuilt_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    **{name: _inert(name) for name in (*_DTYPES, *_STORAGE_DTYPES, *_INERT.split())},
    **{f"torch._utils.{name}": partial(_refused, *reason) for name, reason in _REFUSED.items()},
}
"""The names that a pickle of weights may use, and what stands for what each of them makes."""
