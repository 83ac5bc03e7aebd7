"""`modelbudget tighten`: limits with a ratchet follow their models downwards."""

from __future__ import annotations

import sys
from argparse import Namespace
from difflib import unified_diff
from pathlib import Path

from pytest_modelbudget.cli.project import NO_MANIFEST, find_project
from pytest_modelbudget.cli.session import CheckRun, based, check_models
from pytest_modelbudget.config import Tightening, tighten
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import UnreadableFile, read_bytes
from pytest_modelbudget.session.finish import in_order
from pytest_modelbudget.session.registry import Registry
from pytest_modelbudget.system import writing
from pytest_modelbudget.system.escape import harmless


def run(options: Namespace) -> int:
    """Print what changes in the manifest, and change it with `--write`."""
    project = find_project(options.file, Path.cwd())
    if not project.manifests:
        raise ModelBudgetError(NO_MANIFEST)
    with based(project, "off") as base:
        check_run = check_models(project, base)
    if check_run.interrupted:  # limits that several models share follow the largest of them
        raise KeyboardInterrupt
    lowered_count = 0
    for registry in check_run.registries:
        lowered_count += _tighten_manifest(registry, check_run, write=options.write)
    if not lowered_count:
        print("nothing to tighten")
    return int(bool(lowered_count) and not options.write)


def _tighten_manifest(registry: Registry, check_run: CheckRun, *, write: bool) -> int:
    """Tighten one manifest; returns how many limits."""
    file = registry.loaded.file
    mark, text = _read_with_mark(registry.path, file)
    node_ids = {f"{file}::{entry.id}" for entry in registry.entries}
    results = in_order(result for result in check_run.results if result.nodeid in node_ids)
    tightened = tighten(text, file=file, results=results, ids=[entry.id for entry in registry.entries])
    for note in tightened.kept:
        print(f"left alone: {harmless(note)}", file=sys.stderr)
    if tightened.lowered:
        _print_changes(tightened, text, file)
        if write:
            try:
                writing.write(registry.path, mark + tightened.text)  # with the line ends that the text has
            except OSError as error:
                raise ModelBudgetError(f"{file} cannot be written ({error.strerror or error})") from None
            print(f"wrote {file}")
        else:
            print("not written: modelbudget tighten --write does it")
    return len(tightened.lowered)


def _read_with_mark(path: Path, file: str) -> tuple[str, str]:
    """The mark that an editor put before a manifest, and its text with its own line ends: both are written again."""
    try:
        content = read_bytes(path).decode("utf-8")
        text = content.removeprefix("\ufeff")
        return content[: len(content) - len(text)], text
    except UnicodeDecodeError:
        raise ModelBudgetError(f"{file}: not UTF-8 text: save it as UTF-8") from None
    except UnreadableFile as error:
        raise ModelBudgetError(f"{file}: {error}") from None


def _print_changes(tightened: Tightening, text: str, file: str) -> None:
    for line in unified_diff(text.splitlines(), tightened.text.splitlines(), file, file, n=1, lineterm=""):
        print(harmless(line))
    for lowered in tightened.lowered:
        print(harmless(str(lowered)))
