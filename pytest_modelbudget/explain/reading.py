"""What a summary says as it is: the questions people bring to a layer table, answered in short sentences.

Each sentence comes only where there is something to say: where one layer holds much, where something is frozen or
never called, where shapes collapse. All numbers are of the summary; what is unknown is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from math import prod

from pytest_modelbudget import units
from pytest_modelbudget.summary import Layer, Summary
from pytest_modelbudget.system.escape import printable

_BOTTLENECK_SHARE = Fraction(1, 4)
"""Share of a total from which on one layer is a bottleneck."""

_MOST_NAMES = 3
_LONGEST_NAME = 80
_NARROW_FACTOR = 4
"""How many times wider the layers before and after a bottleneck are."""

_USED_BY_PARENT = ("NonDynamicallyQuantizableLinear",)
"""Types that are never called by design: torch's attention takes their weights into its own product."""

_MOVING_AVERAGES = ("moving_mean", "moving_variance")


def reading(summary: Summary) -> tuple[str, ...]:
    """Return what is worth saying about a model, each a short sentence with its number; most often nothing or little.

    Shares are of all params, of all counted FLOPs, and of the bytes held for the backward pass by rows. Frozen
    params do not count Keras' moving averages, which no optimizer trains anyway.
    """
    rules = (_largest, _per_sample, _frozen, _never_called, _collapsed, _narrowest)
    return tuple(sentence for rule in rules for sentence in rule(summary))


def _largest(summary: Summary) -> Iterator[str]:
    yield from _dominant_share(summary, "params", lambda layer: layer.params, units.count)
    if not summary.flops.is_lower_bound:
        yield from _dominant_share(summary, "FLOPs", lambda layer: layer.flops, units.flops)
    yield from _dominant_share(
        summary, "memory held for the backward pass", lambda layer: layer.activation_bytes, units.size
    )


def _dominant_share(
    summary: Summary, title: str, get: Callable[[Layer], int | None], text_of: Callable[[int], str]
) -> Iterator[str]:
    """The row that holds a large part of a sum, unless a part of that is unknown."""
    values = [get(layer) for layer in summary.layers]
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values) or len(summary.leaves) < 2 or not sum(numbers):
        return
    most = max(numbers)
    if (share := Fraction(most, sum(numbers))) >= _BOTTLENECK_SHARE:
        layer = summary.layers[numbers.index(most)]
        yield f"{_name(layer)} has {units.percent(share)} of the {title}: {text_of(most)} of {text_of(sum(numbers))}"


def _per_sample(summary: Summary) -> Iterator[str]:
    if (ratio := summary.params_per_sample) is None or summary.samples is None:
        return
    ratio_text = units.rounded(ratio, ",.1f" if ratio >= 1 else ".3g")
    comparison = "more params than samples" if ratio > 1 else "fewer params than samples"
    yield f"{ratio_text} params for each of {summary.samples:,} samples: {comparison}"


def _frozen(summary: Summary) -> Iterator[str]:
    frozen = [(layer, count) for layer in summary.layers if (count := _frozen_elements(layer))]
    total = sum(count for _, count in frozen)
    if total:
        share = units.percent(Fraction(total, summary.params))
        yield f"{total:,} of {summary.params:,} params ({share}) are frozen, in {_rows(len(frozen))}: {_names(frozen)}"


def _frozen_elements(layer: Layer) -> int:
    return sum(
        weight.elements
        for weight in layer.own
        if weight.role == "param" and not weight.trainable and weight.name not in _MOVING_AVERAGES
    )


def _names(counted: Sequence[tuple[Layer, int]]) -> str:
    """The largest by name, in the order of the model."""
    largest = sorted(range(len(counted)), key=lambda index: (-counted[index][1], index))[:_MOST_NAMES]
    names = [_name(counted[index][0]) for index in sorted(largest)]
    more = len(counted) - len(names)
    return ", ".join([*names, *([f"{more} more"] if more else [])])


def _never_called(summary: Summary) -> Iterator[str]:
    idle = [(layer, layer.params) for layer in summary.leaves if layer.calls == 0 and layer.type not in _USED_BY_PARENT]
    if not idle:
        return
    params = sum(count for _, count in idle)
    amount = f"{params:,} params" if params else "no params"
    hint = " (the code around may use their weights)" if params else ""
    yield f"{_rows(len(idle))} with {amount} {'is' if len(idle) == 1 else 'are'} never called{hint}: {_names(idle)}"


def _rows(number: int) -> str:
    return f"{number:,} layer{'' if number == 1 else 's'}"


def _collapsed(summary: Summary) -> Iterator[str]:
    """Convolutions whose window is wider than the single position they are given."""
    rows = {layer.path: layer for layer in summary.layers}
    idle = []
    for layer in summary.leaves:
        window = _window_positions(layer, summary.framework)
        source = next((rows[name] for call in layer.connected_to for name in call if name in rows), None)
        if window > 1 and source is not None and _positions(source, summary.framework, len(_output_shape(layer))) == 1:
            idle.append((layer, layer.params))
    if idle:
        verb = "sees" if len(idle) == 1 else "see"
        yield (
            f"the spatial size is down to 1 before {_name(idle[0][0])}: {_rows(len(idle))} with a wider window "
            f"{verb} padding around one position"
        )


def _output_shape(layer: Layer) -> tuple[object, ...]:
    return layer.outputs[0][0].shape if layer.outputs and layer.outputs[0] else ()


def _window_positions(layer: Layer, framework: str) -> int:
    """Positions under the window of a convolution; 1 for any other layer."""
    if "conv" not in layer.type.lower() or "transpose" in layer.type.lower():
        return 1
    kernel = next((weight.shape for weight in layer.weights if len(weight.shape) >= 3), ())
    return prod(kernel[:-2] if framework == "keras" else kernel[2:])


def _positions(layer: Layer, framework: str, rank: int) -> int | None:
    """Positions of an output of this rank, channels left out; None when a size is not a number."""
    shape = _output_shape(layer)
    if len(shape) != rank or rank < 3:
        return None
    sizes = [size for size in (shape[1:-1] if framework == "keras" else shape[2:]) if isinstance(size, int)]
    return prod(sizes) if len(sizes) == rank - 2 else None


def _narrowest(summary: Summary) -> Iterator[str]:
    """A vector through which everything passes that is much shorter than those before and after it."""
    widths = [
        (layer, shape[1])
        for layer in summary.leaves
        if layer.weights and len(shape := _output_shape(layer)) == 2 and isinstance(shape[1], int)
    ]
    if not widths:
        return
    sizes = [*_input_length(summary), *(width for _, width in widths)]
    ahead = len(sizes) - len(widths)
    index = min(range(len(widths)), key=lambda index: widths[index][1])
    layer, width = widths[index]
    widest_before, widest_after = max(sizes[: ahead + index], default=0), max(sizes[ahead + index + 1 :], default=0)
    if min(widest_before, widest_after) >= _NARROW_FACTOR * width:
        yield f"the narrowest layer is {_name(layer)}: {width:,} values between {widest_before:,} and {widest_after:,}"


def _input_length(summary: Summary) -> list[int]:
    """The length of the input, when it is one vector."""
    shape = summary.inputs[0].spec.shape if len(summary.inputs) == 1 else ()
    return [size for size in shape[1:] if isinstance(size, int)] if len(shape) == 2 else []


def _name(layer: Layer) -> str:
    path = printable(layer.path)
    return path if len(path) <= _LONGEST_NAME else f"{path[: _LONGEST_NAME - 3]}..."
