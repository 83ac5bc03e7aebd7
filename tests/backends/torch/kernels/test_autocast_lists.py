"""What autocast casts: dtypes on the meta device are those of torch's own autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
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
    "tensordot": lambda x: torch.tensordot(x, x, 1),
    "bilinear": lambda x: F.bilinear(x, x, x[None]),
    "vecdot": lambda x: torch.linalg.vecdot(x, x),
    "solve": lambda x: torch.linalg.solve(x, x),
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


@pytest.mark.parametrize("name", ["tensordot", "vecdot", "mv", "bilinear"])
def test_products_on_cuda_have_the_dtype_of_torchs_own_autocast(name: str) -> None:
    """Which is that of fake tensors there."""
    run, kernels, before = ON_MATRICES[name], DeviceKernels(cuda=True), torch.get_autocast_dtype("cuda")
    with FakeTensorMode():
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            expected = dtype_of(run, torch.empty(8, 8, device="cuda"))
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.set_autocast_dtype("cuda", before)
    with kernels, kernels.autocast(torch.bfloat16):
        assert dtype_of(run, torch.empty(8, 8, device="meta")) == expected


def dtype_of(run: Callable[[torch.Tensor], Any], matrix: torch.Tensor) -> torch.dtype:
    return run(matrix).dtype  # type: ignore[no-any-return]
