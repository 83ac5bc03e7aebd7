"""Small models of plain rows, and edits of them, for comparisons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from pytest_modelbudget import Change
from pytest_modelbudget.summary import Input, Layer, Summary, Weight
from tests.builders import spec


def edited(summary: Summary, path: str, **fields: object) -> Summary:
    """The summary with one row changed."""
    layers = tuple(replace(layer, **fields) if layer.path == path else layer for layer in summary.layers)  # type: ignore[arg-type]
    return replace(summary, layers=layers)


def mapped(summary: Summary, name: Callable[[str], str]) -> Summary:
    """The summary with all rows renamed, wherever they are named."""
    paths = {layer.path for layer in summary.layers}

    def tie(reference: str | None) -> str | None:
        return reference and f"{name(reference.rpartition('.')[0])}.{reference.rpartition('.')[2]}"

    layers = tuple(
        replace(
            layer,
            path=name(layer.path),
            connected_to=tuple(
                tuple(name(one) if one in paths else one for one in call) for call in layer.connected_to
            ),
            weights=tuple(replace(weight, tied_to=tie(weight.tied_to)) for weight in layer.weights),
        )
        for layer in summary.layers
    )
    return replace(summary, layers=layers)


def net(*layers: Layer, framework: str = "torch") -> Summary:
    """A model of these rows."""
    inputs = (Input("x", spec("B", 8)),)
    return Summary("net", framework, layers, inputs, layers[-1].outputs[0] if layers[-1].outputs else ())


def linear(path: str, ins: int, outs: int, source: str = "x") -> Layer:
    """A torch layer with ins * outs weights and no bias."""
    return Layer(path, "Linear", ((spec("B", outs),),), ((source,),), (Weight("weight", (outs, ins)),))


def relu(path: str, width: int, source: str) -> Layer:
    """An activation."""
    return Layer(path, "ReLU", ((spec("B", width),),), ((source,),))


def chain(*widths: int, name: Callable[[int], str] = str) -> Summary:
    """Linear layers one after the other."""
    sources = ["x", *(name(index) for index in range(len(widths)))]
    pairs = pairwise(widths)
    return net(*(linear(name(index), ins, outs, sources[index]) for index, (ins, outs) in enumerate(pairs)))


def repeated(calls: int, rest: tuple[int, ...], framework: str = "torch") -> Summary:
    """A layer that is called as often as its weight is long."""
    return net(
        Layer("loop", "Loop", ((spec("B", 8),),), (("x",),), (Weight("w", (calls, *rest)),), calls), framework=framework
    )


def rows(changes: tuple[Change, ...]) -> list[Change]:
    """Without totals and ports."""
    return [change for change in changes if not change.of_the_model]


MLP = net(linear("stem", 8, 16), relu("act", 16, "stem"), linear("head", 16, 4, "act"))


BLOCK = net(
    linear("stem", 8, 8),
    Layer("body", "Block", ((spec("B", 8),),), container=True),
    linear("body.a", 8, 8, "stem"),
    linear("body.b", 8, 32, "body.a"),
    linear("head", 32, 4, "body.b"),
)


BUFFERED = net(
    Layer("mask", "Mask", ((spec("B", 8),),), (("x",),), (Weight("mask", (64,), role="buffer", trainable=False),))
)


FROZEN = (Weight("kernel", (20, 50), trainable=False), Weight("bias", (50,), trainable=False))
