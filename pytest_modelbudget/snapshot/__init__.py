"""The committed picture of a model: `Summary` to text and back, and the files it lives in.

`render` and `read` are pure and inverse for all that takes part in the comparison; `files` touches the disk.
"""

from pytest_modelbudget.snapshot.files import (
    FOLDER,
    baseline,
    compare,
    count_missing,
    declared_in,
    earlier_path,
    obsolete,
    path_for,
)
from pytest_modelbudget.snapshot.files import write as write
from pytest_modelbudget.snapshot.text import FORMAT, read, render

__all__ = [
    "FOLDER",
    "FORMAT",
    "baseline",
    "compare",
    "count_missing",
    "declared_in",
    "earlier_path",
    "obsolete",
    "path_for",
    "read",
    "render",
    "write",
]
