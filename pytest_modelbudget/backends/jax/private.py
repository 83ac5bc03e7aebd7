"""What JAX and flax keep to themselves, or call experimental; without it, models are counted with less."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from typing import Any

import jax

from pytest_modelbudget.backends.patching import all_patched, patched
from pytest_modelbudget.errors import ModelBudgetError

_PASSES = count()


@contextmanager
def builder_trace() -> Iterator[Callable[[], bool]]:
    """Enter it in a trace; gives a function that says whether an array of that trace was made inside.

    Inside, errors about such arrays do not say where these come from: to find that out takes as long as the trace is,
    and flax.nnx provokes such an error for each key that it draws.
    """
    kind = type(jax.numpy.zeros(()))
    initialize, made = kind.__init__, False

    def __init__(tracer: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal made
        made = True
        initialize(tracer, *args, **kwargs)

    patches = {"__init__": __init__, "_origin_msg": lambda tracer: ""} if issubclass(kind, jax.core.Tracer) else {}
    with all_patched((kind, name, value) for name, value in patches.items() if name in vars(kind)):
        yield lambda: made


@contextmanager
def plain_tracebacks() -> Iterator[None]:
    """Inside, errors of the user's code come as they are raised, without JAX's remarks on frames that it took out."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    try:
        yield
    finally:
        jax.config.update("jax_traceback_filtering", before)


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


@contextmanager
def traces_by_path() -> Iterator[None]:
    """Inside, `nn.jit` of flax.linen traces equal modules at several paths each by itself, not once for all."""
    transforms = sys.modules["flax.linen.transforms"]
    fingerprint = getattr(transforms, "_module_fingerprint", None)
    if fingerprint is None:
        yield
        return
    with patched(transforms, "_module_fingerprint", lambda module: (_scope_path(module), fingerprint(module))):
        yield


def _scope_path(module: Any) -> tuple[str, ...]:
    return () if module.scope is None else tuple(module.scope.path)


@contextmanager
def compiling_for_cpu() -> Iterator[None]:
    """Inside, JAX compiles for the CPU, starts no other device and keeps nothing that is compiled.

    On leaving, no device is started that was not before.

    Raises:
        ModelBudgetError: this version of JAX does not say whether one is, or runs without a CPU.
    """
    bridge, cache = sys.modules.get("jax._src.xla_bridge"), sys.modules.get("jax._src.compilation_cache")
    if bridge is None or not hasattr(bridge, "backends_are_initialized"):
        raise ModelBudgetError(f"compile: xla is not possible with jax {jax.__version__}: leave it out")
    uncached = nullcontext() if cache is None else patched(cache, "is_cache_used", lambda backend: False)
    on_cpu = _started_cpu() if bridge.backends_are_initialized() else _only_cpu(bridge)
    with uncached, on_cpu:
        yield


def _started_cpu() -> AbstractContextManager[Any]:
    try:
        return jax.default_device(jax.devices("cpu")[0])  # type: ignore[no-any-return]
    except RuntimeError as error:
        raise ModelBudgetError("compile: xla needs the CPU of JAX, which this process runs without") from error


@contextmanager
def _only_cpu(bridge: Any) -> Iterator[None]:
    """Inside, the CPU alone is there; plugins of other devices are not looked for."""
    try:
        from jax.extend.backend import clear_backends
    except ImportError as error:
        raise ModelBudgetError(f"compile: xla is not possible with jax {jax.__version__}: leave it out") from error
    before = jax.config.jax_platforms
    discovery = [
        (bridge, name, lambda: None) for name in ("_discover_and_register_pjrt_plugins",) if hasattr(bridge, name)
    ]
    jax.config.update("jax_platforms", "cpu")
    try:
        with all_patched(discovery):
            yield
    finally:
        clear_backends()
        jax.config.update("jax_platforms", before)
