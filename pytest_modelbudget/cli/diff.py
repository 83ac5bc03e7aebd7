"""`modelbudget diff A B`: what changed between two models, or in all snapshots between two commits."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from pytest_modelbudget import snapshot
from pytest_modelbudget.base import Base
from pytest_modelbudget.cli.project import print_lines
from pytest_modelbudget.cli.targets import Targets, committed_summary
from pytest_modelbudget.cli.walk import project_files
from pytest_modelbudget.diff import Change, changes
from pytest_modelbudget.diff.exports import export_of
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import UnreadableFile, read_text
from pytest_modelbudget.session.registry import relative_posix
from pytest_modelbudget.snapshot import Stored
from pytest_modelbudget.summary import Export, Summary
from pytest_modelbudget.summary.show.exports import export_lines
from pytest_modelbudget.summary.totals import Totals, number_of
from pytest_modelbudget.system.escape import harmless

_LONGEST = 1_000
_FEW_ROWS = 10_000
"""Rows that are compared with any other number of them."""
_ABOUT_FILES = "Snapshot files were compared, and nothing was built. To see an edit of a model"


@dataclass(frozen=True, slots=True)
class ModelPair:
    """One model on both sides; None where it is not there, `problem` when a side could not be read.

    `is_moved` says that it has another name or file on the other side, and is the same in all else.
    """

    title: str
    before: Summary | Totals | None
    after: Summary | Totals | None
    problem: str = ""
    is_moved: bool = False

    @property
    def changes(self) -> tuple[Change, ...]:
        """From before to after."""
        if self.before is None or self.after is None:
            return ()
        return changes(self.before, replace(self.after, model=self.before.model))

    @property
    def export(self) -> Export | None:
        """How a file stands to a model; None where both are files, or none is: then rows are compared."""
        if not isinstance(self.before, Summary) or not isinstance(self.after, Summary):
            return None
        return export_of(self.before, self.after) if self.after.file and not self.before.file else None

    @property
    def status(self) -> str:
        """`equal`, `changed`, `renamed`, `added`, `removed` or `unreadable`."""
        if self.problem:
            return "unreadable"
        if self.is_moved:
            return "renamed"
        if self.before is None:
            return "added"
        if self.after is None:
            return "removed"
        return "changed" if self.changes else "equal"


def run(options: Namespace) -> int:
    """Print every change; 1 when there is one."""
    pairs = list(_pairs(Targets(options), options.before, options.after))
    if options.json:
        print(json.dumps([_to_json(pair) for pair in pairs], indent=1))
    else:
        blocks = [["", *_pair_lines(pair, options.top or None)] for pair in pairs]
        print_lines(list(chain.from_iterable(blocks))[1:] or ["nothing differs"])
    problems = [pair.problem for pair in pairs if pair.problem]
    if problems:
        raise ModelBudgetError("\n".join(problems))
    if options.after is None and not options.json:
        print(f"\n{_ABOUT_FILES}: modelbudget diff {harmless(options.before)} ID")
    return int(any(pair.status != "equal" for pair in pairs))


def _to_json(pair: ModelPair) -> dict[str, object]:
    entries = [{**asdict(change), "text": str(change)} for change in pair.changes]
    export = {} if pair.export is None else {"export": pair.export.to_dict()}
    return {"model": pair.title, "status": pair.status, "changes": entries, **export}


def _pair_lines(pair: ModelPair, most: int | None) -> Iterator[str]:
    title = harmless(pair.title)
    match pair.status:
        case "equal":
            yield f"{title}: nothing differs"
        case "changed" if pair.export is not None and isinstance(pair.after, Summary):
            yield f"{title}:"
            yield from (f"  {name}: {value}" for name, value in export_lines(pair.export, pair.after))
        case "changed":
            yield f"{title}:"
            yield from (f"  {harmless(str(change), longest=_LONGEST)}" for change in pair.changes[:most])
            if most is not None and len(pair.changes) > most:
                yield f"  ... and {len(pair.changes) - most:,} more changes; --top 0 shows all"
        case "renamed":
            yield f"{title}: renamed, nothing else differs"
        case "unreadable":
            yield f"{title}: cannot be compared"
        case status:
            summary = pair.after or pair.before
            assert summary is not None
            params, layers = number_of(summary, "params"), number_of(summary, "layers")
            size = "" if layers is None else f" in {layers:,} layer{'' if layers == 1 else 's'}"
            yield f"{title}: {status} ({params:,} params{size})"


def _pairs(targets: Targets, before_word: str, after_word: str | None) -> Iterator[ModelPair]:
    """Two models, a ref and a model, or all snapshots of two refs."""
    before_model, after_model = targets.find(before_word), None if after_word is None else targets.find(after_word)
    if before_model and after_word is None:
        raise ModelBudgetError(f"{before_word!r} is one model: name the second, or a git ref before it")
    base = None if before_model else _base_of_commit(targets, before_word)
    head = None if after_model or after_word is None else _base_of_commit(targets, after_word)
    if before_model and after_model:
        yield ModelPair(f"{before_word} -> {after_word}", before_model(), after_model())
    elif after_model and base:
        yield ModelPair(
            f"{after_word} since {before_word}",
            _committed(targets, base, str(after_word)),
            after_model(),
        )
    elif before_model and head:
        after = _committed(targets, head, before_word)
        yield ModelPair(f"{before_word} against {after_word}", before_model(), after)
    elif base:
        yield from _snapshot_pairs(targets.project.root, base, head)


def _base_of_commit(targets: Targets, word: str) -> Base:
    if (base := targets.commit(word)) is None:
        raise ModelBudgetError(
            targets.describe_unknown(word, f"no git ref{f' ({targets.no_git})' if targets.no_git else ''}")
        )
    return base


def _committed(targets: Targets, base: Base, word: str) -> Summary | Totals:
    """What a commit has of a model, or of a snapshot file.

    Raises:
        ModelBudgetError: nothing, or what cannot be read.
    """
    if entry := targets.entries.get(word):
        stored = snapshot.at_commit(base, entry)
        base.close()
        if stored is None:
            raise ModelBudgetError(f"{base.where.name} has no snapshot of {word} ({snapshot.address(entry)})")
        return replace(stored, address=f"{base.where.name}:{stored.address}").read()
    if Path(word).is_file():
        return committed_summary(base, relative_posix(Path(word).resolve(), targets.project.root.resolve()))
    raise ModelBudgetError(f"{word!r} has no snapshot to compare with: register it in the manifest, or name two models")


def _snapshot_pairs(root: Path, base: Base, head: Base | None) -> Iterator[ModelPair]:
    """Each snapshot that differs between two commits, or a commit and the work tree."""
    before, unread = _committed_snapshots(base)
    after, unread_now = _committed_snapshots(head) if head else _work_tree_snapshots(root)
    problems = {**unread, **unread_now}
    for path, problem in sorted(problems.items()):
        yield ModelPair(path, None, None, problem)
    renamed = _renamed(before, after)
    for path in sorted({*before, *after} - {*problems} - {*renamed.values()}):
        old, new = before.get(renamed.get(path, path)), after.get(path)
        in_unread_file = any(side is not None and side.file in problems for side in (old, new))  # may be there or not
        if old != new and not in_unread_file:
            pair = _read_pair(old, new)
            if path in renamed and pair.before and pair.after and old and new:
                title = f"{pair.before.model} ({old.address}) -> {pair.after.model} ({new.address})"
                pair = replace(pair, title=title, is_moved=pair.status == "equal")
            if pair.status != "equal":
                yield pair


def _renamed(before: Mapping[str, Stored], after: Mapping[str, Stored]) -> dict[str, str]:
    """The path now of each snapshot that is new, by one that is gone of the same content: its path before.

    Where several are alike, nobody can say which became which.
    """
    gone = _by_content(before[path] for path in before.keys() - after.keys())
    new = _by_content(after[path] for path in after.keys() - before.keys())
    return {
        _own_path(new[content][0]): _own_path(gone[content][0])
        for content in gone.keys() & new.keys()
        if len(gone[content]) == len(new[content]) == 1
    }


def _by_content(snapshots: Iterable[Stored]) -> dict[str, list[Stored]]:
    """Snapshots by what they say beside the model's name, its declaration and estimates."""
    by_content: dict[str, list[Stored]] = {}
    for stored in snapshots:
        content = _OF_THE_NAME.sub("", stored.text.partition("\nestimates:\n")[0])
        by_content.setdefault(content, []).append(stored)
    return by_content


def _own_path(stored: Stored) -> str:
    """What a snapshot is listed under."""
    return snapshot.own_path_beside(stored.file, stored.address.partition("::")[2])


_OF_THE_NAME = re.compile(r'\b(?:model|declared|digest): (?:"[^"\n]*"|[^,}\n]*)')
"""What a snapshot has of its model's name; the digest is of that, too."""


_Snapshots = tuple[dict[str, Stored], dict[str, str]]
"""The snapshots by the path of the file that is their model's alone, and why those that cannot be read cannot."""


def _committed_snapshots(base: Base) -> _Snapshots:
    snapshots: dict[str, Stored] = {}
    unread: dict[str, str] = {}
    for path in base.files:
        if snapshot.is_totals(path):
            try:
                _add_lines(path, snapshot.totals_at(base, path), snapshots, unread)
            except ModelBudgetError as problem:
                unread[path] = str(problem)
        elif snapshot.FOLDER in path.split("/"):
            try:
                _add_file(path, base.text(path) or "", snapshots)
            except ModelBudgetError as problem:
                unread[path] = str(problem)
    base.close()
    return snapshots, unread


def _add_file(path: str, text: str, snapshots: dict[str, Stored]) -> None:
    """A file that is a snapshot."""
    if "\nformat:" in text[:500] or text.startswith("format:"):
        snapshots[path] = Stored(path, text, is_line=False)


def _add_lines(
    path: str, file: snapshot.TotalsFile | snapshot.Refusal | None, snapshots: dict[str, Stored], unread: dict[str, str]
) -> None:
    """The lines of a file of totals."""
    if isinstance(file, snapshot.Refusal):
        unread[path] = f"{path}: {file.reason}"
    elif file is not None and file.problem:
        unread[path] = f"{path}{snapshot.problem_of(file, '')}"
    elif file is not None:
        for model in file.ids:
            own = snapshot.own_path_beside(path, model)
            if reason := snapshot.problem_of(file, model):
                unread[own] = f"{path}{reason}"
            else:
                snapshots[own] = Stored(f"{path}::{model}", file.get(model) or "", is_line=True)


def _work_tree_snapshots(root: Path) -> _Snapshots:
    """Every snapshot in the project's own folders."""
    snapshots: dict[str, Stored] = {}
    unread: dict[str, str] = {}
    for file in project_files(root):
        if file.suffix == ".yaml" and snapshot.FOLDER in file.parts:
            path = file.relative_to(root).as_posix()
            if snapshot.is_totals(path):
                _add_lines(path, snapshot.read_file(root, ".", path), snapshots, unread)
                continue
            try:
                _add_file(path, read_text(file), snapshots)
            except FileNotFoundError:  # a link to nothing, or gone in this moment
                continue
            except UnreadableFile as problem:
                unread[path] = f"{path}: {problem}"
    return snapshots, unread


def _read_pair(before: Stored | None, after: Stored | None) -> ModelPair:
    stored = after or before
    assert stored is not None
    try:
        old, new = (None if side is None else side.read() for side in (before, after))
    except ModelBudgetError as error:
        return ModelPair(stored.address, None, None, str(error))
    if isinstance(old, Summary) and isinstance(new, Summary) and (problem := _why_too_large(old, new)):
        return ModelPair(stored.address, None, None, f"{stored.address}: {problem}")
    counted = new or old
    return ModelPair(f"{counted.model} ({stored.address})" if counted else stored.address, old, new)


def _why_too_large(old: Summary, new: Summary) -> str:
    """Why two snapshots of so many rows are not compared: time grows with both, and no model grows tenfold unseen."""
    before, after = len(old.layers), len(new.layers)
    few, many = sorted((before, after))
    if many <= max(_FEW_ROWS, 10 * few):
        return ""
    return f"it stands for {before:,} rows before and {after:,} after, too many to compare: look at each with show"
