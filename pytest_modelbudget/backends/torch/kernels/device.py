"""Tensors on the meta device, run as another device would run them: its kernels, and autocast.

On the meta device torch takes the way of an unknown device and ignores autocast. What changes memory is put right
here, above autograd, so that the backward pass follows by itself:

- CUDA: dropout keeps a mask of one byte an element (`native_dropout`); attention runs as flash attention (half
  precision, no mask, heads of up to 256) or as memory-efficient attention (masks and float32; heads in steps of 8, or
  of 4 in float32), else unfused: the choice that torch makes on devices of compute capability 8.0 and above, among the
  kernels that `torch.backends.cuda` allows.
- autocast: what `torch.autocast` is documented to cast on the device, with its cache of cast weights.

Operators that torch calls from C++ inside of others are not seen; where one matters it is listed by its caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.compat import TracedTensor, tree_map_only
from pytest_modelbudget.backends.torch.kernels.attention import additive_mask
from pytest_modelbudget.backends.torch.kernels.autocast_lists import casts_on, functions_named

_READING_HALF = "cumprod cumsum prod sum softmax log_softmax"  # on CUDA read half precision and write float32
_GUESSED_VALUES = {
    torch.Tensor.item: 1.0,
    torch.Tensor.__float__: 1.0,
    torch.Tensor.__int__: 1,
    torch.Tensor.__bool__: True,
}
_SCALARS = frozenset({int, float, bool, str, type(None), torch.dtype})
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class DeviceKernels(TorchFunctionMode):  # type: ignore[misc]
    """Inside, functions of torch run as on a device, and under autocast where it is on (for whatever device).

    `keeps_casts` says whether casts of weights are kept, `guessing` whether a value that is asked for is made up, and
    `on_cast` is told of every copy that is kept. torch leaves the mode while it runs a backward pass: blocks that are
    recomputed there need it entered again.
    """

    def __init__(self, cuda: bool) -> None:
        super().__init__()
        self.cuda = cuda
        self._listed = casts_on(cuda)
        self._typed = functions_named(_READING_HALF) if cuda else frozenset()
        self._casting = self._listed.to_half | self._listed.to_float32 | self._typed
        self._rules: dict[Any, Callable[..., Any]] = {**_RULES, **(_CUDA_RULES if cuda else {})}
        self._cast: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.on_cast: Callable[[torch.Tensor], None] = lambda tensor: None
        self.keeps_casts = True
        self._casts = True
        self.guessing = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.guessing and func in _GUESSED_VALUES and args[0].is_meta:
            return _GUESSED_VALUES[func]  # what optimizers and losses do with a value changes no memory
        if self.guessing and isinstance(factor := kwargs.get("alpha"), torch.Tensor) and factor.is_meta:
            kwargs = {**kwargs, "alpha": 1.0}
        if func is functional.multi_head_attention_forward:
            return self._run_python_body(func, args, kwargs)
        if self._casts and func in self._casting and (dtype := autocast_dtype()) is not None:
            if func in self._listed.to_half:
                args, kwargs = self._cast_all(dtype, args), self._cast_all(dtype, kwargs)
            elif func in self._listed.to_float32:
                args, kwargs = self._cast_all(torch.float32, args), self._cast_all(torch.float32, kwargs)
            elif args and _is_half(args[0]):
                kwargs = {**kwargs, "dtype": kwargs.get("dtype") or torch.float32}  # functional.softmax says None
        if (rule := self._rules.get(func)) is not None and (out := rule(*args, **kwargs)) is not NotImplemented:
            return out
        return func(*args, **kwargs)

    @contextmanager
    def autocast(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Inside, autocast to `dtype` is on, None for off; copies of weights are kept until it ends.

        The CPU's flag stands for the device's: it is the one that recomputed blocks find again in the backward pass.
        """
        saved = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        try:
            if dtype is not None:
                torch.set_autocast_dtype("cpu", dtype)
            torch.set_autocast_enabled("cpu", dtype is not None)
            yield
        finally:
            torch.set_autocast_enabled("cpu", saved[0])
            torch.set_autocast_dtype("cpu", saved[1])
            self._cast.clear()

    @contextmanager
    def traced(self) -> Iterator[None]:
        """Inside, tensors are fake ones on the CPU, for which torch knows autocast: it casts what a CPU does.

        What CUDA does is cast here, anew each time, as torch traces it.
        """
        enabled, saved = torch.is_autocast_enabled("cpu"), (self._casts, self.keeps_casts)
        cuda = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        self._casts, self.keeps_casts = self.cuda, False
        if self.cuda and enabled:
            torch.set_autocast_dtype("cuda", torch.get_autocast_dtype("cpu"))
            torch.set_autocast_enabled("cuda", True)
            torch.set_autocast_enabled("cpu", False)
        try:
            yield
        finally:
            self._casts, self.keeps_casts = saved
            torch.set_autocast_enabled("cpu", enabled)
            torch.set_autocast_enabled("cuda", cuda[0])
            torch.set_autocast_dtype("cuda", cuda[1])

    @contextmanager
    def no_autocast(self) -> Iterator[None]:
        """Inside, autocast is off, and its copies of weights are let go of, as when a block of autocast ends."""
        self._cast.clear()
        enabled = torch.is_autocast_enabled("cpu")
        torch.set_autocast_enabled("cpu", False)
        try:
            yield
        finally:
            torch.set_autocast_enabled("cpu", enabled)

    def add_rules(self, rules: Mapping[Any, Callable[..., Any]]) -> None:
        """Functions with what is to run in their place; it gives NotImplemented to leave it to the function."""
        self._rules.update(rules)

    def _run_python_body(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run the body of a function of torch's that is written in Python, with what it calls seen as well."""
        module: Any = functional
        original = module.has_torch_function
        first = True

        def only_inside(relevant: Any) -> bool:
            nonlocal first
            is_first, first = first, False
            return False if is_first else bool(original(relevant))

        with patched(module, "has_torch_function", only_inside), self:
            return func(*args, **kwargs)

    def _cast_all(self, dtype: torch.dtype, values: Any) -> Any:
        """`values` with its tensors converted; tuples, lists and mappings without the registry, which is slow."""
        kind = type(values)
        if kind in (tuple, list):
            return kind([self._cast_all(dtype, value) for value in values])
        if kind is dict:
            return {key: self._cast_all(dtype, value) for key, value in values.items()}
        if isinstance(values, torch.Tensor):
            return self._convert(values, dtype)
        if kind in _SCALARS:
            return values
        return tree_map_only(torch.Tensor, lambda tensor: self._convert(tensor, dtype), values)

    def _convert(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if tensor.dtype is dtype or tensor.dtype not in _FLOATS:
            return tensor
        is_weight = tensor.is_leaf and tensor.requires_grad and not tensor._is_view()
        if not (self.keeps_casts and is_weight and tensor.dtype is torch.float32):
            return tensor.to(dtype)
        if (entry := self._cast.get(id(tensor))) is None:
            entry = self._cast[id(tensor)] = tensor, tensor.to(dtype)
            self.on_cast(entry[1])
        return entry[1]


@contextmanager
def autocast_asked_of_cuda() -> Iterator[None]:
    """Inside, `torch.is_autocast_enabled()` of no device, which asks for CUDA, is the flag that stands for it."""
    original = torch.is_autocast_enabled
    with patched(torch, "is_autocast_enabled", lambda *device: original(*(device or ("cpu",)))):
        yield


def autocast_dtype() -> torch.dtype | None:
    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            dtype: torch.dtype = torch.get_autocast_dtype(kind)
            return dtype
    return None


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    """`torch.nn.functional.linear`, which adds the bias in place to a product of many dimensions.

    While it is watched torch adds it out of place.
    """
    is_plain = type(input) is torch.Tensor and type(bias) in (torch.Tensor, torch.nn.Parameter)
    if not is_plain or not input.is_meta or input.dim() < 3 or input.is_contiguous():
        return torch._C._nn.linear(input, weight, bias)
    out: torch.Tensor = torch.matmul(input, weight.t())
    return out.add_(bias)


class _Mish(torch.autograd.Function):  # type: ignore[misc]
    """Mish with the gradient of devices, which is one kernel; meta has none, and torch takes it apart above them."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(input)
        out: torch.Tensor = torch.ops.aten.mish(input)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (input,) = ctx.saved_tensors
        return torch.empty_like(input)


def _mish(input: torch.Tensor, inplace: bool = False) -> Any:
    if inplace or type(input) is not torch.Tensor or not input.is_meta or not input.requires_grad:
        return NotImplemented
    return _Mish.apply(input)


def _dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if inplace or not training or not 0 < p < 1 or not input.is_meta or not input.numel():
        return NotImplemented
    return torch.native_dropout(input, p, True)[0]


def _dropout_function(input: torch.Tensor, p: float, train: bool) -> Any:
    return _dropout(input, p, train)


def fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention with CUDA's kernel; NotImplemented where that is the unfused one without dropout, and off meta."""
    if not (query.is_meta or isinstance(query, TracedTensor)) or query.dtype not in _FLOATS:
        return NotImplemented
    if query.dim() != 4 and not dropout_p:  # fused kernels of CUDA take nothing else
        return NotImplemented
    if query.dim() != 4:
        return _unfused_attention(query, key, value, attn_mask, dropout_p, is_causal)
    size, half = query.shape[-1], query.dtype is not torch.float32
    grouped = enable_gqa and query.shape[1] != key.shape[1]
    allowed = torch.backends.cuda
    if half and attn_mask is None and size <= 256 and value.shape[-1] == size and allowed.flash_sdp_enabled():
        return _flash_attention(query, key, value, dropout_p, is_causal, scale)
    step = 8 if half else 4
    if not (grouped or size % step or value.shape[-1] % step) and allowed.mem_efficient_sdp_enabled():
        return _efficient_attention(query, key, value, attn_mask, dropout_p, is_causal, scale)
    if not dropout_p:
        return NotImplemented
    groups = query.shape[1] // key.shape[1] if grouped else 1
    key, value = (tensor.repeat_interleave(groups, 1) if groups > 1 else tensor for tensor in (key, value))
    return _unfused_attention(query, key, value, attn_mask, dropout_p, is_causal)


def _flash_attention(
    query: Any, key: Any, value: Any, dropout: float, causal: bool, scale: float | None
) -> torch.Tensor:
    size = query.shape[-1]
    if missing := -size % 8:
        query, key, value = (functional.pad(tensor, (0, missing)) for tensor in (query, key, value))
    scale = size**-0.5 if scale is None else scale
    out = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, scale=scale)[0]
    result: torch.Tensor = out[..., :size] if missing else out
    return result


def _efficient_attention(
    query: Any, key: Any, value: Any, mask: torch.Tensor | None, dropout: float, causal: bool, scale: float | None
) -> torch.Tensor:
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    if mask is not None:
        mask = _padded_mask(mask.to(query.device), query, key)
    out = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, needs_gradient, dropout, causal, scale=scale
    )
    result: torch.Tensor = out[0]
    return result


def _unfused_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float, causal: bool
) -> torch.Tensor:
    """As `_scaled_dot_product_attention_math`, in float32, but with CUDA's dropout."""
    dtype, rows, columns = query.dtype, query.shape[-2], key.shape[-2]
    query, key, value = (tensor.to(torch.float32) for tensor in (query, key, value))
    if causal:
        mask = torch.ones(rows, columns, dtype=torch.bool, device="meta").tril()
    scores = torch.matmul(query * 1.0, key.transpose(-2, -1) * 1.0)
    if mask is not None:
        scores = scores.add_(additive_mask(mask.to(query.device), query.dtype))
    weights = torch.native_dropout(torch.ops.aten._safe_softmax(scores, -1), dropout, True)[0]
    out: torch.Tensor = torch.matmul(weights, value).to(dtype)
    return out


def _padded_mask(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """A mask as the kernel reads it: floats, rows padded to a multiple of 16 elements."""
    mask = additive_mask(mask, query.dtype)
    width = mask.shape[-1]
    if missing := -width % 16:
        mask = functional.pad(mask, (0, missing))[..., :width]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)


def _softmax_to_float32(kernel: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """Softmax of half precision in float32: CUDA's kernel reads one and writes the other."""

    def rule(input: torch.Tensor, dim: int | None = None, *args: Any, dtype: Any = None, **kwargs: Any) -> Any:
        dtype = dtype or next((arg for arg in args if isinstance(arg, torch.dtype)), None)
        if dtype is not torch.float32 or not _is_half(input) or not input.is_meta or not isinstance(dim, int):
            return NotImplemented
        return kernel(input, dim, True)

    return rule


def _grad(outputs: Any, inputs: Any, grad_outputs: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Gradients inside a model, as penalties of them need: ones like an output are constants with values here."""
    if grad_outputs is None:
        return NotImplemented
    on_meta = any(tensor.is_meta for tensor in _listed(outputs))
    given = [_to_meta(tensor) if on_meta else tensor for tensor in _listed(grad_outputs)]
    return torch.autograd.grad(outputs, inputs, given, *args, **kwargs)


def _listed(values: Any) -> Sequence[Any]:
    return [values] if isinstance(values, torch.Tensor) else values


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) and not value.is_meta else value


def _stft(input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """A short-time Fourier transform, which asks that its window, a constant, is where the signal is."""
    values = (*args, *kwargs.values())
    if not input.is_meta or not any(isinstance(value, torch.Tensor) and not value.is_meta for value in values):
        return NotImplemented
    return torch.stft(input, *map(_to_meta, args), **{name: _to_meta(value) for name, value in kwargs.items()})


_RULES: Mapping[Any, Callable[..., Any]] = {
    functional.linear: linear,
    functional.mish: _mish,
    torch.autograd.grad: _grad,
    torch.stft: _stft,
}
_CUDA_RULES: Mapping[Any, Callable[..., Any]] = {
    functional.dropout: _dropout,
    torch.dropout: _dropout_function,
    functional.scaled_dot_product_attention: fused_attention,
    **dict.fromkeys((functional.softmax, torch.softmax, torch.Tensor.softmax), _softmax_to_float32(torch._softmax)),
    **dict.fromkeys(
        (functional.log_softmax, torch.log_softmax, torch.Tensor.log_softmax), _softmax_to_float32(torch._log_softmax)
    ),
}
