"""Import a project's modules and build its models, in a worker that a model may end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pytest_modelbudget.cli.capture import captured_output
from pytest_modelbudget.cli.discover.progress import SurveyProgress
from pytest_modelbudget.cli.discover.source.evidence import Evidence
from pytest_modelbudget.cli.discover.source.scan import SourceFile
from pytest_modelbudget.cli.discover.trial.offline import worker_environment
from pytest_modelbudget.cli.discover.trial.outcomes import BuildableModel, LeftOut, Outcome, Skeleton
from pytest_modelbudget.isolation import Isolation, NoAnswer

_WORKER = "pytest_modelbudget.cli.discover.trial.worker"
_PART = "a part of other models"


@dataclass(frozen=True, slots=True)
class _Builder:
    """Something that may build a model, with the arguments that make it this variant."""

    source: SourceFile
    data: dict[str, Any]
    fixed: dict[str, Any]

    @property
    def reference(self) -> str:
        """`module:name`."""
        return f"{self.source.module}:{self.data['name']}"

    @property
    def variant(self) -> str:
        """What tells it from others of the same reference."""
        return "-".join(map(str, self.fixed.values()))


@dataclass(frozen=True, slots=True)
class SurveyLimits:
    """`seconds` for each import and each builder; `total` seconds after which no builder is begun once a model ran;
    of builders that are alike so many as `alike`. None is no limit."""

    seconds: float
    total: float | None = None
    alike: int | None = None


def survey(root: Path, sources: Sequence[SourceFile], evidence: Evidence, *, limits: SurveyLimits) -> list[Outcome]:
    """Import each module and build its models, those first that the project's files speak of most.

    An interrupt from the keyboard ends it early, with what is known by then.
    """
    outcomes: list[Outcome] = []
    with (
        SurveyProgress(sys.stderr) as progress,
        worker_environment(),
        closing(Isolation()) as isolation,
        captured_output(),
    ):
        surveyor = _Surveyor(isolation, root, evidence, limits, _parts(sources, evidence), progress)
        try:
            for outcome in surveyor.run(sources):
                outcomes.append(outcome)
        except KeyboardInterrupt:
            outcomes.append(LeftOut(surveyor.current, "interrupted, and nothing after it was tried"))
    return outcomes


def _parts(sources: Sequence[SourceFile], evidence: Evidence) -> list[str]:
    """Names that classes build inside, but for those that documentation builds by themselves."""
    parts: frozenset[str] = frozenset().union(*(source.parts for source in sources))
    return sorted(parts - evidence.documented())


@dataclass(slots=True)
class _Surveyor:
    isolation: Isolation
    root: Path
    evidence: Evidence
    limits: SurveyLimits
    parts: list[str]
    progress: SurveyProgress
    current: str = ""
    began: float = field(default_factory=time.monotonic)
    has_model: bool = False
    open: set[str] = field(default_factory=set)
    """The builders of which not everything was tried."""

    def run(self, sources: Sequence[SourceFile]) -> Iterator[Outcome]:
        """What became of each builder.

        Sizes are guessed only where no model runs without, and parts of models tried only where none runs at all.
        """
        builders: list[_Builder] = []
        for number, source in enumerate(sources, 1):
            self._show(source.path, f"importing, file {number} of {len(sources)}")
            yield from self._list(source, builders)
        builders.sort(key=lambda builder: -self.evidence.mentions(builder.data["name"]))
        main = [builder for builder in builders if builder.data["lacks"] != _PART]
        inner = [builder for builder in builders if builder.data["lacks"] == _PART]
        last: dict[str, Outcome] = {}
        for tried, guesses in ((main, False), (main, True), (inner, True)):
            chosen = [builder for builder in tried if builder.reference not in last or builder.reference in self.open]
            for builder, outcome in self._try(chosen, guesses=guesses):
                last[f"{builder.reference} {builder.variant}"] = last[builder.reference] = outcome
                if isinstance(outcome, BuildableModel):
                    yield outcome
            if any(isinstance(outcome, BuildableModel) for outcome in last.values()):
                break
        others = {id(outcome): outcome for outcome in last.values() if not isinstance(outcome, BuildableModel)}
        yield from others.values()
        yield from (LeftOut(builder.reference, _PART) for builder in inner if builder.reference not in last)

    def _show(self, name: str, what: str) -> None:
        self.current = name
        self.progress.show(f"{name}: {what}")

    def _list(self, source: SourceFile, builders: list[_Builder]) -> Iterator[Outcome]:
        """Add the builders of a module; the outcome of one that cannot be imported."""
        task = {"root": str(self.root), "module": source.module, "parts": self.parts, "alike": self.limits.alike}
        try:
            listing = self.isolation.call(f"{_WORKER}:listed", task, seconds=self.limits.seconds)
        except NoAnswer as error:
            listing = {"candidates": [], "why": str(error)}
        if listing["why"]:
            yield LeftOut(source.path, listing["why"])
            for name in source.model_classes:
                if name not in self.parts:
                    yield Skeleton(f"{source.module}:{name}", listing["why"])
        for data in listing["candidates"]:
            builders.extend(_Builder(source, data, fixed) for fixed in data["variants"] or [{}])

    def _try(self, builders: Sequence[_Builder], *, guesses: bool) -> Iterator[tuple[_Builder, Outcome]]:
        failed: set[str] = set()
        for number, builder in enumerate(builders, 1):
            if builder.reference in failed:  # another name of its table has failed
                continue
            if builder.data["lacks"] and builder.data["lacks"] != _PART:
                yield builder, LeftOut(builder.reference, builder.data["lacks"])
                continue
            if self._is_over():
                why = f"not tried: {self.limits.total:g} s were over (--total SECONDS gives it more)"
                yield builder, Skeleton(builder.reference, why, kwargs=builder.fixed, variant=builder.variant)
                continue
            self._show(builder.reference, f"building, {number} of {len(builders)}")
            outcome = self._measure(builder, guesses=guesses)
            if isinstance(outcome, BuildableModel):
                self.has_model = True
            else:
                failed.add(builder.reference)
            yield builder, outcome

    def _is_over(self) -> bool:
        total = self.limits.total
        return total is not None and self.has_model and time.monotonic() - self.began > total

    def _measure(self, builder: _Builder, *, guesses: bool) -> Outcome:
        name = builder.data["name"]
        task = {
            "root": str(self.root),
            "module": builder.source.module,
            "name": name,
            "needs": builder.data["needs"],
            "fixed": builder.fixed,
            "guesses": guesses,
            "evidence": self.evidence.of(name.partition(".")[0], builder.data["needs"]),
        }
        try:
            numbers = self.isolation.call(f"{_WORKER}:measured", task, seconds=self.limits.seconds)
        except NoAnswer as error:
            return Skeleton(builder.reference, str(error), kwargs=builder.fixed, variant=builder.variant)
        if numbers.get("skipped"):
            self.open.add(builder.reference)
        return _outcome(numbers, builder)


def _outcome(numbers: dict[str, Any], builder: _Builder) -> Outcome:
    if not numbers["why"]:
        names = {item.name for item in fields(BuildableModel)} & numbers.keys()
        values = {name: numbers[name] for name in names} | {"guessed": tuple(numbers["guessed"])}
        is_class = builder.data["is_class"]
        return BuildableModel(builder.reference, is_class, variant=builder.variant, **values)
    if not numbers.get("has_weights", builder.data["has_weights"]):
        return LeftOut(builder.reference, numbers["why"])
    known = {"args": numbers["args"], "kwargs": numbers["kwargs"], "unknown": tuple(numbers["unknown"])}
    return Skeleton(builder.reference, numbers["why"], variant=builder.variant, **known)
