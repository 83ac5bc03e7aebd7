"""Run as a script: what kernels really do with memory, where it is not what is planned, as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="0", CUDA_VISIBLE_DEVICES="-1")

from pytest_modelbudget.backends.costs.tf_functions import FunctionGraph
from pytest_modelbudget.backends.tf_memory.liveness import memory_of_nodes
from pytest_modelbudget.backends.tf_memory.nodes import bytes_of, nodes_of
from pytest_modelbudget.backends.tf_memory.packing import packed
from tests.backends.tf_memory.kernel_calls import CALLS, SHARED_OR_NOT
from tests.backends.tf_memory.real_kernels import KernelRun, run_kernels

LITTLE = 0.05
"""Share of operands and results up to which what a kernel takes besides is not counted: rows of each thread."""

FOR_EACH_THREAD = {"Bincount", "DenseBincount"}
"""Kernels that take as much as their result for each thread, which is little."""


def planned(runs: Sequence[KernelRun]) -> Iterator[tuple[int, int]]:
    """Of each run what is planned to be made, and taken besides, in bytes, without what the executor does not see."""
    operators = [run.operator for run in runs]
    graph = operators[0].graph
    body = FunctionGraph(graph, [], [], graph.get_operations())
    events = memory_of_nodes(nodes_of(body), lambda name: (name, "forward")).trace.events
    made = {event.path: (sum(size for _, size in event.made), event.workspace) for event in events}
    for operator in operators:
        size, workspace = made.get(operator.name, (0, 0))
        yield size, max(workspace - packed(operator), 0)


def main() -> None:
    runs = run_kernels([*CALLS, *SHARED_OR_NOT])
    wrong = []
    for run, (made, scratch) in zip(runs, planned(runs), strict=True):
        sizes = [bytes_of(tensor) for tensor in (*run.operator.inputs, *run.operator.outputs)]
        slack = LITTLE * sum(size or 0 for size in sizes)
        more = 0 if run.operator.type in FOR_EACH_THREAD else abs(scratch - run.scratch)
        if None not in sizes and max(abs(made - run.made), more) > slack:
            shapes = [tensor.shape.as_list() for tensor in run.operator.inputs]
            wrong.append([run.operator.type, shapes, run.fresh, run.made, made, run.scratch, scratch])
    print(json.dumps({"runs": len(runs), "wrong": wrong}))


if __name__ == "__main__":
    main()
