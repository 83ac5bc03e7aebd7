"""Building without memory for weights: a builder is run in a trace of JAX, and its model is described there."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from importlib import import_module
from types import TracebackType
from typing import Any

import jax
import numpy as np

from pytest_modelbudget.backends.jax import libraries
from pytest_modelbudget.backends.jax.private import builder_trace, plain_tracebacks
from pytest_modelbudget.errors import ModelBudgetError, NotOfFramework, ValuesUnknown

FRAMEWORK = "jax"


@contextmanager
def abstract() -> Iterator[None]:
    """Nothing: what keeps models of JAX from taking memory is a trace around the whole builder; see `traced`."""
    yield


@contextmanager
def global_state_restored() -> Iterator[None]:
    """On leaving, the settings of JAX and the random state of python and numpy are as before."""
    settings, python, numbers = dict(jax.config.values), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        for name, value in settings.items():
            if jax.config.values.get(name) != value:
                jax.config.update(name, value)


def with_keys(build: Callable[..., Any]) -> Callable[..., Any]:
    """A builder that is given the streams or the key of random numbers that it cannot do without.

    These are made when it is called, in its trace: `rngs` for flax.nnx and `key` for equinox.
    """
    makers = dict(_key_makers(build))
    if not makers:
        return build
    signature = _signature(build)

    @wraps(build, updated=())
    def keyed(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind_partial(*args, **kwargs).arguments
        return build(*args, **kwargs, **{name: make() for name, make in makers.items() if name not in bound})

    parameters = [
        parameter.replace(default=None, kind=parameter.KEYWORD_ONLY) if name in makers else parameter
        for name, parameter in signature.parameters.items()
    ]
    parameters.sort(key=lambda parameter: parameter.kind)
    vars(keyed)["__signature__"] = signature.replace(parameters=parameters)
    return keyed


def _key_makers(build: Callable[..., Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    try:
        parameters = _signature(build).parameters
    except (TypeError, ValueError):  # some callables of C have none
        return
    in_use = {library.KEY_ARGUMENT: library.make_key for _, library in libraries.loaded() if library.KEY_ARGUMENT}
    for name, parameter in parameters.items():
        can_be_named = parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if name in in_use and can_be_named and parameter.default is parameter.empty:
            yield name, in_use[name]


def is_settled(model: object) -> bool:
    """Whether `model` is what stayed of one that was built in a trace."""
    return hasattr(type(model), "watched") and type(model).__module__.startswith(f"{__package__}.")


def _signature(build: Callable[..., Any]) -> inspect.Signature:
    """What `build` takes; of a class what its `__init__` does, whatever its metaclass shows."""
    if not isinstance(build, type):
        return inspect.signature(build)
    signature = inspect.signature(build.__init__)  # type: ignore[misc]
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def traced(build: Callable[..., Any]) -> Callable[..., Any]:
    """A builder that runs `build` on abstract arrays; of a model that it gives, only shapes and dtypes stay.

    Streams and keys of random numbers that `build` cannot do without it makes itself. Raises beside what `build` does:

    Raises:
        NotOfFramework: it gives something else, and used JAX on the way: it has to be run without a trace.
        ValuesUnknown: it asks for values, which a trace does not have.
        ModelBudgetError: it draws from streams of random numbers of a caller.
    """
    keyed = with_keys(build)

    @wraps(keyed, updated=())
    def builder(*args: Any, **kwargs: Any) -> Any:
        modules_before = set(sys.modules)
        name, model, used = _trace(partial(keyed, *args, **kwargs))
        if _imported_anew(set(sys.modules) - modules_before):
            name, model, used = _trace(partial(keyed, *args, **kwargs))
        if name is None and used:
            raise NotOfFramework(FRAMEWORK)
        return model

    return builder


def _trace(build: Callable[[], Any]) -> tuple[str | None, Any, bool]:
    """The library of the model that `build` gives in a trace, what stays of it, and whether arrays were made."""
    results: list[tuple[str | None, Any, bool]] = []
    raised: list[tuple[BaseException, TracebackType | None]] = []

    def trace() -> None:
        try:
            with builder_trace() as arrays_made:
                model = build()
        except BaseException as error:
            raised.append((error, error.__traceback__))
            raise
        name = libraries.of(model)
        remains = model if name is None else libraries.known(name).settled(model)  # before the trace ends
        results.append((name, remains, arrays_made()))

    outer_stream_errors = tuple(error for _, library in libraries.loaded() for error in library.OUTER_STREAM_ERRORS)
    try:
        with plain_tracebacks():
            jax.make_jaxpr(trace)()
    except jax.errors.JAXTypeError as error:
        raise ValuesUnknown(FRAMEWORK, _VALUES_MESSAGE) from error
    except outer_stream_errors as error:
        raise ModelBudgetError(_STREAMS_MESSAGE) from error
    except BaseException as error:  # without the frames of the trace, of which a builder may know nothing
        frames = next((frames for own, frames in raised if own is error), error.__traceback__)
        raise error.with_traceback(frames)  # noqa: B904  # it is the same error
    return results[-1]


_VALUES_MESSAGE = (
    "the builder asks for values of JAX arrays, which have none while nothing is allocated: compute them with numpy, "
    "as in np.linspace(0, 0.1, depth); a model of another framework that uses JAX names that one in its entry, as in "
    "framework: keras"
)
_STREAMS_MESSAGE = (
    "the builder draws from streams of random numbers that were made outside of it: let it make its own, as in "
    "Model(rngs=nnx.Rngs(0))"
)


def _imported_anew(names: Iterable[str]) -> bool:
    """Whether any of these modules made arrays of the trace in which it was imported: it is imported once more."""
    spoilt = [name for name in names if _holds_traced(sys.modules[name])]
    for name in spoilt:
        del sys.modules[name]
    for name in spoilt:
        import_module(name)
    return bool(spoilt)


def _holds_traced(module: object) -> bool:
    return any(isinstance(value, jax.core.Tracer) for value in list(vars(module).values()))
