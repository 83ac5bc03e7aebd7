"""What the workers of a cluster have installed, held against what is here.

`installed` runs there before anything of this project can: it travels as its code, and imports what it needs itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_modelbudget.engine.naming import FRAMEWORK_MODULES
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError

_ENGINE = ("pytest-modelbudget", "distributed")
_MOST_NAMED = 5

Answers = Mapping[str, "Mapping[str, str] | Exception"]
"""By the address of each worker what it has, or why it did not answer."""


def installed(names: Sequence[str]) -> dict[str, str]:
    """The versions of Python and of the packages that are installed here; an empty one where none is known."""
    import sys
    from importlib import metadata, util

    versions = {"Python": "%d.%d" % sys.version_info[:2]}  # noqa: UP031  # by whatever Python it is run
    for name in names:
        try:
            versions[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            if util.find_spec(name.replace("-", "_")) is not None:
                versions[name] = ""
    return versions


def asked_for(entries: Sequence[ModelEntry]) -> tuple[str, ...]:
    """The packages to ask for: this one, the engine, and the frameworks that are here or that models name."""
    named = {entry.framework for entry in entries if entry.framework}
    here = installed(tuple(FRAMEWORK_MODULES))
    return (*_ENGINE, *(name for name in FRAMEWORK_MODULES if name in here or name in named))


def check_alike(here: Mapping[str, str], answers: Answers, names: Sequence[str]) -> None:
    """Nothing, where every worker has what is needed, in one version.

    A package that is not here is needed there all the same, and has to be the same on all workers: else the place where
    a model happens to land would decide what is counted.

    Raises:
        ModelBudgetError: it says which worker lacks what.
    """
    lines = [line for address, answer in answers.items() for line in _faults(address, here, answer, names)]
    lines = lines or list(_differences(answers, names))
    if lines:
        more = [f"and {len(lines) - _MOST_NAMED} more"] if len(lines) > _MOST_NAMED else []
        raise ModelBudgetError(
            "\n  ".join(("--on: not every worker of the cluster can count these models:", *lines[:_MOST_NAMED], *more))
        )


def _faults(
    address: str, here: Mapping[str, str], answer: Mapping[str, str] | Exception, names: Sequence[str]
) -> Iterator[str]:
    if isinstance(answer, Exception):
        yield f"{address}: it did not answer ({type(answer).__name__}: {answer})"
        return
    for name in ("Python", *names):
        if name not in answer:
            yield f"{address}: {name} is not installed: pip install {name}{_pin(here.get(name, ''))}"
        elif here.get(name) and answer[name] and answer[name] != here[name]:
            yield f"{address}: {name} {answer[name]}, here {here[name]}"


def _pin(version: str) -> str:
    return f"=={version}" if version else ""


def _differences(answers: Answers, names: Sequence[str]) -> Iterator[str]:
    first: dict[str, tuple[str, str]] = {}
    for address, answer in answers.items():
        assert not isinstance(answer, Exception)
        for name in names:
            version: Any = answer[name]
            other, other_address = first.setdefault(name, (version, address))
            if version != other:
                yield f"{address}: {name} {version}, {other_address} has {other}"
