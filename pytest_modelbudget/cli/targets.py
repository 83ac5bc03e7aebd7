"""What a word of the command line stands for: a file, a committed file, a model of the manifest, or `module:name`."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_modelbudget import backends, snapshot
from pytest_modelbudget.backends import model_files
from pytest_modelbudget.base import Base, BaseCommit
from pytest_modelbudget.base.git import Git, NoGit
from pytest_modelbudget.cli.capture import captured_output
from pytest_modelbudget.cli.progress import progress
from pytest_modelbudget.cli.project import Project, find_project
from pytest_modelbudget.config import MANIFEST_NAMES
from pytest_modelbudget.engine.counted import CountedModel
from pytest_modelbudget.engine.naming import import_named
from pytest_modelbudget.engine.run import from_live, run, summarize_entry, summary_with_plans
from pytest_modelbudget.entry import MODEL_SUFFIXES, ModelEntry, RunMode, names_file
from pytest_modelbudget.errors import ModelBudgetError, did_you_mean
from pytest_modelbudget.inputs import QUOTE_TENSORS
from pytest_modelbudget.loading import (
    InvalidText,
    UnreadableFile,
    is_file,
    non_file_kind,
    read_json,
    read_text,
    read_yaml,
)
from pytest_modelbudget.session.registry import Registry, register_manifest
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.system.escape import harmless
from pytest_modelbudget.system.escape import harmless_output as shown_output

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", re.ASCII)
_COMMITTED = re.compile(r"(?P<ref>[^:]+):(?P<path>.+\.ya?ml)")
_SUMMARY_SUFFIXES = (".yaml", ".yml", ".json")
_MOST_BYTES = 256 * 10**6


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How a `module:name` is called, and what the model is called with."""

    inputs: Any = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    batch: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    framework: str | None = None
    run: RunMode | None = None

    @classmethod
    def read(cls, options: Namespace) -> CallOptions:
        """The call that the options ask for.

        Raises:
            ModelBudgetError: one of them is not what it should be.
        """
        return cls(
            inputs=_parse_yaml("--inputs", options.inputs),
            args=tuple(_parse_option(list, "--args", options.args, "[16, 10]")),
            kwargs=_parse_option(dict, "--kwargs", options.kwargs, "{classes: 10}"),
            batch=options.batch,
            dims=_parse_option(dict, "--dims", options.dims, "{T: 128}"),
            framework=options.framework,
            run=options.run,
        )

    def entry(self, name: str, build: str, **options: Any) -> ModelEntry:
        """An entry that is called like this."""
        fields = {"inputs": self.inputs, "args": self.args, "kwargs": self.kwargs, "framework": self.framework}
        return ModelEntry(id=name, build=build, batch=self.batch, dims=self.dims, run=self.run, **(fields | options))


def _parse_yaml(option: str, text: str | None) -> Any:
    if text is None:
        return None
    try:
        return read_yaml(text).data
    except InvalidText as error:
        cure = f": {QUOTE_TENSORS}" if option == "--inputs" else ""
        raise ModelBudgetError(f"{option}: {text!r} cannot be read ({error}){cure}") from None


def _parse_option(kind: type, option: str, text: str | None, example: str) -> Any:
    value = _parse_yaml(option, text)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise ModelBudgetError(f"{option}: {text!r}: write e.g. {example!r}")
    return value


class Targets:
    """Words to summaries; the manifest is read and git is asked only when a word needs it.

    `finish` makes a summary of a model that was built, and `alter` changes entries before that.
    """

    def __init__(
        self,
        options: Namespace,
        *,
        finish: Callable[[CountedModel], Summary] = summary_with_plans,
        alter: Callable[[ModelEntry], ModelEntry] = lambda entry: entry,
    ) -> None:
        self.options, self.finish, self.alter = options, finish, alter
        self.call = CallOptions.read(options)
        self.no_git = ""

    @cached_property
    def project(self) -> Project:
        """The project, whose root and folder are importable from now on."""
        return find_project(self.options.file, Path.cwd())

    @cached_property
    def registries(self) -> tuple[Registry, ...]:
        """The manifests with their sources."""
        with captured_output():
            return tuple(register_manifest(path, self.project.root) for path in self.project.manifests)

    @cached_property
    def entries(self) -> dict[str, ModelEntry]:
        """Every registered model by its id."""
        return {entry.id: entry for registry in self.registries for entry in registry.entries}

    def summary(self, word: str) -> Summary:
        """The summary that `word` stands for.

        Raises:
            ModelBudgetError: it stands for nothing, or its model cannot be counted.
        """
        count_it = self.find(word)
        if count_it is None:
            raise ModelBudgetError(self.describe_unknown(word))
        return count_it()

    def find(self, word: str) -> Callable[[], Summary] | None:
        """What gives the summary that `word` stands for; None when it stands for no model."""
        path = Path(word)
        if is_file(path) or model_files.is_model(path):
            return lambda: self._file(path)
        if path.name.lower().endswith((*_SUMMARY_SUFFIXES, *MODEL_SUFFIXES)) and (kind := non_file_kind(path)):
            raise ModelBudgetError(f"{word} is {kind}, where a file should be")
        if (match := _COMMITTED.fullmatch(word)) and (base := self.commit(match["ref"])):
            return lambda: committed_summary(base, self._from_root(match["path"]))
        if entry := self.entries.get(word):
            return lambda: self._count(entry)
        if _REFERENCE.fullmatch(word):
            return lambda: self._reference(word)
        if path.is_dir() and names_file(word):
            return lambda: self._count(self.call.entry(_name_of(path), os.path.abspath(path)))
        return None

    def describe_unknown(self, word: str, *others: str) -> str:
        """What to say of a word that stands for nothing."""
        wrong = [mistake for registry in self.registries for mistake in registry.loaded.mistakes]
        if mistakes := [str(mistake) for mistake in wrong if mistake.model == word]:
            return "\n".join(mistakes)
        ids = sorted(self.entries)
        hint = did_you_mean(word, ids)
        descriptions = ", ".join(("no file", "no id of the manifest", *others))
        listed = ", ".join(ids[:20]) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")
        return (
            f"{word!r} is {descriptions} and no module:name{hint}\n"
            f"  registered: {listed or '(no models)'}{f', and {len(wrong)} mistakes in the manifest' if wrong else ''}"
        )

    def commit(self, ref: str) -> Base | None:
        """The files of the commit that `ref` names; None when it names none here, or there is no repository."""
        try:
            commit = Git(self.project.root).commit(ref)
        except NoGit as reason:
            self.no_git = str(reason)
            return None
        return Base(self.project.root, BaseCommit(commit=commit, name=ref)) if commit else None

    def _from_root(self, path: str) -> str:
        """A path as git writes it, from the root on; `./` begins at the current folder, as for git itself."""
        absolute = (Path.cwd() / path).resolve()
        root = self.project.root.resolve()
        return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else path

    def _file(self, path: Path) -> Summary:
        if path.name in MANIFEST_NAMES:
            raise ModelBudgetError(f"{path} is a manifest: name one of its models, modelbudget show --file {path} ID")
        if path.name.lower().endswith(MODEL_SUFFIXES) or model_files.is_model(path):
            return self._count(self.call.entry(_name_of(path), os.path.abspath(path)))
        if path.suffix not in _SUMMARY_SUFFIXES:
            raise ModelBudgetError(
                f"{path} is no model: write a snapshot (.yaml), what show --json printed, or the model's file (.keras, "
                ".h5, .onnx, .tflite, .pt2, .pt, .safetensors, .pte, a SavedModel folder)"
            )
        try:
            text = read_text(path, _MOST_BYTES)
        except FileNotFoundError:
            raise ModelBudgetError(f"{path} is not there any more") from None
        except UnreadableFile as error:
            raise ModelBudgetError(f"{path}{f':{error.line}' if error.line else ''}: {error}") from None
        return _summary_of_json(path, text) if path.suffix == ".json" else _read_snapshot(str(path), text)

    def _reference(self, word: str) -> Summary:
        """The model of `module:name`: what a function or class returns, a model that is there, a decorated builder."""
        entry = self.alter(self.call.entry(word, word))

        def how(entry: ModelEntry) -> Summary:
            target = import_named(word, "module:name", entry)
            if isinstance(target, ModelEntry):
                return self._built(self.alter(self._called(target, word)))
            return from_live(target, entry, self.finish) if backends.owner(target) else self._built(entry)

        return count_model(entry, self.project.root, how)

    def _count(self, entry: ModelEntry) -> Summary:
        return count_model(self.alter(entry), self.project.root, self._built)

    def _built(self, entry: ModelEntry) -> Summary:
        return summarize_entry(entry, self.finish)

    def _called(self, entry: ModelEntry, word: str) -> ModelEntry:
        """A decorated builder with what the options say in place of what the decorator says."""
        names = ("inputs", "batch", "framework", "run")
        overrides = {name: value for name in names if (value := getattr(self.call, name)) is not None}
        return replace(entry, id=word, dims={**entry.dims, **self.call.dims}, **overrides)


def _name_of(path: Path) -> str:
    """The id of a model that is a file."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", path.stem).strip(".-") or "model"


def count_model(entry: ModelEntry, root: Path, counter: Callable[[ModelEntry], Summary]) -> Summary:
    """Build and count one model, without its snapshot and limits.

    Raises:
        ModelBudgetError: it cannot be; with the user's own traceback, and what the builder printed last.
    """
    with progress(f"counting {entry.id}", alone=False), captured_output() as output:
        result = run(entry, root, snapshots=False, count=counter)
        output_text = output()
    if result.summary is None:
        printed = f"\nit printed:\n{shown_output(output_text.strip())}" if output_text.strip() else ""
        prefix = "" if result.error.startswith(entry.id) else f"{entry.id}: "
        raise ModelBudgetError(f"{prefix}{result.error}{printed}")
    return result.summary


def committed_summary(base: Base, path: str) -> Summary:
    """A snapshot as it was committed.

    Raises:
        ModelBudgetError: the commit has no such file, or it is no snapshot.
    """
    text = base.text(path)
    base.close()
    if text is None:
        raise ModelBudgetError(f"{base.where.name} has no file {harmless(path)}")
    return _read_snapshot(f"{base.where.name}:{path}", text)


def _read_snapshot(location: str, text: str) -> Summary:
    if "\ntotals:" in text[:500]:
        models = text.count("\n- {model: ")
        raise ModelBudgetError(
            f"{location} has the totals of {models:,} models, and no rows: modelbudget show ID counts one of them, "
            "modelbudget diff REF ID compares it with what is committed"
        )
    try:
        return snapshot.read(text)
    except ModelBudgetError as error:
        raise ModelBudgetError(f"{location}: {error}") from None


def _summary_of_json(path: Path, text: str) -> Summary:
    try:
        return Summary.checked(read_json(text))
    except InvalidText as error:
        raise ModelBudgetError(f"{path}{f':{error.line}' if error.line else ''}: {error}") from None
    except ModelBudgetError as error:
        raise ModelBudgetError(f"{path} is not a model as modelbudget show --json prints it: {error}") from None
