"""Manifests to `ModelEntry`s; every mistake at once, each with its line."""

from pytest_modelbudget.config.door import model
from pytest_modelbudget.config.manifest import MANIFEST_NAMES, Loaded, Mistake, holds_manifest, load

__all__ = ["MANIFEST_NAMES", "Loaded", "Mistake", "holds_manifest", "load", "model"]
