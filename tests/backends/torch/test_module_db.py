"""Every module of `torch.nn`, with torch's own samples of it, against a real build and a real call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode

from pytest_modelbudget import summarize
from pytest_modelbudget.backends.torch.model.pytree import tensors

MOST = 40
"""Samples of one module; of more, these are spread over all."""

_NOT_CALLED = """
    Container LinearCrossEntropyOptions Module ModuleDict ModuleList NLLLoss2d ParameterDict ParameterList RNNBase
    RNNCellBase
"""
NOT_CALLED = frozenset(_NOT_CALLED.split())
"""Bases, holders of others, options, and a name that torch gave up: they have no forward of their own."""

DTYPES = {"FractionalMaxPool2d": torch.float64, "FractionalMaxPool3d": torch.float64}
"""Modules whose samples torch makes for one dtype: these bring random numbers in double."""

X, IMAGE = (2, 4, 6), (2, 4, 6, 6)


def image() -> torch.Tensor:
    return torch.rand(IMAGE)


def pooled(dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What `MaxPool` makes for `MaxUnpool`: the largest numbers, and where they were."""
    pool = getattr(nn, f"MaxPool{dims}d")(2, return_indices=True)
    values, places = pool(torch.rand(2, 3, *(4,) * dims))
    return values, places


OWN: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]] = {
    "AdaptiveLogSoftmaxWithLoss": (lambda: nn.AdaptiveLogSoftmaxWithLoss(8, 20, [5, 10]), lambda: (torch.rand(3, 8), torch.tensor([1, 7, 15]))),
    "AlphaDropout": (nn.AlphaDropout, lambda: (torch.rand(X),)),
    "ChannelShuffle": (lambda: nn.ChannelShuffle(2), lambda: (image(),)),
    "CosineSimilarity": (nn.CosineSimilarity, lambda: (torch.rand(X), torch.rand(X))),
    "CrossMapLRN2d": (lambda: nn.CrossMapLRN2d(2), lambda: (image(),)),
    "Dropout": (nn.Dropout, lambda: (torch.rand(X),)),
    "Dropout1d": (nn.Dropout1d, lambda: (torch.rand(X),)),
    "Dropout2d": (nn.Dropout2d, lambda: (image(),)),
    "Dropout3d": (nn.Dropout3d, lambda: (torch.rand(2, 3, 4, 4, 4),)),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(9, 3, mode="max"), lambda: (torch.tensor([1, 2, 4, 5]), torch.tensor([0, 3]))),
    "FeatureAlphaDropout": (nn.FeatureAlphaDropout, lambda: (image(),)),
    "Flatten": (nn.Flatten, lambda: (image(),)),
    "Fold": (lambda: nn.Fold((4, 5), 2), lambda: (torch.rand(1, 12, 12),)),
    "Hardsigmoid": (nn.Hardsigmoid, lambda: (torch.rand(X),)),
    "Identity": (nn.Identity, lambda: (torch.rand(X),)),
    "LazyBatchNorm1d": (nn.LazyBatchNorm1d, lambda: (torch.rand(X),)),
    "LazyBatchNorm2d": (nn.LazyBatchNorm2d, lambda: (image(),)),
    "LazyBatchNorm3d": (nn.LazyBatchNorm3d, lambda: (torch.rand(2, 3, 4, 4, 4),)),
    "LazyInstanceNorm1d": (lambda: nn.LazyInstanceNorm1d(affine=True), lambda: (torch.rand(X),)),
    "LazyInstanceNorm2d": (lambda: nn.LazyInstanceNorm2d(affine=True), lambda: (image(),)),
    "LazyInstanceNorm3d": (lambda: nn.LazyInstanceNorm3d(affine=True), lambda: (torch.rand(2, 3, 4, 4, 4),)),
    "LazyLinear": (lambda: nn.LazyLinear(5), lambda: (torch.rand(X),)),
    "MaxUnpool1d": (lambda: nn.MaxUnpool1d(2), lambda: pooled(1)),
    "MaxUnpool2d": (lambda: nn.MaxUnpool2d(2), lambda: pooled(2)),
    "MaxUnpool3d": (lambda: nn.MaxUnpool3d(2), lambda: pooled(3)),
    "PairwiseDistance": (nn.PairwiseDistance, lambda: (torch.rand(X), torch.rand(X))),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), lambda: (image(),)),
    "PixelUnshuffle": (lambda: nn.PixelUnshuffle(2), lambda: (image(),)),
    "RReLU": (nn.RReLU, lambda: (torch.rand(X),)),
    "Sequential": (lambda: nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 2)), lambda: (torch.rand(X),)),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(4), lambda: (image(),)),
    "TransformerDecoder": (lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(6, 2, 8), 2), lambda: (torch.rand(X), torch.rand(X))),
    "TripletMarginLoss": (nn.TripletMarginLoss, lambda: (torch.rand(X), torch.rand(X), torch.rand(X))),
    "TripletMarginWithDistanceLoss": (nn.TripletMarginWithDistanceLoss, lambda: (torch.rand(X), torch.rand(X), torch.rand(X))),
    "Unflatten": (lambda: nn.Unflatten(1, (2, 2)), lambda: (torch.rand(X),)),
    "Unfold": (lambda: nn.Unfold(2), lambda: (image(),)),
    "Upsample": (lambda: nn.Upsample(scale_factor=1.5, mode="bicubic"), lambda: (image(),)),
    "UpsamplingBilinear2d": (lambda: nn.UpsamplingBilinear2d(scale_factor=2), lambda: (image(),)),
    "UpsamplingNearest2d": (lambda: nn.UpsamplingNearest2d((9, 11)), lambda: (image(),)),
}  # fmt: skip
"""A sample of each module that torch has none of."""

SAMPLED = sorted(set(nn.modules.__all__) - NOT_CALLED - set(OWN))


@pytest.fixture(scope="module")
def samples() -> Mapping[str, Any]:
    """The `ModuleInfo`s of torch, by the name of their class; to import them takes seconds."""
    patch = pytest.MonkeyPatch()
    with patch.context() as kept:  # the import would forbid this process to set flags, for good
        kept.setattr(torch.backends, "disable_global_flags", lambda: None)
        from torch.testing._internal.common_modules import module_db
    return {info.module_cls.__name__: info for info in module_db}


Numbers = tuple[int, int, list[tuple[int, ...]], int, tuple[Any, ...]]
"""Params, buffers, shapes of the outputs, FLOPs, and what was not counted."""


@contextmanager
def _no_hidden_products() -> Iterator[FlopCounterMode]:
    """Only kernels that torch's counter sees: no fast path, no attention in one, no recurrent layer in one."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.backends.mkldnn.flags(enabled=False),
            sdpa_kernel(SDPBackend.MATH),
            torch.no_grad(),
            FlopCounterMode(display=False) as counter,
        ):
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _really(module: nn.Module, args: Any, kwargs: Any) -> Numbers:
    module.eval()
    with _no_hidden_products() as counter:
        out = module(*args, **kwargs)
    flops = _by_formula(module, args)
    params, buffers = (sum(tensor.numel() for tensor in held) for held in (module.parameters(), module.buffers()))
    shapes = [tuple(tensor.shape) for tensor in tensors(out)]
    return params, buffers, shapes, counter.get_total_flops() if flops is None else flops, ()


def _by_formula(module: nn.Module, args: Any) -> int | None:
    """FLOPs where the counter of torch has no formula; None where it is right."""
    if isinstance(module, nn.RNNBase):  # each step multiplies its input and its state with all matrices
        steps = args[0].data if isinstance(args[0], PackedSequence) else args[0]
        return 2 * prod(steps.shape[:-1]) * sum(weight.numel() for weight in module.parameters() if weight.ndim == 2)
    if isinstance(module, nn.Bilinear):  # x1 W for each output, and its product with x2
        outputs, first, second = module.weight.shape
        return 2 * prod(args[0].shape[:-1]) * outputs * second * (first + 1)
    if hasattr(nn, "LinearCrossEntropyLoss") and isinstance(module, nn.LinearCrossEntropyLoss):  # the logits
        return 2 * prod(args[0].shape) * module.num_classes * prod(module.out_features)
    return None


def _counted(model: object, example: Any) -> Numbers | str:
    """What is counted with the arguments as example inputs."""
    try:
        summary = summarize(model, lambda: example, name="model")
    except Exception as mistake:
        return f"{type(mistake).__name__}: {mistake}"
    shapes = [tuple(spec.shape) for spec in summary.outputs]
    return summary.params, summary.buffers, shapes, summary.flops.value, summary.flops.uncounted  # type: ignore[return-value]


def _differences(build: Callable[[], nn.Module], args: Any, kwargs: Any) -> list[tuple[str, Any, Any]]:
    """What is counted otherwise than it is, of the model from its builder and of a live one."""
    module = build()
    example = inspect.signature(module.forward).bind(*args, **kwargs).arguments if kwargs else args
    right = _really(module, args, kwargs)
    counted = {"builder": _counted(build, example), "live": _counted(build(), example)}
    return [(how, numbers, right) for how, numbers in counted.items() if numbers != right]


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLED)
def test_samples_of_torch(name: str, samples: Mapping[str, Any]) -> None:
    """Params, buffers, shapes of outputs and FLOPs are those of a real build and call, in all samples."""
    info = samples[name]
    dtype = DTYPES.get(name, torch.float32)
    torch.manual_seed(0)
    made = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=False)
    called = [sample for sample in made if sample.forward_input is not None]
    assert called
    for sample in called[:: -(-len(called) // MOST)]:
        init, call = sample.constructor_input, sample.forward_input

        def build(init: Any = init) -> nn.Module:
            return info.module_cls(*init.args, **init.kwargs)  # type: ignore[no-any-return]

        assert _differences(build, call.args, call.kwargs) == [], (init.args, init.kwargs, sample.desc)


@pytest.mark.parametrize("name", OWN)
def test_modules_without_samples(name: str) -> None:
    """The other modules of `torch.nn` are counted as they are, too."""
    build, example = OWN[name]
    assert _differences(build, example(), {}) == []
