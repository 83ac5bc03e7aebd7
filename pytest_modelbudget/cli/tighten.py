"""`modelbudget tighten`: limits with a ratchet follow their models downwards."""

from __future__ import annotations

import os
import sys
import tempfile
from argparse import Namespace
from contextlib import suppress
from difflib import unified_diff
from pathlib import Path

from pytest_modelbudget.cli.project import NO_MANIFEST, find
from pytest_modelbudget.cli.session import Run, check_models
from pytest_modelbudget.config import Tightening, tighten
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.registry import Registry
from pytest_modelbudget.reports.text import harmless


def run(options: Namespace) -> int:
    """Print what changes in the manifest, and change it with `--write`."""
    project = find(options.file, Path.cwd())
    if not project.manifests:
        raise ModelBudgetError(NO_MANIFEST)
    done = check_models(project, base="off")
    found = 0
    for registry in done.registries:
        found += _one(registry, done, write=options.write)
    if not found:
        print("nothing to tighten")
    return int(bool(found) and not options.write)


def _one(registry: Registry, done: Run, *, write: bool) -> int:
    """Tighten one manifest; returns how many limits."""
    file = registry.loaded.file
    text = registry.path.read_bytes().decode("utf-8")
    own = {f"{file}::{entry.id}" for entry in registry.entries}
    results = [result for result in done.results if result.nodeid in own]
    tightened = tighten(text, file=file, results=results, ids=[entry.id for entry in registry.entries])
    for kept in tightened.kept:
        print(f"left alone: {harmless(kept)}", file=sys.stderr)
    if tightened.lowered:
        _print(tightened, text, file)
        if write:
            try:
                _replace(registry.path, tightened.text)
            except OSError as error:
                raise ModelBudgetError(f"{file} cannot be written ({error.strerror or error})") from None
            print(f"wrote {file}")
        else:
            print("not written: modelbudget tighten --write does it")
    return len(tightened.lowered)


def _print(tightened: Tightening, text: str, file: str) -> None:
    for line in unified_diff(text.splitlines(), tightened.text.splitlines(), file, file, n=1, lineterm=""):
        print(harmless(line))
    for lowered in tightened.lowered:
        print(harmless(str(lowered)))


def _replace(path: Path, text: str) -> None:
    """Write atomically, with the line ends that the text has."""
    target = path.resolve()
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8"))
        os.chmod(temporary, target.stat().st_mode & 0o777)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink(missing_ok=True)
        raise
