"""The settings of torch, and of what it stands on, that code can change for all code after it."""

from __future__ import annotations

import gc
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.modules.module as module_globals
import torch.utils._device as device_globals
import torch.utils._python_dispatch as dispatch_globals
from torch.autograd import forward_ad
from torch.nn.utils import parametrize

from pytest_modelbudget.backends.torch import compat


@dataclass(frozen=True, slots=True)
class Setting:
    """How a setting is read, and how it is set to what was read; one that is not `compared` is always set."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    compared: bool = True


def read_all(settings: Iterable[Setting]) -> list[Any]:
    """What the settings are now."""
    return [setting.read() for setting in settings]


def write_all(settings: Sequence[Setting], saved: Sequence[Any]) -> None:
    """Set all settings to what they were.

    Raises:
        Exception: the first error; the other settings are set nevertheless.
    """
    first_error: Exception | None = None
    for setting, value in zip(settings, saved, strict=True):
        try:
            if not setting.compared or setting.read() != value:
                setting.write(value)
        except Exception as error:
            first_error = first_error or error
    if first_error is not None:
        raise first_error


def _attribute(owner: Any, name: str) -> Setting:
    return Setting(partial(getattr, owner, name, None), partial(setattr, owner, name))


def dispatch_modes() -> list[Any]:
    return [torch._C._get_dispatch_stack_at(place) for place in range(torch._C._len_torch_dispatch_stack())]


def _set_dispatch_modes(modes: list[Any]) -> None:
    while stack := dispatch_modes():
        key = getattr(stack[-1], "_mode_key", None)
        if key is not None and torch._C._get_dispatch_mode(key) is stack[-1]:
            torch._C._unset_dispatch_mode(key)
        else:
            torch._C._pop_torch_dispatch_stack(None)
    for mode in modes:
        torch._C._push_on_torch_dispatch_stack(mode)


def _pre_dispatch_modes() -> tuple[Any, ...]:
    state = torch._ops.mode_stack_state_for_pre_dispatch()
    return state.get(0), state.get(1), state._schema_check_mode


def _set_pre_dispatch_modes(modes: tuple[Any, ...]) -> None:
    state = torch._ops.mode_stack_state_for_pre_dispatch()
    state.set(0, modes[0])
    state.set(1, modes[1])
    state._schema_check_mode = modes[2]


def _function_modes() -> list[Any]:
    return [torch._C._get_function_stack_at(index) for index in range(torch._C._len_torch_function_stack())]


def _set_function_modes(modes: list[Any]) -> None:
    while torch._C._len_torch_function_stack():
        torch._C._pop_torch_function_stack()
    for mode in modes:
        torch._C._push_on_torch_function_stack(mode)


def _set_device_context(context: Any) -> None:
    """Without a context there is no such name: `torch.get_default_device` of 2.6 asks whether there is one."""
    if context is None:
        vars(torch._GLOBAL_DEVICE_CONTEXT).pop("device_context", None)
    else:
        torch._GLOBAL_DEVICE_CONTEXT.device_context = context


def _set_saving_hooks(top: Any) -> None:
    while (current := compat.saving_hooks()) is not None and current != top:
        torch._C._autograd._pop_saved_tensors_default_hooks()


def _set_saving_refused(message: str | None) -> None:
    if message is None:
        torch._C._autograd._saved_tensors_hooks_enable()
    else:
        torch._C._autograd._saved_tensors_hooks_disable(message, False)


def _autocast_nesting() -> int:
    torch.autocast_increment_nesting()
    nesting: int = torch.autocast_decrement_nesting()
    return nesting


def _set_autocast_nesting(nesting: int) -> None:
    while (current := _autocast_nesting()) != nesting:
        (torch.autocast_increment_nesting if current < nesting else torch.autocast_decrement_nesting)()
    if not nesting:
        torch.clear_autocast_cache()


def _autocasts() -> Iterator[Setting]:
    for kind in ("cpu", "cuda", "xpu", "mps"):
        yield Setting(partial(torch.is_autocast_enabled, kind), partial(torch.set_autocast_enabled, kind))
        yield Setting(partial(torch.get_autocast_dtype, kind), partial(torch.set_autocast_dtype, kind))
    yield Setting(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled)
    yield Setting(_autocast_nesting, _set_autocast_nesting)


def _functorch() -> Iterator[Setting]:
    """Levels of `vmap`, `grad` and the like, which the operators of a thread go through."""
    layers = torch._C._functorch
    undo = getattr(layers, "pop_dynamic_layer_stack_and_undo_to_depth", None)
    if undo is not None:
        yield Setting(layers.get_dynamic_layer_stack_depth, undo)


OF_AUTOGRAD: tuple[Setting, ...] = (
    Setting(torch.is_grad_enabled, torch._C._set_grad_enabled),
    Setting(torch._C._is_fwd_grad_enabled, torch._C._set_fwd_grad_enabled),
    Setting(torch._C._is_multithreading_enabled, torch._C._set_multithreading_enabled),
    Setting(torch._C._is_view_replay_enabled, torch._C._set_view_replay_enabled),
)

OF_THREAD: tuple[Setting, ...] = (
    Setting(dispatch_modes, _set_dispatch_modes),
    Setting(_pre_dispatch_modes, _set_pre_dispatch_modes),
    Setting(_function_modes, _set_function_modes),
    Setting(lambda: vars(torch._GLOBAL_DEVICE_CONTEXT).get("device_context"), _set_device_context),
    Setting(torch._C._get_torch_function_state, torch._C._set_torch_function_state),
    Setting(torch._C._get_tracing_state, torch._C._set_tracing_state),
    *_functorch(),
    Setting(compat.saving_hooks, _set_saving_hooks),
    Setting(torch._C._autograd._saved_tensors_hooks_get_disabled_error_message, _set_saving_refused),
    *_autocasts(),
    *OF_AUTOGRAD,
)
"""Those that each thread has for itself; modes come first, because what comes next may run operators."""


_PAIRS = """
_get_flash_sdp_enabled _set_sdp_use_flash
_get_mem_efficient_sdp_enabled _set_sdp_use_mem_efficient
_get_math_sdp_enabled _set_sdp_use_math
_get_cudnn_sdp_enabled _set_sdp_use_cudnn
_get_overrideable_sdp_enabled _set_sdp_use_overrideable
_get_fa3_sdp_enabled _set_sdp_use_fa3
"""
_FLAGS = """math_sdp_allow_fp16_bf16_reduction sdp_priority_order mkldnn_enabled mkldnn_deterministic nnpack_enabled
cudnn_enabled cudnn_benchmark cudnn_deterministic cudnn_allow_tf32 cublas_allow_tf32 cublas_allow_fp16_accumulation
cublas_allow_fp16_reduced_precision_reduction cublas_allow_bf16_reduced_precision_reduction
cpu_allow_fp16_reduced_precision_reduction onednn_allow_tf32 float32_matmul_precision linalg_preferred_backend
blas_preferred_backend deterministic_fill_uninitialized_memory graph_executor_optimize qengine autograd_fallback_mode
warnAlways"""
_PRECISIONS = (
    ("generic", "all"),
    *((kind, op) for kind in ("cuda", "mkldnn") for op in ("all", "matmul", "conv", "rnn")),
)


def _flags() -> Iterator[Setting]:
    """Those that torch keeps in C++; versions of torch differ in which there are."""
    pairs = [line.split() for line in _PAIRS.split("\n") if line]
    for read, write in (*pairs, *((f"_get_{name}", f"_set_{name}") for name in _FLAGS.split())):
        if hasattr(torch._C, read) and hasattr(torch._C, write):
            getter = getattr(torch._C, read)
            may_refuse = "tf32" in read or "precision" in read
            yield Setting(
                partial(_read_or_none, getter) if may_refuse else getter,
                partial(_write_if_known, getattr(torch._C, write)),
            )
    if hasattr(torch._C, "_get_fp32_precision_getter"):
        for precision_key in _PRECISIONS:
            precision = partial(torch._C._get_fp32_precision_getter, *precision_key)
            yield Setting(
                partial(_read_or_none, precision), partial(torch._C._set_fp32_precision_setter, *precision_key)
            )


def _read_or_none(read: Callable[[], Any]) -> Any:
    """None for what torch refuses to tell, once the old and the new names of a setting were mixed."""
    try:
        return read()
    except RuntimeError:
        return None


def _write_if_known(write: Callable[..., object], value: Any) -> None:
    if isinstance(value, tuple):
        write(*value)
    elif value is not None:
        write(value)


def _deterministic_mode() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic_mode(mode: tuple[bool, bool]) -> None:
    torch._C._set_deterministic_algorithms(mode[0], warn_only=mode[1])


def _anomaly_mode() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _in_modes() -> tuple[bool, ...]:
    return tuple(getattr(dispatch_globals, name) for name in _IN_MODES)


def _set_in_modes(flags: tuple[bool, ...]) -> None:
    for name, flag in zip(_IN_MODES, flags, strict=True):
        setattr(dispatch_globals, name, flag)
    tell = getattr(dispatch_globals, "set_is_in_mode_without_ignore_compile_internals", None)
    if tell is not None:
        tell(dispatch_globals._is_in_any_mode_without_ignore_compile_internals)


_IN_MODES = [name for name in vars(dispatch_globals) if name.startswith("_is_in_")]


def _container(owner: Any, name: str, after_write: Callable[[], object] = lambda: None) -> Setting:
    """A dict or list that is changed in place; it becomes the same object with the same content."""

    def read() -> tuple[Any, Any]:
        content = getattr(owner, name)
        return content, content.copy()

    def write(saved: tuple[Any, Any]) -> None:
        content, copy = saved
        setattr(owner, name, content)
        content.clear()
        (content.extend if isinstance(content, list) else content.update)(copy)
        after_write()

    return Setting(read, write)


def _hooks() -> Iterator[Setting]:
    """What is registered for all modules."""
    for name, value in vars(module_globals).items():
        if name.startswith("_global_"):
            yield _container(module_globals, name) if isinstance(value, dict) else _attribute(module_globals, name)


def _forget_warned() -> None:
    """Warnings are looked up anew: `warnings` remembers which of its filters it has asked."""
    for name in ("_filters_mutated", "_filters_mutated_lock_held"):
        if (forget := getattr(warnings, name, None)) is not None:
            forget()
            return


def _set_gc_enabled(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()


def _default_type() -> tuple[str, torch.dtype]:
    return torch._C._get_default_device(), torch.get_default_dtype()


def _set_default_type(saved: tuple[str, torch.dtype]) -> None:
    kind, dtype = saved
    if torch._C._get_default_device() != kind:
        torch.set_default_tensor_type(f"torch.{'' if kind == 'cpu' else f'{kind}.'}FloatTensor")
    torch.set_default_dtype(dtype)


def _set_dual_level(level: int) -> None:
    while forward_ad._current_level > level:
        forward_ad.exit_dual_level()


def _compiler_stance() -> Any:
    """How `torch.compile` goes about it; None while nothing has imported the compiler."""
    return getattr(sys.modules.get("torch._dynamo.eval_frame"), "_stance", None)


def _set_compiler_stance(saved: Any) -> None:
    compiler: Any = sys.modules["torch._dynamo.eval_frame"]
    compiler._stance = compiler.DynamoStance() if saved is None else saved


def _cuda_rng_states() -> list[torch.Tensor] | None:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None


def _set_cuda_rng_states(saved: list[torch.Tensor] | None) -> None:
    if saved is not None:  # else the GPU was started meanwhile: there is no earlier state to go back to
        torch.cuda.set_rng_state_all(saved)


def _numpy_rng_state() -> Any:
    numpy = sys.modules.get("numpy")
    return None if numpy is None else numpy.random.get_state()


def _set_numpy_rng_state(saved: Any) -> None:
    if saved is not None:
        sys.modules["numpy"].random.set_state(saved)


OF_PASS: tuple[Setting, ...] = (
    Setting(_default_type, _set_default_type),
    Setting(random.getstate, random.setstate, compared=False),
    Setting(torch.default_generator.get_state, torch.default_generator.set_state, compared=False),
    Setting(_cuda_rng_states, _set_cuda_rng_states, compared=False),
    Setting(_numpy_rng_state, _set_numpy_rng_state, compared=False),
)
"""Those among them that every pass needs as they were before it."""

OF_PROCESS: tuple[Setting, ...] = (
    Setting(_in_modes, _set_in_modes),
    *_hooks(),
    *_flags(),
    Setting(_deterministic_mode, _set_deterministic_mode),
    Setting(_anomaly_mode, lambda before: torch.set_anomaly_enabled(*before)),
    Setting(torch.get_num_threads, torch.set_num_threads),
    Setting(lambda: forward_ad._current_level, _set_dual_level),
    Setting(_compiler_stance, _set_compiler_stance),
    _attribute(device_globals, "CURRENT_DEVICE"),
    _attribute(torch.backends.mha, "_is_fastpath_enabled"),
    _attribute(torch.distributions.Distribution, "_validate_args"),
    _attribute(torch.__future__, "_overwrite_module_params_on_conversion"),
    _attribute(torch.__future__, "_swap_module_params_on_conversion"),
    _attribute(parametrize, "_cache_enabled"),
    _container(parametrize, "_cache"),
    Setting(gc.isenabled, _set_gc_enabled),
    Setting(sys.getrecursionlimit, sys.setrecursionlimit),
    _container(warnings, "filters", _forget_warned),
    _attribute(warnings, "showwarning"),
    *OF_PASS,
)
"""Those that all threads share."""
