"""Frameworks: each is a module that satisfies `Backend` and is listed in `BACKENDS`.

A framework that is not in use in this process cannot own a model, so it is never imported to be asked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module
from typing import Protocol, cast

from pytest_modelbudget.backends.deep_imports import import_early
from pytest_modelbudget.backends.outline import Outline
from pytest_modelbudget.errors import FrameworkMissing
from pytest_modelbudget.inputs import Inputs
from pytest_modelbudget.planner import Recipe, Serving
from pytest_modelbudget.summary import Plan, Summary

BACKENDS = {
    "exported": "pytest_modelbudget.backends.exported",
    "torch": "pytest_modelbudget.backends.torch",
    "jax": "pytest_modelbudget.backends.jax",
    "tensorflow": "pytest_modelbudget.backends.tensorflow",
    "tf_keras": "pytest_modelbudget.backends.tensorflow.legacy",
    "keras": "pytest_modelbudget.backends.keras",
}
"""The framework, and the backend that knows it; one that builds on another (Keras on torch) comes after it."""

_SIGNS = {
    "exported": ("pytest_modelbudget.backends.exported",),
    "keras": ("keras", "tensorflow"),
    "jax": ("flax", "equinox"),
}
"""Modules that show that a framework is in use, where that is not its own name.

`tf.keras` loads Keras late; Keras and TensorFlow load JAX, whose models are those of libraries on it.
"""


class Backend(Protocol):
    """What a framework's module has to offer."""

    FRAMEWORK: str

    def owns(self, model: object) -> bool:
        """Whether `model` is an instance of this framework's model class."""
        ...

    def is_class(self, model: object) -> bool:
        """Whether `model` is this framework's model class itself, or one derived from it."""
        ...

    def global_state_restored(self) -> AbstractContextManager[None]:
        """On leaving, the global state that a builder or a model may move is as before, also when the body raises.

        The random state, naming counters, policies, default dtype and device: what a builder sets holds while its
        model is counted, and no longer.
        """
        ...

    def abstract(self) -> AbstractContextManager[Sequence[str] | None]:
        """Inside, models are built without memory for their weights; what this takes is undone on leaving.

        Yields where a builder asked for values in vain (`file:line`), so that it may have gone on otherwise than with
        memory; None where the framework has no such thing.
        """
        ...

    def summarize(
        self,
        model: object,
        *,
        name: str,
        inputs: Inputs | None,
        sizes: Mapping[str, int],
        built_here: bool,
    ) -> Summary:
        """Count `model` at `inputs`, with its symbolic dimensions at `sizes`.

        A model without `inputs` that does not know its own is not run: what only a run would tell is unknown.

        Called outside of `abstract()`. `built_here` says that the model was made for this summary and may be run
        and finished freely; any other model belongs to the user and is left exactly as it is.
        Raises:
            ModelBudgetError: inputs do not fit, or are missing where weights depend on them; a layer has weights that
                were never built.
        """
        ...


class Memory(Protocol):
    """What a framework's module has to offer when its models can be run on values; optional, beside `Backend`.

    Its `summarize`, and its `plan` where it has one, takes two more arguments: `rebuild` makes a model that was built
    here once more, by calling its builder inside `with_memory` with a seed, and `run` asks for a run on values, or
    forbids it.
    """

    def with_memory(self, seed: int, *, limited: bool) -> AbstractContextManager[None]:
        """Inside, builders run as they do for their users, and what they draw follows from `seed`.

        Raises:
            TooLarge: while `limited`, the weights of a model take more than may be taken unasked.
        """
        ...


class CountsActivations(Protocol):
    """What a framework's module has to offer when it takes long to count activation_bytes; optional, beside `Backend`.

    Its `summarize` takes one more argument, `activations`: whether they are asked for (by itself yes).
    """

    ACTIVATIONS_ON_REQUEST: bool
    """Whether they are counted where a limit or a recipe asks for them alone."""


class Tracing(Protocol):
    """What a framework's module has to offer when its builders run in a trace; optional, beside `Backend`."""

    def traced(self, build: Callable[..., object]) -> Callable[..., object]:
        """A builder that gives what stays of the models of `build`, and makes itself what random numbers need.

        It is called inside of `abstract()`, or of `with_memory()` of another framework, and raises beside what `build`
        raises:

        Raises:
            NotOfFramework: the model is of another framework, and the trace touched it.
            ValuesUnknown: `build` asks for values.
        """
        ...


class Outlining(Protocol):
    """What a framework's module has to offer when its models do not show their layers themselves; optional."""

    def outline(self, model: object) -> Outline | None:
        """What can be told of a model that was built; None where nothing can."""
        ...


class NotRecorded(Exception):
    """What a planner raises for a model whose runs it does not record: they are then planned as sums."""


class Planner(Protocol):
    """What a framework's module has to offer when it can record a run; optional, beside `Backend`."""

    def plan(
        self,
        model: object,
        *,
        name: str,
        inputs: Inputs | None,
        sizes: Mapping[str, int],
        recipes: tuple[Recipe, ...],
        built_here: bool,
        devices: tuple[str, ...] = (),
    ) -> tuple[Plan, ...]:
        """What runs of `model` by `recipes` take of memory, one plan for each, in their order.

        The other arguments are those of `Backend.summarize`; `sizes` are the recipe's own already, and each plan says
        whether it fits the `devices`, where the framework knows.

        Raises:
            ModelBudgetError: the model does not run so; whatever the model's own code raises comes through.
            NotRecorded: no run of such a model is recorded.
        """
        ...


class Server(Protocol):
    """What a framework's module has to offer when it can plan an engine that serves a model; optional."""

    def serve(
        self,
        model: object,
        *,
        name: str,
        inputs: Inputs | None,
        sizes: Mapping[str, int],
        recipe: Serving,
        built_here: bool,
        devices: tuple[str, ...] = (),
    ) -> Plan:
        """What serving `model` by `recipe` takes of memory; the other arguments are those of `Planner.plan`.

        Raises:
            ModelBudgetError: the model has no cache that can be seen, or does not run so.
        """
        ...


class Trial(Protocol):
    """What a framework's module has to offer when it can tell soon whether inputs fit; optional, beside `Backend`."""

    def refusal(self, model: object, *, inputs: Inputs, sizes: Mapping[str, int]) -> Exception | None:
        """What the model raises for these inputs, None when it runs on them; called inside of `abstract`."""
        ...


def loaded() -> tuple[Backend, ...]:
    """The backends whose framework this process has imported."""
    return tuple(_usable())


def in_use() -> frozenset[str]:
    """The names among `BACKENDS` of what this process has imported, in whatever version."""
    return frozenset(name for name in BACKENDS if any(sign in sys.modules for sign in _SIGNS.get(name, (name,))))


def _usable() -> Iterator[Backend]:
    imported = in_use()
    for name in BACKENDS:
        if name in imported:
            try:
                yield backend(name)
            except FrameworkMissing:  # a version that the backend does not know; its models have no owner
                continue


def backend(name: str) -> Backend:
    """The backend of one framework; imports it."""
    import_early(BACKENDS[name])
    return cast(Backend, import_module(BACKENDS[name]))


def owner(model: object) -> Backend | None:
    """The backend that owns `model`, or None; a Keras model that runs on torch is a torch module too, and is Keras'."""
    return next((candidate for candidate in reversed(loaded()) if candidate.owns(model)), None)


@contextmanager
def global_state_restored(backends: tuple[Backend, ...]) -> Iterator[None]:
    """Keep the global state of all of `backends` at once."""
    with ExitStack() as stack:
        for backend in backends:
            stack.enter_context(backend.global_state_restored())
        yield


def traced(backends: tuple[Backend, ...], build: Callable[..., object]) -> Callable[..., object]:
    """A builder that runs `build` in the traces of all of `backends` that have one; see `Tracing`."""
    for backend in backends:
        if hasattr(backend, "traced"):
            build = cast(Tracing, backend).traced(build)
    return build


def has_memory(backends: tuple[Backend, ...]) -> bool:
    """Whether any of `backends` can run models on values."""
    return any(hasattr(backend, "with_memory") for backend in backends)


@contextmanager
def with_memory(backends: tuple[Backend, ...], seed: int, *, limited: bool) -> Iterator[None]:
    """Build with memory in all of `backends` that can; see `Memory`. Enter it inside of `global_state_restored`."""
    with ExitStack() as stack:
        for backend in backends:
            if hasattr(backend, "with_memory"):
                stack.enter_context(cast(Memory, backend).with_memory(seed, limited=limited))
        yield


@contextmanager
def abstract(backends: tuple[Backend, ...]) -> Iterator[list[Sequence[str]]]:
    """Build without memory for weights in all of `backends` at once; enter it inside of `global_state_restored`.

    Yields what each of them does.
    """
    with ExitStack() as stack:
        yield [lines for backend in backends if (lines := stack.enter_context(backend.abstract())) is not None]
