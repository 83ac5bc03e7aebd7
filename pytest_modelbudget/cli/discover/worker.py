"""What `survey` asks of its worker: which names of a module build a model, and what one of them builds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from pytest_modelbudget import backends
from pytest_modelbudget.backends.coexistence import coexisting
from pytest_modelbudget.cli.discover.evidence import candidates
from pytest_modelbudget.cli.discover.guess import Guess, guesses
from pytest_modelbudget.engine.run import run
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.session.registry import make_importable
from pytest_modelbudget.summary import Summary

Data = dict[str, Any]


def listed(task: Mapping[str, Any]) -> Data:
    """The `candidates` of the module at `module` below `root`, or `why` it cannot be imported."""
    _enter_project(task["root"])
    try:
        with coexisting():
            module = import_module(task["module"])
            candidate_data = [asdict(candidate) for candidate in candidates(module, frozenset(task["parts"]))]
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return {"candidates": [], "why": f"cannot be imported: {_reason(error)}"}
    return {"candidates": candidate_data, "why": ""}


def measured(task: Mapping[str, Any]) -> Data:
    """The numbers of what `name` of `module` builds, with the inputs it knows or the first guess that it runs on."""
    _enter_project(task["root"])
    return _measure_model(f"{task['module']}:{task['name']}", task["is_class"])


def _enter_project(root: str) -> None:
    os.chdir(root)
    make_importable(Path(root))


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _measure_model(reference: str, is_class: bool) -> Data:
    summary, why = _count_model(ModelEntry(id=reference, build=reference))
    guess: Guess | None = None
    if summary is None:
        tries, reason = _guess_inputs(reference)
        why = reason or why
        for guess in tries:
            summary, _ = _count_model(ModelEntry(id=reference, build=reference, inputs=guess.inputs, dims=guess.dims))
            if summary is not None:
                break
        else:
            why = why if reason or not tries else "runs on none of the inputs that its first layer suggests"
    if summary is None:
        return {"why": why or "nothing is known of it"}
    return {
        "why": "",
        "is_class": is_class,
        "guess": None if guess is None else asdict(guess),
        "framework": summary.framework,
        "params": summary.params,
        "weight_bytes": summary.weight_bytes,
        "flops": None if summary.flops.is_lower_bound else summary.flops.value,
        "sameness": _structure_hash(summary),
    }


def _count_model(entry: ModelEntry) -> tuple[Summary | None, str]:
    """The summary of a model that runs on its inputs, or why there is none."""
    result = run(entry, Path(), snapshots=False)
    summary = result.summary
    if summary is not None and summary.flops.value is None and not summary.outputs:
        return None, next(iter(summary.notes), "its shapes are not known")
    lines = [line.removeprefix("E").strip() for line in result.error.splitlines() if line.startswith("E ")]
    return summary, (lines[-1] if lines else result.error.partition("\n")[0])


def _guess_inputs(reference: str) -> tuple[tuple[Guess, ...], str]:
    module, _, name = reference.partition(":")
    build = getattr(import_module(module), name)
    try:
        active = backends.loaded()
        with coexisting(), backends.global_state_restored(active), backends.abstract(active):
            return guesses(build())
    except Exception as error:
        return (), f"cannot be built: {_reason(error)}"


def _structure_hash(summary: Summary) -> str:
    """Equal for models with equal rows."""
    rows = [(layer.path, layer.type, layer.weights_text, layer.connected_to) for layer in summary.layers]
    return hashlib.sha256(repr(rows).encode()).hexdigest()
