"""What older versions of torch, down to 2.4, do not have, and what is done without it."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any

import torch

from pytest_modelbudget.backends.patching import Shared, patch_all

KNOWS_SAVING_HOOKS = hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
"""Whether torch tells which hooks for saved tensors are set (2.6 does not)."""

KNOWS_FUNCTION_STATE = hasattr(torch._C, "_get_torch_function_state")
"""Whether torch tells how far `__torch_function__` is switched off (2.4 does not)."""


def has_autocast(device: str) -> bool:
    """Whether torch knows autocast for this kind of device (2.4 has none for mps)."""
    try:
        torch.is_autocast_enabled(device)
    except RuntimeError:
        return False
    return True


def saving_hooks() -> Any:
    """The hooks for saved tensors that are set last; None without any, and when torch does not tell."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) if KNOWS_SAVING_HOOKS else None


def eager() -> AbstractContextManager[Any]:
    """A context in which compiled functions run as they were written."""
    if hasattr(torch.compiler, "set_stance"):  # 2.4 has none
        context: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return context
    return _NOT_COMPILED.inside()


_NOT_COMPILED = Shared(lambda: patch_all([(sys.modules["torch._dynamo.eval_frame"], "set_eval_frame", lambda _: None)]))
