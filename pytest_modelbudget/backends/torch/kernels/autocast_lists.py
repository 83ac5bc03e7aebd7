"""What autocast casts, by device: the lists of `torch.amp` ("CUDA Op-Specific Behavior", "CPU Op-Specific Behavior").

Those of a CPU are shorter: norms, powers and exponentials run in half precision there. Functions that call no listed
one but are decomposed by torch (`linalg.norm`, reflecting and replicating `pad`) are not listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn import functional

_NAMESPACES = (torch, torch.Tensor, functional, torch._C._nn, torch.linalg, torch.special, torch._VF, torch.fft)

_TO_HALF = """__matmul__ __rmatmul__ addbmm addmm baddbmm bmm chain_matmul multi_dot conv1d conv2d conv3d
conv_transpose1d conv_transpose2d conv_transpose3d linear lstm_cell matmul mm prelu rnn_tanh_cell
rnn_relu_cell einsum scaled_dot_product_attention conv_tbc rnn_tanh rnn_relu lstm vecdot"""
_TO_HALF_ON_CUDA = "addmv addr gru gru_cell mv"
_TO_HALF_ON_CPU = "tensordot"

_TO_FLOAT32 = """binary_cross_entropy_with_logits cdist cosine_embedding_loss cross_entropy hinge_embedding_loss
kl_div l1_loss margin_ranking_loss mse_loss multilabel_margin_loss multi_margin_loss nll_loss poisson_nll_loss
smooth_l1_loss soft_margin_loss triplet_margin_loss"""
_TO_FLOAT32_ON_CUDA = """__pow__ __rdiv__ __rpow__ __rtruediv__ acos asin cosh cosine_similarity dist erfinv exp expm1
group_norm layer_norm log log10 log1p log2 logsumexp norm normalize pdist pow reciprocal rms_norm rsqrt sinh softmin
softplus renorm tan"""
_TO_FLOAT32_ON_CPU = """adaptive_avg_pool3d adaptive_max_pool3d avg_pool3d binary_cross_entropy cholesky cholesky_ex
ctc_loss eigh eigvalsh fft fft2 fftn grid_sample huber_loss ifft ifft2 ifftn inv inv_ex inverse irfft irfft2 irfftn
max_pool3d max_unpool2d max_unpool3d nanquantile pinverse polar prod qr quantile rfft rfft2 rfftn solve stft svd svdvals
trace view_as_complex"""


@dataclass(frozen=True, slots=True)
class Casts:
    """Functions of torch that cast their tensors under autocast: those to half precision, and those to float32."""

    to_half: frozenset[Any]
    to_float32: frozenset[Any]


@cache
def casts_on(cuda: bool) -> Casts:
    """What autocast casts on CUDA, or on a CPU."""
    half, float32 = (_TO_HALF_ON_CUDA, _TO_FLOAT32_ON_CUDA) if cuda else (_TO_HALF_ON_CPU, _TO_FLOAT32_ON_CPU)
    return Casts(functions_named(f"{_TO_HALF} {half}"), functions_named(f"{_TO_FLOAT32} {float32}"))


def functions_named(names: str) -> frozenset[Any]:
    """The functions of these names, wherever torch offers them."""
    candidates = (getattr(namespace, name, None) for namespace in _NAMESPACES for name in names.split())
    return frozenset(function for function in candidates if callable(function))
