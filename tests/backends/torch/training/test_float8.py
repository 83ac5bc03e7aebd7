"""Layers that torchao makes multiply in 8 bits: recorded as they run, uncompiled."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget.backends.torch.distributed.rank import record_sharded
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import Training
from tests.real_steps import allocated, sgd

ROWS, WIDTH = 512, 256


class Net(nn.Module):
    """Two blocks of matrices, one with a bias, a layer that no GPU multiplies in 8 bits, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH, bias=bias), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH, bias=False))
            for bias in (True, False)
        )
        self.gate, self.head = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block(x)
        out: torch.Tensor = self.head(x * self.gate(x))
        return out


def runnable(model: nn.Module, rows: int = ROWS) -> RunnableModel:
    """A model on meta that stands for `model`."""
    return RunnableModel("model", meta_copy(model), parse(f"float32[{rows}, {WIDTH}]"))


def product(first: torch.Tensor, second: torch.Tensor, *, out_dtype: torch.dtype, **options: Any) -> torch.Tensor:
    """A product that takes no memory but its result, as that of a GPU; on a CPU torch makes float32 copies for it."""
    return torch.empty(first.shape[0], second.shape[1], dtype=out_dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "kernels", "precision"),
    [
        ("tensorwise", "cuda", "bf16"),
        ("rowwise", "cpu", "fp32"),
        ("rowwise_with_gw_hp", "cpu", "bf16"),
    ],
)
def test_layers_that_the_recipe_converts(
    recipe: str, kernels: Any, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peak is that of a real step of torchao's to the byte, and that of a model that is converted where it is built.

    The real step converts by torchao's own function, all but the gate and the head. With `cpu` products are emulated.
    """
    float8 = pytest.importorskip("torchao.float8")
    config = float8.Float8LinearConfig.from_recipe_name(recipe)
    config = replace(config, emulate=kernels == "cpu")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    plain = Net().to(dtype)
    options: dict[str, Any] = {"optimizer": "sgd", "foreach": False, "precision": precision, "kernels": kernels}
    subject = runnable(plain)
    planned = record_step(subject, {}, Training(fp8=recipe, **options)).peak()
    assert type(subject.model.get_submodule("blocks.0.0")) is nn.Linear  # as before
    converted = float8.convert_to_float8_training(
        plain, config=config, module_filter_fn=lambda module, name: name.startswith("blocks")
    )
    assert planned == record_step(runnable(converted), {}, Training(**options)).peak()
    monkeypatch.setattr(torch, "_scaled_mm", product)
    assert planned == allocated(converted, torch.rand(ROWS, WIDTH, dtype=dtype), sgd)


@pytest.mark.slow
def test_weights_gathered_in_8_bits() -> None:
    """Each rank gets the others' shards twice, a byte for each element that is multiplied so, and two of all else."""
    pytest.importorskip("torchao.float8")
    options: dict[str, Any] = {"precision": "bf16-mixed", "sharding": {"fsdp": 4, "casts": "policy"}}
    matrices, whole = 16 * WIDTH * WIDTH, sum(parameter.numel() for parameter in Net().parameters())
    sent = [
        record_sharded(runnable(Net()), {}, Training(fp8={"all_gather": gathered}, **options)).communication
        for gathered in (False, True)
    ]
    saved = matrices * 2 * 3 // 4
    assert sent[0]["all_gather"] - sent[1]["all_gather"] == saved
    assert sent[0]["reduce_scatter"] == sent[1]["reduce_scatter"] >= whole * 4 * 3 // 4


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        pytest.param({"fp8": {"skip": ["lm_head"]}}, "skip: no linear layer's name matches 'lm_head'", id="skip"),
        pytest.param({"fp8": {"skip": ["block*", "head"]}}, "no linear layer to be converted", id="nothing left"),
        pytest.param({"fp8": {"all_gather": True}}, "all_gather is for sharding", id="gathered on one device"),
        pytest.param({"fp8": "rowwise", "lora": {"rank": 4}}, "not planned with lora", id="lora"),
    ],
)
def test_what_is_not_converted(recipe: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear error; what is wrong with the recipe needs no torchao to be said."""
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ModelBudgetError, match=said):
        record_step(runnable(Net()), {}, Training(**recipe))


@pytest.mark.slow
def test_rows_that_no_gpu_multiplies() -> None:
    """The error names the layer and what to write; recipes without products that sum over the rows take any number."""
    pytest.importorskip("torchao.float8")
    with pytest.raises(
        ModelBudgetError, match=r"blocks\.0\.0 gets 10 rows.* multiples of 16 .*rowwise_with_gw_hp.*skip"
    ):
        record_step(runnable(Net(), rows=10), {}, Training(fp8="rowwise"))
    for recipe in (Training(fp8="rowwise_with_gw_hp"), Training(fp8="rowwise", kernels="cpu")):
        assert record_step(runnable(Net(), rows=10), {}, recipe).peak()


@pytest.mark.slow
def test_the_import_of_torchao_is_quiet() -> None:
    """What torch logs of torchao's own code is nothing a user can mend; what else that logger has comes through."""
    pytest.importorskip("torchao.float8")
    code = (
        "import logging, torch\n"
        "from pytest_modelbudget.backends.torch.training.float8 import _converter, Fp8\n"
        "_converter(Fp8('rowwise'), emulate=True)\n"
        "logging.getLogger('torch.utils._pytree').warning('is an Enum subclass and is now natively supported')\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stderr.count("\n") == 1, process.stderr


def test_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ModelBudgetError, match="pip install torchao"):
        record_step(runnable(Net()), {}, Training(fp8="rowwise"))
