"""What a model's own code sees of where a tensor lies: the CPU, where its user would have it, and not meta.

Code asks `x.device.type == "cpu"`, `x.is_meta` or `a.data_ptr() == b.data_ptr()` and goes one way or another. torch's
code, Keras' and that of this project know about meta, and see what is.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any

import torch

from pytest_modelbudget.backends.patching import Shared, Undoing
from pytest_modelbudget.frames import OURS

_CPU = torch.device("cpu")
_INSIDE: Counter[int] = Counter()
"""How often each thread is inside."""


@contextmanager
def as_on_cpu() -> Iterator[None]:
    """Inside, tensors on meta look to the code of this thread as if they were on the CPU."""
    me = threading.get_ident()
    with _PATCHED.inside(), Undoing(lambda: _INSIDE.subtract((me,))):
        _INSIDE[me] += 1
        yield


def _patch() -> Callable[[], None]:
    """Give `torch.Tensor` and the storages attributes of their own, in front of those that they inherit."""
    tensor, storage = torch._C.TensorBase, torch._C.StorageBase
    names = {
        (torch.Tensor, "device"): _attribute(tensor.device.__get__, lambda _: _CPU),
        (torch.Tensor, "is_meta"): _attribute(tensor.is_meta.__get__, lambda _: False),
        (torch.Tensor, "is_cpu"): _attribute(tensor.is_cpu.__get__, lambda _: True),
        (torch.Tensor, "type"): _method(tensor.type, _type),
        (torch.Tensor, "data_ptr"): _method(tensor.data_ptr, _address),
        (torch.UntypedStorage, "data_ptr"): _method(storage.data_ptr, lambda held, _: held._cdata),
    }
    for (owner, name), value in names.items():
        setattr(owner, name, value)

    def undo() -> None:
        for owner, name in names:
            if name in vars(owner):
                delattr(owner, name)

    return undo


_PATCHED = Shared(_patch)


def _attribute(original: Callable[[Any], Any], on_cpu: Callable[[Any], Any]) -> property:
    def look(tensor: Any) -> Any:
        seen = original(tensor)
        return on_cpu(tensor) if _is_meta(tensor) and _deceived(sys._getframe(1).f_code.co_filename) else seen

    return property(look)


def _method(original: Callable[..., Any], on_cpu: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    @wraps(original)
    def call(held: Any, *args: Any, **kwargs: Any) -> Any:
        seen = original(held, *args, **kwargs)
        if args or kwargs or not _is_meta(held) or not _deceived(sys._getframe(1).f_code.co_filename):
            return seen
        return on_cpu(held, seen)

    return call


def _is_meta(held: Any) -> bool:
    if isinstance(held, torch.UntypedStorage):
        return held.device.type == "meta"
    with torch._C.DisableTorchFunction():
        return bool(_GET_META(held))


_GET_META = torch._C.TensorBase.is_meta.__get__


def _type(tensor: torch.Tensor, name: str) -> str:
    """`torch.FloatTensor` for what torch calls `torch.meta.FloatTensor`."""
    return name.replace(".meta.", ".")


def _address(tensor: torch.Tensor, nothing: int) -> int:
    """Another one for each memory, as on the CPU."""
    with torch._C.DisableTorchFunction():
        return int(tensor.untyped_storage()._cdata + tensor.storage_offset() * tensor.element_size())


def _deceived(file: str) -> bool:
    """Whether code of this file, in this thread, is a model's own."""
    return _INSIDE[threading.get_ident()] > 0 and _is_models(file)


@cache
def _is_models(file: str) -> bool:
    return not file.startswith(_KNOWING) and not {"keras", "torchao"} & set(Path(file).parts)


_KNOWING = (str(Path(torch.__file__).parent), OURS)
