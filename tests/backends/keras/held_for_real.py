"""Run as a script: what real steps hold on the backend of `KERAS_BACKEND`, beside what the summaries say, as JSON.

Cases can be named.

On torch, tensors that autograd saved and still holds; on jax, the arrays in what `jax.vjp` gave back, without single
numbers and copies of variables or inputs; on tensorflow, the tensors that a real call of a `tf.function` gives to its own
backward function, of which TensorFlow's `extract_sub_graph` leaves what gradients of variables need, without constants.
"""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

import keras
import numpy as np
from keras import layers as L

from pytest_modelbudget.backends import keras as backend
from pytest_modelbudget.backends.keras import activations
from pytest_modelbudget.inputs import parse

ROWS = 3


class Handle:
    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


def on_torch(model: Any, arrays: list[Any]) -> int:
    import torch

    inputs = [torch.as_tensor(one) for one in arrays]
    outside = {one.untyped_storage()._cdata for one in [*inputs, *(each.value for each in model.variables)]}
    saved = []

    def pack(tensor: Any) -> Any:
        key = tensor.untyped_storage()._cdata
        if key in outside:
            return tensor
        handle = Handle(tensor.detach())
        saved.append((weakref.ref(handle), key, tensor.untyped_storage().nbytes()))
        return handle

    unpack = lambda one: one.tensor if isinstance(one, Handle) else one  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        outputs = model(inputs[0] if len(inputs) == 1 else inputs, training=True)
    gc.collect()
    held = {key: count for handle, key, count in saved if handle() is not None}
    del outputs
    return sum(held.values())


def on_jax(model: Any, arrays: list[Any]) -> int:
    import jax

    inputs = [jax.numpy.asarray(one) for one in arrays]
    trained = [one.value for one in model.trainable_variables]
    others = [one.value for one in model.non_trainable_variables]

    def forward(values: Any) -> Any:
        return model.stateless_call(values, others, inputs[0] if len(inputs) == 1 else inputs, training=True)[0]

    _, backward = jax.vjp(forward, trained)
    outside = [*inputs, *trained, *others]
    held = {
        one.unsafe_buffer_pointer(): one.nbytes
        for one in jax.tree_util.tree_leaves(backward)
        if one.ndim and not any(np.array_equal(one, other) for other in outside)
    }
    return sum(held.values())


def on_tensorflow(model: Any, arrays: list[Any]) -> int | None:
    import tensorflow as tf

    inputs = [tf.constant(array) for array in arrays]
    call = tf.function(lambda *x: model(x[0] if len(x) == 1 else list(x), training=True))
    function = call.get_concrete_function(*inputs)
    if any(op.type == "While" for op in function.graph.get_operations()):
        return None  # its lists are handed over as one
    count = len(function.graph.outputs)
    forward, backward = function._delayed_rewrite_functions.forward_backward()
    made = forward.call_flat(*inputs, *function.captured_inputs)[count:]
    gradients = [tensor for tensor in backward.graph.outputs if tensor.shape not in [array.shape for array in arrays]]
    definition = backward.graph.as_graph_def()
    for node in definition.node:
        if node.op in ("Shape", "ShapeN"):  # known before anything runs
            del node.input[:]
    pruned = tf.compat.v1.graph_util.extract_sub_graph(definition, [gradient.op.name for gradient in gradients])
    needed = {node.name for node in pruned.node}
    names = {outer.name for outer, inner in backward.graph.captures if inner.op.name in needed}
    outside = {_pointer(tensor) for tensor in [*inputs, *(variable.value.read_value() for variable in model.variables)]}
    held = {
        _pointer(tensor): int(np.prod(tensor.shape)) * tensor.dtype.size
        for symbolic, tensor in zip(function.graph.outputs[count:], made, strict=True)
        if symbolic.name in names and tf.get_static_value(symbolic) is None
    }
    return sum(size for pointer, size in held.items() if pointer not in outside)


def _pointer(tensor: Any) -> int:
    return int(tensor._numpy_internal().__array_interface__["data"][0])


def chain(*layers: Any, shape: tuple[int, ...] = (16,)) -> Any:
    return keras.Sequential([keras.Input(shape), *layers])


def residual() -> Any:
    x = keras.Input((8, 8, 3))
    y = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, padding="same")(x)))
    z = L.Add()([L.Conv2D(8, 3, padding="same", strides=2)(y), L.MaxPooling2D()(y)])
    z = L.Concatenate()([z, L.Dropout(0.3)(z)])
    z = L.Multiply()([z, L.GlobalAveragePooling2D(keepdims=True)(z)])
    return keras.Model(x, L.Dense(3, activation="softmax")(L.Flatten()(z)))


def attention(rate: float) -> Any:
    x = keras.Input((10, 16))
    y = L.LayerNormalization()(x + L.MultiHeadAttention(2, 8, dropout=rate)(x, x))
    return keras.Model(x, L.Dense(4)(L.Dense(32, activation="gelu")(y)))


def recurrent(mask: bool) -> Any:
    x = keras.Input((10,), dtype="int32")
    y = L.LSTM(8, return_sequences=True)(L.Embedding(50, 16, mask_zero=mask)(x))
    return keras.Model(x, L.Dense(4)(L.GRU(8)(y)))


def stopped() -> Any:
    x = keras.Input((16,))
    return keras.Model(x, L.Dense(4)(keras.ops.stop_gradient(L.Dense(8)(x))))


def frozen() -> Any:
    model = chain(L.Dense(8, activation="relu"), L.Dense(8, activation="relu"), L.Dense(4))
    model.layers[0].trainable = False
    return model


def nested() -> Any:
    x = keras.Input((8, 8, 3))
    return keras.Model(x, L.Dense(2)(residual()(L.Rescaling(1 / 255.0)(x))))


def shared() -> Any:
    layer, x = L.Dense(16), keras.Input((16,))
    return keras.Model(x, layer(L.ReLU()(layer(x))))


def mixed() -> Any:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return residual()
    finally:
        keras.config.set_dtype_policy(before)


class Own(keras.Model):  # type: ignore[misc]
    """A model with a call of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = L.Dense(16, activation="gelu"), L.Dropout(0.3), L.Dense(4)

    def call(self, x: Any, training: Any = None) -> Any:
        return self.last(self.drop(self.first(x), training=training))


CASES: dict[str, Callable[[], Any]] = {
    "dense": lambda: chain(L.Dense(8, activation="relu"), L.Dense(4)),
    "dropout": lambda: chain(L.Dense(8), L.Dropout(0.5), L.Dense(4)),
    "dropout with a seed": lambda: chain(L.Dense(8), L.Dropout(0.5, seed=3), L.Dense(4)),
    "layer norm": lambda: chain(L.Dense(8), L.LayerNormalization(), L.Dense(4)),
    "convolutions": lambda: chain(
        L.SeparableConv2D(8, 3),
        L.Conv2DTranspose(4, 3, strides=2),
        L.AveragePooling2D(2),
        L.DepthwiseConv2D(3),
        L.GlobalMaxPooling2D(),
        shape=(16, 16, 3),
    ),
    "1-D": lambda: chain(L.Conv1D(8, 3, padding="causal"), L.Permute((2, 1)), L.Conv1D(8, 3), shape=(16, 3)),
    "residual": residual,
    "attention": lambda: attention(0.0),
    "attention with dropout": lambda: attention(0.1),
    "recurrent": lambda: recurrent(False),
    "recurrent with a mask": lambda: recurrent(True),
    "bidirectional": lambda: chain(
        L.Bidirectional(L.LSTM(4, return_sequences=True)), L.TimeDistributed(L.Dense(3)), shape=(6, 5)
    ),
    "gradient stopped": stopped,
    "frozen": frozen,
    "nested": nested,
    "shared": shared,
    "mixed precision": mixed,
    "own call": Own,
}


def said(build: Callable[[], Any]) -> Any:
    with backend.global_state_restored(), backend.abstract():
        model = build()
    inputs = parse("float32[B, 16]") if build is Own else None
    return backend.summarize(model, name="model", inputs=inputs, sizes={"B": ROWS}, built_here=True)


def main() -> None:
    real = {"torch": on_torch, "jax": on_jax, "tensorflow": on_tensorflow}[keras.backend.backend()]
    by_calls = activations._call_by_call
    found = {}
    for name, build in CASES.items():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        summary = said(build)
        activations._call_by_call = lambda *args: None
        whole = said(build).activation_bytes
        activations._call_by_call = by_calls
        keras.utils.set_random_seed(1)
        model = build()
        if build is Own:
            model(np.zeros((1, 16), "float32"))
        draw = np.random.default_rng(0)
        arrays = [
            draw.random((ROWS, *one.shape[1:]), "float32")
            if "float" in one.dtype
            else draw.integers(0, 3, (ROWS, *one.shape[1:]), "int32")
            for one in (model.inputs if build is not Own else [keras.KerasTensor((None, 16))])
        ]
        before = [
            np.array(one.value.detach() if hasattr(one.value, "detach") else one.value) for one in model.variables
        ]
        live = backend.summarize(
            model,
            name="model",
            inputs=parse("float32[B, 16]") if build is Own else None,
            sizes={"B": ROWS},
            built_here=False,
        ).activation_bytes
        after = [np.array(one.value.detach() if hasattr(one.value, "detach") else one.value) for one in model.variables]
        rows = [row.activation_bytes for row in summary.layers]
        found[name] = {
            "said": summary.activation_bytes,
            "whole": whole,
            "live": live,
            "real": real(model, arrays),
            "rows": None if None in rows else sum(rows),
            "untouched": all(map(np.array_equal, before, after)),
            "notes": summary.notes,
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
