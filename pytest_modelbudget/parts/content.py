"""The head of a part as plain JSON data and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pytest_modelbudget.base import BaseCommit, Checkout
from pytest_modelbudget.errors import Place
from pytest_modelbudget.parts.part import ObsoleteFiles, PartHead, Registered, RunRegistry
from pytest_modelbudget.results import codec


def head_data(head: PartHead) -> dict[str, Any]:
    """A head as plain JSON data, with the digest of its registry."""
    registry = head.registry
    return {
        "versions": dict(head.versions),
        "checkout": asdict(head.checkout),
        "base": asdict(head.base),
        "nodes": list(map(registered_data, registry.nodes)),
        "manifests": dict(registry.manifests),
        "groups": list(map(codec.group_dict, registry.groups)),
        "registry": registry.digest,
        "selected": list(head.selected),
        "update": head.update,
        "shard": head.shard,
        "dealing": head.dealing,
        "findings": list(map(codec.finding_dict, head.findings)),
        "obsolete": list(map(obsolete_data, head.obsolete)),
        "exit_status": head.exit_status,
        "failed_tests": list(head.failed_tests),
    }


def registry_from(data: Mapping[str, Any]) -> RunRegistry:
    """The registry in what `head_data` gave."""
    nodes, groups = map(registered_from, data["nodes"]), map(codec.group_from, data["groups"])
    return RunRegistry(tuple(nodes), data["manifests"], tuple(groups))


def head_from(registry: RunRegistry, data: Mapping[str, Any]) -> PartHead:
    """Read back what `head_data` gave, but for the registry."""
    return PartHead(
        data["versions"],
        Checkout(**data["checkout"]),
        BaseCommit(**data["base"]),
        registry,
        tuple(data["selected"]),
        data["update"],
        data["shard"],
        data["dealing"],
        tuple(map(codec.finding_from, data["findings"])),
        tuple(map(obsolete_from, data["obsolete"])),
        data["exit_status"],
        tuple(data["failed_tests"]),
    )


def registered_data(node: Registered) -> dict[str, Any]:
    """A node id of the registry as plain JSON data."""
    place = None if node.place is None else {"file": node.place.file, "line": node.place.line}
    return {"nodeid": node.nodeid, "id": node.id, "kind": node.kind, "place": place, "tags": list(node.tags)}


def registered_from(data: Mapping[str, Any]) -> Registered:
    """Read back what `registered_data` gave."""
    place = data["place"]
    return Registered(
        data["nodeid"], data["id"], data["kind"], place and Place(place["file"], place["line"]), tuple(data["tags"])
    )


def obsolete_data(obsolete: ObsoleteFiles) -> dict[str, Any]:
    """Snapshot files of no model as plain JSON data."""
    return {"nodeid": obsolete.nodeid, "declared": obsolete.declared, "files": list(obsolete.files)}


def obsolete_from(data: Mapping[str, Any]) -> ObsoleteFiles:
    """Read back what `obsolete_data` gave."""
    return ObsoleteFiles(data["nodeid"], data["declared"], tuple(data["files"]))
