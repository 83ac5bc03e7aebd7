"""What changed between two summaries of a model, and why.

The way through: `match` finds which row is which (tree, align), `facts` tells what differs in each and what caused
it (flow), `fold` makes few sentences of many, `totals` splits the sums by cause, and `compare` ties these together.
`rows` says the same row by row, unfolded, for those who draw it.
"""

from pytest_modelbudget.diff.change import Change, ChangeKind, Changes, rows_changed
from pytest_modelbudget.diff.compare import changes
from pytest_modelbudget.diff.fold import LayerRun, largest_runs
from pytest_modelbudget.diff.rows import RowChange, RowComparison, RowState, compare_rows
from pytest_modelbudget.diff.totals import flops_text

__all__ = [
    "Change",
    "ChangeKind",
    "Changes",
    "LayerRun",
    "RowChange",
    "RowComparison",
    "RowState",
    "changes",
    "compare_rows",
    "flops_text",
    "largest_runs",
    "rows_changed",
]
