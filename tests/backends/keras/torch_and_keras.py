"""Run as a script with KERAS_BACKEND=torch: models of torch with Keras in them and the other way, as JSON.

Beside what summaries say of each, from a builder, live and after a call, is what a real run shows: the parameters that
torch finds, and the FLOPs of torch's own counter.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import keras
import torch
from keras import layers as L
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pytest_modelbudget import plan, summarize
from pytest_modelbudget.errors import ModelBudgetError
from tests.backends import same_shapes
from tests.backends.torch.model.test_stored import Wrapping as OfHalves

FIVE = "float32[B, 5]"


class Body(nn.Module):
    """What most models below differ in, and a head of torch's."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(3, 2)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x))


class Own(keras.Model):
    """A model of Keras with a weight of its own, and layers in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [L.Dense(7), L.Dense(3)]

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(5,), name="scale")

    def call(self, x: Any) -> Any:
        return self.parts[1](self.parts[0](x * self.scale))


class Inner(L.Layer):
    """A layer with layers in it, one of them made when it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.first = L.Dense(4)
        self.lock = threading.Lock()  # which cannot be copied

    def build(self, shape: Any) -> None:
        self.second = L.Dense(3)

    def call(self, x: Any) -> Any:
        return self.second(self.first(x))


class Layers(nn.Module):
    """Keras layers as attributes, in a list and in a dict of torch's, one of them frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.one = L.Dense(4, trainable=False)
        self.more = nn.ModuleList([L.Dense(5), L.Dense(4)])
        self.named = nn.ModuleDict({"out": nn.Sequential(L.Dense(3), nn.ReLU())})

    def forward(self, x: Any) -> Any:
        x = self.one(x)
        for layer in self.more:
            x = layer(x)
        return self.named["out"](x)


class Words(nn.Module):
    """A table, attention, a join and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = L.Embedding(11, 8)
        self.attention = L.MultiHeadAttention(2, 4, dropout=0.1)
        self.recurrent = L.Bidirectional(L.LSTM(6))
        self.head = nn.Linear(12, 2)

    def forward(self, ids: Any) -> Any:
        x = self.table(ids)
        return self.head(self.recurrent(x + self.attention(x, x)))


class Twice(Body):
    """One layer in two models of Keras, and a model that is called twice."""

    def __init__(self) -> None:
        tied, first, second = L.Dense(5, use_bias=False), keras.Input((5,)), keras.Input((5,))
        super().__init__(keras.Model(first, L.Dense(3)(tied(first))))
        self.before = keras.Model(second, tied(second))

    def forward(self, x: Any) -> Any:
        return self.head(self.body(self.before(self.before(x))))


class Deciding(Body):
    """What it does depends on a value."""

    def forward(self, x: Any) -> Any:
        x = self.body(x)
        return self.head(x) if x.sum().item() > -1e9 else x


def unbuilt() -> Any:
    """Built by its first call; with a seed among its variables."""
    return keras.Sequential([L.Dense(7), L.Dropout(0.5), L.Dense(3)])


def built() -> Any:
    """Built by its input; with moving averages."""
    return keras.Sequential([keras.Input((5,)), L.Dense(7), L.BatchNormalization(), L.Dense(3)])


def functional() -> Any:
    """A graph with a join, compiled."""
    given = keras.Input((5,))
    model = keras.Model(given, L.Dense(3)(L.Dense(7)(given)) + L.Dense(3, name="short")(given))
    model.compile("adam", "mse", metrics=["mae"])
    return model


def net() -> Any:
    """A module of torch with buffers."""
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))


def back_again() -> Any:
    """A module of torch in a model of Keras in a module of torch."""
    return keras.Sequential([L.Dense(5), L.TorchModuleWrapper(net())])


class Wrapping(keras.Model):
    """Modules of torch as attributes: one that Keras wraps, and one that is in two wrappers."""

    def __init__(self) -> None:
        super().__init__()
        self.torso = net()
        shared = nn.Linear(3, 3)
        self.first, self.second = L.TorchModuleWrapper(shared), L.TorchModuleWrapper(shared)

    def call(self, x: Any) -> Any:
        return self.second(self.first(self.torso(x)))


def in_a_graph() -> Any:
    """A wrapped module in a functional model."""
    given = keras.Input((5,))
    torso = L.TorchModuleWrapper(net(), output_shape=(None, 3), name="torso")
    return keras.Model(given, L.Dense(2)(torso(given)))


def frozen(layer: Any) -> Any:
    """The same layer, no longer trained."""
    layer.trainable = False
    return layer


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "unbuilt": (lambda: Body(unbuilt()), FIVE),
    "built": (lambda: Body(built()), FIVE),
    "functional": (lambda: Body(functional()), FIVE),
    "frozen by torch": (lambda: Body(functional()).requires_grad_(False), FIVE),
    "frozen by Keras": (lambda: Body(frozen(functional())), FIVE),
    "own": (lambda: Body(Own()), FIVE),
    "inner": (lambda: Body(Inner()), FIVE),
    "layers": (Layers, FIVE),
    "words": (Words, "int64[B, 9]"),
    "twice": (Twice, FIVE),
    "deciding": (lambda: Deciding(unbuilt()), FIVE),
    "back again": (lambda: Body(back_again()), FIVE),
    "wrapped": (lambda: keras.Sequential([L.TorchModuleWrapper(net()), L.Dense(2)]), FIVE),
    "wrapping": (Wrapping, FIVE),
    "in a graph": (in_a_graph, FIVE),
    "wrapper alone": (lambda: L.TorchModuleWrapper(net()), FIVE),
}
GRAPH_NAMES = "object_name_uids"


def example(inputs: str) -> Any:
    """A real input for a batch of two: wrappers run in training mode, where statistics of one are none."""
    return torch.zeros(2, 9, dtype=torch.int64) if inputs.startswith("int") else torch.ones(2, 5)


def real(build: Callable[[], Any], inputs: str) -> dict[str, Any]:
    """What is in a model that ran, and what its run cost for a batch of one."""
    model = build()
    with torch.no_grad():
        model(example(inputs))
        with FlopCounterMode(display=False) as counter:
            out = model(example(inputs))
    weights, buffers = held(model)
    return {
        "params": sum(one.numel() for one in weights),
        "trainable": sum(one.numel() for one in weights if one.requires_grad),
        "buffers": sum(one.numel() for one in buffers),
        "flops": counter.get_total_flops() // 2,
        "outputs": [f"float32{list(out.shape)}".replace("[2,", "[B,")],
    }


def held(model: Any) -> tuple[list[Any], list[Any]]:
    """Parameters and buffers of a model, each once; torch does not see the layers that Keras keeps in lists."""
    modules = list(model.modules())
    for module in modules:  # which grows
        if isinstance(module, L.Layer):
            known = set(map(id, modules))
            modules += [one for layer in module._flatten_layers() for one in layer.modules() if id(one) not in known]
    parameters = {id(one): one for module in modules for one in module.parameters() if one.is_floating_point()}
    buffers = {id(one): one for module in modules for one in module.buffers()}
    return list(parameters.values()), list(buffers.values())  # seeds are integers


def said(subject: Any, inputs: str) -> dict[str, Any]:
    """What a summary says."""
    summary = summarize(subject, inputs, name="model", activations=True)
    assert not summary.flops.uncounted
    return {
        "params": summary.params,
        "trainable": summary.trainable_params,
        "buffers": summary.buffers,
        "flops": summary.flops.value,
        "outputs": [str(spec) for spec in summary.outputs],
        "activations": summary.activation_bytes,
        "rows": [
            {
                "path": row.path,
                "type": row.type,
                "calls": row.calls,
                "flops": row.flops,
                "from": row.connected_to,
                "weights": [f"{one.name} {one.role}{' tied' if one.tied_to else ''}" for one in row.weights],
            }
            for row in summary.layers
        ],
    }


def state(model: Any) -> Any:
    """All that a model holds, and what Keras knows of names."""
    held = [(path, {name: id(value) for name, value in vars(one).items()}) for path, one in model.named_modules()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    names = dict(vars(keras.src.backend.common.global_state.GLOBAL_STATE_TRACKER).get(GRAPH_NAMES) or {})
    return held, {name: value.tolist() for name, value in values.items()}, names, keras.config.dtype_policy().name


def alive(build: Callable[[], Any], inputs: str, *, called: bool) -> dict[str, Any]:
    """What a summary says of a live model, and whether it is as before."""
    model = build()
    if called:
        with torch.no_grad():
            model(example(inputs))
    elif isinstance(model, L.Layer):
        return said(build, inputs)  # one that was never built is refused
    before = state(model)
    found = said(model, inputs)
    return {**found, "untouched": state(model) == before}


def mixed() -> Any:
    """A policy that acts on layers which are made at the first call."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    return Body(Inner())


class Choosing(nn.Module):
    """A module of torch that decides by a value."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Any) -> Any:
        return self.layer(x) if x.sum() > 0 else x


def four_bits() -> Any:
    """Two numbers in each byte."""
    body = keras.Sequential([keras.Input((6,)), L.Dense(8, use_bias=False), L.Dense(3, use_bias=False)])
    body.quantize("int4")
    return body


def dynamically_quantised() -> nn.Module:
    """Its weights are neither parameters nor buffers."""
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(5, 7)), {nn.Linear})  # type: ignore[no-any-return]


def error(function: Callable[[], Any]) -> str:
    """What a mistake says."""
    try:
        function()
    except ModelBudgetError as mistake:
        return str(mistake)
    return ""


def others() -> dict[str, Any]:
    """What does not compare with a run."""
    never = Body(unbuilt())
    never.forward = lambda x: never.head(x[:, :3])  # type: ignore[method-assign]
    packed = [summarize(build, "float32[B, 6]", name="model") for build in (lambda: Body(four_bits()), four_bits)]
    live = Body(unbuilt())
    plain = Body(nn.Sequential(Affine(5, 7), Affine(7, 3)))
    alike = [Body(keras.Sequential([L.Dense(7), L.Dense(3)])), plain]
    head_alone = {"training": {"trainable": ["head.*"]}}
    halves = [summarize(lambda: keras.Sequential([L.TorchModuleWrapper(OfHalves())]), "float32[B, 8]", name="model")]
    halves += [summarize(OfHalves, "float32[B, 8]", name="model")]
    unfed = [summarize(subject, name="model") for subject in (lambda: Body(built()), Body(built()))]
    return {
        "never": error(lambda: summarize(never, FIVE, name="model")),
        "misfit": error(lambda: summarize(Body(built()), "float32[B, 4]", name="model")),
        "packed": error(
            lambda: summarize(
                lambda: keras.Sequential([L.TorchModuleWrapper(dynamically_quantised())]), FIVE, name="model"
            )
        ),
        "choosing": error(lambda: summarize(lambda: keras.Sequential([L.TorchModuleWrapper(Choosing())]), FIVE)),
        "mixed": [[str(spec) for spec in row.outputs[0]] for row in summarize(mixed, FIVE, name="model").layers],
        "policy": keras.config.dtype_policy().name,
        "int4": [[one.params, one.weight_bytes, one.buffers] for one in packed],
        "plans": [[plan(model, FIVE, **how).peak_bytes for model in alike] for how in ({"training": True}, head_alone)],
        "halves": [[one.params, one.weight_bytes, one.flops.value] for one in halves],
        "unfed": [[one.params, one.trainable_params, one.flops.value] for one in unfed],
        "half": plan(live, FIVE, training={"precision": "bf16"}).notes,
        "operations": said(lambda: Operations(), FIVE)["flops"],
    }


class Affine(nn.Module):
    """A Dense layer in torch alone: two operators, so that the bias has its gradient before the kernel has."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.empty(inputs, outputs)), nn.Parameter(torch.empty(outputs))

    def forward(self, x: Any) -> Any:
        return torch.matmul(x, self.kernel) + self.bias


class Operations(nn.Module):
    """Operations of Keras without any layer of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Any) -> Any:
        return keras.ops.matmul(self.layer(x), keras.ops.ones((3, 4)))


def main() -> None:
    """Print what there is to say of each model."""
    found: dict[str, Any] = {
        name: {
            "real": real(build, inputs),
            "builder": said(build, inputs),
            "live": alive(build, inputs, called=False),
            "called": alive(build, inputs, called=True),
        }
        for name, (build, inputs) in MODELS.items()
    }
    print(json.dumps({"models": found, "others": others(), "shapes": dict(same_shapes.main())}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
