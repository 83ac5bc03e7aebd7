"""What a builder is called with, the likeliest first."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, product
from pkgutil import resolve_name
from typing import Any

from pytest_modelbudget.cli.discover.proposals.configs import ArgumentValue, config_values, required_parameters
from pytest_modelbudget.cli.discover.proposals.names import function_of, hints_of, known_names
from pytest_modelbudget.cli.discover.proposals.offline import without_fetching
from pytest_modelbudget.cli.discover.proposals.permitted import is_permitted
from pytest_modelbudget.cli.discover.proposals.sizes import UnknownSize, usual_size

_MOST_WRITTEN = 4
_MOST_COMPOSED = 4


@dataclass(frozen=True, slots=True)
class Proposal:
    """Arguments as a manifest has them, and where they are from.

    `inputs` are what such a model was seen to be called with, in the ways to read that. `guessed` names the arguments
    that are guesses, `unknown` those for which nothing is known: with any of these it cannot be run.
    """

    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    origin: str = ""
    inputs: tuple[Any, ...] = ()
    guessed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def proposals(build: Callable[..., Any], evidence: Mapping[str, Any], fixed: Mapping[str, Any]) -> Iterator[Proposal]:
    """What a builder may be called with; `fixed` are arguments that it is to be called with."""
    parameters = _parameters(build)
    needed = [name for name in required_parameters(build) if name not in fixed]
    if not needed:
        yield Proposal([], without_fetching(parameters, fixed))
    if not fixed:
        yield from islice(_written(build, parameters, evidence), _MOST_WRITTEN)
    if needed:
        for source in evidence["settings"]:
            values = source["values"]
            kwargs = {name: values[name] for name in parameters if name in values and is_permitted(values[name])}
            if not set(needed) <= kwargs.keys():
                continue
            yield Proposal([], without_fetching(parameters, {**kwargs, **fixed}), f"as in {source['where']}")
        yield from islice(_composed(build, parameters, needed, evidence, fixed), _MOST_COMPOSED)


def _parameters(build: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(build).parameters)
    except (TypeError, ValueError):
        return {}


def _written(
    build: Callable[..., Any], parameters: Mapping[str, inspect.Parameter], evidence: Mapping[str, Any]
) -> Iterator[Proposal]:
    """Calls of this very builder that somebody wrote, whole ones."""
    for call in evidence["calls"]:
        if not call["complete"] or not _is_call_of(build, call["target"]):
            continue
        if not is_permitted([call["args"], call["kwargs"]]):
            continue
        try:
            bound = inspect.signature(build).bind(*call["args"], **call["kwargs"]).arguments
        except (TypeError, ValueError):
            continue
        changed = without_fetching(parameters, {name: bound[name] for name in parameters if name in bound})
        kwargs = {**call["kwargs"], **{name: value for name, value in changed.items() if bound.get(name, ...) != value}}
        args, extra = _positional(call["args"], parameters, kwargs)
        yield Proposal(args, {**extra, **kwargs}, f"as in {call['where']}", tuple(call["inputs"]))


def _positional(
    args: list[Any], parameters: Mapping[str, inspect.Parameter], kwargs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Positional arguments by their names, where each has one: whoever reads a manifest sees what they are."""
    named = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][: len(args)]
    if len(named) < len(args) or any(p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL) for p in parameters.values()):
        return args, {}
    return [], {name: value for name, value in zip(named, args, strict=True) if name not in kwargs}


def _is_call_of(build: Callable[..., Any], target: str) -> bool:
    module, _, name = target.partition(":")
    if not name:  # the file does not say whose it is
        return module == getattr(build, "__name__", "")
    if module.partition(".")[0] != build.__module__.partition(".")[0] and module not in sys.modules:
        return False  # nothing is imported because a README names it
    try:
        return resolve_name(target) is build
    except Exception:
        return False


def _composed(
    build: Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    needed: list[str],
    evidence: Mapping[str, Any],
    fixed: Mapping[str, Any],
) -> Iterator[Proposal]:
    """One value for each argument that is needed; alternatives are tried one after the other."""
    known = _partly_written(build, needed, evidence)
    choices = {name: known.get(name) or list(_values(build, parameters[name], evidence)) for name in needed}
    unknown = tuple(name for name, values in choices.items() if not values)
    for values in product(*(choices[name] for name in needed if choices[name])):
        named = dict(zip((name for name in needed if choices[name]), values, strict=True))
        kwargs = {name: value.value for name, value in named.items()}
        guessed = tuple(part for name, value in named.items() for part in (value.guessed and (name,)))
        origins = dict.fromkeys(value.origin for value in named.values())
        kwargs = without_fetching(parameters, {**kwargs, **fixed})
        yield Proposal([], kwargs, ", ".join(origins), (), guessed, unknown)


def _partly_written(
    build: Callable[..., Any], needed: list[str], evidence: Mapping[str, Any]
) -> dict[str, list[ArgumentValue]]:
    """Arguments that somebody wrote, of calls whose others cannot be told."""
    known: dict[str, list[ArgumentValue]] = {}
    for call in evidence["calls"]:
        if not call["complete"] and _is_call_of(build, call["target"]):
            for name, value in call["kwargs"].items():
                if name in needed and is_permitted(value):
                    known.setdefault(name, [ArgumentValue(value, f"as in {call['where']}")])
    return known


def _values(
    build: Callable[..., Any], parameter: inspect.Parameter, evidence: Mapping[str, Any]
) -> Iterator[ArgumentValue]:
    """What one argument may be."""
    configs = list(config_values(build, parameter, evidence))
    if configs:
        yield from configs
        return
    if names := known_names(build, parameter.name):
        yield ArgumentValue(names[0], f"the first of {len(names)} names")
        return
    if _takes_file(parameter) and evidence["yaml_files"]:
        yield from (ArgumentValue(path, path) for path in evidence["yaml_files"][:3])
        return
    annotation = hints_of(function_of(build)).get(parameter.name, parameter.empty)
    try:
        value = usual_size(parameter.name, annotation)
        yield ArgumentValue(value, "sizes guessed from their names", (parameter.name,))
    except UnknownSize:
        return


def _takes_file(parameter: inspect.Parameter) -> bool:
    words = parameter.name.lower().split("_")
    return bool({"cfg", "config", "yaml"} & set(words)) or ("file" in words and "config" in words)
