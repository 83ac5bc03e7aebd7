"""What a team registers: a model, what its builder is called with, and what it may take of the machine."""

from __future__ import annotations

from pytest_modelbudget.entry.model_entry import (
    MODEL_SUFFIXES,
    ModelEntry,
    RunMode,
    SnapshotKind,
    check_id,
    duplicates,
    names_file,
)

__all__ = ["MODEL_SUFFIXES", "ModelEntry", "RunMode", "SnapshotKind", "check_id", "duplicates", "names_file"]
