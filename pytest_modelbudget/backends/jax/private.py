"""What JAX keeps to itself, or calls experimental; without it, models are counted with less."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any

_PASSES = count()


def fresh_traces() -> AbstractContextManager[Any]:
    """Inside, functions under `jax.jit` are traced anew, and no later call of the user's gets what is traced here.

    Metadata is part of what JAX knows traces by. Without it a function that was traced before tells nothing of the
    modules in it.
    """
    try:
        from jax.experimental.xla_metadata import set_xla_metadata
    except ImportError:
        return nullcontext()
    return set_xla_metadata(modelbudget=str(next(_PASSES)))  # type: ignore[no-any-return]
