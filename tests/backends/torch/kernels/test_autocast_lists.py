"""What autocast casts on a CPU: dtypes on the meta device are those of torch's own autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels

ON_MATRICES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "layer_norm": lambda x: F.layer_norm(x, (8,)),
    "group_norm": lambda x: F.group_norm(x, 2),
    "softmax": lambda x: x.softmax(-1),
    "matmul": lambda x: x @ x,
    "mv": lambda x: torch.mv(x, x[0]),
    "pow": lambda x: x**2,
    "exp": torch.exp,
    "log": lambda x: x.abs().log(),
    "softplus": F.softplus,
    "normalize": F.normalize,
    "norm": torch.norm,
    "prod": torch.prod,
    "cumsum": lambda x: x.cumsum(-1),
    "cdist": lambda x: torch.cdist(x, x),
    "mse_loss": lambda x: F.mse_loss(x, x),
    "huber_loss": lambda x: F.huber_loss(x, x),
    "binary_cross_entropy_with_logits": lambda x: F.binary_cross_entropy_with_logits(x, x),
    "cross_entropy": lambda x: F.cross_entropy(x, torch.zeros(8, dtype=torch.int64, device=x.device)),
    "grid_sample": lambda x: F.grid_sample(x[None, None], x[None, :, :2, None].mT, align_corners=False),
    "avg_pool3d": lambda x: F.avg_pool3d(x[None, None], (1, 2, 2)),
    "max_pool3d": lambda x: F.max_pool3d(x[None, None], (1, 2, 2)),
    "rfft": torch.fft.rfft,
    "inverse": torch.inverse,
    "linear": lambda x: F.linear(x, x),
    "prelu": lambda x: F.prelu(x, x[0, :1]),
    "gelu": F.gelu,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_have_the_dtype_of_torchs_own_autocast(dtype: torch.dtype) -> None:
    """For operands of either precision; torch's own runs on values."""
    kernels = DeviceKernels(cuda=False)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        expected = {name: dtype_of(run, torch.randn(8, 8, dtype=dtype)) for name, run in ON_MATRICES.items()}
    with kernels, kernels.autocast(torch.bfloat16):
        dtypes = {
            name: dtype_of(run, torch.empty(8, 8, dtype=dtype, device="meta")) for name, run in ON_MATRICES.items()
        }
    assert dtypes == expected


def dtype_of(run: Callable[[torch.Tensor], Any], matrix: torch.Tensor) -> torch.dtype:
    return run(matrix).dtype  # type: ignore[no-any-return]
