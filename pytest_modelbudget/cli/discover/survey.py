"""Import a project's modules and build its models, in a worker that a model may end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_modelbudget.cli.capture import captured
from pytest_modelbudget.cli.discover.scan import LeftOut, Source
from pytest_modelbudget.isolation import Isolation, NoAnswer

_WORKER = "pytest_modelbudget.cli.discover.worker"


@dataclass(frozen=True, slots=True)
class Found:
    """A model that can be built and counted; `inputs` and `dims` were guessed, unless they are empty."""

    reference: str
    is_class: bool
    framework: str
    params: int
    weight_bytes: int
    flops: int | None
    sameness: str
    inputs: str = ""
    dims: dict[str, int] = field(default_factory=dict)


def survey(root: Path, sources: Sequence[Source], *, seconds: float) -> tuple[list[Found], list[LeftOut]]:
    """Import each module and build its models; `seconds` is for each import and each model."""
    parts = sorted(frozenset().union(*(source.parts for source in sources)))
    found: list[Found] = []
    left: list[LeftOut] = []
    with closing(Isolation()) as isolation, captured():
        for source in sources:
            for one in _of_module(isolation, root, source, parts, seconds):
                (found if isinstance(one, Found) else left).append(one)  # type: ignore[arg-type]
    return found, left


def _of_module(
    isolation: Isolation, root: Path, source: Source, parts: Sequence[str], seconds: float
) -> Iterator[Found | LeftOut]:
    task = {"root": str(root), "module": source.module, "parts": parts}
    try:
        names = isolation.call(f"{_WORKER}:listed", task, seconds=seconds)
    except NoAnswer as why:
        yield LeftOut(source.path, str(why))
        return
    if names["why"]:
        yield LeftOut(source.path, names["why"])
    for candidate in names["candidates"]:
        reference = f"{source.module}:{candidate['name']}"
        if candidate["lacks"]:
            yield LeftOut(reference, candidate["lacks"])
            continue
        try:
            yield _of_model(isolation.call(f"{_WORKER}:measured", {**task, **candidate}, seconds=seconds), reference)
        except NoAnswer as why:
            yield LeftOut(reference, str(why))


def _of_model(numbers: dict[str, Any], reference: str) -> Found | LeftOut:
    if numbers["why"]:
        return LeftOut(reference, numbers["why"])
    guess = numbers["guess"] or {"inputs": "", "dims": {}}
    names = ("is_class", "framework", "params", "weight_bytes", "flops", "sameness")
    return Found(reference, **{name: numbers[name] for name in names}, inputs=guess["inputs"], dims=guess["dims"])
