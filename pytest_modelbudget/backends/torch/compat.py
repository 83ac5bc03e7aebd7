"""What this project needs of torch that torch does not promise: what versions lack; see `private_names`, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch._subclasses.functional_tensor
import torch.utils._python_dispatch
import torch.utils._pytree

OpOverload = torch._ops.OpOverload
"""The class of the operators that a dispatch mode sees; higher-order operators are of another."""

tree_map_only = torch.utils._pytree.tree_map_only
"""Nested values with each part of a class mapped."""

tree_flatten, tree_leaves, tree_unflatten = (
    torch.utils._pytree.tree_flatten, torch.utils._pytree.tree_leaves, torch.utils._pytree.tree_unflatten,
)  # fmt: skip
"""The parts of nested values, and what nests them again."""

TracedTensor = torch._subclasses.functional_tensor.FunctionalTensor
"""The class of tensors while AOTAutograd traces a function; they are as if on the CPU, and have no memory."""

no_modes = torch.utils._python_dispatch._disable_current_modes
"""A context without the modes that are around: a pass has its own."""

no_dispatch = torch._C._DisableTorchDispatch
"""A context in which operators go past modes and classes of tensors: own looks at tensors are nobody's operators."""

no_functions = torch._C.DisableTorchFunction
"""A context in which functions go past what watches them."""

make_subclass = torch.Tensor._make_subclass
"""A tensor of a class on the memory of another."""

KNOWS_SAVING_HOOKS = hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
"""Whether torch tells which hooks for saved tensors are set (2.6 does not)."""


TELLS_OF_STORAGES = KNOWS_SAVING_HOOKS
"""Whether weak references to storages tell when these go (2.6 drops the Python objects of some that live on)."""


KNOWN_RECURRENT = torch.__version__ >= "2.14"
"""Whether what recurrent layers take on the CPU is known: older releases bring an older oneDNN (2.6 has 3.5), with
which LSTMs take up to 48 % more than these rules say, and GRUs less.
"""


KNOWN_PIPELINES = torch.__version__ >= "2.14"
"""Whether what torch's stages and schedules of pipelines hold was compared with real ranks."""


KNOWN_COMPILED = torch.__version__ >= "2.14"
"""Whether what compiled steps hold was compared with real runs."""


SHOWS_HIGHER_ORDER = torch.__version__ >= "2.9"
"""Whether a mode may see operators that take functions, as `flex_attention`, without a rule for it in each."""


def show_higher_order(mode: type[Any]) -> None:
    """Have modes of this type see each operator that takes functions, as they see all others."""
    if not SHOWS_HIGHER_ORDER:
        for operator in torch._ops._higher_order_ops.values():
            operator.python_key_table.setdefault(mode, partial(_shown, operator))


def _shown(operator: Any, mode: Any, *args: Any, **kwargs: Any) -> Any:
    return mode.__torch_dispatch__(operator, (), args, kwargs)


def refuse_misfit(func: Any, args: tuple[Any, ...], out: Any) -> None:
    """Raise what torch raises for a window larger than what it moves over (on meta 2.6 makes an empty tensor)."""
    if func is _CONVOLUTION and not args[6] and 0 in out.shape[2:]:
        sizes, windows = tuple(args[0].shape[2:]), tuple(args[1].shape[2:])
        raise RuntimeError(
            f"Kernel size can't be greater than actual input size: sizes {sizes}, padding {args[4]}, kernel {windows}"
        )


_CONVOLUTION = torch.ops.aten.convolution.default


def saving_hooks() -> Any:
    """The hooks for saved tensors that are set last; None without any, and when torch does not tell."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) if KNOWS_SAVING_HOOKS else None


@contextmanager
def collectives_on_meta() -> Iterator[None]:
    """Inside, each collective takes tensors on the meta device (2.6 refuses them) and does there what its CPU kernel
    does, which in a world where nothing is sent is nothing.
    """
    library = torch.library.Library("c10d", "IMPL", "Meta")
    try:
        for name in _without_meta("c10d"):
            library.impl(name, _on_cpu(getattr(torch.ops.c10d, name).default))
        yield
    finally:
        library._destroy()


def _without_meta(namespace: str) -> list[str]:
    """The operators of a namespace that have a kernel for the CPU and none for the meta device."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    names = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith(f"{namespace}::")}
    return [
        name.removeprefix(f"{namespace}::")
        for name in sorted(names)
        if has_kernel(name, "CPU") and not has_kernel(name, "Meta")
    ]


def _on_cpu(operator: Any) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        return operator.redispatch(keys, *args, **kwargs)

    return kernel
