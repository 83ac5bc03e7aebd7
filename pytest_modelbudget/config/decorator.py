"""The decorator that turns a builder function into a `ModelEntry`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pytest_modelbudget.entry import ModelEntry, RunMode, SnapshotKind
from pytest_modelbudget.errors import ModelBudgetError, Place
from pytest_modelbudget.planner import Inference, Serving, Training


def model(
    *,
    inputs: Any = None,
    name: str | None = None,
    batch: int | None = None,
    dims: Mapping[str, int] | None = None,
    tags: tuple[str, ...] | list[str] = (),
    samples: int | None = None,
    budgets: Mapping[str, Any] | None = None,
    framework: str | None = None,
    optional: bool = False,
    training: Mapping[str, Any] | Training | bool | None = None,
    inference: Mapping[str, Any] | Inference | bool | None = None,
    serving: Mapping[str, Any] | Serving | bool | None = None,
    run: RunMode | None = None,
    limits: Mapping[str, Any] | None = None,
    isolate: bool | None = None,
    snapshot: SnapshotKind | None = None,
) -> Callable[[Callable[[], object]], ModelEntry]:
    """Register the decorated function, which builds and returns a model, under its own name (or `name`).

    The name it is bound to becomes a `ModelEntry`, a value that pytest collects from a test module; without
    `--model-budget` it does nothing. `inputs`, `budgets`, `training`, `inference`, `serving`, `run`, `limits`,
    `isolate` and `snapshot` are written as in a manifest.

    Raises:
        ModelBudgetError: inputs, budgets, recipes, `run` or `snapshot` that do not parse, with the line of the
            function.
    """

    def register(build: Callable[[], object]) -> ModelEntry:
        __tracebackhide__ = True  # the mistake is at the line of the decorator
        code = getattr(build, "__code__", None)
        place = Place(code.co_filename, code.co_firstlineno) if code else None
        try:
            return ModelEntry(
                id=name or str(getattr(build, "__name__", "")),
                build=build,
                inputs=inputs,
                batch=batch,
                dims=dims or {},
                tags=tuple(tags),
                samples=samples,
                budgets=budgets or {},
                framework=framework,
                optional=optional,
                place=place,
                training=training,
                inference=inference,
                serving=serving,
                run=run,
                limits=limits or {},
                isolate=isolate,
                snapshot=snapshot,
            )
        except ModelBudgetError as mistake:
            raise ModelBudgetError(f"{place or repr(build)}: {mistake}") from None

    return register
