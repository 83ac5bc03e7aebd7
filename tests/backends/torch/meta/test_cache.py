"""Remembered results of operators are what torch would have said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pytest_modelbudget.backends.torch.meta.cache import MetaCache
from pytest_modelbudget.backends.torch.model.pytree import tensors

aten = torch.ops.aten


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _run(memo: MetaCache, func: Any, *args: Any, **kwargs: Any) -> Any:
    return memo.run(func, list(tensors((args, kwargs))), args, kwargs)


@pytest.mark.parametrize(
    ("func", "calls"),
    [
        pytest.param(aten.sum.dim_IntList, [(_meta(2, 3), [1], True), (_meta(2, 3), [1], False)], id="a flag differs"),
        pytest.param(
            aten.add.Scalar,
            [(_meta(2, dtype=torch.int64), 1), (_meta(2, dtype=torch.int64), 1.0), (_meta(2, dtype=torch.int64), True)],
            id="equal numbers of different types",
        ),
        pytest.param(aten.mm.default, [(_meta(2, 3), _meta(3, 4)), (_meta(5, 3), _meta(3, 4))], id="a shape differs"),
        pytest.param(aten.relu.default, [(_meta(2, 3),), (_meta(3, 2).t(),)], id="strides differ"),
        pytest.param(aten.native_layer_norm.default, [(_meta(2, 3), [3], None, None, 1e-5)], id="several results"),
        pytest.param(
            aten.native_layer_norm_backward.default,
            [
                (_meta(2, 3), _meta(2, 3), [3], _meta(2, 1), _meta(2, 1), _meta(3), _meta(3), [True, of_weight, False])
                for of_weight in (False, True)
            ],
            id="gradients that nobody asks for",
        ),
        pytest.param(
            aten._scaled_dot_product_flash_attention.default,
            [(_meta(2, 4, tokens, 8), _meta(2, 4, 6, 8), _meta(2, 4, 6, 8)) for tokens in (6, 5)],
            id="lengths beside tensors",
        ),
    ],
)
def test_a_remembered_result_equals_a_new_one(func: Callable[..., Any], calls: list[tuple[Any, ...]]) -> None:
    """Shapes, strides and dtypes are those of torch, at the first call and at the second."""
    memo = MetaCache()
    for args in [*calls, *calls]:
        assert _described(_run(memo, func, *args)) == _described(func(*args))


def _described(result: Any) -> list[Any]:
    parts = result if isinstance(result, tuple) else (result,)
    return [
        (part.shape, part.stride(), part.dtype) if isinstance(part, torch.Tensor) else (type(part), part)
        for part in parts
    ]


def test_in_place_operators_give_back_their_argument() -> None:
    """Also when the result is remembered."""
    memo = MetaCache()
    for _ in range(2):
        tensor = _meta(2, 3)
        assert _run(memo, aten.relu_.default, tensor) is tensor


def test_views_share_memory_with_their_argument() -> None:
    """A view is made anew each time, so that edges and ties can follow it."""
    memo = MetaCache()
    for _ in range(2):
        tensor = _meta(2, 3)
        assert _run(memo, aten.t.default, tensor).untyped_storage()._cdata == tensor.untyped_storage()._cdata


def test_mistakes_are_not_remembered() -> None:
    """A call that fails, fails again."""
    memo = MetaCache()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            _run(memo, aten.mm.default, _meta(2, 3), _meta(2, 3))
