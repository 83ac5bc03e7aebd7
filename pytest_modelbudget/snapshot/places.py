"""Where snapshots lie: a file for each model, or a line in a file of totals; pure names, no disk."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

from pytest_modelbudget.entry import ModelEntry

FOLDER = "__model_budget__"
"""The folder beside the declaring file; not `__snapshots__`, where other plugins delete what they do not know."""

_TOTALS = ".totals.yaml"
_SAFE = re.compile(r"[a-z0-9_.@]+")
_LONGEST = 100


def folder_of(home: str) -> str:
    """The snapshot folder of a folder that declares models, relative to the root, with a slash at its end."""
    return f"{FOLDER}/" if home in ("", ".") else f"{home}/{FOLDER}/"


def home_of(path: str) -> str:
    """The folder whose snapshot folder a path leads into."""
    return path.partition(f"{FOLDER}/")[0].rstrip("/") or "."


def own_path(home: str, model: str) -> str:
    """The file that is a model's alone, relative to the root, with forward slashes; `:` is not for file names."""
    return f"{folder_of(home)}{model.replace(':', '_')}.yaml"


def own_path_beside(path: str, model: str) -> str:
    """The file that is a model's alone, in the folder of a snapshot at `path`, also where that has many models."""
    return own_path(home_of(path), model) if is_totals(path) else path


def path_for(entry: ModelEntry) -> str:
    """The file that an update writes the snapshot of a model to: its own, or that of totals."""
    if entry.snapshot != "totals":
        return own_path(entry.home, entry.id)
    return f"{folder_of(entry.home)}{totals_name(entry.source)}"


def address(entry: ModelEntry) -> str:
    """What names the snapshot of a model alone: its file, or the file and its line, `zoo@nets.totals.yaml::id`."""
    path = path_for(entry)
    return f"{path}::{entry.id}" if is_totals(path) else path


@lru_cache(1024)
def totals_name(source: str) -> str:
    """The name of the file of totals of one source, or of all models of a folder that no source yields.

    `@` stands for the colon of a source (`zoo:nets` -> `zoo@nets.totals.yaml`), and at the end for no source
    (`models@.totals.yaml`). No id of a model has it, so that no model's own file is ever of this name. What a file
    system could take for another name, as capital letters, is told apart by a digest.
    """
    name = source.replace(":", "@") or "models@"
    if not _SAFE.fullmatch(name) or len(name) > _LONGEST:
        name = f"{re.sub('[^A-Za-z0-9_.@]', '_', name)[:_LONGEST]}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    return f"{name}{_TOTALS}"


def is_totals(path: str) -> bool:
    """Whether a path is that of a file of totals in a snapshot folder."""
    name = path.rpartition("/")[2]
    return name.endswith(_TOTALS) and "@" in name and FOLDER in path.split("/")[:-1]
