"""Import a project's modules and build its models, in a worker that a model may end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_modelbudget.cli.capture import captured_output
from pytest_modelbudget.cli.discover.scan import LeftOut, SourceFile
from pytest_modelbudget.isolation import Isolation, NoAnswer

_WORKER = "pytest_modelbudget.cli.discover.worker"


@dataclass(frozen=True, slots=True)
class BuildableModel:
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


def survey(root: Path, sources: Sequence[SourceFile], *, seconds: float) -> tuple[list[BuildableModel], list[LeftOut]]:
    """Import each module and build its models; `seconds` is for each import and each model."""
    parts = sorted(frozenset().union(*(source.parts for source in sources)))
    models: list[BuildableModel] = []
    left_out: list[LeftOut] = []
    with closing(Isolation()) as isolation, captured_output():
        for source in sources:
            for outcome in _survey_module(isolation, root, source, parts, seconds):
                (models if isinstance(outcome, BuildableModel) else left_out).append(outcome)  # type: ignore[arg-type]
    return models, left_out


def _survey_module(
    isolation: Isolation, root: Path, source: SourceFile, parts: Sequence[str], seconds: float
) -> Iterator[BuildableModel | LeftOut]:
    task = {"root": str(root), "module": source.module, "parts": parts}
    try:
        listing = isolation.call(f"{_WORKER}:listed", task, seconds=seconds)
    except NoAnswer as error:
        yield LeftOut(source.path, str(error))
        return
    if listing["why"]:
        yield LeftOut(source.path, listing["why"])
    for candidate in listing["candidates"]:
        reference = f"{source.module}:{candidate['name']}"
        if candidate["lacks"]:
            yield LeftOut(reference, candidate["lacks"])
            continue
        try:
            yield _survey_result(
                isolation.call(f"{_WORKER}:measured", {**task, **candidate}, seconds=seconds), reference
            )
        except NoAnswer as error:
            yield LeftOut(reference, str(error))


def _survey_result(numbers: dict[str, Any], reference: str) -> BuildableModel | LeftOut:
    if numbers["why"]:
        return LeftOut(reference, numbers["why"])
    guess = numbers["guess"] or {"inputs": "", "dims": {}}
    names = ("is_class", "framework", "params", "weight_bytes", "flops", "sameness")
    return BuildableModel(
        reference, **{name: numbers[name] for name in names}, inputs=guess["inputs"], dims=guess["dims"]
    )
