"""The global state of a process that building or running a model may move, put back on leaving."""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def preserved() -> Iterator[None]:
    """On leaving, also by an exception: random states, default dtype and device, and grad mode are as they were."""
    randomness = _randomness()
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    device = _default_device()
    try:
        yield
    finally:
        if _default_device() != device:
            torch.set_default_device(device)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        _restore(*randomness)


@contextmanager
def unswept() -> Iterator[None]:
    """Inside, cyclic garbage waits: models are many small objects that stay, and looking through them takes long."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _randomness() -> tuple[Any, torch.Tensor, list[torch.Tensor] | None, Any]:
    numpy = sys.modules.get("numpy")
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return random.getstate(), torch.get_rng_state(), gpus, numpy.random.get_state() if numpy else None


def seed(number: int = 0) -> None:
    """Fix the random states of torch, Python and numpy; call it inside `preserved`."""
    random.seed(number)
    torch.default_generator.manual_seed(number)  # `torch.manual_seed` looks for GPUs, too, which takes a while
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(number)


def _restore(python: Any, cpu: torch.Tensor, gpus: list[torch.Tensor] | None, numpy: Any) -> None:
    random.setstate(python)
    torch.set_rng_state(cpu)
    if gpus is not None:
        torch.cuda.set_rng_state_all(gpus)
    elif torch.cuda.is_initialized():
        pass  # the builder started the GPU itself: there is no earlier state to go back to
    if numpy is not None:
        sys.modules["numpy"].random.set_state(numpy)


def _default_device() -> torch.device | None:
    """The device set by `torch.set_default_device`, None when none was set (`get_default_device` cannot tell)."""
    context = getattr(getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None), "device_context", None)
    return getattr(context, "device", None)
