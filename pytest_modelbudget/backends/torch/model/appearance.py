"""What a model's own code sees of where a tensor lies: the CPU, where its user would have it, and not meta.

Code asks `x.device.type == "cpu"`, `x.is_meta` or `a.data_ptr() == b.data_ptr()` and goes one way or another. torch's
code, Keras' and that of this project know about meta, and see what is. So do other packages in a forward pass, which
on a CPU look for kernels that one machine has and another has not.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from pathlib import Path
from types import CodeType
from typing import Any

import torch

from pytest_modelbudget.backends.patching import SharedChange, UndoOnExit, patch_all
from pytest_modelbudget.backends.torch.compat import no_functions
from pytest_modelbudget.backends.torch.model.pytree import lies_on_meta
from pytest_modelbudget.system.frames import PACKAGE_FOLDER, package_of

CPU = torch.device("cpu")
"""The device that tensors on meta seem to be on; by this object it is known from one that was asked for by name."""

_MODEL_PACKAGES: dict[int, list[str | None]] = {}
"""For each thread, the innermost context last: the installed package whose code is a model's own, None for any."""


@contextmanager
def as_on_cpu(package: str | None = None) -> Iterator[None]:
    """Inside, tensors on meta look as if they were on the CPU, to code of this thread that is no installed package's.

    To that of `package` as well, and to that of all of them where it is None.
    """
    inside = _MODEL_PACKAGES.setdefault(threading.get_ident(), [])
    with _PATCHED.inside(), UndoOnExit(partial(inside.__delitem__, slice(len(inside), None))):
        inside.append(package)
        yield


def seems_to_be_on(device: torch.device) -> bool:
    """Whether tensors on meta stand for ones on this device: the CPU inside `as_on_cpu`, else an accelerator."""
    return device.type == "cpu" if _MODEL_PACKAGES.get(threading.get_ident()) else device.type not in ("cpu", "meta")


def _patch() -> Callable[[], None]:
    """Give `torch.Tensor` and the storages attributes of their own, in front of those that they inherit."""
    tensor, storage = torch._C.TensorBase, torch._C.StorageBase
    replacements = {
        (torch.Tensor, "device"): _property_for_model_code(tensor.device.__get__, lambda _: CPU),
        (torch.Tensor, "is_meta"): _property_for_model_code(tensor.is_meta.__get__, lambda _: False),
        (torch.Tensor, "is_cpu"): _property_for_model_code(tensor.is_cpu.__get__, lambda _: True),
        (torch.Tensor, "type"): _method_for_model_code(tensor.type, _type_without_meta),
        (torch.Tensor, "data_ptr"): _method_for_model_code(tensor.data_ptr, _fake_address),
        (torch.UntypedStorage, "data_ptr"): _method_for_model_code(
            storage.data_ptr, lambda storage_object, _: storage_object._cdata
        ),
    }
    return patch_all([(owner, name, value) for (owner, name), value in replacements.items()])


_PATCHED = SharedChange(_patch)


def _property_for_model_code(original: Callable[[Any], Any], on_cpu: Callable[[Any], Any]) -> property:
    def look(tensor: Any) -> Any:
        actual = original(tensor)
        return on_cpu(tensor) if _is_model_code_running(sys._getframe(1).f_code) and _is_meta(tensor) else actual

    return property(look)


def _method_for_model_code(original: Callable[..., Any], on_cpu: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    @wraps(original)
    def call(owner: Any, *args: Any, **kwargs: Any) -> Any:
        actual = original(owner, *args, **kwargs)
        if args or kwargs or not _is_model_code_running(sys._getframe(1).f_code) or not _is_meta(owner):
            return actual
        return on_cpu(owner, actual)

    return call


def _is_meta(owner: Any) -> bool:
    if isinstance(owner, torch.UntypedStorage):
        return str(owner.device) == "meta"
    with no_functions():
        return lies_on_meta(owner)


def _type_without_meta(tensor: torch.Tensor, name: str) -> str:
    """`torch.FloatTensor` for what torch calls `torch.meta.FloatTensor`."""
    return name.replace(".meta.", ".")


def _fake_address(tensor: torch.Tensor, nothing: int) -> int:
    """Another one for each memory, as on the CPU."""
    with no_functions():
        return int(tensor.untyped_storage()._cdata + tensor.storage_offset() * tensor.element_size())


def _is_model_code_running(code: CodeType) -> bool:
    """Whether this is a model's own code in this thread, and not that of a class of tensors about itself.

    Inside an operator no mode is on: it may be a kernel for meta, which looks at what is there.
    """
    inside = _MODEL_PACKAGES.get(threading.get_ident())
    if not inside or code.co_name in _TENSOR_CLASS_METHODS or not _is_model_file(code.co_filename, inside[-1]):
        return False
    return bool(torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack())


_TENSOR_CLASS_METHODS = frozenset(
    ("__new__", "__torch_function__", "__torch_dispatch__", "__tensor_flatten__", "__tensor_unflatten__")
)
"""What classes of tensors are made by, and hand on what they are asked with."""


@cache
def _is_model_file(file: str, package: str | None) -> bool:
    if file.startswith(_AWARE_OF_META):
        return False
    owner = package_of(file)
    return owner != "keras" and (package is None or owner in (None, package))


_AWARE_OF_META = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, PACKAGE_FOLDER))
