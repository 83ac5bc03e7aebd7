"""Remembering what an operator makes of operands without values: a model repeats itself, and torch's answer is slow.

The shape, strides and dtype of a result on meta follow from those of the operands and from the plain arguments.
Views are never remembered, and nothing is from one model to the next.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from pytest_modelbudget.backends.deep_imports import import_early
from pytest_modelbudget.backends.torch.compat import refuse_misfit
from pytest_modelbudget.backends.torch.meta.shape_rules import InferredMetas, TensorMeta, infer
from pytest_modelbudget.backends.torch.model.meta_tensors import META
from pytest_modelbudget.backends.torch.model.pytree import described, storage_key, tensors
from pytest_modelbudget.system.debug import DebugLog

_UNSAFE_VIEW = torch.ops.aten._unsafe_view.default  # gives a view, though its schema does not say so

_FOREACH = "aten::_foreach_"
_FOREACH_LIKE_FIRST = frozenset(
    ("abs", "add", "addcdiv", "addcmul", "clamp_max", "clamp_min", "copy", "div", "exp", "lerp", "maximum", "minimum",
     "mul", "neg", "pow", "reciprocal", "rsqrt", "sign", "sqrt", "sub", "zero")
)  # fmt: skip
"""Operators on lists of tensors, as optimizers use them, whose results are like the first list."""
_TENSORS = (torch.Tensor, torch.nn.Parameter)
_NUMBERS = frozenset({int, float, bool})
_NOT_TENSORS = frozenset({int, type(None)})


@cache
def _is_foreach_like_first(func: Any) -> bool:
    name = str(func._schema.name)
    return name.startswith(_FOREACH) and name.removeprefix(_FOREACH).rstrip("_") in _FOREACH_LIKE_FIRST


COMPILER = "torch._dynamo"
"""What torch imports when it first asks a kernel that is written in Python."""


@dataclass(frozen=True, slots=True)
class _Mixed:
    """Results that are not tensors alone: None where a gradient is not asked for, lengths of sequences."""

    parts: tuple[TensorMeta | int | None, ...]

    def made_anew(self) -> tuple[Any, ...]:
        """New tensors, and the same numbers."""
        return tuple([_empty(part) if isinstance(part, tuple) else part for part in self.parts])


class MetaCache:
    """Runs operators on meta tensors, each combination of operator and arguments once."""

    rules = True
    """Whether rules answer before torch is asked."""

    def __init__(self) -> None:
        self._results: dict[Hashable, tuple[TensorMeta, ...] | _Mixed | None] = {}
        self.operators: dict[Any, Any] = {}  # what the observer of a pass knows of each operator

    def run(self, func: Any, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of `func`, made anew from what is known, or asked of torch."""
        if func.is_view or func is _UNSAFE_VIEW:
            return func(*args, **kwargs)
        if _is_foreach_like_first(func) and self.rules:
            return None if func._schema.is_mutable else [torch.empty_like(tensor) for tensor in args[0]]
        try:
            key = (func, _args_key(args), _args_key(kwargs.items()) if kwargs else ())
            metas = self._results.get(key)
        except TypeError:  # an argument that is not plain
            return self._run_and_remember(None, func, operands, args, kwargs)
        if metas is None and key not in self._results:
            if (metas := self._by_rule(func, args, kwargs)) is None:
                return self._run_and_remember(key, func, operands, args, kwargs)
            self._remember(key, metas)
        if metas is None:
            return args[0]
        if isinstance(metas, _Mixed):
            return metas.made_anew()
        out = tuple([torch.empty_strided(shape, strides, dtype=dtype, device=META) for shape, strides, dtype in metas])
        return out if len(out) > 1 else out[0]

    def _by_rule(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> InferredMetas:
        return infer(func, args, kwargs)

    def _remember(self, key: Hashable, made: tuple[TensorMeta, ...] | _Mixed | None) -> None:
        """Keep what an operator makes, None where it gives back its argument; without a key nothing is kept."""
        if key is not None:
            self._results[key] = made

    def _run_and_remember(self, key: Hashable, func: Any, operands: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
        import_early(COMPILER)
        meta_before = _tensor_meta(args[0]) if args and isinstance(args[0], torch.Tensor) else None
        out = func(*args, **kwargs)
        refuse_misfit(func, args, out)
        if func._schema.is_mutable:
            if (
                out is args[0] and _tensor_meta(out) == meta_before
            ):  # in place, as `relu_`: only its argument comes back
                self._remember(key, None)
            return out
        parts = out if isinstance(out, tuple) else (out,)
        results = tuple([part for part in parts if type(part) not in _NOT_TENSORS])
        if (
            len(parts) == len(func._schema.returns)
            and results
            and all(map(_is_plain_meta, results))
            and _share_no_memory(operands, results)
        ):
            self._remember(key, _remembered(parts))
        return out


def cache_for(log: DebugLog | None) -> MetaCache:
    """What remembers the results of operators of one model; with a `log` it says what it did."""
    return MetaCache() if log is None else _Logged(log)


class _Logged(MetaCache):
    """Writes who answered for each operator (`rules`), and whether that was remembered (`cache`).

    Rules and what is remembered are left out where they are switched off.
    """

    def __init__(self, log: DebugLog) -> None:
        super().__init__()
        self._log = log
        self.rules = log.uses("rules")
        self._by = ""

    def run(self, func: Any, read: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `MetaCache.run`."""
        call = f"{func}({', '.join(map(described, read))})"  # before an operator in place changes them
        listed = self.rules and _is_foreach_like_first(func)
        self._by = "torch (a view)" if func.is_view or func is _UNSAFE_VIEW else "rule" if listed else "cache"
        out = super().run(func, read, args, kwargs)
        result = ", ".join(map(described, tensors(out)))
        if self._by != "cache":
            self._log.write("rules", f"{call} -> {result}: by {self._by}")
        if self._by in ("cache", "rule", "torch") and not listed:
            self._log.write("cache", f"{call} -> {result}: {'hit' if self._by == 'cache' else 'miss'}")
        return out

    def _by_rule(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> InferredMetas:
        self._by = "rule"
        return super()._by_rule(func, args, kwargs) if self.rules else None

    def _run_and_remember(self, key: Hashable, func: Any, read: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
        self._by = "torch"
        return super()._run_and_remember(key, func, read, args, kwargs)

    def _remember(self, key: Hashable, made: tuple[TensorMeta, ...] | _Mixed | None) -> None:
        if self._log.uses("cache"):
            super()._remember(key, made)


def _args_key(values: Iterable[Any]) -> Hashable:
    parts: list[Any] = []
    for value in values:
        kind = type(value)  # 1, 1.0 and True are equal, and not the same argument
        if kind in _TENSORS or isinstance(value, torch.Tensor):
            parts += kind, value.shape, value.stride(), value.dtype
        elif kind is not tuple and kind is not list:
            parts += kind, value
        elif _NUMBERS.issuperset(kinds := tuple(map(type, value))):
            parts += kind, kinds, tuple(value)
        else:
            parts += kind, _args_key(value)
    return tuple(parts)


def _remembered(parts: tuple[Any, ...]) -> tuple[TensorMeta, ...] | _Mixed:
    if any(type(part) in _NOT_TENSORS for part in parts):
        return _Mixed(tuple([part if type(part) in _NOT_TENSORS else _tensor_meta(part) for part in parts]))
    return tuple(map(_tensor_meta, parts))


def _empty(meta: TensorMeta) -> torch.Tensor:
    shape, strides, dtype = meta
    return torch.empty_strided(shape, strides, dtype=dtype, device=META)


def _tensor_meta(tensor: torch.Tensor) -> TensorMeta:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def _is_plain_meta(value: Any) -> bool:
    return type(value) is torch.Tensor and value.is_meta and value.layout == torch.strided and not value.is_conj()


def _share_no_memory(operands: list[torch.Tensor], results: tuple[torch.Tensor, ...]) -> bool:
    """Whether no result shares memory with an operand or with another result."""
    keys = [storage_key(tensor) for tensor in results]
    return len(set(keys)) == len(keys) and not set(keys) & {storage_key(tensor) for tensor in operands}
