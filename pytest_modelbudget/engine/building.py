"""Building a model by its builder, or from its file: without memory for its weights where that can be.

A builder is run abstractly first, and once more with memory where it asked for values and may have them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pytest_modelbudget import backends, inputs
from pytest_modelbudget.backends import model_files
from pytest_modelbudget.backends.patching import gc_paused
from pytest_modelbudget.engine.counted import CountedModel
from pytest_modelbudget.engine.late_imports import FrameworkImported, stopped_at_frameworks
from pytest_modelbudget.engine.naming import CURES, import_callable, import_framework, import_named
from pytest_modelbudget.engine.tracebacks import safe_text
from pytest_modelbudget.entry import ModelEntry, arguments, names_file
from pytest_modelbudget.errors import ModelBudgetError, NotOfFramework, TooLarge, ValuesUnknown
from pytest_modelbudget.inputs import Example, Inputs
from pytest_modelbudget.system.frames import frame_location, user_frame

T = TypeVar("T")


def from_builder(entry: ModelEntry, finish: Callable[[CountedModel], T]) -> T:
    """What `finish` gives for the model that the entry's builder makes, without memory where that can be."""
    if entry.framework is not None:
        import_framework(entry.framework)
    build = _builder(entry, entry.build) if isinstance(entry.build, str) else entry.build
    build = arguments.bind_arguments(build, entry.args, entry.kwargs, partial(_import_reference, entry))
    with gc_paused():  # until the model is gone again
        return _build_model_as_it_takes(build, entry, backends.loaded(), finish)


def _builder(entry: ModelEntry, build: str) -> Callable[..., object]:
    """The function that `build` names, or one that reads its file."""
    if not names_file(build):
        return import_callable(build, "build", entry)
    if entry.args or entry.kwargs:
        prefix = f"{entry.place}: " if entry.place else ""
        raise ModelBudgetError(f"{prefix}args and kwargs are for functions; {build} is a file, which takes none")
    return model_files.builder(Path(build), entry.framework)


def _build_model_as_it_takes(
    build: Callable[..., object],
    entry: ModelEntry,
    active: tuple[backends.Backend, ...],
    finish: Callable[[CountedModel], T],
) -> T:
    """See `_build_model`; once more where the builder imported a framework, or one's way to build touched another's."""
    try:
        return _build_model(build, entry, active, finish)
    except FrameworkImported:
        pass  # left before the next try: what that raises has nothing to do with this
    except (NotOfFramework, ValuesUnknown) as other:
        if isinstance(other, ValuesUnknown) and entry.framework in (None, other.framework):
            raise
        rest = tuple(backend for backend in active if other.framework != backend.FRAMEWORK)
        return _build_model(build, entry, rest, finish)
    return _build_model_as_it_takes(build, entry, backends.loaded(), finish)


def _build_model(
    build: Callable[..., object],
    entry: ModelEntry,
    active: tuple[backends.Backend, ...],
    finish: Callable[[CountedModel], T],
) -> T:
    builder = backends.traced(active, build)
    _check_arguments(builder, entry, _builder_name(build))
    rebuild = partial(_build_with_memory, builder, entry)
    with ExitStack() as state:
        state.enter_context(backends.global_state_restored(active))
        notes: tuple[str, ...] = ()
        try:
            model, refused = (rebuild(0), ()) if entry.run == "real" else _build_abstractly(builder, entry, active)
        except Exception as mistake:
            if entry.run is not None or not _may_need_values(mistake, active):
                raise
            state.close()  # what the first try set must not be there for the second
            state.enter_context(backends.global_state_restored(active))
            model, notes = _build_after_failure(mistake, rebuild, entry), (_BUILT_WITH_MEMORY,)
        else:
            if refused:
                state.close()
                state.enter_context(backends.global_state_restored(active))
                model, notes = _rebuild(builder, entry, active, ", ".join(filter(None, refused)))
        owner = backends.owner(model)
        if owner is not None and owner in active:
            return finish(subject_of(owner, model, entry, built_here=True, rebuild=rebuild, notes=notes))
    if owner is None:
        raise ModelBudgetError(f"{_builder_name(build)} returned {described(model)}")
    # The builder brought its framework unnoticed, so the first model was built for real: drop it and build again.
    del model
    return _build_model_as_it_takes(build, entry, backends.loaded(), finish)


_BUILT_WITH_MEMORY = "the builder ran with real memory, because it computes with values while it builds"


def _build_abstractly(
    build: Callable[..., object], entry: ModelEntry, active: tuple[backends.Backend, ...]
) -> tuple[object, tuple[str, ...]]:
    """What the builder returns, and where it asked for values in vain."""
    with backends.abstract(active) as refused, stopped_at_frameworks():
        model = build(*entry.args, **entry.kwargs)
    return model, tuple(line for lines in refused for line in lines)


def _rebuild(
    build: Callable[..., object], entry: ModelEntry, active: tuple[backends.Backend, ...], lines: str
) -> tuple[object, tuple[str, ...]]:
    """The model of a builder that asked for values in vain and went on without them, with memory where it may be."""
    location, cure = f", at {lines}" if lines else "", ": `run: real` has them"
    if entry.run is None:
        try:
            return _build_with_memory(build, entry, 0), (f"{_BUILT_WITH_MEMORY}{location}",)
        except TooLarge as limit:
            cure = f", {limit}"
    note = f"the builder asks for values that are not known{location}, and goes on without them{cure}"
    return _build_abstractly(build, entry, active)[0], (note,)


def _build_with_memory(build: Callable[..., object], entry: ModelEntry, seed: int) -> object:
    """What the builder returns outside of every redirection, with random numbers that follow from `seed`.

    Raises:
        TooLarge: its weights take more than may be taken unasked.
    """
    active = backends.loaded()
    with backends.global_state_restored(active), backends.with_memory(active, seed, limited=entry.run != "real"):
        return build(*entry.args, **entry.kwargs)


def _may_need_values(mistake: Exception, active: tuple[backends.Backend, ...]) -> bool:
    """Whether a builder that failed without memory may go through with it."""
    unrelated = (ModelBudgetError, ImportError, OSError, NameError, SyntaxError)
    return backends.has_memory(active) and not isinstance(mistake, unrelated)


def _build_after_failure(mistake: Exception, rebuild: Callable[[int], object], entry: ModelEntry) -> object:
    """The model built with memory, after `mistake` without it."""
    try:
        return rebuild(0)
    except TooLarge as limit:
        if "meta" not in f"{type(mistake).__name__}{safe_text(mistake)}".lower() and not isinstance(
            mistake, NotImplementedError
        ):
            raise mistake from None
        prefix = f"{entry.place}: {entry.id}" if entry.place else entry.id
        frame = user_frame(mistake)
        line = "" if frame is None else f", at {frame_location(frame)}"
        raise ModelBudgetError(
            f"{prefix}: the builder computes with values while it builds{line}, {limit}"
        ) from mistake


def _check_arguments(build: Callable[..., object], entry: ModelEntry, name: str) -> None:
    prefix = f"{entry.place}: " if entry.place else ""
    arguments.check_call(build, entry.args, entry.kwargs, f"{prefix}{name}")


def _import_reference(entry: ModelEntry, reference: arguments.Reference) -> Any:
    """What a name among the arguments of `entry` stands for; see `import_named`."""
    holder = replace(entry, place=reference.place or entry.place)
    return (import_callable if reference.called else import_named)(reference.name, reference.where, holder)


def subject_of(owner: backends.Backend, model: object, entry: ModelEntry, **origin: Any) -> CountedModel:
    """The model with its inputs, and the sizes of their dimensions; `origin` says whence (see `CountedModel`)."""
    declared = _declared_inputs(entry)
    sizes = {} if declared is None else inputs.sizes_for(declared, batch=entry.batch or 1, dims=entry.dims)
    if declared is None:
        sizes = {inputs.BATCH: entry.batch or 1, **entry.dims}
    return CountedModel(owner, model, entry, declared, sizes, **origin)


def _declared_inputs(entry: ModelEntry) -> Inputs | None:
    if not isinstance(entry.inputs, Example):
        assert entry.inputs is None or isinstance(entry.inputs, Inputs)
        return entry.inputs
    call = entry.inputs.call
    example = import_callable(call, "inputs", entry) if isinstance(call, str) else call
    return inputs.from_example(example())


def described(model: object) -> str:
    """What is there in place of a model, with what to do about it."""
    if any(backend.is_class(model) for backend in backends.loaded()):
        return f"the class {getattr(model, '__name__', model)}, not a model: call it, so that it returns an instance"
    frameworks = ", ".join(name for name in backends.BACKENDS if name != "exported")
    kind = "None" if model is None else f"a {type(model).__module__}.{type(model).__qualname__}"
    cure = CURES.get(type(model).__module__.partition(".")[0], "let it return the model")
    return f"{kind}, which is no model of a known framework ({frameworks}): {cure}"


def _builder_name(build: object) -> str:
    return f"{getattr(build, '__module__', '')}:{getattr(build, '__qualname__', type(build).__name__)}"
