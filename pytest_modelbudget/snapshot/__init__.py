"""The committed picture of a model: `Summary` to text and back, and the files it lives in.

`render` and `read` are pure and inverse for all that takes part in the comparison; `files` touches the disk.
"""

from pytest_modelbudget.snapshot.files import FOLDER, compare, declared_in, obsolete, path_for, write
from pytest_modelbudget.snapshot.text import FORMAT, read, render

__all__ = ["FOLDER", "FORMAT", "compare", "declared_in", "obsolete", "path_for", "read", "render", "write"]
