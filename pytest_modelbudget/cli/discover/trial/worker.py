"""What `survey` asks of its worker: which names of a module build a model, and what one of them builds."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from pytest_modelbudget import backends, inputs
from pytest_modelbudget.backends.coexistence import coexisting
from pytest_modelbudget.cli.discover.proposals.builders import candidates
from pytest_modelbudget.cli.discover.proposals.proposal import Proposal, proposals
from pytest_modelbudget.cli.discover.trial.inputs import Guess, guesses
from pytest_modelbudget.cli.discover.trial.offline import NetworkRefused, no_network
from pytest_modelbudget.engine.building import from_builder, subject_of
from pytest_modelbudget.engine.counted import CountedModel
from pytest_modelbudget.engine.run import run
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.session.registry import make_importable
from pytest_modelbudget.summary import Summary, TensorSpec

Data = dict[str, Any]

_MOST_SLOW_GUESSES = 14
_NO_WEIGHTS = "has no weights"


@dataclass(frozen=True, slots=True)
class _Counted:
    """A model that ran, and on what."""

    summary: Summary
    guess: Guess | None
    inputs_seen: bool = False


class _NotRun(Exception):
    """A proposal does not give a model that runs; the message says why."""


def listed(task: Mapping[str, Any]) -> Data:
    """The `candidates` of the module at `module` below `root`, or `why` it cannot be imported."""
    with _in_project(task["root"]):
        try:
            with coexisting():
                module = import_module(task["module"])
                candidate_data = [
                    asdict(item) for item in candidates(module, frozenset(task["parts"]), alike=task["alike"])
                ]
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return {"candidates": [], "why": f"cannot be imported: {_reason(error)}"}
    return {"candidates": candidate_data, "why": ""}


def measured(task: Mapping[str, Any]) -> Data:
    """The numbers of what `name` of `module` builds, by the first proposal that runs; else `why` none does.

    Proposals with sizes that are guesses are tried only when the task says so.
    """
    reference = f"{task['module']}:{task['name']}"
    failures: list[tuple[str, Proposal]] = []
    skipped = False
    with _in_project(task["root"]):
        for proposal in _proposals(task):
            if proposal.guessed and not task["guesses"]:
                skipped = True
                failures.append((f"needs arguments: {', '.join(proposal.guessed)}", proposal))
                continue
            try:
                return _numbers(_tried(reference, proposal), proposal)
            except _NotRun as failure:
                if str(failure) == _NO_WEIGHTS:
                    return {"why": _NO_WEIGHTS, "has_weights": False}
                failures.append((str(failure), proposal))
    why, proposal = min(failures, key=lambda failure: len(failure[1].unknown), default=("", Proposal()))
    needs = ", ".join(task["needs"])
    why = why or (f"needs arguments: {needs}" if needs else "nothing is known of it")
    return {"why": why, "skipped": skipped, **asdict(proposal)}


@contextmanager
def _in_project(root: str) -> Iterator[None]:
    os.chdir(root)
    make_importable(Path(root))
    with no_network():
        yield


def _proposals(task: Mapping[str, Any]) -> Iterator[Proposal]:
    build = resolve_name(f"{task['module']}:{task['name']}")
    with coexisting():
        yield from proposals(build, task["evidence"], task["fixed"])


def _reason(error: BaseException) -> str:
    """An error in one line; what the network was refused for, whatever libraries put around that."""
    inner: object = error
    while isinstance(inner, BaseException):
        if isinstance(inner, NetworkRefused):
            return str(inner)
        inner = inner.__cause__ or inner.__context__ or getattr(inner, "reason", None)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _tried(reference: str, proposal: Proposal) -> _Counted:
    """The model of a proposal, counted on what it knows, was seen to take, or runs on.

    Raises:
        _NotRun: it is not built, has no weights, or runs on nothing that was tried.
    """
    if proposal.unknown:
        raise _NotRun(f"needs arguments: {', '.join(proposal.unknown)}")
    entry = ModelEntry(reference, reference, tuple(proposal.args), proposal.kwargs)
    try:
        counted, untried = from_builder(entry, lambda subject: _look_at(subject, proposal))
    except (KeyboardInterrupt, _NotRun):
        raise
    except BaseException as error:
        raise _NotRun(f"cannot be built: {_reason(error)}") from None
    if counted is not None:
        return counted
    why = ""
    for guess in untried:
        result = run(replace(entry, inputs=guess.inputs, dims=guess.dims), Path(), snapshots=False)
        if result.summary is not None and _ran(result.summary):
            return _Counted(result.summary, guess, guess.inputs in proposal.inputs)
        lines = [line.removeprefix("E").strip() for line in result.error.splitlines() if line.startswith("E ")]
        why = why or (lines[-1] if lines else result.error.partition("\n")[0])
    raise _NotRun(f"runs on none of {len(untried)} guessed inputs; on {_text(untried[0].inputs)}: {why}")


def _ran(summary: Summary) -> bool:
    return summary.flops.value is not None or bool(summary.outputs)


def _look_at(subject: CountedModel, proposal: Proposal) -> tuple[_Counted | None, list[Guess]]:
    """The model counted, on the inputs it knows or the first that it runs on; or what is to be tried on new ones.

    Raises:
        _NotRun: it has no weights, or runs on nothing.
    """
    has_modules = hasattr(subject.model, "named_modules")
    refuse = getattr(subject.owner, "refusal", None) if has_modules else None
    if refuse is None and (summary := _without_inputs(subject)) is not None:
        return _Counted(summary, None), []
    if refuse is not None and not any(True for _ in subject.model.parameters()):  # type: ignore[attr-defined]
        raise _NotRun(_NO_WEIGHTS)
    outlined = getattr(subject.owner, "outline", lambda model: None)(subject.model)
    suggested, why = guesses(subject.model, _hints(subject.entry, proposal), outlined)
    tries = [*map(Guess, proposal.inputs), *suggested]
    if not tries:
        raise _NotRun(why)
    if refuse is None:
        return None, tries[:_MOST_SLOW_GUESSES]
    guess = _fitting(tries, subject.model, refuse)
    entry = replace(subject.entry, inputs=_at_its_sizes(guess))
    again = subject_of(
        subject.owner, subject.model, entry, built_here=True, rebuild=subject.rebuild, notes=subject.notes
    )  # fmt: skip
    return _Counted(again.summary(again.sizes), guess, guess.inputs in proposal.inputs), []


def _without_inputs(subject: CountedModel) -> Summary | None:
    """The summary of a model that knows its own inputs; None for one that does not.

    Raises:
        _NotRun: it has no weights, whatever it is called with.
    """
    try:
        summary = subject.summary(subject.sizes)
    except ModelBudgetError:  # its weights depend on its inputs
        return None
    if _ran(summary):
        return summary
    if not summary.params:
        raise _NotRun(_NO_WEIGHTS)
    return None


def _fitting(tries: list[Guess], model: object, refuse: Callable[..., Exception | None]) -> Guess:
    """The first inputs that a model runs on.

    Raises:
        _NotRun: there are none, with what it raised for the first ones.
    """
    first: Exception | None = None
    with backends.abstract(backends.loaded()):
        for guess in tries:
            error = refuse(model, inputs=_at_its_sizes(guess), sizes={})
            if error is None:
                return guess
            first = first or error
    assert first is not None
    raise _NotRun(f"runs on none of {len(tries)} guessed inputs; on {_text(tries[0].inputs)}: {_reason(first)}")


def _at_its_sizes(guess: Guess) -> inputs.Inputs:
    """The inputs without symbolic dimensions: one pass tells what limits are made of, and no names of dimensions."""
    parsed = inputs.parse(guess.inputs)
    assert isinstance(parsed, inputs.Inputs)
    sizes = inputs.sizes_for(parsed, batch=1, dims=guess.dims)

    def sized(written: Any) -> Any:
        if isinstance(written, dict):
            return {name: sized(item) for name, item in written.items()}
        if isinstance(written, str):
            spec = TensorSpec.parse(written)
            return replace(spec, shape=inputs.concrete_shape(spec, sizes))
        return [sized(item) for item in written] if isinstance(written, (list, tuple)) else written

    at_sizes = inputs.parse(sized(guess.inputs))
    assert isinstance(at_sizes, inputs.Inputs)
    return at_sizes


def _text(written: Any) -> str:
    return written if isinstance(written, str) else str(written).replace("'", "")


def _hints(entry: ModelEntry, proposal: Proposal) -> dict[str, Any]:
    """The arguments of a builder by name, those in configurations and defaults among them."""
    hints: dict[str, Any] = {}
    try:
        parameters = inspect.signature(resolve_name(str(entry.build))).parameters.values()
        hints = {item.name: item.default for item in parameters if item.default is not item.empty}
    except (TypeError, ValueError):
        pass
    for name, value in proposal.kwargs.items():
        hints[name] = value
        if isinstance(value, dict):
            hints.update(value.get("kwargs", {}))
    return hints


def _numbers(counted: _Counted, proposal: Proposal) -> Data:
    summary, guess = counted.summary, counted.guess
    return {
        "why": "",
        "inputs": None if guess is None else guess.inputs,
        "dims": {} if guess is None else guess.dims,
        "inputs_seen": counted.inputs_seen,
        "args": proposal.args,
        "kwargs": proposal.kwargs,
        "origin": proposal.origin,
        "guessed": proposal.guessed,
        "framework": summary.framework,
        "params": summary.params,
        "weight_bytes": summary.weight_bytes,
        "flops": None if summary.flops.is_lower_bound else summary.flops.value,
        "sameness": _structure_hash(summary),
    }


def _structure_hash(summary: Summary) -> str:
    """Equal for models with equal rows."""
    rows = [(layer.path, layer.type, layer.weights_text, layer.connected_to) for layer in summary.layers]
    return hashlib.sha256(repr(rows).encode()).hexdigest()
