"""A run that writes a part: its options, all that was collected (whatever is deselected afterwards), its end."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget import snapshot
from pytest_modelbudget.base import Checkout, checkout_of
from pytest_modelbudget.budget import Finding
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.parts import PartHead, Registered, file
from pytest_modelbudget.parts.content import obsolete_data, obsolete_from, registered_data, registered_from
from pytest_modelbudget.parts.ending import finish_part, versions
from pytest_modelbudget.parts.part import ObsoleteFiles
from pytest_modelbudget.parts.registering import manifest_digest, run_registry
from pytest_modelbudget.parts.request import WITHOUT_PART, PartRequest, refuse_beside_part, requested
from pytest_modelbudget.plugin.base import BASE, COLLECTED
from pytest_modelbudget.plugin.items import BadConfigItem, BudgetItem, ModelItem, SnapshotFilesItem, node_id
from pytest_modelbudget.results import Result
from pytest_modelbudget.session.finish import Finished
from pytest_modelbudget.system import writing

FIXTURE = "model_budget"
PART: pytest.StashKey[PartRun | None] = pytest.StashKey()
_MERGE = "modelbudget merge PART... does it, over all parts"
_FLAGS_OF_MERGE = ("--model-budget-report", "--model-budget-mlflow", "--model-budget-mlflow-required")
_PRUNE = "--model-budget-prune"


@dataclass(slots=True)
class PartRun:
    """What a run that writes a part knows of the whole; on xdist's workers, and from there on the controller."""

    request: PartRequest
    checkout: Checkout
    nodes: dict[str, Registered] = field(default_factory=dict)
    snapshots: dict[str, str] = field(default_factory=dict)
    manifests: dict[str, str] = field(default_factory=dict)
    obsolete: dict[str, ObsoleteFiles] = field(default_factory=dict)
    selected: dict[str, None] = field(default_factory=dict)
    dealing: str = ""

    def note_manifest(self, path: Path, name: str) -> None:
        """A manifest that was read."""
        self.manifests[name] = manifest_digest(path)

    def note_obsolete(self, item: SnapshotFilesItem) -> None:
        """Snapshot files that are nobody's."""
        self.obsolete[node_id(item)] = ObsoleteFiles(node_id(item), item.declared, item.files)

    def note_test(self, item: pytest.Item) -> None:
        """An item that was collected: a test with the fixture is one to know of."""
        if not isinstance(item, BudgetItem) and FIXTURE in getattr(item, "fixturenames", ()):
            self.nodes[node_id(item)] = Registered(node_id(item), item.name, "test")

    def note_models(self, items: Iterable[pytest.Item]) -> None:
        """The models and the mistakes of manifests among what was made."""
        for item in items:
            nodeid = node_id(item)
            if isinstance(item, ModelItem):
                self.nodes[nodeid] = Registered(nodeid, item.entry.id, "model", item.entry.place, item.entry.tags)
                self.snapshots[nodeid] = snapshot.path_for(item.entry)
            elif isinstance(item, BadConfigItem):
                self.nodes[nodeid] = Registered(nodeid, item.name, "mistakes", item.place)

    def keep_own(self, items: list[pytest.Item], config: pytest.Config) -> None:
        """Leave the items of other shards out of `items`; ordinary tests run in each shard as they were told to."""
        if self.request.shard is None:
            return
        own, self.dealing = self.request.deal(
            {nodeid: self.snapshots.get(nodeid, "") for nodeid in self.nodes}, config.rootpath
        )
        others = self.nodes.keys() - own
        deselected = [item for item in items if node_id(item) in others]
        if deselected:
            items[:] = [item for item in items if node_id(item) not in others]
            config.hook.pytest_deselected(items=deselected)

    def note_selected(self, items: Iterable[pytest.Item]) -> None:
        """What this run is going to check."""
        self.selected.update((nodeid, None) for nodeid in map(node_id, items) if nodeid in self.nodes)

    def to_json(self) -> str:
        """What a worker knows, for the controller."""
        content = {
            "nodes": list(map(registered_data, self.nodes.values())),
            "manifests": self.manifests,
            "obsolete": list(map(obsolete_data, self.obsolete.values())),
            "selected": list(self.selected),
            "dealing": self.dealing,
        }
        return json.dumps(content)

    def add_json(self, text: str) -> None:
        """Add what a worker knew."""
        content: dict[str, Any] = json.loads(text)
        self.nodes.update((node.nodeid, node) for node in map(registered_from, content["nodes"]))
        self.manifests.update(content["manifests"])
        self.obsolete.update((item.nodeid, item) for item in map(obsolete_from, content["obsolete"]))
        self.selected.update(dict.fromkeys(content["selected"]))
        self.dealing = content["dealing"] or self.dealing


def prepare(config: pytest.Config) -> None:
    """Read the options for parts, and remove the part of an earlier run.

    Raises:
        pytest.UsageError: they cannot be done.
    """
    config.stash[PART] = None
    try:
        config.stash[PART] = _part_run(config)
    except ModelBudgetError as mistake:
        raise pytest.UsageError(f"model-budget: {mistake}") from None


def _part_run(config: pytest.Config) -> PartRun | None:
    path, shard, times = (config.getoption(f"model_budget_{name}") for name in ("part", "shard", "times"))
    if not path:
        for name, value in (("--model-budget-shard", shard), ("--model-budget-times", times)):
            if value:
                raise ModelBudgetError(f"{name} {WITHOUT_PART.format(part='--model-budget-part=FILE')}")
        return None
    refuse_beside_part({flag: config.getoption(flag) for flag in _FLAGS_OF_MERGE}, _MERGE)
    refuse_beside_part({_PRUNE: config.getoption(_PRUNE)}, f"start pytest {_PRUNE} without one")
    request = requested(path, shard, _times_path(config), config.invocation_params.dir)
    if hasattr(config, "workerinput"):
        return PartRun(request, Checkout())
    if not config.getoption("collectonly"):
        file.forget(request.path)
    return PartRun(request, checkout_of(config.rootpath))


def _times_path(config: pytest.Config) -> Path | None:
    if flag := config.getoption("model_budget_times"):
        return config.invocation_params.dir / str(flag)
    ini = config.getini("model_budget_times")
    return config.rootpath / str(ini) if ini else None


def send_to_controller(config: pytest.Config, folder: Path, worker: str) -> None:
    """Write down what this worker knows, in the folder of the checklists."""
    part = config.stash[PART]
    if part is not None:
        with suppress(OSError):  # a worker of another machine
            writing.write(folder / f"{worker}.registry", part.to_json())


def add_from_workers(config: pytest.Config, folder: Path) -> None:
    """Add what the workers wrote."""
    part = config.stash[PART]
    if part is None:
        return
    for path in sorted(folder.glob("*.registry")):
        with suppress(OSError, ValueError):
            part.add_json(path.read_text(encoding="utf-8"))


def finish(
    config: pytest.Config,
    results: Sequence[Result],
    findings: Sequence[Finding],
    *,
    exit_status: int,
    failed_nodes: Collection[str],
) -> Finished:
    """Write the part of a run that ends with `exit_status`; `findings` are those of collection."""
    part = config.stash[PART]
    assert part is not None
    collected = config.stash[COLLECTED]
    failed_models = {result.nodeid for result in results if result.state.failed}
    head = PartHead(
        versions=versions(),
        checkout=part.checkout,
        base=config.stash[BASE].where,
        registry=run_registry(part.nodes.values(), part.manifests, collected.groups),
        selected=tuple(part.selected),
        update=bool(config.getoption("model_budget_update")),
        shard=str(part.request.shard or ""),
        dealing=part.dealing,
        findings=(*findings, *collected.findings),
        obsolete=tuple(part.obsolete.values()),
        exit_status=exit_status,
        failed_tests=tuple(sorted(set(failed_nodes) - failed_models)),
    )
    return finish_part(results, part.request, head)
