"""What was counted, as frozen plain data: `TensorSpec`, `Weight`, `Layer`, `Flops`, `Summary`.

No live module or tensor is ever held here, so a summary can be pickled, sent between processes and kept.
`None` means unknown, never zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import prod
from typing import Any, Literal
from urllib.parse import quote, unquote

from pytest_modelbudget.errors import ModelBudgetError

FLOP_RULES = 1
"""Version of the rules by which FLOPs are counted; raised when a release counts the same model differently."""

ITEM_BYTES: dict[str, int | Fraction] = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8,
    "int4": Fraction(1, 2), "uint4": Fraction(1, 2), "qint8": 1, "quint8": 1, "qint32": 4,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16, "complex32": 4,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip

Dim = int | str | None
"""A dimension: its size, the name or formula of a symbolic one (`B`, `2*B`), or None when any size fits."""

_SAFE = "/._-:[]()@"
"""What stays readable in the name of a weight; everything else is percent-encoded, so that a line can be read back."""

_WEIGHT = re.compile(
    r"(?P<name>\S+) (?P<shape>scalar|[0-9]+(?:x[0-9]+)*)(?: (?P<dtype>(?!buffer\b|frozen\b)[a-z]\w*))?"
    r"(?: (?P<packed>[0-9]+)B)?(?: (?P<role>buffer|frozen))?(?: = (?P<owner>\S+))?"
)

_SPEC = re.compile(r"\s*(?P<dtype>[A-Za-z][A-Za-z0-9_]*)?\s*\[(?P<dims>[^\[\]]*)\]\s*")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of a tensor; `str()` gives `float32[B, 28, 28, 3]`."""

    shape: tuple[Dim, ...]
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.dtype}{self.dims}"

    @property
    def dims(self) -> str:
        """The shape alone: `[B, 28, 28, 3]`, `?` for a dimension of any size."""
        return f"[{', '.join('?' if dim is None else str(dim) for dim in self.shape)}]"

    @property
    def brief(self) -> str:
        """The shape, with the dtype only when it is not float32."""
        return self.dims if self.dtype == "float32" else str(self)

    @classmethod
    def parse(cls, text: str) -> TensorSpec:
        """Read `dtype[dim, dim]` or `[dim, dim]` (float32) back.

        Raises:
            ModelBudgetError: the text is not of that form.
        """
        match = _SPEC.fullmatch(text)
        if not match:
            raise ModelBudgetError(f'{text!r} is not a tensor: write dtype[dim, dim], e.g. "float32[B, 3, 224, 224]"')
        dims = [dim.strip() for dim in match["dims"].split(",")] if match["dims"].strip() else []
        return cls(tuple(_dim(dim, text) for dim in dims), match["dtype"] or "float32")


def _dim(dim: str, text: str) -> Dim:
    if dim == "?":
        return None
    if re.fullmatch(r"[0-9]+", dim):
        return int(dim)
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_+*/() -]*", dim) and re.search(r"[A-Za-z]", dim):
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


@dataclass(frozen=True, slots=True)
class Layer:
    """One row: a module of the model with the weights it holds itself, or a join of tensors in a module's own code.

    `path` is unique in a model; `container` rows hold other rows (those whose path begins with theirs) and
    come before them. `outputs` are the output tensors of each call, `inputs` those it was given, and `connected_to`
    the paths that fed it, all with equal calls listed once, in the order first seen; `calls` counts all calls, 0
    means never called (None: not known). `flops` are of all calls, its own work without that of the rows below it.
    `activation_bytes` is memory held for the backward pass, at the innermost module whose call saved it first (what
    a join saved is at the module it stands in).

    A join (`block.add` of type `add`, as a residual sum) is a leaf as Keras' Add and Concatenate are: it has no
    weights, and counts as a layer. `inputs` take no part in snapshots and comparisons.
    """

    path: str
    type: str
    outputs: tuple[tuple[TensorSpec, ...], ...] = ()
    connected_to: tuple[tuple[str, ...], ...] = ()
    weights: tuple[Weight, ...] = ()
    calls: int | None = 1
    flops: int | None = None
    container: bool = False
    inputs: tuple[tuple[TensorSpec, ...], ...] = ()
    activation_bytes: int | None = None

    @property
    def own(self) -> tuple[Weight, ...]:
        """The weights that count here: all that are not tied to an earlier one."""
        return tuple(weight for weight in self.weights if weight.tied_to is None)

    @property
    def params(self) -> int:
        """Elements of its own parameters, tied ones counted at their owner."""
        return _elements(self.own, "param")

    @property
    def trainable_params(self) -> int:
        """Elements of its own parameters that are trained."""
        return _elements(tuple(weight for weight in self.own if weight.trainable), "param")

    @property
    def non_trainable_params(self) -> int:
        """Elements of its own parameters that are frozen (and Keras' moving averages)."""
        return self.params - self.trainable_params

    @property
    def buffers(self) -> int:
        """Elements of its own buffers."""
        return _elements(self.own, "buffer")

    @property
    def weight_bytes(self) -> int:
        """Bytes of its own parameters and buffers."""
        return sum(weight.bytes for weight in self.own)

    @property
    def output_text(self) -> str:
        """All outputs: tensors of one call joined by `, `, different calls by `; `."""
        return "; ".join(", ".join(spec.brief for spec in call) for call in self.outputs)

    @property
    def weights_text(self) -> str:
        """Where the params come from: `kernel 3x3x3x32 + bias 32`."""
        return " + ".join(weight_text(weight) for weight in self.weights)


def _elements(weights: tuple[Weight, ...], role: str) -> int:
    return sum(weight.elements for weight in weights if weight.role == role)


def weight_text(weight: Weight) -> str:
    """One weight as text: `kernel 3x3x3x32`, with what is not the rule after it: `mean 64 buffer`, `= wte.weight`."""
    words = [quote(weight.name, safe=_SAFE), "x".join(map(str, weight.shape)) or "scalar"]
    if weight.dtype != "float32":
        words.append(weight.dtype)
    if weight.packed_bytes is not None:
        words.append(f"{weight.packed_bytes}B")
    if weight.role == "buffer":
        words.append("buffer")
    elif not weight.trainable:
        words.append("frozen")
    if weight.tied_to is not None:
        words.append(f"= {quote(weight.tied_to, safe=_SAFE)}")
    return " ".join(words)


def parse_weight(text: str) -> Weight:
    """Read back what `weight_text` gave.

    Raises:
        ModelBudgetError: the text is not of that form.
    """
    if not (match := _WEIGHT.fullmatch(text)):
        raise ModelBudgetError(f"{text!r} is not a weight: expected e.g. 'kernel 3x3x3x32'")
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


@dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs of one forward pass at the declared inputs; a multiply-add counts 2.

    Counted: matrix products, convolutions, attention (the full square), recurrent products times their
    steps, FFTs. Zero by rule: elementwise work, normalisation, softmax, pooling, look-ups, views, copies.
    `value` is None when nothing is known. `uncounted` names operators without a formula, with their number
    of calls: then `value` is a lower bound.
    """

    value: int | None = None
    uncounted: tuple[tuple[str, int], ...] = ()
    rules: int = FLOP_RULES

    @property
    def is_lower_bound(self) -> bool:
        """Whether an operator without a formula was met, so that the true number is at least `value`."""
        return self.value is not None and bool(self.uncounted)


@dataclass(frozen=True, slots=True)
class Input:
    """One declared input: its name (or position) and its tensor."""

    name: str
    spec: TensorSpec

    def __str__(self) -> str:
        return f"{self.name} {self.spec}"


@dataclass(frozen=True, slots=True)
class Summary:
    """A model as it was counted: its rows, and totals derived from them.

    `sizes` are the sizes its symbolic dimensions had while FLOPs were counted. `activation_bytes` are those that
    one forward pass in training mode holds for the backward pass at these sizes, without parameters, buffers and
    inputs; they depend on the kernels of the framework, so they take no part in comparisons, and they may be more than
    those of all rows, since the model's own code around its layers may have no row. `notes` are short sentences
    for the reader (what could not be known, which route was taken); they take no part in comparisons.
    """

    model: str
    framework: str
    layers: tuple[Layer, ...]
    inputs: tuple[Input, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    flops: Flops = field(default_factory=Flops)
    samples: int | None = None
    sizes: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()
    activation_bytes: int | None = None

    def __post_init__(self) -> None:
        if len({layer.path for layer in self.layers}) != len(self.layers):
            raise ModelBudgetError(f"{self.model}: two layers have the same path")

    @property
    def params(self) -> int:
        """Elements of all parameters, each shared one once."""
        return sum(layer.params for layer in self.layers)

    @property
    def trainable_params(self) -> int:
        """Elements of the parameters that are trained."""
        return sum(layer.trainable_params for layer in self.layers)

    @property
    def non_trainable_params(self) -> int:
        """Elements of the frozen parameters (and Keras' moving averages)."""
        return self.params - self.trainable_params

    @property
    def buffers(self) -> int:
        """Elements of torch buffers, persistent or not."""
        return sum(layer.buffers for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of parameters and buffers in their own dtypes."""
        return sum(layer.weight_bytes for layer in self.layers)

    @property
    def leaves(self) -> tuple[Layer, ...]:
        """The rows that hold no other rows."""
        return tuple(layer for layer in self.layers if not layer.container)

    @property
    def largest_layer(self) -> Layer | None:
        """The row with most params of its own, the first of equals; None when there are none."""
        return max(self.layers, key=lambda layer: layer.params, default=None) if self.params else None

    @property
    def largest_layer_share(self) -> Fraction | None:
        """Share of the params that sit in the largest layer; None for a model without params."""
        return Fraction(largest.params, self.params) if (largest := self.largest_layer) else None

    @property
    def params_per_sample(self) -> Fraction | None:
        """Params for each sample of the training set; None when `samples` was not given."""
        return Fraction(self.params, self.samples) if self.samples else None

    def below(self, path: str) -> Iterator[Layer]:
        """The row at `path` and, for a container, all rows inside it."""
        for layer in self.layers:
            if layer.path == path or layer.path.startswith((f"{path}.", f"{path}/")):
                yield layer

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: totals first, then every row; `from_dict` reads it back."""
        return {
            "model": self.model,
            "framework": self.framework,
            "inputs": [{"name": port.name, "spec": str(port.spec)} for port in self.inputs],
            "outputs": [str(spec) for spec in self.outputs],
            "sizes": dict(self.sizes),
            "params": self.params,
            "trainable_params": self.trainable_params,
            "non_trainable_params": self.non_trainable_params,
            "buffers": self.buffers,
            "weight_bytes": self.weight_bytes,
            "flops": {"rules": self.flops.rules, "value": self.flops.value, "uncounted": dict(self.flops.uncounted)},
            "activation_bytes": self.activation_bytes,
            "samples": self.samples,
            "notes": list(self.notes),
            "layers": [_layer_dict(layer) for layer in self.layers],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Summary:
        """Read back what `to_dict` gave."""
        flops = data["flops"]
        return cls(
            model=data["model"],
            framework=data["framework"],
            layers=tuple(_layer(row) for row in data["layers"]),
            inputs=tuple(Input(port["name"], TensorSpec.parse(port["spec"])) for port in data["inputs"]),
            outputs=tuple(map(TensorSpec.parse, data["outputs"])),
            flops=Flops(flops["value"], tuple(flops["uncounted"].items()), flops["rules"]),
            samples=data["samples"],
            sizes=tuple(data["sizes"].items()),
            notes=tuple(data["notes"]),
            activation_bytes=data.get("activation_bytes"),
        )

    def renamed(self, model: str) -> Summary:
        """The same summary under another model name."""
        return replace(self, model=model)

    def __str__(self) -> str:
        from pytest_modelbudget.reports import table  # a face for people; the data below knows nothing of it

        return table.summary_text(self)

    def _repr_html_(self) -> str:
        from pytest_modelbudget.reports import html

        return html.summary_fragment(self)


def _layer_dict(layer: Layer) -> dict[str, Any]:
    return {
        "path": layer.path,
        "type": layer.type,
        "container": layer.container,
        "calls": layer.calls,
        "inputs": [[str(spec) for spec in call] for call in layer.inputs],
        "outputs": [[str(spec) for spec in call] for call in layer.outputs],
        "connected_to": [list(call) for call in layer.connected_to],
        "params": layer.params,
        "trainable_params": layer.trainable_params,
        "flops": layer.flops,
        "activation_bytes": layer.activation_bytes,
        "weights": [
            {
                "name": weight.name,
                "shape": list(weight.shape),
                "dtype": weight.dtype,
                "trainable": weight.trainable,
                "role": weight.role,
                "tied_to": weight.tied_to,
                "packed_bytes": weight.packed_bytes,
            }
            for weight in layer.weights
        ],
    }


def _layer(row: Mapping[str, Any]) -> Layer:
    return Layer(
        path=row["path"],
        type=row["type"],
        outputs=tuple(tuple(map(TensorSpec.parse, call)) for call in row["outputs"]),
        inputs=tuple(tuple(map(TensorSpec.parse, call)) for call in row.get("inputs", ())),
        connected_to=tuple(map(tuple, row["connected_to"])),
        weights=tuple(Weight(**{**weight, "shape": tuple(weight["shape"])}) for weight in row["weights"]),
        calls=row["calls"],
        flops=row["flops"],
        container=row["container"],
        activation_bytes=row.get("activation_bytes"),
    )
