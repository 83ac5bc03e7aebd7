"""A slim environment has no library of JAX models, an old one has them otherwise: these tests are left out there."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

WRITTEN_FOR = (0, 12)
"""The version of flax whose modules hold others in lists of their own and arrays as attributes."""

_is_here = False
with suppress(PackageNotFoundError):
    _flax = tuple(map(int, version("flax").split(".")[:2]))
    _is_here = _flax >= WRITTEN_FOR and find_spec("equinox") is not None

collect_ignore_glob = [] if _is_here else ["*.py"]
