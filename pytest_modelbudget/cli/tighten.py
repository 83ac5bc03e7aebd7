"""`modelbudget tighten`: limits with a ratchet follow their models downwards."""

from __future__ import annotations

import sys
from argparse import Namespace
from difflib import unified_diff
from pathlib import Path

from pytest_modelbudget.cli.project import NO_MANIFEST, find
from pytest_modelbudget.cli.session import Run, based, check_models
from pytest_modelbudget.config import Tightening, tighten
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import Unreadable, read_bytes
from pytest_modelbudget.session.finish import in_order
from pytest_modelbudget.session.registry import Registry
from pytest_modelbudget.system import writing
from pytest_modelbudget.system.escape import harmless


def run(options: Namespace) -> int:
    """Print what changes in the manifest, and change it with `--write`."""
    project = find(options.file, Path.cwd())
    if not project.manifests:
        raise ModelBudgetError(NO_MANIFEST)
    with based(project, "off") as base:
        done = check_models(project, base)
    if done.interrupted:  # limits that several models share follow the largest of them
        raise KeyboardInterrupt
    found = 0
    for registry in done.registries:
        found += _one(registry, done, write=options.write)
    if not found:
        print("nothing to tighten")
    return int(bool(found) and not options.write)


def _one(registry: Registry, done: Run, *, write: bool) -> int:
    """Tighten one manifest; returns how many limits."""
    file = registry.loaded.file
    mark, text = _text(registry.path, file)
    own = {f"{file}::{entry.id}" for entry in registry.entries}
    results = in_order(result for result in done.results if result.nodeid in own)
    tightened = tighten(text, file=file, results=results, ids=[entry.id for entry in registry.entries])
    for kept in tightened.kept:
        print(f"left alone: {harmless(kept)}", file=sys.stderr)
    if tightened.lowered:
        _print(tightened, text, file)
        if write:
            try:
                writing.write(registry.path, mark + tightened.text)  # with the line ends that the text has
            except OSError as error:
                raise ModelBudgetError(f"{file} cannot be written ({error.strerror or error})") from None
            print(f"wrote {file}")
        else:
            print("not written: modelbudget tighten --write does it")
    return len(tightened.lowered)


def _text(path: Path, file: str) -> tuple[str, str]:
    """The mark that an editor put before a manifest, and its text with its own line ends: both are written again."""
    try:
        whole = read_bytes(path).decode("utf-8")
        text = whole.removeprefix("\ufeff")
        return whole[: len(whole) - len(text)], text
    except UnicodeDecodeError:
        raise ModelBudgetError(f"{file}: not UTF-8 text: save it as UTF-8") from None
    except Unreadable as error:
        raise ModelBudgetError(f"{file}: {error}") from None


def _print(tightened: Tightening, text: str, file: str) -> None:
    for line in unified_diff(text.splitlines(), tightened.text.splitlines(), file, file, n=1, lineterm=""):
        print(harmless(line))
    for lowered in tightened.lowered:
        print(harmless(str(lowered)))
