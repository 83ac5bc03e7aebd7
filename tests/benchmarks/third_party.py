"""Models of kinds that people bring, built by the libraries they come from: `python tests/benchmarks/third_party.py`.

Each is counted as a user counts it, from its builder and live, and held against a real build and a real run of the same
model: params, trainable params, buffers, bytes of weights, shapes and dtypes of the outputs, FLOPs. The models stand in
`third_party_models`; `pyg_gat smp_unet` as arguments count these alone, `smp` all whose names begin with it. It ends
with 1 when any number differs. Needs the libraries, which the project itself never imports:

    pip install torch torchvision torchaudio transformers timm torch_geometric peft diffusers monai torchao \
        segmentation_models_pytorch open_clip_torch bitsandbytes x-transformers vit-pytorch neuraloperator e3nn \
        lightning tensordict torchdiffeq

The FLOPs of the real run are those of `torch.utils.flop_counter`, with formulas for what it lacks, each by the rule that
docs/reference/flops.md states. Recurrent layers run without oneDNN, and attention without its fused fast path, so that it sees them.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from math import ceil, log2, prod
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from third_party_models import Entry, entries  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parameter import is_lazy  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from pytest_modelbudget import summarize  # noqa: E402
from pytest_modelbudget.summary import Summary, TensorSpec  # noqa: E402

aten = torch.ops.aten
import_module("torchvision")  # it brings operators


Spec = tuple[str, tuple[int | None, ...]]
"""The dtype and the shape of an output."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What is compared; None in a shape, and FLOPs that are None, are unknown.

    Where inputs have named dimensions, `outputs` are those with each of them at 1, then those with each at 3.
    """

    params: int
    trainable: int
    buffers: int
    weight_bytes: int
    outputs: tuple[Spec, ...]
    flops: int | None


def ours(subject: object, inputs: Any, name: str) -> tuple[Numbers, Summary]:
    """The numbers of the project."""
    summary = summarize(subject, example(inputs) if callable(inputs) else inputs, name=name)
    sizes = [dict.fromkeys(dict(summary.sizes), size) for size in sizes_of(inputs)]
    outputs = tuple(
        (spec.dtype, tuple(_size(dim, known) for dim in spec.shape)) for known in sizes for spec in summary.outputs
    )
    flops = None if summary.flops.uncounted else summary.flops.value
    return Numbers(
        summary.params, summary.trainable_params, summary.buffers, summary.weight_bytes, outputs, flops
    ), summary


def _size(dim: int | str | None, sizes: Mapping[str, int]) -> int | None:
    """The size of a dimension that may be a formula of named ones (`2*T + 1`)."""
    return int(eval(dim, {"__builtins__": {}}, dict(sizes))) if isinstance(dim, str) else dim


def really(entry: Entry) -> Numbers:
    """The numbers of a real build and run."""
    model = built(entry.build)
    if any(map(is_lazy, model.parameters())):
        call(model, *arguments(entry.inputs, 1))
    weights = [*model.parameters(), *model.buffers()]
    plain = model if entry.plain is None else built(entry.plain)
    numbers = {
        "params": sum(parameter.numel() for parameter in plain.parameters()),
        "trainable": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "buffers": sum(buffer.numel() for buffer in model.buffers()),
        "weight_bytes": sum(stored(tensor) + sum(map(stored, scales(tensor))) for tensor in weights),
    }
    runs = [run(model, entry.inputs, size) for size in sizes_of(entry.inputs)]
    flops = (runs[0] if plain is model else run(plain, entry.inputs))[1]
    return Numbers(**numbers, outputs=tuple(spec for outputs, _ in runs for spec in outputs), flops=flops)


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """A model with real weights, the same at each call."""
    torch.manual_seed(0)
    model = build()
    with suppress(NotImplementedError):  # programs of torch.export have one mode alone
        model.eval()
    return model


def sizes_of(inputs: Any) -> tuple[int, ...]:
    """The sizes of named dimensions at which a model is run."""
    return (1, 3) if re.search(r"[\[,] *[A-Z]", str(inputs)) and not callable(inputs) else (1,)


def run(model: nn.Module, inputs: Any, size: int = 1) -> tuple[list[Spec], int]:
    """The tensors that a real call returns, and its FLOPs."""
    args, kwargs = arguments(inputs, size)
    model.requires_grad_(False)  # the counter follows modules by hooks for gradients
    with ExitStack() as stack:
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        counter = stack.enter_context(FlopCounterMode(display=False, custom_mapping=FORMULAS))
        out = call(model, args, kwargs)
    return [
        (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for tensor in leaves(out)
    ], counter.get_total_flops()


@torch.no_grad()
def call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the model returns."""
    return model(*args, **kwargs)


def arguments(inputs: Any, size: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Real arguments: example inputs as they are, specs with every named dimension at `size`."""
    torch.manual_seed(0)
    value = example(inputs)() if callable(inputs) else _tensors(inputs, size)
    if isinstance(value, Mapping):
        return (tuple(value["args"]), {}) if set(value) == {"args"} else ((), dict(value))
    return (tuple(value), {}) if isinstance(value, (tuple, list)) else ((value,), {})


def example(inputs: Callable[[], Any]) -> Callable[[], Any]:
    """A function that gives the same example at each call."""

    def make() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return inputs()

    return make


def _tensors(tree: Any, size: int) -> Any:
    """What specs stand for: random floats, ids of 0 and 1."""
    if isinstance(tree, Mapping):
        return {name: _tensors(item, size) for name, item in tree.items()}
    if isinstance(tree, list):
        return [_tensors(item, size) for item in tree]
    spec = TensorSpec.parse(tree)
    shape = [dim if isinstance(dim, int) else size for dim in spec.shape]
    dtype = getattr(torch, spec.dtype)
    return torch.randn(shape, dtype=dtype) if dtype.is_floating_point else torch.randint(0, 2, shape, dtype=dtype)


def leaves(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested sequences, mappings and dataclasses, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from leaves(getattr(value, field.name))


def stored(tensor: torch.Tensor) -> int:
    """Bytes of a tensor and of all that it is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(stored(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    if tensor.layout is torch.sparse_csr:
        return sum(map(stored, (tensor.crow_indices(), tensor.col_indices(), tensor.values())))
    return tensor.numel() * tensor.element_size()


def scales(weight: Any) -> list[torch.Tensor]:
    """What bitsandbytes keeps beside a weight: the scales of its rows or blocks, and the scales of those."""
    state, found = getattr(weight, "quant_state", None), [getattr(weight, "SCB", None)]
    while state is not None:
        found += [state.absmax, state.code, state.offset]
        state = state.state2
    return [tensor for tensor in found if isinstance(tensor, torch.Tensor)]


def _fft(points: int, elements: int, share: float) -> int:
    return ceil(share * elements * log2(points)) if points > 1 else 0


def _conv(data: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, *_: Any,
          out_val: Any = None, **__: Any) -> int:  # fmt: skip
    return 2 * (data if transposed else out_val).numel() * prod(weight.shape[1:]) * _real_products(data)


def _product(left: Any, right: Any, *_: Any, **__: Any) -> int:
    if {left.layout, right.layout} != {torch.strided}:
        return 2 * int((_places(left) @ _places(right)).sum())
    return 2 * left.numel() * right.shape[-1] * _real_products(left)


def _places(matrix: torch.Tensor) -> torch.Tensor:
    """Ones where a matrix stores an element."""
    if matrix.layout is torch.strided:
        return torch.ones(matrix.shape)
    indices = matrix.to_sparse_coo().coalesce().indices()
    return torch.sparse_coo_tensor(indices, torch.ones(indices.shape[1]), matrix.shape).to_dense()


def _real_products(tensor: torch.Tensor) -> int:
    """A complex multiply-add is four real ones."""
    return 4 if tensor.is_complex() else 1


def _raw(formula: Callable[..., int]) -> Callable[..., int]:
    """A formula of tensors, where torch's are of shapes."""
    formula._get_raw = True  # type: ignore[attr-defined]
    return formula


FORMULAS: dict[Any, Callable[..., int]] = {
    aten.mm: _raw(_product),
    aten.bmm: _raw(_product),
    aten.addmm: _raw(lambda bias, left, right, *_, **__: _product(left, right)),
    aten.baddbmm: _raw(lambda bias, left, right, *_, **__: _product(left, right)),
    aten.convolution: _raw(_conv),
    aten._sparse_addmm: _raw(lambda bias, left, right, *_, **__: _product(left, right)),
    aten._sparse_mm_reduce_impl: _raw(_product),
    aten.mv: lambda matrix, vector, **_: 2 * prod(matrix),
    aten.addmv: lambda bias, matrix, vector, **_: 2 * prod(matrix),
    aten.dot: lambda left, right, **_: 2 * prod(left),
    aten._int_mm: _raw(_product),
    aten._grouped_mm: _raw(lambda left, right, *_, out_val, **__: 2 * out_val.numel() * left.shape[-1]),
    aten._trilinear: lambda left, weight, right, *_, **__: 2 * left[0] * prod(weight[1:3]) * (weight[3] + 1),
    aten._cdist_forward: lambda left, right, *_, **__: 2 * prod(left) * right[-2],
    aten._euclidean_dist: lambda left, right, **_: 2 * prod(left) * right[-2],
    aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    ),
    aten._fft_r2c: lambda data, dims, *_, **__: _fft(prod(data[dim] for dim in dims), prod(data), 2.5),
    aten._fft_c2c: lambda data, dims, *_, **__: _fft(prod(data[dim] for dim in dims), prod(data), 5),
    aten._fft_c2r: lambda data, dims, *_, out_shape, **__: _fft(prod(out_shape[dim] for dim in dims), prod(out_shape), 2.5),
    torch.ops.torchvision.deform_conv2d: (
        lambda data, weight, *_, out_shape, **__: 2 * prod(out_shape) * prod(weight[1:])
    ),
}  # fmt: skip
"""What torch's counter lacks, and the products in which it does not see complex numbers."""


def differences(mine: Numbers, real: Numbers, by_values: bool) -> Iterator[str]:
    """What is not equal, as `params 5 not 6`; unknowns are let pass where values decide."""
    for name in ("params", "trainable", "buffers", "weight_bytes"):
        if getattr(mine, name) != getattr(real, name):
            yield f"{name} {getattr(mine, name):,} not {getattr(real, name):,}"
    if mine.flops != real.flops and not (by_values and mine.flops is None):
        yield f"flops {mine.flops if mine.flops is None else format(mine.flops, ',')} not {real.flops:,}"
    if len(mine.outputs) != len(real.outputs):
        yield f"{len(mine.outputs)} outputs not {len(real.outputs)}"
    for index, (one, other) in enumerate(zip(mine.outputs, real.outputs, strict=False)):
        if not _same(one, other, by_values):
            yield f"output {index} {one} not {other}"


def _same(mine: Spec, real: Spec, by_values: bool) -> bool:
    (dtype, shape), (real_dtype, real_shape) = mine, real
    return (
        dtype == real_dtype
        and len(shape) == len(real_shape)
        and all(one == other or (by_values and one is None) for one, other in zip(shape, real_shape, strict=True))
    )


def compared(entry: Entry, real: Numbers) -> Iterator[tuple[str, str, Numbers | None]]:
    """For builder and live: the way, its verdict (empty when equal), and the numbers of the project."""
    for way in ("builder", "live"):
        mine = None
        try:
            mine, summary = ours(entry.build if way == "builder" else built(entry.build), entry.inputs, entry.name)
            faults = list(differences(mine, real, entry.by_values))
            faults += [f"no formula for {dict(summary.flops.uncounted)}"] if summary.flops.uncounted else []
        except Exception as mistake:
            faults = [_text(mistake)]
        yield way, "; ".join(faults), mine


def _text(mistake: BaseException) -> str:
    return f"{type(mistake).__name__}: {' | '.join(str(mistake).splitlines())[:600]}"


def report(entry: Entry, verbose: bool) -> bool:
    """Print the lines of one model; whether all was equal."""
    begin, good = time.perf_counter(), True
    try:
        real = really(entry)
        line(entry.name, "real", real, begin, "")
        begin = time.perf_counter()
        for way, verdict, mine in compared(entry, real):
            good &= not verdict
            line("", way, mine, begin, verdict or "equal")
            begin = time.perf_counter()
    except Exception as mistake:
        good = False
        line(entry.name, "real", None, begin, _text(mistake))
        if verbose:
            traceback.print_exc()
    return good


def line(name: str, way: str, numbers: Numbers | None, begin: float, verdict: str) -> None:
    """Print one row of the table; `?` are the FLOPs that are not known."""
    shown = (
        ("", "") if numbers is None else (f"{numbers.params:,}", "?" if numbers.flops is None else f"{numbers.flops:,}")
    )
    seconds = f"{time.perf_counter() - begin:.1f} s"
    print(f"{name:28} {way:8} {shown[0]:>12} {shown[1]:>16} {seconds:>8}  {verdict}".rstrip(), flush=True)


def main() -> int:
    """Count, compare, print; 1 when anything differs."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("names", nargs="*", help="models whose names begin so, alone")
    options.add_argument("--verbose", action="store_true", help="show where a real build or run failed")
    chosen = options.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    print(f"{'model':28} {'way':8} {'params':>12} {'FLOPs':>16} {'seconds':>8}  verdict")
    models = [entry for entry in entries() if not chosen.names or entry.name.startswith(tuple(chosen.names))]
    equal = [report(entry, chosen.verbose) for entry in models]
    print(f"{len(equal)} models, {len(equal) - sum(equal)} differ")
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
