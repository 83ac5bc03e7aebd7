"""A framework and the backend that counts it, as small as can be; a test project has it as `fakenet.py`.

A model is nothing but named kernels, so every number of it can be told by looking:

    Model(dense=(32, 64))   # one layer, 32 * 64 = 2,048 params, 8,192 bytes, 4,096 FLOPs at batch 1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Inputs, concrete_shape
from pytest_modelbudget.summary import Flops, Layer, Summary, TensorSpec, Weight

FRAMEWORK = "fakenet"


class Model:
    """Layers in a row, each a matrix; `uncounted` names operators without a formula, `flops=False` knows none."""

    def __init__(
        self,
        kernels: Mapping[str, tuple[int, int]] | None = None,
        *,
        uncounted: Mapping[str, int] | None = None,
        flops: bool = True,
        **more: tuple[int, int],
    ) -> None:
        self.kernels = {**(kernels or {}), **more}
        self.uncounted = dict(uncounted or {})
        self.flops = flops


def owns(model: object) -> bool:
    """Whether it is a model of this framework."""
    return isinstance(model, Model)


def is_class(model: object) -> bool:
    """Whether it is a class of models."""
    return isinstance(model, type) and issubclass(model, Model)


@contextmanager
def global_state_restored() -> Iterator[None]:
    """There is no global state."""
    yield


@contextmanager
def abstract() -> Iterator[None]:
    """Nothing is ever allocated here."""
    yield


def summarize(model: Model, *, name: str, inputs: Inputs | None, sizes: Mapping[str, int], built_here: bool) -> Summary:
    """Read the numbers off the kernels."""
    if inputs is None:
        raise ModelBudgetError(f'{name}: the model does not know its inputs: write e.g. inputs: "float32[B, 32]"')
    spec = inputs.ports[0].spec
    layers = []
    total = 0
    for path, kernel in model.kernels.items():
        if spec.shape[-1] != kernel[0]:
            raise ModelBudgetError(f"{name}: inputs do not fit: layer {path!r} takes [B, {kernel[0]}], got {spec.dims}")
        flops = 2 * concrete_shape(spec, sizes)[0] * kernel[0] * kernel[1]
        total += flops
        spec = TensorSpec((*spec.shape[:-1], kernel[1]))
        came_from = layers[-1].path if layers else inputs.ports[0].name
        layers.append(Layer(path, "Dense", ((spec,),), ((came_from,),), (Weight("kernel", kernel),), flops=flops))
    return Summary(
        model=name,
        framework=FRAMEWORK,
        layers=tuple(layers),
        inputs=inputs.ports,
        outputs=(spec,),
        flops=Flops(total if model.flops else None, tuple(model.uncounted.items())),
        sizes=tuple(sizes.items()),
    )
