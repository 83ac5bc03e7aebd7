"""What is to be said of a file beside its numbers: ports that are no tensors, and what exporters do to weights."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

from pytest_modelbudget.backends.exported.onnx.model import Graph, Model
from pytest_modelbudget.backends.exported.onnx.roles import signature_of

_MOST_NAMED = 3
_CHANGES = {
    "pytorch": "torch's exporter folds batch normalisation into convolutions, and merges equal tensors",
    "tf2onnx": "tf2onnx folds batch normalisation into convolutions and leaves out biases of zeros",
}


def notes_on(model: Model, graph: Graph, names: frozenset[str], known: Container[str]) -> tuple[str, ...]:
    """All that is to be said; `names` are those of the tensors in the file, `known` those of values with a shape."""
    return (*_ports(graph, known), *_changes(model, names))


def note_on_unseen(weights: Sequence[str]) -> Iterator[str]:
    """That weights are not in the file, but among its inputs."""
    if weights:
        more = f" and {len(weights) - _MOST_NAMED} more" if len(weights) > _MOST_NAMED else ""
        yield (
            f"the file stores no weights: whoever runs it gives them as the inputs {', '.join(weights[:_MOST_NAMED])}"
            f"{more}, and they are not counted: export it with them (export_params=True)"
        )


def _ports(graph: Graph, known: Container[str]) -> Iterator[str]:
    for word, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            if value.name not in known:
                yield f"the {word} {value.name} is no tensor, or of any rank: it is not listed"


def _changes(model: Model, names: frozenset[str]) -> Iterator[str]:
    """Why a file has fewer parameters than its source."""
    signature = signature_of(model.graph)
    params = [name for name, role in signature.items() if role == "param"]
    if missing := [name for name in params if not {name, f"{name}_quantized"} & names]:
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        yield (
            f"{len(missing)} of the {len(params)} parameters of the source are not in the file "
            f"({', '.join(missing[:_MOST_NAMED])}{more}): torch's exporter folds batch "
            "normalisation into convolutions, merges and transposes tensors, and leaves out biases of zeros"
        )
    elif not signature:
        for producer, change in _CHANGES.items():
            if model.producer.startswith(producer):
                yield f"params may be fewer than those of the source: {change}"
