"""Each framework's tests need that framework; a slim environment leaves the others out."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec

collect_ignore = [folder for folder in ("keras", "tensorflow", "torch") if find_spec(folder) is None]

with suppress(ImportError):
    # Tests use torch's own counter as an oracle, which imports triton, and triton after TensorFlow aborts the process.
    import triton  # noqa: F401
