"""The committed picture of a model: `Summary` to text and back, and the files it lives in.

`render` and `read` are pure and inverse for all that takes part in the comparison, and so are `render_line` and
`read_line` of totals; `files` and `lines` touch the disk, `earlier` asks a commit.
"""

from pytest_modelbudget.snapshot.earlier import Stored, at_commit, baseline, baseline_of, earlier_path, totals_at
from pytest_modelbudget.snapshot.files import (
    addresses,
    compare,
    count_missing,
    declared_in,
    obsolete,
    superseded,
    text_for,
)
from pytest_modelbudget.snapshot.files import write as write
from pytest_modelbudget.snapshot.line import read_line, render_line
from pytest_modelbudget.snapshot.lines import files_in as totals_files
from pytest_modelbudget.snapshot.lines import problem_of
from pytest_modelbudget.snapshot.lines import remove as remove_lines
from pytest_modelbudget.snapshot.lines import write as write_lines
from pytest_modelbudget.snapshot.places import FOLDER, address, home_of, is_totals, own_path, own_path_beside, path_for
from pytest_modelbudget.snapshot.text import FORMAT, read, render
from pytest_modelbudget.snapshot.totals_file import Refusal, TotalsFile, parse, read_file

__all__ = [
    "FOLDER",
    "FORMAT",
    "Refusal",
    "Stored",
    "TotalsFile",
    "address",
    "addresses",
    "at_commit",
    "baseline",
    "baseline_of",
    "compare",
    "count_missing",
    "declared_in",
    "earlier_path",
    "home_of",
    "is_totals",
    "obsolete",
    "own_path",
    "own_path_beside",
    "parse",
    "path_for",
    "problem_of",
    "read",
    "read_file",
    "read_line",
    "remove_lines",
    "render",
    "render_line",
    "superseded",
    "text_for",
    "totals_at",
    "totals_files",
    "write",
    "write_lines",
]
