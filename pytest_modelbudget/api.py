"""The faces of the library, outside of pytest: count a model, plan its memory, log both to a run of training."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_modelbudget import backends
from pytest_modelbudget.backends.coexistence import coexisting
from pytest_modelbudget.engine.counted import own_sizes
from pytest_modelbudget.engine.planning import plans_of
from pytest_modelbudget.engine.run import from_live, live_entry, summarize_live
from pytest_modelbudget.engine.tracebacks import one_line
from pytest_modelbudget.entry import ModelEntry, RunMode, names_file
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import BATCH, Inputs
from pytest_modelbudget.planner import Inference, Serving, Training
from pytest_modelbudget.summary import Plan, Summary

if TYPE_CHECKING:
    from pytest_modelbudget.trackers.mlflow.active_run import OpenRun

_ASKS_FOR_ACTIVATIONS = {"activation_bytes": {"min": "0 B"}}
"""A limit that every model keeps: a limit is what asks for a number that is not counted by itself."""
_LOGGER = logging.getLogger("pytest_modelbudget")


def summarize(
    model_or_builder: object,
    inputs: Any = None,
    *,
    name: str | None = None,
    batch: int | None = None,
    dims: Mapping[str, int] | None = None,
    run: RunMode | None = None,
    activations: bool = False,
) -> Summary:
    """Count a model, or what a builder returns; print the result to see the table.

    `model_or_builder` may also be what a manifest's `build` is: `"module:callable"`, or the path of a model's file.
    `inputs` is written as in a manifest (`"float32[B, 3, 224, 224]"`) or real example inputs. A live model is
    left exactly as it is; a builder's model is made without memory for its weights. `batch` sizes the dimension `B`,
    which is 1 without it, and `dims` every other one that `inputs` names (`{"T": 128}`); there is no size for those
    by themselves. `run="real"` runs the model with memory for its weights and activations, `"abstract"` never does,
    and None does only when it needs values. `activations` asks for `activation_bytes` also of Keras models, where they
    take longer than all else; others have them by themselves.

    Raises:
        ModelBudgetError: no model, inputs that do not fit, a dimension without a size or a size without its dimension,
            or a layer that was never built.
    """
    with coexisting():
        options = {"run": run, "budgets": _ASKS_FOR_ACTIVATIONS if activations else {}}
        return _count(model_or_builder, _name(model_or_builder, name), inputs, batch=batch, dims=dims or {}, **options)


def _count(
    model_or_builder: object,
    name: str,
    inputs: Any,
    *,
    batch: int | None,
    dims: Mapping[str, int],
    **options: Any,
) -> Summary:
    entry = live_entry(name, model_or_builder, inputs, batch=batch, dims=dims, **options)
    _refuse_unknown_sizes(entry, {**({BATCH: batch} if batch is not None else {}), **dims})
    return summarize_live(model_or_builder, entry)


def _refuse_unknown_sizes(entry: ModelEntry, sizes: Mapping[str, int]) -> None:
    """A size of a dimension that the declared inputs do not name would change nothing, without a word."""
    if entry.inputs is None:  # the model knows its own
        return
    symbols = entry.inputs.symbols if isinstance(entry.inputs, Inputs) else ()
    if any(symbol not in (BATCH, *sizes) for symbol in symbols):  # that one has no size is an error of its own
        return
    if unknown_dims := [name for name in sizes if name not in symbols]:
        raise ModelBudgetError(
            f"{entry.id}: the inputs have no dimension {unknown_dims[0]} (they have {', '.join(symbols) or 'none'}): "
            'name it in inputs, as in "float32[B, T, 8]", or leave its size out'
        )


def plan(
    model_or_builder: object,
    inputs: Any = None,
    *,
    training: Mapping[str, Any] | Training | bool | None = None,
    inference: Mapping[str, Any] | Inference | bool | None = None,
    serving: Mapping[str, Any] | Serving | bool | None = None,
    devices: str | Sequence[str] = (),
    advice: bool = False,
    name: str | None = None,
    batch: int | None = None,
    dims: Mapping[str, int] | None = None,
    run: RunMode | None = None,
) -> Plan:
    """Plan the memory of a training step, of a forward pass without gradients, or of serving; print it to see it.

    `model_or_builder`, `inputs`, `batch`, `dims` and `run` are those of `summarize`; `training`, `inference` or
    `serving` is written as in a manifest (`{"batch": 8, "optimizer": "adamw"}`), and with none it is one training step
    as recipes are by themselves. Sizes that the recipe gives come before `batch` and `dims`.
    `devices` are names or capacities (`"24 GB"`) to be told whether it fits. Where it does not, and with `advice`
    anywhere, the plan also says what would lower its peak and the cheapest way to fit each device, with `advice` the
    largest sizes that fit them, too; that takes many more runs. The peak of what cannot be planned is None, and
    `notes` say why.

    Raises:
        ModelBudgetError: no model, inputs or recipes that do not fit, or several recipes at once.
    """
    if inference is None and training is None and serving is None:
        training = True
    limits = {"fits": [devices] if isinstance(devices, str) else list(devices)} if devices else {}
    with coexisting():
        label = _name(model_or_builder, name)
    recipes = {"training": training, "inference": inference, "serving": serving}
    entry = live_entry(label, model_or_builder, inputs, **recipes, budgets=limits, run=run, dims=dims or {})
    if len(entry.recipes) != 1:
        raise ModelBudgetError("plan: give one recipe, training={...}, inference={...} or serving={...}")
    [recipe] = entry.recipes
    entry = replace(entry, batch=recipe.batch or batch, dims={**entry.dims, **own_sizes(entry)})
    with coexisting():
        [planned] = from_live(model_or_builder, entry, partial(plans_of, advice=advice))
    return planned


def log_summary(
    model_or_summary: object,
    inputs: Any = None,
    *,
    training: Mapping[str, Any] | Training | bool | None = None,
    inference: Mapping[str, Any] | Inference | bool | None = None,
    serving: Mapping[str, Any] | Serving | bool | None = None,
    name: str | None = None,
    batch: int | None = None,
    dims: Mapping[str, int] | None = None,
    run: RunMode | None = None,
    run_id: str | None = None,
    client: Any = None,
) -> Summary | None:
    """Put a model's table and numbers into the MLflow run that a training script has open; returns what was logged.

    The run is the active one, or that of `run_id`, by an `MlflowClient` as `client` where it is not the default one. It
    gets params, FLOPs, bytes and, with a `training`, `inference` or `serving` recipe, what is planned under the
    names of `--model-budget-mlflow`, and the table as text, HTML, MLflow table and JSON. `model_or_summary` may be a
    `Summary` that is there; the other arguments are those of `summarize` and `plan`. A model is logged once for each
    run, by its `name`; a second model of a run has its name before those of its metrics.

    It never stops a training: a failure is a warning of the logger `pytest_modelbudget`, and None. None without a word
    is for processes of another rank than 0, and for what this run has already.
    """
    from pytest_modelbudget.trackers.mlflow import active_run

    recipes = {"training": training, "inference": inference, "serving": serving}
    counting: dict[str, Any] = {"inputs": inputs, "batch": batch, "dims": dims or {}, "run": run}
    try:
        if active_run.rank() == 0:
            open_run = active_run.find(run_id, client)
            return _log_once(open_run, model_or_summary, name, **recipes, **counting)
    except Exception as error:
        _LOGGER.warning("log_summary: the model was not logged: %s", one_line(error))
    return None


def _log_once(open_run: OpenRun, model_or_summary: object, name: str | None, **counting: Any) -> Summary | None:
    """What was logged of a model; None when the run has it."""
    with coexisting():
        counted = model_or_summary if isinstance(model_or_summary, Summary) else None
        label = name or (counted.model if counted else _name(model_or_summary, None))
        if label in open_run.models:
            return None
        summary = replace(counted or _count(model_or_summary, label, **counting), model=label)
    open_run.log(summary, int(time.time() * 1000))
    return summary


def _name(model_or_builder: object, name: str | None) -> str:
    owner = backends.owner(model_or_builder)
    return name or _label(model_or_builder if owner is None else type(model_or_builder))


def _label(subject: object) -> str:
    if isinstance(subject, (str, os.PathLike)):
        path = os.fspath(subject)
        subject = Path(path).stem if names_file(str(path)) else str(path).rpartition(":")[2]
    name = subject if isinstance(subject, str) else getattr(subject, "__name__", type(subject).__name__)
    return (
        "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in name).strip(".-")
        or "model"
    )
