"""Tensors and weights, and how each is written on a line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import prod
from typing import Literal
from urllib.parse import quote, unquote

from pytest_modelbudget.errors import ModelBudgetError

ITEM_BYTES: dict[str, int | Fraction] = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8,
    "int2": Fraction(1, 4), "int4": Fraction(1, 2), "uint4": Fraction(1, 2), "qint8": 1, "quint8": 1, "qint32": 4,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16, "complex32": 4,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip

Dim = int | str | None
"""A dimension: its size, the name or formula of a symbolic one (`B`, `2*B`), or None when any size fits."""

_READABLE_CHARACTERS = "/._-:[]()@"
"""What stays readable in the name of a weight; everything else is percent-encoded, so that a line can be read back."""

_WEIGHT = re.compile(
    r"(?P<name>\S+) (?P<shape>scalar|[0-9]{1,18}(?:x[0-9]{1,18}){0,63})(?: (?P<dtype>(?!buffer\b|frozen\b)[a-z]\w*))?"
    r"(?: (?P<packed>[0-9]{1,18})B)?(?: (?P<role>buffer|frozen))?(?: = (?P<owner>\S+))?"
)

_SPEC = re.compile(
    r"(?P<dtype>[A-Za-z][A-Za-z0-9_]*)?\s*\[(?P<dims>[^\[\]]*)\]\s*(?:(?P<sign>[=<])\s*(?P<value>\S.*))?"
)
_WHOLE_NUMBER = re.compile(
    r"[+-]?[0-9](?:_?[0-9]){0,299}"
)  # what a float can hold; Python reads no more than 4,300 digits
_DIGITS = 18
"""Digits of a size; a tensor of more elements has no place in any memory."""

_LONGEST = 10_000
"""Characters of a tensor as it is written."""

_MOST_SHOWN = 500
"""Characters of it that a message shows."""

_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Fill:
    """Every element of a tensor is `value`: a number, a truth value, or the size of the dimension of that name."""

    value: bool | int | float | str

    def __str__(self) -> str:
        return f"= {str(self.value).lower() if isinstance(self.value, bool) else self.value}"


@dataclass(frozen=True, slots=True)
class Below:
    """The elements of a tensor are whole numbers from 0 on, all below `bound`, drawn with a fixed seed."""

    bound: int

    def __str__(self) -> str:
        return f"< {self.bound}"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of a tensor; `str()` gives `float32[B, 28, 28, 3]`.

    `values` are those that a user declared for an input: `int64[B] = T`, `int64[B, T] < 32000`.
    """

    shape: tuple[Dim, ...]
    dtype: str = "float32"
    values: Fill | Below | None = None

    def __str__(self) -> str:
        return f"{self.dtype}{self.dims}" if self.values is None else f"{self.dtype}{self.dims} {self.values}"

    @property
    def without_values(self) -> TensorSpec:
        """Its shape and dtype alone."""
        return self if self.values is None else TensorSpec(self.shape, self.dtype)

    @property
    def dims(self) -> str:
        """The shape alone: `[B, 28, 28, 3]`, `?` for a dimension of any size."""
        return f"[{', '.join('?' if dim is None else str(dim) for dim in self.shape)}]"

    @property
    def brief(self) -> str:
        """The shape, with the dtype only when it is not float32."""
        return self.dims if self.dtype == "float32" else f"{self.dtype}{self.dims}"

    @classmethod
    def parse(cls, text: str) -> TensorSpec:
        """Read `dtype[dim, dim]` or `[dim, dim]` (float32) back, with the values after it.

        Raises:
            ModelBudgetError: the text is not of that form.
        """
        return _parse_spec(text)


@lru_cache(4096)
def _parse_spec(text: str) -> TensorSpec:
    match = _SPEC.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if not match:
        raise ModelBudgetError(
            f'{text[:_LONGEST]!r} is not a tensor: write dtype[dim, dim], e.g. "float32[B, 3, 224, 224]"'
        )
    dims = [dim.strip() for dim in match["dims"].split(",")] if match["dims"].strip() else []
    values = _parse_values(match["sign"], match["value"], text) if match["sign"] else None
    return TensorSpec(tuple(_parse_dim(dim, text) for dim in dims), match["dtype"] or "float32", values)


def _parse_values(sign: str, value: str, text: str) -> Fill | Below:
    if sign == "<":
        if not _WHOLE_NUMBER.fullmatch(value) or int(value) <= 0:
            raise ModelBudgetError(f'{text!r}: {value!r} is no bound: write a whole number above 0, e.g. "< 32000"')
        return Below(int(value))
    if value.lower() in _BOOLEANS:
        return Fill(_BOOLEANS[value.lower()])
    if value.isidentifier():
        return Fill(value)
    try:
        return Fill(int(value) if _WHOLE_NUMBER.fullmatch(value) else float(value))
    except ValueError:
        raise ModelBudgetError(
            f"{text!r}: {value!r} is no value: write a number, true, false or the name of a dimension, "
            'e.g. "int64[B] = T"'
        ) from None


def _parse_dim(dim: str, text: str) -> Dim:
    if dim == "?":
        return None
    if re.fullmatch(r"[0-9]+", dim):
        if len(dim) > _DIGITS:
            raise ModelBudgetError(
                f"{text[:_MOST_SHOWN]!r}: a size has at most {_DIGITS} digits, this one {len(dim):,}"
            )
        return int(dim)
    if re.fullmatch(r"[A-Za-z0-9_(][A-Za-z0-9_+*/() -]*", dim) and re.search(r"[A-Za-z]", dim):
        return dim
    raise ModelBudgetError(f"{text!r}: {dim!r} is neither a size nor the name of a symbolic dimension")


@dataclass(frozen=True, slots=True)
class Weight:
    """One parameter or buffer as it is stored.

    `name` is local to its layer. `tied_to` is the full name (`path.name`) of the weight that owns the same
    memory; such a weight counts nowhere else. `packed_bytes` is what a packed (quantised) weight really
    stores, when shape times dtype does not say it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    trainable: bool = True
    role: Literal["param", "buffer"] = "param"
    tied_to: str | None = None
    packed_bytes: int | None = None

    @property
    def elements(self) -> int:
        """Number of elements, 1 for a scalar."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes as stored.

        Raises:
            ModelBudgetError: the size of an element of this dtype is not known.
        """
        if self.packed_bytes is not None:
            return self.packed_bytes
        if self.dtype not in ITEM_BYTES:
            raise ModelBudgetError(f"weight {self.name!r}: the size of dtype {self.dtype!r} is not known")
        return -int(-self.elements * ITEM_BYTES[self.dtype] // 1)


def weight_text(weight: Weight) -> str:
    """One weight as text: `kernel 3x3x3x32`, with what is not the rule after it: `mean 64 buffer`, `= wte.weight`."""
    parts = [quote(weight.name, safe=_READABLE_CHARACTERS), "x".join(map(str, weight.shape)) or "scalar"]
    if weight.dtype != "float32":
        parts.append(weight.dtype)
    if weight.packed_bytes is not None:
        parts.append(f"{weight.packed_bytes}B")
    if weight.role == "buffer":
        parts.append("buffer")
    elif not weight.trainable:
        parts.append("frozen")
    if weight.tied_to is not None:
        parts.append(f"= {quote(weight.tied_to, safe=_READABLE_CHARACTERS)}")
    return " ".join(parts)


def parse_weight(text: str) -> Weight:
    """Read back what `weight_text` gave.

    Raises:
        ModelBudgetError: the text is not of that form.
    """
    if not (match := _WEIGHT.fullmatch(text)):
        raise ModelBudgetError(f"{text[:_MOST_SHOWN]!r} is not a weight: expected e.g. 'kernel 3x3x3x32'")
    shape = () if match["shape"] == "scalar" else tuple(map(int, match["shape"].split("x")))
    return Weight(
        name=unquote(match["name"]),
        shape=shape,
        dtype=match["dtype"] or "float32",
        trainable=match["role"] is None,
        role="buffer" if match["role"] == "buffer" else "param",
        tied_to=unquote(match["owner"]) if match["owner"] else None,
        packed_bytes=int(match["packed"]) if match["packed"] else None,
    )
