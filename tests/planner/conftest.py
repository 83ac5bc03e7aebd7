"""Some tests record real runs of torch: see `tests/backends/conftest.py`."""

from __future__ import annotations

from contextlib import suppress

with suppress(ImportError):
    # Recording imports triton with torch's counters, and triton after TensorFlow aborts the process.
    import triton  # noqa: F401
