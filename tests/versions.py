"""Marks of tests that need a release of a package, or something that only later releases have."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from packaging.version import Version


def since(package: str, release: str, reason: str) -> pytest.MarkDecorator:
    """Skip the test where the package is older than `release`, since `reason`."""
    older = Version(version(package)) < Version(release)
    return pytest.mark.skipif(older, reason=f"needs {package} {release}: {reason}")


def needs(owner: object, name: str) -> pytest.MarkDecorator:
    """Skip the test where `owner` has no such name yet."""
    where = getattr(owner, "__name__", type(owner).__name__)
    return pytest.mark.skipif(
        not hasattr(owner, name), reason=f"needs {where}.{name}, which this release does not have"
    )
