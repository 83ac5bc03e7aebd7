"""The rules for results on meta, against torch's own answers."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map_only

from pytest_modelbudget.backends.torch.meta.cache import MetaCache
from pytest_modelbudget.backends.torch.meta.shape_rules import infer

aten = torch.ops.aten


def _t(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


HALF = torch.bfloat16
KNOWN = {
    "mm": (aten.mm.default, (_t(3, 4), _t(5, 4).t())),
    "addmm": (aten.addmm.default, (_t(5), _t(3, 4), _t(4, 5))),
    "addmm, one row": (aten.addmm.default, (_t(1), _t(1, 4), _t(4, 1))),
    "bmm of transposed": (aten.bmm.default, (_t(2, 3, 4), _t(2, 5, 4).mT)),
    "conv": (aten.convolution.default, (_t(2, 8, 9, 7), _t(6, 4, 3, 3), _t(6), [2, 1], [1, 1], [1, 2], False, [0, 0], 2)),
    "conv 1 x 1": (aten.convolution.default, (_t(2, 8, 5, 5), _t(6, 8, 1, 1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)),
    "depthwise, one pixel": (aten.convolution.default, (_t(1, 8, 1, 1), _t(8, 1, 1, 1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 8)),
    "conv 1d": (aten.convolution.default, (_t(2, 8, 9), _t(6, 8, 3), _t(6), [2], [1], [1], False, [0], 1)),
    "transposed conv": (aten.convolution.default, (_t(2, 8, 5, 6), _t(8, 3, 3, 2), _t(6), [2, 3], [1, 0], [1, 2], True, [1, 0], 2)),
    "conv 3d": (aten.convolution.default, (_t(2, 3, 4, 9, 9), _t(6, 3, 3, 3, 3), None, [1], [0], [1], False, [0], 1)),
    "max pool": (aten.max_pool2d_with_indices.default, (_t(2, 3, 9, 9), [3, 3], [2, 2], [1, 1])),
    "max pool, step of its size": (aten.max_pool2d_with_indices.default, (_t(2, 3, 9, 8), [2])),
    "batch norm": (aten.native_batch_norm.default, (_t(2, 3, 4, 4), _t(3), _t(3), _t(3), _t(3), False, 0.1, 1e-5)),
    "batch norm in training": (aten.native_batch_norm.default, (_t(2, 3, 4), _t(3), _t(3), _t(3), _t(3), True, 0.1, 1e-5)),
    "batch norm of rows": (aten.native_batch_norm.default, (_t(2, 3), None, None, _t(3), _t(3), False, 0.1, 1e-5)),
    "layer norm": (aten.native_layer_norm.default, (_t(2, 5, 8), [8], _t(8), _t(8), 1e-5)),
    "layer norm of two axes": (aten.native_layer_norm.default, (_t(2, 5, 8), [5, 8], None, None, 1e-5)),
    "mean": (aten.mean.dim, (_t(2, 3, 4, 5), [-1, -2], True)),
    "mean, axes gone": (aten.mean.dim, (_t(2, 3, 4, 5), [1, -1])),
    "add": (aten.add.Tensor, (_t(2, 3), _t(2, 3))),
    "times a number": (aten.mul.Tensor, (_t(2, 3), 0.5)),
    "bfloat16 times a number": (aten.mul.Tensor, (_t(2, 3, dtype=HALF), 0.5)),
    "broadcast": (aten.add.Tensor, (_t(2, 3), _t(3))),
    "broadcast both ways": (aten.mul.Tensor, (_t(4, 1, 2), _t(3, 1))),
    "scaled channels": (aten.mul.Tensor, (_t(2, 5, 6, 8).permute(0, 3, 1, 2), _t(8, 1, 1))),
    "scaled channels, one image": (aten.mul.Tensor, (_t(1, 5, 6, 8).permute(0, 3, 1, 2), _t(8, 1, 1))),
    "scaled channels, scale first": (aten.mul.Tensor, (_t(8, 1, 1), _t(2, 5, 6, 8).permute(0, 3, 1, 2))),
    "part of a tensor": (aten.neg.default, (_t(4, 6).chunk(2, -1)[1],)),
    "two layouts": (aten.add.Tensor, (_t(2, 3, 4).mT, _t(2, 4, 3))),
    "transposed": (aten.gelu.default, (_t(2, 3).t(),)),
    "power": (aten.pow.Tensor_Scalar, (_t(2, 3), 2)),
    "clone of transposed": (aten.clone.default, (_t(2, 3).t(),)),
    "cat": (aten.cat.default, ([_t(2, 3, 4), _t(2, 5, 4)], -2)),
    "softmax": (aten._softmax.default, (_t(2, 3), -1, False)),
    "softmax to float32": (aten._softmax.default, (_t(2, 3, 4, dtype=torch.float16).mT, 1, True)),
    "log softmax to float32": (aten._log_softmax.default, (_t(2, 3, dtype=torch.float16), -1, True)),
    "softmax of attention": (aten._safe_softmax.default, (_t(2, 3), 1)),
    "lower half": (aten.tril.default, (_t(5, 5), 1)),
    "layer norm of channels last": (aten.native_layer_norm.default, (_t(2, 8, 5, 6).permute(0, 2, 3, 1), [8], _t(8), _t(8), 1e-5)),
    "gelu": (aten.gelu.default, (_t(4, 1, 3),)),
}  # fmt: skip
LEFT_TO_TORCH = {
    "sizes that do not broadcast": (aten.add.Tensor, (_t(2, 3), _t(2))),
    "cat of other widths": (aten.cat.default, ([_t(2, 3), _t(2, 4)], 0)),
    "cat of two dtypes": (aten.cat.default, ([_t(2, 3), _t(2, 3, dtype=HALF)], 0)),
    "clone of a part": (aten.clone.default, (_t(4, 6).chunk(2, -1)[1],)),
    "two dtypes": (aten.add.Tensor, (_t(2, 3), _t(2, 3, dtype=HALF))),
    "integers": (aten.div.Tensor, (_t(2, 3, dtype=torch.int64), 2)),
    "a complex number": (aten.mul.Tensor, (_t(2, 3), 1j)),
    "no running statistics": (aten.native_batch_norm.default, (_t(2, 3, 4), None, None, None, None, True, 0.1, 1e-5)),
    "nothing in it": (aten.mm.default, (_t(0, 4), _t(4, 5))),
}  # fmt: skip
ERRORS = {
    "inner sizes differ": (aten.mm.default, (_t(3, 4), _t(5, 4))),
    "channels differ": (aten.convolution.default, (_t(2, 7, 9, 7), _t(6, 4, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 2)),
    "smaller than its kernel": (aten.convolution.default, (_t(2, 4, 2, 2), _t(6, 4, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)),
    "an axis too many": (aten.mean.dim, (_t(2, 3), [2])),
    "another width": (aten.native_layer_norm.default, (_t(2, 5, 8), [7], _t(7), None, 1e-5)),
}  # fmt: skip


def _seen(out: Any) -> list[tuple[Any, ...]]:
    parts = out if isinstance(out, tuple) else (out,)
    return [(tuple(part.shape), part.stride(), part.dtype) for part in parts]


@pytest.mark.parametrize(("func", "args"), KNOWN.values(), ids=KNOWN)
def test_a_rule_answers_like_torch(func: Any, args: tuple[Any, ...]) -> None:
    """Shape, strides and dtype of every result."""
    made = infer(func, args, {})
    assert made is not None
    assert list(made) == _seen(func(*args))


@pytest.mark.parametrize(("func", "args"), {**LEFT_TO_TORCH, **ERRORS}.values(), ids={**LEFT_TO_TORCH, **ERRORS})
def test_what_is_not_plain_is_left_to_torch(func: Any, args: tuple[Any, ...]) -> None:
    """No rule for other layouts and dtypes, nor for what does not fit together."""
    assert infer(func, args, {}) is None


@pytest.mark.parametrize(("func", "args"), ERRORS.values(), ids=ERRORS)
def test_errors_are_those_of_torch(func: Any, args: tuple[Any, ...]) -> None:
    """What is called an error above is one, with values as on meta."""
    real = tree_map_only(torch.Tensor, lambda tensor: torch.zeros_like(tensor, device="cpu"), args)
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        func(*real)
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        MetaCache().run(func, [], args, {})


@pytest.mark.parametrize(
    ("data", "weight", "axes", "transposed", "groups"),
    [
        pytest.param((1, 8, 7, 5), (16, 8, 3, 3), 2, False, 1, id="one image"),
        pytest.param((2, 8, 7, 5), (16, 1, 3, 3), 2, False, 8, id="depthwise"),
        pytest.param((2, 1, 7, 5), (16, 1, 3, 3), 2, False, 1, id="one channel"),
        pytest.param((2, 8, 7, 5), (8, 4, 3, 3), 2, True, 1, id="transposed"),
        pytest.param((2, 8, 4, 7, 5), (16, 8, 3, 3, 3), 3, False, 1, id="3d"),
    ],
)
def test_convolutions_keep_channels_last(
    data: tuple[int, ...], weight: tuple[int, ...], axes: int, transposed: bool, groups: int
) -> None:
    """As the kernel of the CPU does, whether it is the data or the weights that lie so."""
    memory_format = {2: torch.channels_last, 3: torch.channels_last_3d}[axes]
    plain = torch.empty(data), torch.empty(weight)
    last = [tensor.to(memory_format=memory_format) for tensor in plain]
    for operands in ((last[0], plain[1]), (plain[0], last[1]) if groups == 1 else last):
        args = (*operands, None, [1] * axes, [1] * axes, [1] * axes, transposed, [0] * axes, groups)
        made = infer(aten.convolution.default, args, {})
        assert made is not None
        assert list(made) == _seen(aten.convolution.default(*args))


def _t16(*shape: int) -> torch.Tensor:
    return torch.rand(shape, dtype=HALF)


def test_gradients_of_layer_norm_lie_as_real_ones() -> None:
    """In plain order, also where those that come in are transposed; torch's answer on meta is not."""

    def norm_gradients(device: str) -> list[tuple[int, ...]]:
        data, gradient, weight = (torch.rand(shape, device=device) for shape in ((2, 16, 8), (2, 8, 16), (8,)))
        _, mean, deviation = aten.native_layer_norm(data, [8], weight, weight, 1e-5)
        call = (gradient.mT, data, [8], mean, deviation, weight, weight, [True] * 3)
        func = aten.native_layer_norm_backward.default
        results = MetaCache().run(func, list(call[:2]), call, {}) if device == "meta" else func(*call)
        return [result.stride() for result in results]

    assert norm_gradients("meta") == norm_gradients("cpu")


GROUPED = {
    "rows of experts": (torch.rand(10, 8), torch.rand(3, 8, 12), [2, 5, 10]),
    "rows of experts, weights transposed": (torch.rand(10, 8), torch.rand(3, 6, 8).mT, [2, 5, 10]),
    "half precision": (_t16(10, 8), _t16(3, 13, 8).mT, [2, 5, 10]),
    "columns": (torch.rand(3, 4, 8), torch.rand(8, 12), [2, 5, 12]),
    "what is summed": (torch.rand(4, 12), torch.rand(12, 8), [4, 8, 12]),
    "whole matrices": (torch.rand(3, 4, 8), torch.rand(3, 6, 8).mT, None),
}


@pytest.mark.skipif(not hasattr(aten, "_grouped_mm"), reason="torch has no such product yet")
@pytest.mark.parametrize(("left", "right", "ends"), GROUPED.values(), ids=GROUPED)
def test_grouped_products_are_answered_like_real_ones(
    left: torch.Tensor, right: torch.Tensor, ends: list[int] | None
) -> None:
    """Against the CPU's kernel, which takes float32 where torch's own answer may refuse it."""
    offsets = None if ends is None else torch.tensor(ends, dtype=torch.int32)
    args = (left, right) if offsets is None else (left, right, offsets)
    try:
        real = aten._grouped_mm.default(*args)
    except NotImplementedError:
        pytest.skip("torch has no kernel for the CPU yet")
    made = infer(aten._grouped_mm.default, args, {})
    assert made is not None
    assert list(made) == _seen(real)


@pytest.mark.skipif(not hasattr(aten, "_grouped_mm"), reason="torch has no such product yet")
@pytest.mark.parametrize(
    ("left", "right", "ends"),
    [
        pytest.param(_t(10, 6), _t(3, 6, 8), [2, 5, 10], id="rows that begin anywhere"),
        pytest.param(_t(10, 8), _t(3, 12, 8), [2, 5, 10], id="inner sizes differ"),
        pytest.param(_t(10, 8), _t(3, 8, 12), None, id="no ends"),
        pytest.param(_t(2, 4, 8), _t(3, 8, 12), None, id="matrices of other groups"),
    ],
)
def test_grouped_products_that_do_not_fit_are_left_to_torch(
    left: torch.Tensor, right: torch.Tensor, ends: list[int] | None
) -> None:
    """It says best what is wrong."""
    offsets = () if ends is None else (torch.tensor(ends, dtype=torch.int32),)
    assert infer(aten._grouped_mm.default, (left, right, *offsets), {}) is None


def _random_operand(dice: random.Random, shape: list[int]) -> torch.Tensor:
    """A tensor that broadcasts to `shape`: permuted, cut or repeated by chance."""
    sizes = [size if dice.random() < 0.75 else 1 for size in shape][dice.randrange(2) if len(shape) > 1 else 0 :]
    order = dice.sample(range(len(sizes)), len(sizes))
    made = torch.empty([sizes[axis] + (axis == 0) for axis in order])
    made = made.permute([order.index(axis) for axis in range(len(sizes))])
    return made[tuple(slice(0, size) for size in sizes)] if dice.random() < 0.5 else torch.empty(sizes)


@pytest.mark.parametrize("seed", range(300))
def test_any_layout_of_operands_is_answered_like_a_real_sum(seed: int) -> None:
    """Two operands of up to four axes against the CPU's own sum."""
    dice = random.Random(seed)
    shape = [dice.choice([1, 2, 3, 5]) for _ in range(dice.randint(1, 4))]
    args = _random_operand(dice, shape), _random_operand(dice, shape)
    made = infer(aten.add.Tensor, args, {})
    assert made is not None
    assert list(made) == _seen(torch.add(*args))
