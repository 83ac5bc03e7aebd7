"""A slim environment has no library of JAX models, and leaves these tests out."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("flax") and find_spec("equinox") else ["test_*.py"]
