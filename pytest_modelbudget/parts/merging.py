"""Parts to one run, or all reasons why they are not one: nothing here touches a file.

Each problem names the part it is about, and the cure. What differs between heads is told of the parts that differ from
most others, since these are the ones to look at.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_modelbudget.base import BaseCommit, Checkout
from pytest_modelbudget.budget import Finding
from pytest_modelbudget.parts.dealing import missing_shards, parse_shard
from pytest_modelbudget.parts.part import ObsoleteFiles, Part, PartHead, Registered, RunRegistry
from pytest_modelbudget.results import Result
from pytest_modelbudget.results.groups import names_text
from pytest_modelbudget.snapshot import FOLDER

PRODUCT = "pytest-modelbudget"
"""Its key among the versions of a head."""

_LONGEST_NAME = 200
_AS_COMMITTED = "as committed"


@dataclass(frozen=True, slots=True)
class MergedRun:
    """All parts together: what an unsharded run would have come to, before anything is judged over all of it.

    `failed` says that a part's own run failed; `notes` are lines for people: tests that failed beside the models, and
    frameworks whose versions differ.
    """

    results: tuple[Result, ...] = ()
    registry: RunRegistry = field(default_factory=RunRegistry)
    checkout: Checkout = field(default_factory=Checkout)
    base: BaseCommit = field(default_factory=BaseCommit)
    findings: tuple[Finding, ...] = ()
    obsolete: tuple[ObsoleteFiles, ...] = ()
    update: bool = False
    failed: bool = False
    notes: tuple[str, ...] = ()


def problems_of(parts: Sequence[Part], version: str) -> list[str]:
    """Why `parts` are not one whole run, by their heads alone; `version` is this product's."""
    if not parts:
        return ["there is no part: give the files that the runs wrote, or their folder"]
    if problems := [*_repeated(parts), *_foreign_versions(parts, version)]:
        return problems
    if problems := list(_differing_heads(parts)):
        return problems
    return list(_incomplete(parts))


def merged(parts: Sequence[Part]) -> MergedRun:
    """The run that parts without problems make up."""
    head = parts[0].head
    return MergedRun(
        results=tuple(result for part in parts for result in part.results),
        registry=head.registry,
        checkout=head.checkout,
        base=head.base,
        findings=tuple(dict.fromkeys(finding for part in parts for finding in part.head.findings)),
        obsolete=tuple(_obsolete_of_all(parts)),
        update=head.update,
        failed=any(part.head.exit_status for part in parts),
        notes=(*_failures_beside_models(parts), *_differing_versions(parts)),
    )


def seconds_by_node(results: Iterable[Result]) -> dict[str, float]:
    """The seconds that each node took, as `parts.times` writes them; nothing for one that was not measured."""
    seconds: dict[str, float] = {}
    for result in results:
        if result.seconds:
            seconds[result.nodeid] = round(seconds.get(result.nodeid, 0.0) + result.seconds, 4)
    return seconds


def _repeated(parts: Sequence[Part]) -> Iterator[str]:
    """Parts that are there twice, under whichever name."""
    first: dict[str, str] = {}
    for part in parts:
        if part.digest in first:
            yield f"{part.name} is the same part as {first[part.digest]}: give each part once"
        else:
            first[part.digest] = part.name


def _foreign_versions(parts: Iterable[Part], version: str) -> Iterator[str]:
    for part in parts:
        written_by = part.head.versions.get(PRODUCT, "an unknown version")
        if written_by != version:
            yield (
                f"{part.name} was written by {PRODUCT} {written_by}, and this is {version}: "
                "use the same version in all jobs"
            )


@dataclass(frozen=True, slots=True)
class _Aspect:
    """Something that all heads have to say alike: `text` puts it in words, `cure` is what to do when they do not."""

    value: Callable[[PartHead], Hashable]
    text: Callable[[PartHead], str]
    cure: str


_ASPECTS = (
    _Aspect(
        lambda head: head.checkout.commit,
        lambda head: f"is of commit {head.checkout.commit[:12] or '(no repository)'}",
        "check out the same commit in all jobs",
    ),
    _Aspect(
        lambda head: head.base.commit,
        lambda head: f"has the base {head.base}",
        "name one with --model-budget-base=REF in all jobs, and fetch the same history",
    ),
    _Aspect(
        lambda head: head.update,
        lambda head: f"is of {'an update run' if head.update else 'a run that checks'}",
        "start all parts with the same options",
    ),
)


def _differing_heads(parts: Sequence[Part]) -> Iterator[str]:
    for aspect in _ASPECTS:
        usual, odd = _odd_ones(parts, aspect.value)
        for part in odd:
            yield f"{part.name} {aspect.text(part.head)}, and {usual.name} {aspect.text(usual.head)}: {aspect.cure}"
    usual, odd = _odd_ones(parts, lambda head: frozenset(head.checkout.changes.items()))
    for part in odd:
        own, other = part.head.checkout.changes, usual.head.checkout.changes
        differing = {path for path in {*own, *other} if own.get(path, _AS_COMMITTED) != other.get(path, _AS_COMMITTED)}
        yield (
            f"{part.name} is of another work tree than {usual.name}: in these files that git tracks, which have been "
            f"changed since the commit, they differ: {_names(sorted(differing))}: leave them as they are committed"
        )
    usual, odd = _odd_ones(parts, lambda head: head.registry.digest)
    for part in odd:
        yield (
            f"{part.name} has another registry than {usual.name}: {_registry_difference(part.head, usual.head)}: "
            "collect the same files, with the same frameworks, in all jobs"
        )
    dealt = [part for part in parts if part.head.dealing]
    usual, odd = _odd_ones(dealt, lambda head: head.dealing) if dealt else (parts[0], [])
    for part in odd:
        yield (
            f"{part.name} (shard {part.head.shard}) was dealt otherwise than {usual.name} (shard {usual.head.shard}): "
            "give all shards the same number of shards, the same --model-budget-times and the same snapshots"
        )


def _odd_ones(parts: Sequence[Part], value: Callable[[PartHead], Hashable]) -> tuple[Part, list[Part]]:
    """A part that says what most say (of as many, what the first says), and those that say something else."""
    usual_value, _ = Counter(value(part.head) for part in parts).most_common(1)[0]
    usual = next(part for part in parts if value(part.head) == usual_value)
    return usual, [part for part in parts if value(part.head) != usual_value]


def _registry_difference(head: PartHead, usual: PartHead) -> str:
    """The first thing in which two registries differ."""
    own, other = head.registry, usual.registry
    if own.by_node.keys() != other.by_node.keys():
        lacking, more = (
            sorted(other.by_node.keys() - own.by_node.keys()),
            sorted(own.by_node.keys() - other.by_node.keys()),
        )
        texts = [f"it lacks {_names(lacking)}"] if lacking else []
        return " and ".join([*texts, *([f"only it has {_names(more)}"] if more else [])])
    for path in sorted({*own.manifests, *other.manifests}):
        if own.manifests.get(path) != other.manifests.get(path):
            return f"the text of {path} is not the same"
    nodes = [nodeid for nodeid, node in own.by_node.items() if node.facts != other.by_node[nodeid].facts]
    return f"the tags of {_names(nodes)} are not the same" if nodes else "groups have other limits"


def _incomplete(parts: Sequence[Part]) -> Iterator[str]:
    """Nodes that no part selected, or several."""
    owners: dict[str, Part] = {}
    for part in parts:
        for twice, other in _taken(part, owners):
            yield (
                f"{part.name} and {other.name} both selected {_names(twice)}: let each model be selected in one part"
            )
    missing = sorted(parts[0].nodes.keys() - owners.keys())
    if not missing:
        return
    shards = [parse_shard(part.head.shard) for part in parts if part.head.shard]
    absent = missing_shards(shards)
    names = f"{len(missing)} of {len(parts[0].nodes)} registered ids are in no part: {_names(missing)}"
    if absent:
        numbers = ", ".join(map(str, absent[:20]))
        yield f"the part of shard {numbers} is missing, so {names}: give the parts of all shards"
    else:
        yield f"{names}: run them in a part too"


def _taken(part: Part, owners: dict[str, Part]) -> list[tuple[list[str], Part]]:
    """Note what a part selected; the nodes that others had selected, by these."""
    twice: dict[str, list[str]] = {}
    by_name: dict[str, Part] = {}
    for nodeid in part.head.selected:
        other = owners.setdefault(nodeid, part)
        if other is not part:
            twice.setdefault(other.name, []).append(nodeid)
            by_name[other.name] = other
    return [(nodeids, by_name[name]) for name, nodeids in twice.items()]


def contradictions(parts: Iterable[Part]) -> list[str]:
    """Where the results of a part do not belong to what its head says."""
    return [f"{part.name}: {problem}: write it again" for part in parts for problem in _own_contradictions(part)]


def _own_contradictions(part: Part) -> Iterator[str]:
    selected = set(part.head.selected)
    if len(selected) < len(part.head.selected):
        yield "it selected a model twice"
    if unknown := sorted(selected - part.nodes.keys()):
        yield f"it selected {_names(unknown)}, which is not in its registry"
    counts = Counter((result.nodeid, result.id) for result in part.results)
    if twice := sorted({nodeid for (nodeid, _), count in counts.items() if count > 1}):
        yield f"it has two results for {_names(twice)}"
    with_result = {nodeid for nodeid, _ in counts}
    if foreign := sorted(with_result - selected):
        yield f"it has a result for {_names(foreign)}, which it did not select"
    lacking = [nodeid for nodeid in selected - with_result if part.nodes.get(nodeid, _TEST).kind != "test"]
    if lacking:
        yield f"it has no result for {_names(sorted(lacking))}, which it selected"
    if any(result.files for result in part.results):
        yield "it has a result that names files to delete, which no part has"
    homes = {posixpath.dirname(manifest) for manifest in part.head.registry.manifests}
    paths = ((result.snapshot.path, result.nodeid) for result in part.results)
    if outside := [path for path, nodeid in paths if not _is_snapshot_of(path, nodeid, homes)]:
        yield f"it has snapshots elsewhere than beside what declares their models: {_names(outside)}"
    renamed = [
        result.nodeid
        for result in part.results
        if (node := part.nodes.get(result.nodeid, _TEST)).kind != "test" and node.id != result.id
    ]
    if renamed:
        yield f"the result of {_names(renamed)} is that of another id"


def _is_snapshot_of(path: str, nodeid: str, homes: Collection[str]) -> bool:
    """Whether a merge of updates may write there: in the snapshot folder of a manifest or of the model's test file."""
    if not path:
        return True
    home, _, name = f"/{path}".rpartition(f"/{FOLDER}/")
    test_home = posixpath.dirname(nodeid.partition("::")[0])
    inside = ".." not in test_home.split("/") and not posixpath.isabs(test_home)
    if home.removeprefix("/") not in {*homes, *([test_home] if inside else [])}:
        return False
    return "\\" not in name and all(step not in ("", ".", "..") for step in name.split("/"))


_TEST = Registered("", "", "test")


def _obsolete_of_all(parts: Iterable[Part]) -> Iterator[ObsoleteFiles]:
    """What any part found, once."""
    by_node: dict[str, ObsoleteFiles] = {}
    for obsolete in (obsolete for part in parts for obsolete in part.head.obsolete):
        known = by_node.setdefault(obsolete.nodeid, obsolete)
        if known.files != obsolete.files:
            files = tuple(sorted({*known.files, *obsolete.files}))
            by_node[obsolete.nodeid] = replace(known, files=files)
    yield from by_node.values()


def _failures_beside_models(parts: Iterable[Part]) -> Iterator[str]:
    """Which tests failed where; a part's run that failed without a word is told too."""
    for part in parts:
        if part.head.failed_tests:
            count = len(part.head.failed_tests)
            tests = "a test" if count == 1 else f"{count} tests"
            yield f"{tests} failed in the run of {part.name}: {_names(part.head.failed_tests)}"
        elif part.head.exit_status and not any(result.state.failed for result in part.results):
            yield f"the run of {part.name} ended with exit code {part.head.exit_status}"


def _differing_versions(parts: Sequence[Part]) -> Iterator[str]:
    """Frameworks, and Python, that were not the same in all parts: their numbers may not be either."""
    names = sorted({name for part in parts for name in part.head.versions})
    for name in names:
        values: dict[Any, list[str]] = {}
        for part in parts:
            values.setdefault(part.head.versions.get(name, "none"), []).append(part.name)
        if len(values) > 1:
            text = "; ".join(f"{value} in {_names(where)}" for value, where in values.items())
            yield f"{name} is not the same in all parts: {text}"


def _names(names: Iterable[str]) -> str:
    """The first names, those of others cut where they are very long."""
    return names_text(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..." for name in names)


def check_here(run: MergedRun, checkout: Checkout, manifests: dict[str, str]) -> Iterator[str]:
    """Why the parts are not of the project that they are merged in: its checkout, and the manifests that it has."""
    known = bool(run.checkout.commit)  # parts of containers without git, or of Bazel's sandbox, know of none
    if known and run.checkout.commit != checkout.commit:
        there, here = run.checkout.commit[:12], checkout.commit[:12] or "(no repository)"
        yield f"the parts are of commit {there}, and this checkout is of {here}: merge them in a checkout of theirs"
        return
    if known and run.checkout.folder != checkout.folder:
        there, here = run.checkout.folder or "the top", checkout.folder or "the top"
        yield f"the parts are of {there} of the repository, and this is {here}: merge where they were run"
        return
    for path, digest in run.registry.manifests.items():
        if digest and not manifests.get(path):
            yield f"{path}, the manifest of the parts, is not here: merge in the root of the project, or name --file"
        elif manifests.get(path) != digest:
            yield f"{path} is not the manifest that the parts were checked by: merge in the checkout that they are of"
