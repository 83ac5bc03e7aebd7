"""FLOPs of jaxprs, each against a count by hand; nothing of Keras is in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_modelbudget.backends.costs import FlopsCount, total
from pytest_modelbudget.backends.costs.jaxpr import operators

jax: Any = pytest.importorskip("jax")
jnp = jax.numpy
lax = jax.lax

ROWS, IMAGE, PRODUCT = (2, 4), (1, 9, 9, 4), 2 * 2 * 4 * 4


def square() -> Any:
    return jnp.ones((4, 4))


def image_conv(x: Any, kernel: tuple[int, ...], dtype: str = "float32", **settings: Any) -> Any:
    return lax.conv_general_dilated(
        x, jnp.ones(kernel, dtype), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings
    )


def on_four_devices(x: Any) -> Any:
    """Each device has a quarter of what is summed over, and then the sum of all."""
    spec, automatic = jax.sharding.PartitionSpec, (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((4,), ("x",), axis_types=automatic)
    product = jax.shard_map(
        lambda left, right: lax.psum(left @ right, "x"),
        mesh=mesh,
        in_specs=(spec(None, "x"), spec("x")),
        out_specs=spec(),
    )
    return product(x, square())


def unused(x: Any) -> Any:
    x @ square()
    return x + 1


def count(function: Callable[..., Any], *shapes: tuple[int, ...], dtype: str = "float32") -> FlopsCount:
    given = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return total(operators(jax.make_jaxpr(function)(*given)))


@pytest.mark.parametrize(
    ("function", "shape", "expected"),
    [
        pytest.param(lambda x: x @ square(), ROWS, PRODUCT, id="matmul"),
        pytest.param(lambda x: jnp.einsum("btd,bsd->bts", x, x), (3, 5, 4), 3 * 2 * 25 * 4, id="einsum"),
        pytest.param(lambda x: jnp.einsum("bd,bd->bd", x, x), ROWS, 0, id="einsum, elementwise"),
        pytest.param(jax.jit(lambda x: x @ square()), ROWS, PRODUCT, id="jit"),
        pytest.param(jax.checkpoint(lambda x: x @ square()), ROWS, PRODUCT, id="checkpoint"),
        pytest.param(jax.vmap(lambda row: row @ square()), ROWS, PRODUCT, id="vmap"),
        pytest.param(lambda x: jax.nn.relu(x) @ square(), ROWS, PRODUCT, id="custom derivatives"),
        pytest.param(
            lambda x: lax.scan(lambda c, y: (c @ y, None), x, jnp.ones((7, 4, 4)))[0], ROWS, 7 * PRODUCT, id="scan"
        ),
        pytest.param(
            lambda x: lax.fori_loop(0, 5, lambda i, y: y @ square(), x), ROWS, 5 * PRODUCT, id="fori loop"
        ),
        pytest.param(
            on_four_devices, ROWS, PRODUCT, id="a share for each device",
            marks=pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="needs a newer jax"),
        ),
        pytest.param(
            lambda x: lax.while_loop(lambda c: (c[0] > 0) & (c[0] < 99), lambda c: (c[0] - 2, c[1] @ square()), (9, x)),
            ROWS, 5 * PRODUCT, id="while loop, backwards by two",
        ),
        pytest.param(
            lambda x: lax.map(lambda y: lax.fori_loop(0, 5, lambda i, z: z @ square(), y), x),
            (7, 2, 4), 35 * PRODUCT, id="a loop in a loop",
        ),
        pytest.param(lambda x: image_conv(x, (3, 3, 4, 6)), IMAGE, 2 * 49 * 6 * 36, id="conv2d"),
        pytest.param(
            lambda x: image_conv(x, (3, 3, 4, 6), rhs_dilation=(2, 2)), IMAGE, 2 * 25 * 6 * 36, id="conv2d, dilated"
        ),
        pytest.param(
            lambda x: image_conv(x, (3, 3, 2, 6), feature_group_count=2), IMAGE, 2 * 49 * 6 * 18, id="conv2d, groups"
        ),
        pytest.param(
            lambda x: image_conv(x, (3, 3, 1, 8), feature_group_count=4), IMAGE, 2 * 49 * 8 * 9, id="depthwise"
        ),
        pytest.param(
            lambda x: lax.conv_transpose(x, jnp.ones((3, 3, 4, 6)), (2, 2), "SAME"),
            IMAGE, 2 * 81 * 4 * 6 * 9, id="transposed",
        ),
        pytest.param(
            lambda x: jax.nn.dot_product_attention(x, x, x), (2, 6, 3, 4), 2 * 2 * 2 * 3 * 36 * 4, id="attention"
        ),
        pytest.param(jnp.fft.rfft, (8,), 60, id="fft of 8 real points: 2.5 N log2 N"),
        pytest.param(jnp.fft.fft, (8,), 120, id="of 8 complex ones: 5 N log2 N"),
        pytest.param(lambda x: jax.nn.softmax(jax.nn.gelu(x) * 2), ROWS, 0, id="elementwise"),
        pytest.param(unused, ROWS, 0, id="a product that nothing needs"),
        pytest.param(
            lambda x: jax.scipy.linalg.solve_triangular(square(), x), (4, 3), 3 * (4 * 5 // 2 + 4 * 3 // 2),
            id="triangular systems: products and divisions, and sums",
        ),
        pytest.param(
            lambda x: jax.scipy.linalg.cho_solve((square(), True), x), (4, 3), 2 * 3 * 16, id="of a Cholesky factor"
        ),
        pytest.param(
            lambda x: lax.custom_linear_solve(lambda y: square() @ y, x, lambda _, y: square() @ (square() @ y)), (4,),
            2 * 2 * 16, id="a solver of one's own: not what only its gradient needs",
        ),
        pytest.param(lambda x: lax.conj(lax.complex(x, x)), ROWS, 0, id="complex, elementwise"),
    ],
)  # fmt: skip
def test_flops_of_a_jaxpr(function: Callable[..., Any], shape: tuple[int, ...], expected: int) -> None:
    """Products, convolutions and transforms are counted as often as they run."""
    assert count(function, shape) == FlopsCount(expected)


@pytest.mark.parametrize(
    ("function", "shape", "products"),
    [
        pytest.param(lambda x: x @ x.T, ROWS, 2 * 4 * 2, id="matmul"),
        pytest.param(lambda x: x @ square(), ROWS, 2 * 4 * 4, id="with a real matrix, which is made complex first"),
        pytest.param(lambda x: jnp.einsum("btd,bsd->bts", x, x), (3, 5, 4), 3 * 25 * 4, id="einsum"),
        pytest.param(
            lambda x: image_conv(x, (3, 3, 4, 6), dtype="complex64"), IMAGE, 49 * 6 * 36, id="conv2d"
        ),
    ],
)  # fmt: skip
def test_a_complex_multiply_add_is_eight(function: Callable[..., Any], shape: tuple[int, ...], products: int) -> None:
    """Four products and four sums of real numbers."""
    assert count(function, shape, dtype="complex64") == FlopsCount(8 * products)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        pytest.param(
            lambda x: lax.while_loop(lambda y: y.sum() < 5, lambda y: y @ square(), x),
            FlopsCount(0, (("while", 1),)),
            id="a loop that values end",
        ),
        pytest.param(
            lambda x: lax.while_loop(lambda y: y.sum() < 5, lambda y: y + 1, x),
            FlopsCount(0),
            id="one that costs nothing",
        ),
        pytest.param(
            lambda x: lax.cond(x.sum() > 0, lambda: x @ square(), lambda: (x @ square()) @ square()),
            FlopsCount(PRODUCT, (("cond", 1),)),
            id="branches that do not cost the same",
        ),
        pytest.param(
            lambda x: lax.cond(x.sum() > 0, lambda: x @ square(), lambda: x @ (square() + 1)),
            FlopsCount(PRODUCT),
            id="branches that do",
        ),
    ],
)
def test_what_a_jaxpr_does_not_say(function: Callable[..., Any], expected: FlopsCount) -> None:
    """What depends on values makes a lower bound and is named."""
    assert count(function, ROWS) == expected


def test_a_solver_has_no_formula() -> None:
    """A primitive in neither table is listed."""
    assert ("lu", 1) in count(jnp.linalg.inv, (3, 3)).uncounted
