"""The graph of a functional model's config: that Keras comes to an end with it.

Keras goes over the layers of a config again and again until each call has its inputs. Some releases never stop where
one waits for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pytest_modelbudget.backends.keras_content.content import shorten

_MAX_ATTEMPTS = 100_000
"""Calls that are put off, of all rounds together: a real model has its layers in order, and few of them."""

_Call = list[tuple[str, int]]


def problem(config: Any, models: tuple[str, ...]) -> str | None:
    """What is wrong with the graphs of a config, at any depth; None when nothing.

    `models` are the classes of this Keras whose models have an output before they are called.
    """
    pending = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if (reason := _layers_problem(value.get("layers"), models)) is not None:
                return reason
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
    return None


def _layers_problem(layers: Any, models: tuple[str, ...]) -> str | None:
    layer_configs = [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
    if not any(layer.get("inbound_nodes") for layer in layer_configs):
        return None
    named = {layer["name"]: layer for layer in layer_configs if isinstance(layer.get("name"), str)}
    if len(named) < len(layers):
        return "is damaged: layers of its graph have no name, or the same"
    calls = {name: [list(_inputs(node, named)) for node in _inbound_nodes(layer)] for name, layer in named.items()}
    if name := next((name for name, nodes in calls.items() if not all(nodes)), None):
        return f"is damaged: layer {shorten(name)!r} is called on nothing that the model computes"
    return _order_problem(calls, {name: int(_has_output(layer, models)) for name, layer in named.items()})


def _inbound_nodes(layer: dict[str, Any]) -> list[Any]:
    nodes = layer.get("inbound_nodes")
    return nodes if isinstance(nodes, list) else []


def _has_output(layer: dict[str, Any], models: tuple[str, ...]) -> bool:
    """Whether a layer may have an output before it is called; a model of a class of the user's may."""
    name, inner = layer.get("class_name"), layer.get("config")
    has_layers = isinstance(inner, dict) and "layers" in inner and name != "Sequential"
    return name == "InputLayer" or name in models or has_layers


def _inputs(node: Any, named: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The outputs a call takes, as name and number of a call."""
    pending = [node]
    while pending:
        value = pending.pop()
        inner = value.get("config") if isinstance(value, dict) else None
        history = inner.get("keras_history") if isinstance(inner, dict) else value
        if (
            isinstance(history, list)
            and len(history) >= 3
            and isinstance(history[0], str)
            and isinstance(history[1], int)
        ):
            if history[0] in named:
                yield history[0], history[1]
            history = history[3:]
        pending.extend(history if isinstance(history, list) else value.values() if isinstance(value, dict) else ())


def _order_problem(calls: dict[str, list[_Call]], outputs: dict[str, int]) -> str | None:
    """Go over the calls as Keras does; `outputs` says how many calls of each layer are there."""
    done = dict.fromkeys(calls, 0)
    waiting_layers = [name for name, nodes in calls.items() if nodes]
    attempts = 0
    while waiting_layers:
        done_before = sum(done.values())
        for name in waiting_layers:
            nodes = calls[name]
            while done[name] < len(nodes) and all(number < outputs[source] for source, number in nodes[done[name]]):
                done[name] += 1
                outputs[name] += 1
        waiting_layers = [name for name in waiting_layers if done[name] < len(calls[name])]
        attempts += len(waiting_layers)
        if waiting_layers and sum(done.values()) == done_before:
            return f"is damaged: in its graph, layer {shorten(waiting_layers[0])!r} waits for itself, or for no layer"
        if attempts > _MAX_ATTEMPTS:
            return "is damaged: the layers of its graph are not in the order of their calls"
    return None
