"""Why a layer has the params it has: by the formula of its type, or from its weights.

A formula is given only when its value is the real count, so an unusual layer (low-rank additions, weight norm,
tied parts) is explained by its weights. The words are the same for every framework:

- Dense, Linear: `in*out + out: 100*50 + 50 = 5,050`
- convolutions: `k*k*in/groups*out + out: 3*3*3*32 + 32 = 896`
- LSTM, GRU, simple RNN: `4*units*(inputs + units + 1): 4*64*(1 + 64 + 1) = 16,896`, with 4, 3 or 1 gates and as many
  biases as there are (torch has two), summed over layers and directions
- convolutional LSTM: `4*filters*(k*k*in + k*k*filters + 1)`
- embeddings: `vocabulary*width`; normalisation: `(scale + shift)*channels`
- multi-head attention: `3*(width*heads*size + heads*size) + heads*size*width + width`, with `groups` for fewer heads of
  keys and values; parts of different sizes one by one
- a layer over time: its inner layer; layers that a loop runs, with their weights stacked: `layers*(in*out + out)`
- any other: `kernel 3x3x3x32 + bias 32 = 896`

Quantised weights count as what they stand for, and are named with the bytes they take: `kernel int4: 64 bytes`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod

from pytest_modelbudget.summary.model import Layer
from pytest_modelbudget.summary.tensors import Weight

LOOK_UP = "(Reversible)?Embedding|EmbeddingBag|Embed"
"""The types of look-up tables."""

_MOST_WEIGHTS = 6
"""Weights that are named; of more, the first ones and how many others there are."""

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""The weights that count in a layer: name and shape."""


@dataclass(frozen=True, slots=True)
class Formula:
    """`words` with names, `numbers` with the sizes in their places, and what they come to."""

    words: str
    numbers: str
    value: int


def why(layer: Layer) -> str:
    """Where the params of `layer` come from; empty when it has no weights.

    >>> why(Layer("dense", "Dense", weights=(Weight("kernel", (100, 50)), Weight("bias", (50,)))))
    'in*out + out: 100*50 + 50 = 5,050'
    """
    params = [weight for weight in layer.weights if weight.role == "param"]
    own_weights = [weight for weight in params if weight.tied_to is None]
    tied = "; ".join(
        f"{_weight_text(weight)} is {weight.tied_to}, counted there" for weight in params if weight.tied_to
    )
    type_formula = formula(layer)
    if type_formula is not None:
        count_text = f"{type_formula.words}: {type_formula.numbers} = {type_formula.value:,}"
    else:
        count_text = _from_weights(own_weights, layer.params)
    stored = "; ".join(
        f"{weight.name} {weight.dtype}: {weight.bytes:,} bytes" for weight in own_weights if _quantized(weight)
    )
    return "; ".join(filter(None, (count_text, stored, tied)))


def _quantized(weight: Weight) -> bool:
    return weight.packed_bytes is not None or weight.dtype.startswith(("int4", "uint4", "int8", "uint8", "float8"))


def formula(layer: Layer) -> Formula | None:
    """The formula of its type with its sizes; None when there is none or it does not give the real count."""
    shapes = {weight.name: weight.shape for weight in layer.own if weight.role == "param"}
    rule = next((rule for pattern, rule in _RULES if re.fullmatch(pattern, layer.type)), None)
    if rule is None or not shapes:
        return None
    candidate = _stacked(rule, shapes, layer.calls) or rule(shapes)
    return candidate if candidate is not None and candidate.value == layer.params else None


def _stacked(rule: Callable[[Shapes], Formula | None], shapes: Shapes, layers: int | None) -> Formula | None:
    """The formula of as many layers as a loop runs, whose weights are stacked; None when they are not."""
    if layers is None or layers < 2 or any(shape[:1] != (layers,) or len(shape) < 2 for shape in shapes.values()):
        return None
    each = rule({name: shape[1:] for name, shape in shapes.items()})
    return each and Formula(f"layers*({each.words})", f"{layers}*({each.numbers})", layers * each.value)


def is_familiar(kind: str) -> bool:
    """Whether there is a formula for layers of this type."""
    return any(re.fullmatch(pattern, kind) for pattern, _ in _RULES)


def _from_weights(weights: list[Weight], params: int) -> str:
    if not weights:
        return ""
    terms = " + ".join(map(_weight_text, weights[:_MOST_WEIGHTS]))
    more = len(weights) - _MOST_WEIGHTS
    return f"{terms}{f' + {more} more weights' if more > 0 else ''} = {params:,}"


def _weight_text(weight: Weight) -> str:
    return f"{weight.name} {'x'.join(map(str, weight.shape)) or 'scalar'}"


def _product_text(*sizes: int) -> str:
    return "*".join(map(str, sizes))


def _sum_of_products(words: list[str], terms: list[Shape]) -> Formula:
    """A sum of products: `in*out + out` with the sizes of each term."""
    return Formula(" + ".join(words), " + ".join(_product_text(*term) for term in terms), sum(map(prod, terms)))


def _pick(shapes: Shapes, *names: str) -> tuple[Shape | None, ...] | None:
    """The shapes of the weights of these names, None for one that is not there; None when there are others."""
    return tuple(shapes.get(name) for name in names) if set(shapes) <= set(names) else None


def _dense(shapes: Shapes) -> Formula | None:
    """Keras `kernel (in, out)`, torch `weight (out, in)`."""
    match _pick(shapes, "kernel", "weight", "bias"):
        case ((int(ins), int(outs)), None, bias) | (None, (int(outs), int(ins)), bias):
            return _biased("in*out", (ins, outs), "out", bias)
    return None


def _biased(words: str, product: Shape, outs: str, bias: Shape | None) -> Formula:
    return (
        _sum_of_products([words], [product])
        if bias is None
        else _sum_of_products([words, outs], [product, (prod(bias),)])
    )


def _bilinear(shapes: Shapes) -> Formula | None:
    match _pick(shapes, "weight", "bias"):
        case ((int(outs), int(first), int(second)), bias):
            return _biased("in1*in2*out", (first, second, outs), "out", bias)
    return None


def _conv(shapes: Shapes) -> Formula | None:
    """Keras `kernel (k..., in/groups, out)`, torch `weight (out, in/groups, k...)`."""
    match _pick(shapes, "kernel", "weight", "bias"):
        case ((*window, int(ins), int(outs)), None, bias) | (None, (int(outs), int(ins), *window), bias):
            return _biased(f"{'k*' * len(window)}in/groups*out", (*window, ins, outs), "out", bias)
    return None


def _transposed(shapes: Shapes) -> Formula | None:
    """Keras `kernel (k..., out/groups, in)`, torch `weight (in, out/groups, k...)`."""
    match _pick(shapes, "kernel", "weight", "bias"):
        case ((*window, int(outs), int(ins)), None, bias) | (None, (int(ins), int(outs), *window), bias):
            return _biased(f"{'k*' * len(window)}in*out/groups", (*window, ins, outs), "out", bias)
    return None


def _depthwise(shapes: Shapes) -> Formula | None:
    match _pick(shapes, "kernel", "bias"):
        case ((*window, int(ins), int(multiplier)), bias):
            words = f"{'k*' * len(window)}in*multiplier"
            return _biased(words, (*window, ins, multiplier), "in*multiplier", bias)
    return None


def _separable(shapes: Shapes) -> Formula | None:
    match _pick(shapes, "depthwise_kernel", "pointwise_kernel", "bias"):
        case ((*window, int(ins), int(multiplier)), (*_, int(between), int(outs)), bias):
            words = [f"{'k*' * len(window)}in*multiplier", "in*multiplier*out"]
            terms = [(*window, ins, multiplier), (ins, multiplier, outs)]
            if between != ins * multiplier:
                return None
            return (
                _sum_of_products(words, terms) if bias is None else _sum_of_products([*words, "out"], [*terms, (outs,)])
            )
    return None


def _embedding(shapes: Shapes) -> Formula | None:
    match list(shapes.items()):
        case [("embeddings" | "embedding" | "weight", (int(words), int(width)))]:
            return _sum_of_products(["vocabulary*width"], [(words, width)])
    return None


_VECTORS = {
    "gamma": "scale", "scale": "scale", "weight": "scale",
    "beta": "shift", "bias": "shift",
    "moving_mean": "mean", "moving_variance": "variance",
}  # fmt: skip


def _norm(size: str) -> Callable[[Shapes], Formula | None]:
    """Some vectors of one size each; `size` is what that is called."""

    def rule(shapes: Shapes) -> Formula | None:
        sizes = set(map(prod, shapes.values()))
        if len(sizes) != 1 or not set(shapes) <= set(_VECTORS) or len(shapes) == 1:
            return None
        words = f"({' + '.join(_VECTORS[name] for name in shapes)})*{size}"
        (length,) = sizes
        return Formula(words, _product_text(len(shapes), length), len(shapes) * length)

    return rule


def _attention(shapes: Shapes) -> Formula | None:
    """Torch holds query, key and value in one matrix and its output layer in another row; Keras all four."""
    match _pick(shapes, "in_proj_weight", "in_proj_bias"):
        case ((int(rows), int(width)), bias) if rows == 3 * width:
            words, numbers = ("3*(width*width{})", f"3*({width}*{width}{{}})")
            if bias is None:
                return Formula(words.format(""), numbers.format(""), rows * width)
            return Formula(words.format(" + width"), numbers.format(f" + {width}"), rows * width + rows)
    return _keras_attention(shapes)


_INNER = ("query", "key", "value")


def _keras_attention(shapes: Shapes) -> Formula | None:
    """Query, key and value `(width, heads, size)` and the way back `(heads, size, width)`, equal parts together."""
    names = [f"{part}/{weight}" for part in (*_INNER, "attention_output") for weight in ("kernel", "bias")]
    kernels = [shapes.get(f"{part}/kernel", ()) for part in _INNER]
    biases = [shapes.get(f"{part}/bias", ()) for part in _INNER]
    output_kernel, output_bias = shapes.get("attention_output/kernel", ()), shapes.get("attention_output/bias")
    if not set(shapes) <= set(names) or {len(kernel) for kernel in (*kernels, output_kernel)} != {3}:
        return None
    heads = kernels[0][1]
    parts = [
        (f"width*{'heads' if kernel[1] == heads else 'groups'}*size", kernel, bias)
        for kernel, bias in zip(kernels, biases, strict=True)
    ]
    pairs = [_repeated(part, len(list(group))) for part, group in groupby(parts)]
    words, numbers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    words.append("heads*size*width")
    numbers.append(_product_text(*output_kernel))
    if output_bias is not None:
        words.append("width")
        numbers.append(_product_text(*output_bias))
    return Formula(" + ".join(words), " + ".join(numbers), sum(map(prod, shapes.values())))


def _repeated(part: tuple[str, Shape, Shape], times: int) -> tuple[str, str]:
    """`3*(width*heads*size + heads*size)` with its numbers; an empty bias is none."""
    words, kernel, bias = part
    product, numbers = words, _product_text(*kernel)
    if bias:
        product, numbers = f"{words} + {words.partition('*')[2]}", f"{numbers} + {_product_text(*bias)}"
    if times == 1:
        return product, numbers
    return (f"{times}*({product})", f"{times}*({numbers})") if bias else (f"{times}*{product}", f"{times}*{numbers}")


@dataclass(frozen=True, slots=True)
class _Recurrence:
    """One layer of one direction."""

    gates: int
    units: int
    inputs: int
    biases: int

    @property
    def value(self) -> int:
        return self.gates * self.units * (self.inputs + self.units + self.biases)

    @property
    def words(self) -> str:
        return self._text("units", "inputs", "units")

    @property
    def numbers(self) -> str:
        return self._text(str(self.units), str(self.inputs), str(self.units))

    def _text(self, units: str, inputs: str, recurrent: str) -> str:
        factor = f"{self.gates}*{units}" if self.gates > 1 else units
        bias_text = f" + {self.biases}" if self.biases else ""
        return f"{factor}*({inputs} + {recurrent}{bias_text})"


def _recurrent(shapes: Shapes) -> Formula | None:
    """The sum over layers and directions, equal ones with their number."""
    recurrences = list(_recurrences(shapes))
    if not recurrences or None in recurrences:
        return None
    complete = [recurrence for recurrence in recurrences if recurrence is not None]
    words = {recurrence.words for recurrence in complete}
    if len(words) > 1:
        return None
    title = words.pop() if len(complete) == 1 else f"{words.pop()} for each layer and direction"
    terms = [(recurrence.numbers, len(list(group))) for recurrence, group in groupby(complete)]
    numbers = " + ".join(text if times == 1 else f"{times} * {text}" for text, times in terms)
    return Formula(title, numbers, sum(recurrence.value for recurrence in complete))


def _recurrences(shapes: Shapes) -> Iterator[_Recurrence | None]:
    groups: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        if (match := _TORCH_PART.fullmatch(name)) is not None:
            groups.setdefault(match["layer"], {})[match["part"]] = shape
        else:
            head, _, part = name.rpartition("/")
            groups.setdefault(head, {})[part] = shape
    return map(_recurrence, groups.values())


_TORCH_PART = re.compile(r"(?P<part>(?:weight|bias)_(?:ih|hh|hr))(?P<layer>(?:_l[0-9]+(?:_reverse)?)?)")


def _recurrence(parts: Shapes) -> _Recurrence | None:
    match parts.get("kernel"), parts.get("recurrent_kernel"), parts.get("weight_ih"), parts.get("weight_hh"):
        case ((int(inputs), int(wide)), (int(units), int(other)), None, None):
            pass
        case (None, None, (int(wide), int(inputs)), (int(other), int(units))):
            pass
        case _:
            return None
    gates, rest = divmod(wide, units or 1)
    biases = sum(prod(shape) for name, shape in parts.items() if name.startswith("bias"))
    if rest or gates not in (1, 3, 4) or wide != other or biases % wide:
        return None
    return _Recurrence(gates, units, inputs, biases // wide)


def _convolutional(shapes: Shapes) -> Formula | None:
    """Keras' ConvLSTM: `kernel (k..., in, 4*filters)`, `recurrent_kernel (k..., filters, 4*filters)`."""
    match _pick(shapes, "kernel", "recurrent_kernel", "bias"):
        case ((*window, int(ins), int(wide)), (*again, int(filters), int(other)), bias) if wide == other == 4 * filters:
            k = "k*" * len(window)
            last = ("", "") if bias is None else (" + 1", " + 1")
            return Formula(
                f"4*filters*({k}in + {k}filters{last[0]})",
                f"4*{filters}*({_product_text(*window, ins)} + {_product_text(*again, filters)}{last[1]})",
                sum(map(prod, shapes.values())),
            )
    return None


def _wrapped(shapes: Shapes) -> Formula | None:
    """The layer inside a wrapper, where its weights say what it is."""
    return _dense(shapes) or _recurrent(shapes)


_RULES: tuple[tuple[str, Callable[[Shapes], Formula | None]], ...] = (
    ("Dense|Linear|NonDynamicallyQuantizableLinear", _dense),
    ("Bilinear", _bilinear),
    ("Conv([123][dD])?", _conv),
    ("Conv[123]DTranspose|ConvTranspose([123]d)?", _transposed),
    ("DepthwiseConv[12]D", _depthwise),
    ("SeparableConv[12]D", _separable),
    (LOOK_UP, _embedding),
    ("LayerNorm|LayerNormalization|RMSNorm|RMSNormalization", _norm("width")),
    (
        "BatchNorm([123]d)?|SyncBatchNorm|BatchNormalization|GroupNorm|GroupNormalization|InstanceNorm[123]d",
        _norm("channels"),
    ),
    ("MultiheadAttention|MultiHeadAttention|GroupedQueryAttention", _attention),
    ("ConvLSTM[123]D", _convolutional),
    ("TimeDistributed", _wrapped),
    ("(LSTM|GRU|SimpleRNN|RNN)(Cell)?|Bidirectional", _recurrent),
)
