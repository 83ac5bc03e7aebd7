"""A script of its own, run beside the process that asks: `onnx.shape_inference` on models without weights.

It reads models from its input, each after its length in 8 bytes, and prints for each one JSON object of
`{name: [type, [dim, ..]]}`, or null and no more for one that it cannot infer. Its arguments are the search path and the
bytes of memory that it may take.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

_CPU_SECONDS = 60


def main() -> None:
    """Infer the shapes of all models of the input."""
    sys.path[:] = json.loads(sys.argv[1])
    _limit(int(sys.argv[2]))
    import onnx.shape_inference

    while length := int.from_bytes(sys.stdin.buffer.read(8), "little"):
        data = sys.stdin.buffer.read(length)
        try:
            inferred = dict(
                _values(onnx.shape_inference.infer_shapes(onnx.load_from_string(data), data_prop=True).graph)
            )
        except Exception:  # whatever the library raises of a model that it does not understand
            inferred = None
        print(json.dumps(inferred), flush=True)
        if inferred is None:
            return


def _values(graph: Any) -> Iterator[tuple[str, list[Any]]]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
            yield value.name, [tensor.elem_type, dims]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _values(attribute.g)


def _limit(memory: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))


if __name__ == "__main__":
    main()
