"""Manifests to `ModelEntry`s; every mistake at once, each with its line."""

from pytest_modelbudget.config.decorator import model
from pytest_modelbudget.config.loaded import LoadedManifest, Mistake
from pytest_modelbudget.config.manifest import MANIFEST_NAMES, holds_manifest, is_manifest, load, read
from pytest_modelbudget.config.tighten import LoweredLimit, Tightening, tighten
from pytest_modelbudget.results import ITEM_NAMES

__all__ = [
    "ITEM_NAMES",
    "MANIFEST_NAMES",
    "LoadedManifest",
    "LoweredLimit",
    "Mistake",
    "Tightening",
    "holds_manifest",
    "is_manifest",
    "load",
    "model",
    "read",
    "tighten",
]
