"""Programs of ExecuTorch (`.pte`), and the tensors that they keep beside themselves (`.ptd`); needs no library.

`container` opens a file and its segments, `program` reads what it says, `flow` finds branches and loops among its
instructions, `operators` makes a graph of these, `constants` names what it stores, `tensor_files` finds the files
beside it. What is read is the flatbuffer alone, never a weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_modelbudget.backends.exported.executorch.constants import stored_tensors
from pytest_modelbudget.backends.exported.executorch.container import PROGRAM, opened
from pytest_modelbudget.backends.exported.executorch.operators import graph
from pytest_modelbudget.backends.exported.executorch.program import Method, Tensor, methods
from pytest_modelbudget.backends.exported.executorch.tensor_files import tensor_file_bytes
from pytest_modelbudget.backends.exported.graph import ExportedModel

__all__ = ["read"]

_MAIN = "forward"
_SEGMENTS = 4


def read(path: Path) -> ExportedModel:
    """The program at `path`: of several methods the one that is called `forward`, else the first.

    Dimensions that change at run time have their largest sizes, for which the memory is planned; those without any are
    None. `arena_bytes` are the planned memories of the method together, as the file says them.

    Raises:
        DamagedFile: it is not whole, or not what ExecuTorch writes.
    """
    with opened(path, PROGRAM, _SEGMENTS) as container:
        listed = sorted(methods(container), key=lambda method: method.name != _MAIN)
        file_bytes = container.file_bytes
    method = listed[0]
    stored = stored_tensors(listed)
    program_graph = graph(method, stored)
    return ExportedModel(
        format="executorch",
        file_bytes=file_bytes + tensor_file_bytes(path, listed),
        constants=stored.constants,
        dialect="executorch",
        operators=program_graph.operators,
        values=program_graph.values,
        inputs=program_graph.inputs,
        outputs=program_graph.outputs,
        arena_bytes=method.planned_bytes,
        unseen=tuple(dict.fromkeys(delegate.backend for delegate in method.delegates if delegate.graph is None)),
        delegated=sum(call.delegate is not None for call in method.calls),
        notes=(*_notes(listed), *stored.notes),
    )


def _notes(listed: Sequence[Method]) -> Iterator[str]:
    method, *others = listed
    if others:
        names = ", ".join(other.name for other in others)
        yield f"FLOPs and memory are those of the method {method.name}; {names} not counted"
    if any(isinstance(value, Tensor) and value.is_bounded for value in method.values):
        yield "dimensions that change are counted at their largest sizes, for which the memory is planned"
    called = [method.delegates[call.delegate] for call in method.calls if call.delegate is not None]
    for backend, calls in Counter(delegate.backend for delegate in called if delegate.graph is None).items():
        size = sum(delegate.blob_bytes for delegate in method.delegates if delegate.backend == backend)
        yield f"{backend} runs {calls} parts ({size:,} bytes), unseen: their weights and FLOPs are not counted"
    if any(delegate.graph and delegate.graph.constants for delegate in called):
        yield "all that XNNPACK holds counts as weights, buffers among them"
