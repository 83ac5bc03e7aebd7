"""FLOPs of attention and of cells, what is listed because only values tell it, and that each operation has a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import pytest
from keras import layers as L
from keras import ops

from pytest_modelbudget.backends.costs.flop_rules import rules_of
from pytest_modelbudget.backends.costs.free import keras as free_operations
from tests.backends.keras.test_rules import LSTM, ROWS, SEQUENCE, Function, square
from tests.versions import since


@pytest.mark.parametrize("flash", [None, False, True], ids=["as it comes", "unfused", "fused"])
def test_flops_of_attention_are_those_of_any_kernel(summarize: Any, flash: bool | None) -> None:
    """Fused or not, attention counts the full square."""

    def build() -> keras.Model:
        x = keras.Input((6, 4))
        return keras.Model(x, L.MultiHeadAttention(4, 3, flash_attention=flash)(x, x))

    assert summarize(build).flops.value == 4 * 2 * 6 * 4 * 12 + 2 * 2 * 36 * 12


def test_a_stateful_cell_counts_its_steps(summarize: Any) -> None:
    """A layer that keeps its state between batches does the same work in each."""

    def build() -> keras.Model:
        x = keras.Input(batch_shape=(2, *SEQUENCE))
        return keras.Model(x, L.LSTM(5, stateful=True)(x))

    assert summarize(build).flops.value == 2 * LSTM


@pytest.mark.parametrize(
    ("function", "value", "name"),
    [
        pytest.param(
            lambda x: ops.while_loop(lambda y: ops.sum(y) < 5, lambda y: (ops.matmul(y, square()),), (x,))[0],
            0,
            "WhileLoop"
            if hasattr(keras.src.ops.core, "ConvertToTensor")
            else "StatelessWhile",  # 3.6 leaves it to TensorFlow
            id="a loop that values end",
        ),
        pytest.param(
            lambda x: ops.cond(ops.sum(x) > 0, lambda: ops.matmul(x, square()), lambda: x * 1),
            0,
            "Cond",
            id="branches that do not cost the same",
        ),
        pytest.param(
            lambda x: ops.fori_loop(0, 4, lambda i, y: ops.linalg.inv(y), ops.reshape(x, (-1, 2, 2))),
            0,
            "Inv",
            id="a solver in a loop",
        ),
    ],
)
def test_what_only_values_tell_is_listed(summarize: Any, function: Any, value: int, name: str) -> None:
    """The total is a lower bound, and what is not in it is named, as often as it runs."""

    def build() -> keras.Model:
        x = keras.Input(ROWS)
        return keras.Model(x, Function(function)(x))

    flops = summarize(build).flops
    ((found, times),) = flops.uncounted
    assert (flops.value, found.lower(), times) == (value, name.lower(), 4 if name == "Inv" else 1)


def test_flops_of_attention(summarize: Any) -> None:
    """Projections, scores and their product with the values; fewer heads of keys make smaller projections."""
    length, width, heads, size = 6, 4, 4, 3

    def build(layer: Any) -> Callable[[], Any]:
        def made() -> keras.Model:
            x = keras.Input((length, width))
            return keras.Model(x, layer(x))

        return made

    products = 2 * 2 * length * length * heads * size
    full = 4 * 2 * length * width * heads * size + products
    grouped = (2 * heads + 2 * 2) * 2 * length * width * size + products
    assert summarize(build(lambda x: L.MultiHeadAttention(heads, size)(x, x))).flops.value == full
    assert summarize(build(lambda x: L.GroupQueryAttention(size, heads, 2)(x, x))).flops.value == grouped
    assert summarize(build(lambda x: L.Attention()([x, x]))).flops.value == 2 * 2 * length * length * width


class Doubled(L.Layer):
    """A recurrent cell of one's own, with one product."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.state_size = units
        self.mix = L.Dense(units, name="mix")

    def build(self, shape: Any) -> None:
        self.mix.build((None, shape[-1] + self.state_size))

    def call(self, x: Any, states: Any) -> Any:
        state = self.mix(ops.concatenate([x, states[0]], axis=-1))
        return state, [state]


def test_flops_of_a_cell_of_ones_own(summarize: Any) -> None:
    """Any cell is looked into, and counts once for each step."""

    def build() -> keras.Model:
        x = keras.Input(SEQUENCE)
        return keras.Model(x, L.RNN(Doubled(5))(x))

    flops = summarize(build).flops
    assert (flops.value, flops.uncounted) == (6 * 2 * (4 + 5) * 5, ())


def test_operations_without_a_formula_are_listed(summarize: Any) -> None:
    """A solver makes the total a lower bound, named with its number of calls."""

    def build() -> keras.Model:
        x = keras.Input((3, 3))
        return keras.Model(x, Function(lambda y: ops.linalg.inv(ops.linalg.inv(y)))(L.Dense(3)(x)))

    flops = summarize(build).flops
    assert (flops.value, flops.uncounted, flops.is_lower_bound) == (2 * 3 * 3 * 3, (("Inv", 2),), True)


def _subclasses(cls: type) -> Iterator[type]:
    for below in cls.__subclasses__():
        if not issubclass(below, L.Layer):
            yield below
            yield from _subclasses(below)


ACTIVATIONS = sorted(set(dir(keras.activations)) - {"deserialize", "get", "serialize"})


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if not name.startswith("_")])
@pytest.mark.parametrize(
    ("layer", "products"),
    [
        pytest.param(lambda activation: L.Dense(6, activation=activation), 4 * 4 * 6, id="Dense"),
        pytest.param(lambda activation: L.Conv1D(6, 2, activation=activation), 3 * 2 * 4 * 6, id="Conv1D"),
        pytest.param(lambda activation: L.SimpleRNN(4, activation=activation), 4 * (4 + 4) * 4, id="SimpleRNN"),
    ],
)
def test_an_activation_costs_nothing(summarize: Any, name: str, layer: Any, products: int) -> None:
    """Whatever the activation, the products of the layer are counted, and nothing is left uncounted."""
    if (name, layer("linear").__class__.__name__) == ("glu", "SimpleRNN"):
        pytest.skip("glu halves the state")
    flops = summarize(lambda: keras.Sequential([keras.Input((4, 4)), layer(getattr(keras.activations, name))])).flops
    assert (flops.value, flops.uncounted) == (2 * products, ())


UNCOUNTED = free_operations._names(
    """
    AssociativeScan Cholesky CholeskyInverse Cond Corrcoef Det Eig Eigh ForiLoop GaussianBlur Inv JVP Logdet
    Lstsq LuFactor Map MatrixRank Pinv Qr Scan Slogdet SobelEdges Solve SSIM SVD VectorizedMap WhileLoop
    """
)
"""Operations that may hide products and have no formula: each makes the total a lower bound."""


def test_every_operation_of_keras_has_a_rule() -> None:
    """An operation that a Keras release adds is not taken for free: it has to be entered in a table first."""
    with_rules = {name.removeprefix("ops.") for name in rules_of("keras")}
    known = with_rules | free_operations.ZERO | UNCOUNTED | {"Function"}  # a graph: its operations are counted
    operations = {cls.__name__ for cls in _subclasses(keras.Operation) if cls.__module__.startswith("keras.src.")}
    assert len(operations) > 240
    assert not operations - known
    assert not with_rules & free_operations.ZERO | free_operations.ZERO & UNCOUNTED | UNCOUNTED & with_rules


@since("keras", "3.13", "the table is that of the newest")
def test_every_layer_that_costs_nothing_exists() -> None:
    """The table of layers has no name that Keras does not have (or an older one did)."""
    assert {name for name in free_operations.ZERO_LAYERS if not hasattr(L, name)} == set()
    assert free_operations.WITH_WEIGHTS < free_operations.ZERO_LAYERS
