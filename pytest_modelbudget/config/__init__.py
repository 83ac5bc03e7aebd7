"""Manifests to `ModelEntry`s; every mistake at once, each with its line."""

from pytest_modelbudget.config.door import model
from pytest_modelbudget.config.manifest import (
    ITEM_NAMES,
    MANIFEST_NAMES,
    Loaded,
    Mistake,
    holds_manifest,
    is_manifest,
    load,
    read,
)

__all__ = [
    "ITEM_NAMES",
    "MANIFEST_NAMES",
    "Loaded",
    "Mistake",
    "holds_manifest",
    "is_manifest",
    "load",
    "model",
    "read",
]
