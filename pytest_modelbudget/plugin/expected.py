"""The models that a run is to check, written down before the first is: whatever has no result at the end is missing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.errors import Place
from pytest_modelbudget.plugin.items import BadConfigItem, ModelItem, node_id
from pytest_modelbudget.plugin.parts import send_to_controller
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.system import writing

_INPUT = "modelbudget_expected"
_LONGEST = 4_000


@dataclass(frozen=True, slots=True)
class ExpectedModel:
    """A model, or the mistakes of a manifest, by its node id; where it is registered, and its tags.

    `reported` is pytest's own node id, by which reports name it; see `node_id`.
    """

    nodeid: str
    reported: str
    id: str
    place: Place | None
    tags: tuple[str, ...]

    def result(self, state: State, error: str) -> Result:
        """Its result when it has none of its own."""
        return Result(self.id, state, nodeid=self.nodeid, place=self.place, tags=self.tags, error=error)


@dataclass(slots=True)
class Checklist:
    """Who is expected, whom the user left out, and how the reports of items came out that gave no result.

    It is `complete` when collection came to its end.
    """

    complete: bool = False
    expected: dict[str, ExpectedModel] = field(default_factory=dict)
    deselected: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, items: Iterable[pytest.Item]) -> None:
        """Expect the models among the items."""
        self.expected.update((model.nodeid, model) for model in expected_of(items))

    def leave_out(self, items: Iterable[pytest.Item]) -> None:
        """The user's options left these out."""
        self.deselected.update(node_id(item) for item in items if isinstance(item, ModelItem))

    def note(self, report: pytest.TestReport) -> None:
        """Keep why an item has no result, if a report says so."""
        if report.failed:
            self.failed[report.nodeid] = report.longreprtext[-_LONGEST:]
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            self.skipped[report.nodeid] = str(reason).removeprefix("Skipped: ")

    def missing(self, nodeids: Iterable[str], reason: str) -> Iterator[Result]:
        """A result for each model that has none; `reason` is what ended the run before."""
        for nodeid in self.expected.keys() - set(nodeids):
            expected = self.expected[nodeid]
            if expected.reported in self.failed:
                yield expected.result(State.BUILD_ERROR, self.failed[expected.reported] or "it failed without a word")
            elif expected.reported in self.skipped:
                yield expected.result(State.SKIPPED, self.skipped[expected.reported])
            else:
                yield expected.result(State.NOT_CHECKED, reason)


def expected_of(items: Iterable[pytest.Item]) -> Iterator[ExpectedModel]:
    """The models among the items."""
    for item in items:
        if isinstance(item, ModelItem):
            yield ExpectedModel(node_id(item), item.nodeid, item.entry.id, item.place, item.entry.tags)
        elif isinstance(item, BadConfigItem):
            yield ExpectedModel(node_id(item), item.nodeid, item.name, item.place, ())


class ChecklistFolder:
    """Where xdist's workers write their checklists, which outlive them; on the controller's machine."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="modelbudget-", ignore_cleanup_errors=True)

    def tell(self, workerinput: dict[str, Any]) -> None:
        """Tell a worker of it."""
        workerinput[_INPUT] = self._folder.name

    def read(self, checklist: Checklist) -> None:
        """Add what the workers wrote."""
        for path in sorted(Path(self._folder.name).glob("*.json")):
            with suppress(OSError, ValueError):
                content = json.loads(path.read_text(encoding="utf-8"))
                checklist.complete |= content["complete"]
                checklist.expected.update((entry["nodeid"], _expected_from(entry)) for entry in content["expected"])
                checklist.deselected.update(content["deselected"])

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self._folder.name)

    def close(self) -> None:
        """Remove it."""
        self._folder.cleanup()


def write_checklist(config: pytest.Config, checklist: Checklist) -> None:
    """Write the checklist of this worker down, where the controller said."""
    workerinput: Mapping[str, Any] = getattr(config, "workerinput", {})
    if _INPUT not in workerinput:
        return
    send_to_controller(config, Path(workerinput[_INPUT]), workerinput["workerid"])
    expected = [asdict(model) for model in checklist.expected.values()]
    text = json.dumps({"complete": checklist.complete, "expected": expected, "deselected": [*checklist.deselected]})
    with suppress(OSError):  # a worker of another machine: the controller knows what has a result
        writing.write(Path(workerinput[_INPUT]) / f"{workerinput['workerid']}.json", text)


def _expected_from(data: Mapping[str, Any]) -> ExpectedModel:
    place = data["place"] and Place(**data["place"])
    return ExpectedModel(**{**data, "place": place, "tags": tuple(data["tags"])})
