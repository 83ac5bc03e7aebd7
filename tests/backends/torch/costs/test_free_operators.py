"""Every operator of the installed torch has a rule, or is listed as one without."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao import quantization

from pytest_modelbudget.backends.costs.free.torch import PRIMS, ZERO
from pytest_modelbudget.backends.torch.costs.rules import cost_of
from pytest_modelbudget.summary import Flops, Summary
from tests.versions import since

Count = Callable[..., Summary]

_FACTORISATIONS = """
    _linalg_det _linalg_eigh _linalg_eigvals _linalg_slogdet _linalg_solve_ex _linalg_svd cholesky_inverse geqrf
    linalg_cholesky_ex linalg_eig linalg_householder_product linalg_inv_ex linalg_ldl_factor_ex linalg_lstsq linalg_lu
    linalg_lu_factor_ex linalg_matrix_exp linalg_matrix_sqrth linalg_pinv linalg_polar linalg_qr ormqr svd cholesky
"""
_SPARSE = """
    _sparse_mm_reduce_impl_backward _spsolve _cslt_sparse_mm_search
"""
_KERNELS_OF_DEVICES = """
    _cudnn_attention_forward _cudnn_attention_forward_no_dropout_inplace _cudnn_attention_backward _cudnn_rnn_backward
    _flash_attention_forward_no_dropout_inplace
    _scaled_dot_product_fused_attention_overrideable_backward _slow_conv2d_backward
    _triton_multi_head_attention convolution_backward_overrideable linear_backward lstm_mps_backward matmul_backward
    miopen_rnn_backward mkldnn_linear_backward mkldnn_linear_backward_input mkldnn_linear_backward_weights
    mkldnn_rnn_layer_backward mps_convolution_backward mps_convolution_transpose_backward
"""
_TESTS_OF_TORCH = """
    _foobar _test_autograd_multiple_dispatch _test_functorch_fallback _test_optional_filled_intlist
    _test_optional_floatlist _test_optional_intlist _test_parallel_materialize _test_warn_in_autograd
"""

UNCOUNTED = frozenset(" ".join((_FACTORISATIONS, _SPARSE, _KERNELS_OF_DEVICES, _TESTS_OF_TORCH)).split())
"""Names of the `aten` and `prims` operators that may hide products: each makes the total a lower bound."""


def _overloads(space: str) -> dict[str, list[Any]]:
    """The operators of a namespace by their names, without those made of others, and those that write into `out`."""
    found = defaultdict(list)
    for name in torch._C._dispatch_get_all_op_names():
        if not name.startswith(f"{space}::"):
            continue
        base, _, overload = name.removeprefix(f"{space}::").partition(".")
        packet = getattr(getattr(torch.ops, space), base, None)
        if packet is None or not hasattr(packet, overload or "default"):
            continue  # of TorchScript alone
        func = getattr(packet, overload or "default")
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
        if not composite and not any(argument.is_out for argument in func._schema.arguments):
            found[base].append(func)
    return found


@pytest.mark.parametrize("space", ["aten", "prims"])
def test_every_operator_has_a_rule_or_is_listed(space: str) -> None:
    """An operator that a release of torch adds is not taken for free: it has to be entered in a table first."""
    operators = _overloads(space)
    assert len(operators) > 100
    without = {
        base
        for base, overloads in operators.items()
        if any((price := cost_of(func)).formula is None and not price.known for func in overloads)
    }
    assert without - UNCOUNTED == set()


def test_what_is_listed_has_no_rule() -> None:
    """The tables do not overlap."""
    assert not UNCOUNTED & (ZERO | PRIMS)
    operators = _overloads("aten")
    counted = {
        base
        for base in UNCOUNTED & set(operators)
        if all((price := cost_of(func)).formula is not None or price.known for func in operators[base])
    }
    assert counted == set()


_WORDS = "mm matmul conv linear solve rnn lstm bmm attention fft dot einsum cdist pdist bilinear cholesky svd qr eig"
_INNOCENT = """
    bilinear trilinear linear1d weight convert flatten reorder sqrt rsqrt sdp_choice lstm_cell per_sample fftfreq
    rfftfreq gamma hamming cummax cummin dummy
"""


def test_no_operator_that_multiplies_matrices_is_free() -> None:
    """What looks like a product, a solver or a convolution by its name is not zero by rule."""
    operators = _overloads("aten")
    known = [base for base in operators if any(word in base for word in _WORDS.split())]
    known = [base for base in known if not any(word in base for word in _INNOCENT.split())]
    assert len(known) > 80
    free = {base for base in known for func in operators[base] if _is_free(func)}
    assert free == set()


def _is_free(func: Any) -> bool:
    price = cost_of(func)
    return price.known and price.formula is None


class Call(nn.Module):
    """A module of one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


def _observed() -> nn.Module:
    """A linear layer as quantisation-aware training prepares it: observers before and after."""
    layer = nn.Sequential(
        quantization.FusedMovingAvgObsFakeQuantize(), nn.Linear(4, 3), quantization.FakeQuantize(),
        quantization.HistogramObserver(), quantization.PerChannelMinMaxObserver(),
    )  # fmt: skip
    return layer.train()


def _prepared() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    quantization.fuse_modules_qat(model, [["0", "1", "2"]], inplace=True)
    prepared: nn.Module = quantization.prepare_qat(model)
    return prepared


@pytest.mark.parametrize(
    ("build", "spec", "products"),
    [
        pytest.param(_observed, "float32[B, 4]", 4 * 3, id="observers and fake quantisation"),
        pytest.param(
            _prepared, "float32[B, 3, 6, 6]", 4 * 16 * 27 + 64 * 2, id="prepared for training",
            marks=since("torch", "2.7", "before, torch prepares no modules on the meta device"),
        ),
    ],
)  # fmt: skip
def test_observers_cost_nothing(build: Callable[[], nn.Module], spec: str, products: int, count: Count) -> None:
    """What quantisation-aware training adds to a layer takes nothing that is counted, and hides nothing."""
    assert count(build, spec, B=2).flops == Flops(2 * 2 * products)


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        pytest.param(torch.histc, ["float32[5, 3]"], id="histogram"),
        pytest.param(lambda x: torch.histogramdd(x, [3, 3, 3])[0], ["float32[5, 3]"], id="histogram of vectors"),
        pytest.param(
            lambda x: F.ctc_loss(x.log_softmax(-1), torch.tensor([[1, 2]] * 3), (5,) * 3, (2,) * 3),
            ["float32[5, 3, 4]"],
            id="CTC loss",
        ),
        pytest.param(lambda x: torch._foreach_add([x, x], 1)[0], ["float32[3]"], id="on lists of tensors"),
        pytest.param(
            lambda x: torch.permute_copy(x, (1, 0)) + torch.unsqueeze_copy(x, 0)[0], ["float32[3, 3]"], id="copied views"
        ),
        pytest.param(lambda x: torch.distributions.Dirichlet(x.exp()).sample(), ["float32[4]"], id="sampling"),
        pytest.param(
            lambda x: F.grid_sample(x, F.affine_grid(torch.eye(2, 3)[None], [1, 1, 5, 5])), ["float32[1, 1, 4, 4]"],
            id="resampling",
        ),
        pytest.param(torch.ops.prims.erf_inv, ["float32[4]"], id="an operator of prims"),
    ],
)  # fmt: skip
def test_what_has_no_product_is_free(function: Callable[..., Any], inputs: list[str], count: Count) -> None:
    """Losses, histograms, randomness, moves: nothing is counted, and nothing left uncounted."""
    assert count(lambda: Call(function), inputs).flops == Flops(0)


class Forces(nn.Module):
    """Differentiates its energy in the forward pass, as models of molecules do."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.LayerNorm(8), nn.Softplus(), nn.Linear(8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.energy(x).sum(), x)[0]


def test_what_differentiates_a_free_operator_is_free(count: Count) -> None:
    """A gradient inside a forward pass costs its products: those of the layers, and one more of each on the way back."""
    assert count(Forces, "float32[B, 3]", B=5).flops == Flops(2 * 2 * 5 * (3 * 8 + 8))
