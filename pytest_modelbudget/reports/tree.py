"""The rows of a model for the HTML page: a tree with what each part holds."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_modelbudget import units
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.formulas import why
from pytest_modelbudget.summary.show import cells
from pytest_modelbudget.summary.show.nesting import parent_rows, subtotals
from pytest_modelbudget.system.escape import harmless


def tree_rows(summary: Summary) -> Iterator[list[object]]:
    """Each row: name below its parent, path, type, output, params as text and number, FLOPs as text and number,
    connected to, why, and the index of its parent (-1 at the top).

    Params and FLOPs are those of the row with everything inside it; a number is None when it is not known.
    """
    parents = parent_rows(summary.layers)
    params = subtotals([layer.params for layer in summary.layers], parents)
    flops = subtotals([layer.flops for layer in summary.layers], parents)
    for index, layer in enumerate(summary.layers):
        parent = parents[index]
        name = layer.path if parent < 0 else layer.path[len(summary.layers[parent].path) + 1 :]
        params_total, flops_total = params[index], flops[index]
        yield [
            harmless(name),
            harmless(layer.path),
            harmless(layer.type),
            harmless(cells.output(layer)),
            f"{params_total:,}" if layer.container else cells.params(layer),
            params_total,
            cells.UNKNOWN if flops_total is None else units.flops(flops_total),
            flops_total,
            harmless(cells.connections(layer)),
            harmless(why(layer)),
            parent,
        ]
