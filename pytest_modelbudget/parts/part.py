"""A part of a run, as plain data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from pytest_modelbudget.base import BaseCommit, Checkout
from pytest_modelbudget.budget import Finding
from pytest_modelbudget.errors import Place
from pytest_modelbudget.results import Result, codec
from pytest_modelbudget.results.groups import ModelGroup

Kind = Literal["model", "mistakes", "test"]
"""What has a node id: a registered model, the mistakes of a manifest, a test that may check any number of models."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What a whole run has to give a result for; a test may give none, and any number."""

    nodeid: str
    id: str
    kind: Kind = "model"
    place: Place | None = None
    tags: tuple[str, ...] = ()

    @property
    def facts(self) -> tuple[str, ...]:
        """What has to be the same in all parts."""
        return (self.id, self.kind, *self.tags)


@dataclass(frozen=True, slots=True)
class ObsoleteFiles:
    """Snapshot files of no model; `declared` is the file that is to name their models."""

    nodeid: str
    declared: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class RunRegistry:
    """All that a run is about, whatever was selected: every node id, the manifests (path -> SHA-256), the groups."""

    nodes: tuple[Registered, ...] = ()
    manifests: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[ModelGroup, ...] = ()

    @cached_property
    def by_node(self) -> dict[str, Registered]:
        """Each by its node id."""
        return {node.nodeid: node for node in self.nodes}

    @cached_property
    def digest(self) -> str:
        """The same in all parts of one run; the order in which nodes were found does not matter, nor their places.

        A source may say places as they are on its machine.
        """
        content = {
            "nodes": sorted([node.nodeid, *node.facts] for node in self.nodes),
            "manifests": dict(self.manifests),
            "groups": [codec.group_dict(group) for group in self.groups],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PartHead:
    """What a part says of itself and of the run it is of.

    `versions` has `pytest-modelbudget`, `python` and the frameworks that are installed. `selected` are node ids of the
    registry. `shard` (`2/8`) and `dealing`, a digest of the costs, are empty where something else chose. `findings` are
    those of the manifests and of collection. `exit_status` is how the part's own run ended, 0 or what pytest says;
    `failed_tests` are node ids of tests that failed for another reason than their models.
    """

    versions: Mapping[str, str]
    checkout: Checkout
    base: BaseCommit
    registry: RunRegistry
    selected: tuple[str, ...]
    update: bool = False
    shard: str = ""
    dealing: str = ""
    findings: tuple[Finding, ...] = ()
    obsolete: tuple[ObsoleteFiles, ...] = ()
    exit_status: int = 0
    failed_tests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """A part as it was read: `name` is that of its file, `digest` of all its bytes; `results` may not be read yet."""

    name: str
    digest: str
    head: PartHead
    results: tuple[Result, ...] = ()

    @property
    def nodes(self) -> Mapping[str, Registered]:
        """The registry, by node id."""
        return self.head.registry.by_node
