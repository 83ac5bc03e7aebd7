"""The dimensions of a JAX model have the names that they have in every framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import pytest

from pytest_modelbudget import summarize
from tests.backends.test_same_shapes import NAMED

SEQUENCE, OTHER, FIXED = "float32[B, T, 4]", "float32[B, S, 4]", "float32[B, 10, 4]"
CALLS: dict[str, Callable[..., Any]] = {
    "transposed convolution": lambda x: nn.ConvTranspose(4, (4,), (2,), padding="VALID")(x),
    "valid convolution": lambda x: nn.Conv(4, (3,), padding="VALID")(x),
    "strided convolution": lambda x: nn.Conv(4, (3,), (2,))(x),
    "strided, then transposed": lambda x: nn.ConvTranspose(4, (2,), (2,))(nn.Conv(4, (3,), (2,))(x)),
    "pooled": lambda x: nn.max_pool(x, (2,), (2,)),
    "repeated": lambda x: jnp.repeat(x, 3, axis=1),
    "concatenation": lambda x, y: jnp.concatenate([x, y], axis=1),
    "concatenation, then a convolution": lambda x, y: nn.Conv(4, (3,), padding="VALID")(jnp.concatenate([x, y], 1)),
    "folded into the batch": lambda x: x.reshape(-1, 4),
    "heads in the batch": lambda x: x.reshape(-1, 10, 2),
    "steps first": lambda x: x.transpose(1, 0, 2),
}


class Case(nn.Module):
    name_of_case: str

    @nn.compact
    def __call__(self, *tensors: Any) -> Any:
        return CALLS[self.name_of_case](*tensors)


@pytest.mark.parametrize("case", CALLS)
def test_dimensions_have_the_same_names(case: str) -> None:
    """The table that torch, Keras and TensorFlow are held against, at the same sizes."""
    inputs = [SEQUENCE, OTHER] if "concatenation" in case else [FIXED if "10" in NAMED[case] else SEQUENCE]
    sizes = {name: size for name, size in {"T": 10, "S": 6}.items() if any(f" {name}," in spec for spec in inputs)}
    [output] = summarize(lambda: Case(case), inputs, batch=2, dims=sizes).outputs
    assert output.dims == NAMED[case]
