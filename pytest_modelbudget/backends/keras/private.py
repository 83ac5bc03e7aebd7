"""Every private name of Keras and its backends that is used here, with the reason; nothing else touches them.

Public Keras has no way to forget the variables of a finished scope, to set the counters of layer names aside,
or to list which calls of a shared layer belong to which model. What it takes to copy layers and to run them on
torch's meta device is in `private_torch`. `pins` looks whether the names are there.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import Any

import keras
import numpy as np

from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.errors import FrameworkMissing

if not hasattr(keras, "KerasTensor") or not hasattr(keras, "StatelessScope"):  # Keras 2 is laid out otherwise
    version = getattr(keras, "__version__", "?")
    raise FrameworkMissing("keras", f"Keras 3 is needed to count Keras models, this is {version}")

global_state: Any
try:
    global_state = import_module("keras.src.backend.common.global_state")
except ImportError:  # moved by a release to come; `pins` says so
    global_state = None

_TRACKERS = ("GLOBAL_STATE_TRACKER", "GLOBAL_SETTINGS_TRACKER")
_NAMES = "object_name_uids"
_UNINITIALIZED = "uninitialized_variables"
_SCOPE = "stateless_scope"
_CALL = "current_call_ctx"


@contextmanager
def global_state_kept() -> Iterator[None]:
    """On leaving, the thread's global state of Keras is as before, also when `clear_session()` replaced it inside.

    Inside, naming counters start afresh and no variable waits for its value: on leaving an ordinary scope Keras
    would allocate whatever is on that list, and again at the next symbolic call of any other model.
    """
    trackers = {name: getattr(global_state, name) for name in _TRACKERS if hasattr(global_state, name)}
    saved = {name: dict(vars(tracker)) for name, tracker in trackers.items()}
    for tracker in trackers.values():
        vars(tracker).update({key: _copy(value) for key, value in vars(tracker).items()})
    set_names({})
    global_state.set_global_attribute(_UNINITIALIZED, [])
    try:
        yield
    finally:
        for name, tracker in trackers.items():
            setattr(global_state, name, tracker)
            vars(tracker).clear()
            vars(tracker).update(saved[name])


def _copy(value: Any) -> Any:
    """Stacks and registries change in place, so the inside works on copies of them."""
    return value.copy() if type(value) in (list, dict, defaultdict) else value


def set_names(counters: dict[str, int]) -> None:
    """Let automatic names go on from `counters`: how many objects there are of each name."""
    global_state.set_global_attribute(_NAMES, defaultdict(int, counters))


def in_stateless_scope() -> bool:
    """Whether variables are without value at the moment (a `clear_session()` ends that silently)."""
    return global_state.get_global_attribute(_SCOPE) is not None


def in_symbolic_scope() -> bool:
    """Whether the backend is inferring shapes, so that its tensors hold no numbers."""
    return global_state.get_global_attribute("symbolic_scope") is not None


def enter_stateless_scope(scope: object) -> None:
    """Return to `scope` after something ended it."""
    global_state.set_global_attribute(_SCOPE, scope)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """On leaving, python, numpy and the backend's global random state are as before."""
    restorers = [_restorer(random.setstate, random.getstate()), _restorer(np.random.set_state, np.random.get_state())]
    restorers.extend(_tensorflow_random())
    if keras.backend.backend() == "torch":
        torch = sys.modules["torch"]
        restorers.append(_restorer(torch.set_rng_state, torch.get_rng_state()))
    try:
        yield
    finally:
        for restore in restorers:
            restore()


def _restorer(put: Callable[[Any], object], state: object) -> Callable[[], object]:
    return lambda: put(state)


def _tensorflow_random() -> Iterator[Callable[[], object]]:
    """TensorFlow's global seed, which `keras.utils.set_random_seed` sets whatever the backend."""
    if "tensorflow.python.eager.context" not in sys.modules:
        return
    context = sys.modules["tensorflow.python.eager.context"].context()
    if not hasattr(context, "_seed"):
        return
    seed, generator = context._seed, getattr(context, "_rng", None)  # absent until a seed was set
    state = generator.getstate() if generator is not None else None

    def restore() -> None:
        context._seed = seed
        if generator is not None:
            context._rng = generator
            generator.setstate(state)
        elif hasattr(context, "_rng"):
            del context._rng

    yield restore


def variable_class() -> type:
    """The class that defines how every Keras variable is made, whatever the backend."""
    defining = ("_deferred_initialize", "assign")
    owner: type = next(cls for cls in keras.Variable.__mro__ if all(name in vars(cls) for name in defining))
    return owner


def optimizer_keys() -> type | None:
    """TensorFlow's optimizers ask each variable for its value's id; the class that does so, None elsewhere."""
    owner: type = next(cls for cls in keras.optimizers.Optimizer.__mro__ if "_var_key" in vars(cls))
    return owner if owner.__module__.startswith("keras.src.backend.") else None


def plain_slot() -> Callable[..., Any]:
    """How an optimizer makes a slot by shape alone; TensorFlow's looks at the weight's value first, to place it."""
    owners = [vars(cls) for cls in keras.optimizers.Optimizer.__mro__ if "add_variable_from_reference" in vars(cls)]
    add_slot: Callable[..., Any] = owners[-1]["add_variable_from_reference"]
    return add_slot


def packed_shape(layer: Any, variable: Any) -> tuple[int, ...] | None:
    """The shape that a variable of packed 4-bit numbers stands for; None for any other variable."""
    if getattr(layer, "quantization_mode", None) != "int4":
        return None
    for packed_name, unpacked in (("_kernel", "kernel"), ("_embeddings", "embeddings")):
        if getattr(layer, packed_name, None) is variable:
            return tuple(infer_outputs(lambda name=unpacked: getattr(layer, name)).shape)
    return None


def own_variables(layer: Any) -> list[Any]:
    """The variables a layer holds itself: trainable ones first, no seeds, no metrics."""
    by_id = {id(variable): variable for variable in (*layer._trainable_variables, *layer._non_trainable_variables)}
    return list(by_id.values())


def sublayers(layer: Any) -> list[Any]:
    """The layers a layer holds directly, each once, also those in lists and mappings.

    Up to Keras 3.12, a functional model lists those of its graph alone; what was set on it besides, its tracker knows.
    """
    tracked = layer._tracker.config["layers"][1] if isinstance(layer, keras.Function) else ()
    if not tracked and not layer._layers:
        return []
    return list({id(sublayer): sublayer for sublayer in (*layer._layers, *tracked)}.values())


def value_of(variable: Any) -> Any:
    """The tensor that a variable holds; None for one without a value."""
    return variable._value


def set_value(variable: Any, value: Any) -> None:
    """Let a variable hold a tensor."""
    variable._value = value


@contextmanager
def value_replaced(variable: Any, value: Any) -> Iterator[None]:
    """Inside, a variable holds another tensor."""
    value_before = variable._value
    set_value(variable, value)
    try:
        yield
    finally:
        variable._value = value_before


def graph_of(model: Any) -> Any:
    """The graph that says what a functional or built Sequential model does; None when a call of its own does."""
    return None if has_own_call(model) else function_of(model)


def has_own_call(layer: Any) -> bool:
    """Whether a layer is called otherwise than its class of Keras is: by its own class, or by what was set on it."""
    if "call" in vars(layer):
        return True
    owners = (next((cls for cls in type(layer).__mro__ if name in vars(cls)), type(layer)) for name in _CALLS)
    return not all(owner.__module__.startswith("keras.src.") for owner in owners)


_CALLS = ("call", "__call__")


def function_of(model: Any) -> Any:
    """The `keras.Function` a model was made from, whether or not it calls it; None when there is none."""
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if isinstance(model, keras.Function) else None


def nodes_of(graph: Any, operation: Any) -> list[Any]:
    """The calls of `operation` that belong to `graph`: a shared layer also carries those of other models."""
    return [
        node for index, node in enumerate(operation._inbound_nodes) if f"{id(operation)}_ib-{index}" in graph._nodes
    ]


def shapes_in(graph: Any) -> Iterator[tuple[Any, tuple[int | None, ...]]]:
    """Each operation of a graph with the shape of each tensor it made, there and elsewhere; None for open sizes."""
    for operation in graph.operations:
        for node in operation._inbound_nodes:
            for tensor in node.output_tensors:
                yield operation, tensor.shape


def input_structure(graph: Any) -> Any:
    """The inputs as the model's author nested them."""
    return graph._inputs_struct


def history(tensor: Any) -> tuple[Any, Any] | None:
    """The operation that made a symbolic tensor and the call it came from; None for one without a past."""
    record = getattr(tensor, "_keras_history", None)
    if record is None or record.operation is None:
        return None
    return record.operation, record.operation._inbound_nodes[record.node_index]


@contextmanager
def calls_forgotten() -> Iterator[Callable[[Any], None]]:
    """Give a function to name each operation before it is called; on leaving their lists of calls are as before."""
    counts_before: dict[int, tuple[Any, int, int]] = {}

    def remember(operation: Any) -> None:
        counts_before.setdefault(
            id(operation), (operation, len(operation._inbound_nodes), len(operation._outbound_nodes))
        )

    try:
        yield remember
    finally:
        for operation, inbound, outbound in counts_before.values():
            del operation._inbound_nodes[inbound:]
            del operation._outbound_nodes[outbound:]


@contextmanager
def built_by_calling() -> Iterator[None]:
    """Let a layer without a `build` of its own build what is in it as its call gets there.

    Keras calls such a layer once more to build it, at each level of nesting: that doubles the work with each.
    """
    owner = keras.layers.Layer
    if (original := getattr(owner, "_maybe_build", None)) is None:  # slow, and right all the same
        yield
        return

    def maybe_build(layer: Any, call_spec: Any) -> None:
        if overrides_build(layer):
            original(layer, call_spec)

    with patched(owner, "_maybe_build", maybe_build):
        yield


def overrides_build(layer: Any) -> bool:
    """Whether a layer's class makes its weights in a `build` of its own."""
    return not getattr(type(layer).build, "_is_default", False)


def is_drawn(variable: Any) -> bool:
    """Whether reading a variable would draw its value from one of Keras' own initializers, each time anew."""
    if variable._value is not None:
        return False
    if not isinstance(inspect.unwrap(variable._initializer), keras.initializers.Initializer):
        return False
    scope = global_state.get_global_attribute(_SCOPE)
    return scope is None or scope.get_current_value(variable) is None


def infer_outputs(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run `function` on the backend's own symbolic tensors."""
    from keras.src import backend

    return backend.compute_output_spec(function, *args, **kwargs)


def all_variables(operation: Any) -> list[Any]:
    """Every variable that a call of a layer or operation may read, also seeds."""
    return list(operation.variables) if isinstance(operation, keras.layers.Layer) else []


def has_mask(tensor: Any) -> bool:
    """Whether Keras sent a mask along with a tensor of the backend."""
    return getattr(tensor, "_keras_mask", None) is not None


def may_make_mask(layer: Any) -> bool:
    """Whether a layer of Keras may send a mask along with what it gives where it got none."""
    return isinstance(layer, keras.layers.Masking) or bool(getattr(layer, "mask_zero", False))


def pass_mask(layer: Any, tensor: Any, output: Any) -> bool:
    """Send the mask of `tensor` along with what a layer made of it, as Keras does; False where it makes another."""
    if type(layer).compute_mask is not keras.layers.Layer.compute_mask:
        return False
    if layer.supports_masking:
        output._keras_mask = tensor._keras_mask
    return True


def graph_calls(graph: Any) -> list[Any]:
    """The calls of a graph, each after those that make what it takes; none of its input layers."""
    by_depth = graph._nodes_by_depth
    ordered = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    return [node for node in ordered if node.operation and not node.is_input]


def call_arguments(node: Any, values: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call in a graph, with the value by its identity in the place of each symbolic tensor."""
    args, kwargs = node.arguments.args, node.arguments.kwargs
    if len(args) == 1 and not kwargs:  # nearly all calls, for which Keras' own way takes long
        if isinstance(args[0], keras.KerasTensor):
            return (values[id(args[0])],), {}
        if type(args[0]) is list and all(isinstance(tensor, keras.KerasTensor) for tensor in args[0]):
            return ([values[id(tensor)] for tensor in args[0]],), {}
    filled: tuple[tuple[Any, ...], dict[str, Any]] = node.arguments.fill_in(values)
    return filled


def in_output_structure(graph: Any, outputs: list[Any]) -> Any:
    """The outputs of a graph as its author nested them."""
    return keras.tree.pack_sequence_as(graph._outputs_struct, outputs)


def operation_in_training(operation: Any) -> Callable[..., Any]:
    """An operation as a graph runs it in training mode, whatever its author passed for `training`."""
    from keras.src.models.functional import operation_fn

    run: Callable[..., Any] = operation_fn(operation, training=True)
    return run


@contextmanager
def called_for(*, training: bool) -> Iterator[None]:
    """Inside, a layer runs for training or not, where its caller does not say so, and with it all below it."""
    from keras.src.layers.layer import CallContext

    context_before = global_state.get_global_attribute(_CALL)
    context = CallContext(entry_layer=None)
    context.training = training
    global_state.set_global_attribute(_CALL, context)
    try:
        yield
    finally:
        global_state.set_global_attribute(_CALL, context_before)


def compiled_losses(model: Any) -> list[str]:
    """What the losses are called that a model is compiled with, in the order of its outputs; none where it is not."""
    losses = getattr(getattr(model, "_compile_loss", None), "_user_loss", None)
    if isinstance(losses, dict):
        names = getattr(model, "output_names", ())
        losses = [losses[name] for name in names] if set(names) == set(losses) else list(losses.values())
    listed = losses if isinstance(losses, (list, tuple)) else [losses]
    return [_loss_name(loss) for loss in listed if loss is not None]


def _loss_name(loss: Any) -> str:
    """Its own name with that of its class, in small letters."""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", None) or getattr(loss, "name", "")
    return f"{type(loss).__name__} {name}".lower()


def compiled_loss(model: Any, inputs: Any, targets: Any, outputs: Any) -> Any:
    """The loss that a model is compiled with, and what its layers add, as its own step computes it."""
    return model._compute_loss(x=inputs, y=targets, y_pred=outputs, training=True)


def has_metrics(model: Any) -> bool:
    """Whether a model is compiled with metrics beside its loss."""
    return getattr(model, "_compile_metrics", None) is not None


def takes_training(layer: Any) -> bool:
    """Whether Keras' own step says to a model that it is training."""
    return bool(getattr(layer, "_call_has_training_arg", False))


@contextmanager
def losses_forgotten(model: Any) -> Iterator[None]:
    """On leaving, layers know no loss that a call inside has added."""
    try:
        yield
    finally:
        if hasattr(model, "_clear_losses"):
            model._clear_losses()


def added_losses(model: Any, losses: Iterable[Any]) -> AbstractContextManager[Any]:
    """Inside, `losses` are what the layers of a model have added to its loss."""
    return patched(model, "_losses_override", list(losses))


def compiled_loss_copied(model: Any) -> AbstractContextManager[Any]:
    """Inside, a compiled model has a copy of its loss, since the first use of one makes metrics in it."""
    if (loss := getattr(model, "_compile_loss", None)) is None:
        return nullcontext()
    copied = type(loss)(loss._user_loss, loss._user_loss_weights, output_names=loss.output_names)
    return patched(model, "_compile_loss", copied)
