"""The files of a project as they travel to the workers of a cluster, and the folder there that they are unpacked to."""

from __future__ import annotations

from pathlib import Path

from pytest_modelbudget.errors import ModelBudgetError

_FOLDERS: dict[str, Path] = {}
"""Of this process: where the project of each run lies."""


def unpacked_folder(run: str) -> Path:
    """Where the project of a run was unpacked to in this process.

    Raises:
        ModelBudgetError: it was not.
    """
    try:
        return _FOLDERS[run]
    except KeyError:
        raise ModelBudgetError("the files of the project did not reach this worker of the cluster") from None
