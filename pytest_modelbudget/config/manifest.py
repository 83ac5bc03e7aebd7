"""Read a manifest into entries; a mistake in one model leaves the others usable."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pytest_modelbudget import budget as budgets
from pytest_modelbudget import inputs
from pytest_modelbudget.budget import Rule
from pytest_modelbudget.config import messages, schema
from pytest_modelbudget.config.levels import ManifestLevel, any_of, has_id, has_tag
from pytest_modelbudget.config.loaded import LoadedManifest, Mistake
from pytest_modelbudget.config.tree import InvalidText, Keys, Tree, read_toml, read_yaml
from pytest_modelbudget.entry import ModelEntry, arguments, check_id, names_file, resources
from pytest_modelbudget.entry.resources import ResourceLimits
from pytest_modelbudget.errors import ModelBudgetError, Place
from pytest_modelbudget.loading import UnreadableFile, read_bytes, read_text
from pytest_modelbudget.planner import written
from pytest_modelbudget.planner.recipe_reading import RECIPE_TYPES
from pytest_modelbudget.planner.written import RecipeSection
from pytest_modelbudget.results import ITEM_NAMES

MANIFEST_NAMES = ("modelbudget.yaml", "modelbudget.yml")
"""File names that are manifests; `pyproject.toml` is one when it has the table `[tool.modelbudget]`."""

MOST_BYTES = 4 * 10**6
"""Bytes of a manifest; what registers more models than fit into it is a source."""

MOST_PAIRS = 1_000_000
"""Models times what holds for many of them: limits, sizes and globs of defaults, tags and groups."""

_TAGS_PER_MODEL = 32
"""Tags that take as much time to look for as all else of a model."""

_MOST_MISTAKES = 100
"""Mistakes that are told of one model, and of the rest of a manifest."""

_LONGEST_MESSAGE = 2_000

PYPROJECT_TABLE = ("tool", "modelbudget")
"""Where a `pyproject.toml` has its manifest."""

_Shape = TypeVar("_Shape", bound=BaseModel)
_Rule = TypeVar("_Rule", bound=Rule)


def holds_manifest(path: Path) -> bool:
    """Whether a file is a manifest: by its name, or a `pyproject.toml` with the table."""
    return path.name in MANIFEST_NAMES or (path.name == "pyproject.toml" and _mentions_table(path))


def _mentions_table(path: Path) -> bool:
    """Whether the file speaks of the table, in whatever encoding; what cannot be read is told when it is loaded."""
    try:
        return is_manifest(path.name, read_bytes(path).decode("utf-8-sig", "replace"))
    except FileNotFoundError:
        return False
    except UnreadableFile:
        return True


def is_manifest(name: str, text: str) -> bool:
    """The same for a file of that name with that text."""
    if name in MANIFEST_NAMES:
        return True
    return name == "pyproject.toml" and re.search(r"^[ \t]*\[tool\.modelbudget\b", text, re.MULTILINE) is not None


def load(path: Path, *, file: str) -> LoadedManifest:
    """Read the manifest at `path`; `file` is how messages and node ids name it, relative to the root."""
    try:
        text = read_text(path, MOST_BYTES)
    except FileNotFoundError:
        return LoadedManifest(file, mistakes=(Mistake(Place(file), "is not there any more"),), home=_folder_of(file))
    except UnreadableFile as error:
        return LoadedManifest(file, mistakes=(Mistake(Place(file, error.line), str(error)),), home=_folder_of(file))
    return read(text, file=file)


def read(text: str, *, file: str) -> LoadedManifest:
    """Read the text of a manifest; `file` is its path, relative to the root."""
    try:
        tree = read_toml(text, PYPROJECT_TABLE) if file.endswith(".toml") else read_yaml(text)
    except InvalidText as error:
        return LoadedManifest(file, mistakes=(Mistake(Place(file, error.line), str(error)),), home=_folder_of(file))
    return _Loader(tree, file, _folder_of(file)).load()


def _folder_of(file: str) -> str:
    return Path(file).parent.as_posix()


class _Loader:
    """Collects entries and mistakes of one manifest."""

    def __init__(self, tree: Tree, file: str, home: str) -> None:
        self.tree, self.file, self.home = tree, file, home
        self.mistakes: list[Mistake] = []
        self.mistake_counts: Counter[str | None] = Counter()

    def load(self) -> LoadedManifest:
        if not isinstance(self.tree.data, Mapping):
            message = "an empty manifest" if self.tree.data is None else "not a mapping"
            self._mistake((), f"{message}: write version: 1 and models: {{...}}")
            return LoadedManifest(self.file, mistakes=tuple(self.mistakes), home=self.home)
        self._twice()
        manifest = self._shape(schema.Manifest, self.tree.data, ()) or self._salvage()
        loaded = LoadedManifest(
            self.file,
            sources=tuple(self._sources(manifest)),
            layers=tuple(self._layers(manifest)),
            defaults=manifest.defaults,
            home=self.home,
            limits=self._limits(manifest.defaults.limits, ("defaults",)),
        )
        if problem := _too_many_pairs(manifest, loaded):
            self._mistake(("models",), problem)
            return replace(loaded, mistakes=tuple(self.mistakes), layers=())
        entries = tuple(self._entries(manifest, loaded))
        return replace(loaded, entries=entries, mistakes=tuple(self.mistakes))

    def _mistake(self, keys: Keys, message: str, line: int | None = None) -> None:
        model = str(keys[1]) if len(keys) > 1 and keys[0] == "models" else None
        model_id = model if model is not None and _is_good_id(model) else None
        self.mistake_counts[model_id] += 1
        if self.mistake_counts[model_id] > _MOST_MISTAKES + 1:
            return
        if self.mistake_counts[model_id] > _MOST_MISTAKES:
            message = f"and more after these {_MOST_MISTAKES}: mend them first"
        shortened = message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}..."
        self.mistakes.append(Mistake(Place(self.file, line or self.tree.line(keys)), shortened, model_id))

    def _twice(self) -> None:
        for keys, first, second in self.tree.twice:
            noun = "the model id" if keys[:-1] == ("models",) else "the key"
            self._mistake(keys, f"{noun} {keys[-1]!r} is used twice (first in line {first}): rename one", second)

    def _shape(self, shape: type[_Shape], data: Any, keys: Keys) -> _Shape | None:
        try:
            return shape.model_validate(data)
        except ValidationError as error:
            for problem in error.errors(include_url=False)[: _MOST_MISTAKES + 1]:
                self._mistake((*keys, *problem["loc"]), messages.describe(problem, shape, (*keys, *problem["loc"])))
            return None

    def _salvage(self) -> schema.Manifest:
        """The parts of a manifest with mistakes that are sound on their own, so that its models still run."""
        data = self.tree.data
        sound: dict[str, Any] = {}
        for name in schema.Manifest.model_fields:
            try:
                sound[name] = getattr(schema.Manifest.model_validate({name: data[name]}), name)
            except (ValidationError, KeyError):
                continue
        return schema.Manifest.model_construct(**sound) if data.get("version", 1) == 1 else schema.Manifest()

    def _sources(self, manifest: schema.Manifest) -> Iterator[tuple[str, Place]]:
        for index, reference in enumerate(manifest.sources):
            if arguments.REFERENCE.fullmatch(reference):
                yield reference, Place(self.file, self.tree.line(("sources", index)))
            else:
                self._mistake(("sources", index), f"{reference!r} is not a reference: write module:callable")

    def _layers(self, manifest: schema.Manifest) -> Iterator[ManifestLevel]:
        defaults: Keys = ("defaults",)
        recipes = self._recipes(manifest.defaults, defaults)
        limits = self._budgets(manifest.defaults.budgets, defaults)
        yield ManifestLevel(limits, lambda _: True, 0, defaults, (), recipes, manifest.defaults.snapshot)
        layers = [self._layer(tag, ("tags", name), has_tag([name])) for name, tag in manifest.tags.items()]
        for name, group in manifest.groups.items():
            globs = [group.models] if isinstance(group.models, str) else group.models
            if not globs and not group.tags:
                self._mistake(("groups", name), f'groups.{name} has no models: write models: "glob*" or tags: [...]')
            layers.append(self._layer(group, ("groups", name), any_of(has_id(globs), has_tag(group.tags))))
        yield from sorted(layers, key=lambda layer: layer.line)

    def _layer(self, level: schema.Tag, keys: Keys, matches: Callable[[ModelEntry], bool]) -> ManifestLevel:
        sums = self._limits_in(level.sum, keys, "sum", budgets.parse_sum)
        limits, line = self._budgets(level.budgets, keys), self.tree.line(keys) or 0
        return ManifestLevel(limits, matches, line, keys, sums, self._recipes(level, keys), level.snapshot)

    def _recipes(self, level: schema.Defaults | schema.Tag | schema.Model, keys: Keys) -> dict[str, RecipeSection]:
        """What a level says of recipes, by kind; `null` says that there is none. Each bad key is a mistake."""
        recipes: dict[str, RecipeSection] = {}
        for kind in RECIPE_TYPES:
            if kind not in level.model_fields_set:
                continue
            section = getattr(level, kind)
            section = False if section is None else section
            mistakes = list(islice(written.mistakes(kind, section), _MOST_MISTAKES + 1))
            for inner_keys, message in mistakes:
                self._mistake((*keys, kind, *inner_keys), message)
            if not mistakes:
                recipes[kind] = written.read(kind, section)
        return recipes

    def _arguments(self, values: Any, keys: Keys) -> Any:
        """The arguments of a builder with the calls in them read; each bad one is a mistake at its own line."""
        model, name = keys[:-1], keys[-1:]

        def place(inner_keys: Keys) -> Place:
            return Place(self.file, self.tree.line((*model, *inner_keys)))

        mistakes = list(islice(arguments.mistakes_inside(values, name), _MOST_MISTAKES + 1))
        for inner_keys, message in mistakes:
            self._mistake((*model, *inner_keys), message)
        return type(values)() if mistakes else arguments.read(values, name, place)

    def _budgets(self, limits: Mapping[str, Any], keys: Keys) -> tuple[Rule, ...]:
        return self._limits_in(limits, keys, "budgets", budgets.parse)

    def _limits_in(
        self,
        limits: Mapping[str, Any],
        keys: Keys,
        section: str,
        parse: Callable[[Mapping[str, Any], Callable[[tuple[str, ...]], Place]], Iterator[_Rule]],
    ) -> tuple[_Rule, ...]:
        """All good limits of a mapping; each bad one is a mistake at its own line."""

        def place(below: tuple[str, ...]) -> Place:
            return Place(self.file, self.tree.line((*keys, section, *below)))

        rules: list[_Rule] = []
        for name, value in _single_budgets(limits):
            try:
                rules.extend(parse({name: value}, place))
            except ModelBudgetError as mistake:
                self._mistake((*keys, section, *messages.keys_of_mistake(name, value, str(mistake))), str(mistake))
        return tuple(rules)

    def _limits(self, section: Any, keys: Keys) -> ResourceLimits:
        try:
            return resources.parse(section)
        except ModelBudgetError as mistake:
            self._mistake((*keys, "limits"), str(mistake))
            return ResourceLimits()

    def _entries(self, manifest: schema.Manifest, loaded: LoadedManifest) -> Iterator[ModelEntry]:
        broken_models = {mistake.model for mistake in self.mistakes}
        for name, data in manifest.models.items():
            mistake_count = len(self.mistakes)
            entry = self._entry(name, data)
            if entry is not None and len(self.mistakes) == mistake_count and name not in broken_models:
                try:
                    applied = loaded.apply(entry)
                except ModelBudgetError as mistake:
                    self._mistake(("models", name, "budgets"), str(mistake))
                    continue
                yield applied

    def _entry(self, name: str, data: Any) -> ModelEntry | None:
        keys: Keys = ("models", name)
        try:
            check_id(name)
        except ModelBudgetError as mistake:
            self._mistake(keys, str(mistake))
        if name in ITEM_NAMES:
            self._mistake(keys, f"the model id {name!r} is taken by an item of the plugin's own: choose another")
        if isinstance(data, str):
            data = {"build": data}
        model = self._shape(schema.Model, data, keys) or _sound_part(data)  # what is wrong in that is told, too
        if model is None:
            return None
        if not arguments.REFERENCE.fullmatch(model.build) and not names_file(model.build):
            self._mistake(
                (*keys, "build"),
                f"build: {model.build!r} is not a reference: write module:callable, or the path of a model's file "
                "(./net.onnx) or of a SavedModel folder (./saved)",
            )
        args, kwargs = self._arguments(model.args, (*keys, "args")), self._arguments(model.kwargs, (*keys, "kwargs"))
        limits = self._budgets(model.budgets, keys)
        recipes = self._recipes(model, keys)
        try:
            parsed_inputs = inputs.parse(model.inputs)
        except ModelBudgetError as mistake:
            self._mistake((*keys, "inputs"), str(mistake))
            return None
        if not _is_good_id(name):
            return None
        return ModelEntry(
            id=name,
            build=model.build,
            args=tuple(args),
            kwargs=kwargs,
            inputs=parsed_inputs,
            batch=model.batch,
            dims=model.dims,
            tags=tuple(model.tags),
            samples=model.samples,
            exported_from=model.exported_from,
            budgets=limits,
            framework=model.framework,
            optional=bool(model.optional),
            run=model.run,
            limits=self._limits(model.limits, keys),
            isolate=model.isolate,
            snapshot=model.snapshot,
            place=Place(self.file, self.tree.line(keys)),
            training=recipes.get("training"),
            inference=recipes.get("inference"),
            serving=recipes.get("serving"),
        )


def _sound_part(data: Any) -> schema.Model | None:
    """A model without the keys that are wrong, None for what is no mapping."""
    try:
        return schema.Model.model_validate(data)
    except ValidationError as error:
        wrong = {problem["loc"][0] for problem in error.errors(include_url=False) if problem["loc"]}
    if not isinstance(data, Mapping):
        return None
    sound = {name: value for name, value in data.items() if name not in wrong}
    try:
        return schema.Model.model_validate({"build": "left:out", **sound})
    except ValidationError:
        return None


def _too_many_pairs(manifest: schema.Manifest, loaded: LoadedManifest) -> str:
    """Why the time of this manifest would grow with the product of its parts; empty for one of any usual size."""
    shared = len(manifest.defaults.dims) + sum(1 + len(level.budgets) + len(level.sums) for level in loaded.layers)
    shared += sum(len(group.models) + len(group.tags) for group in manifest.groups.values())
    models = len(manifest.models)
    tags = sum(len(data["tags"]) for data in manifest.models.values() if _is_tagged(data))
    if (models + tags // _TAGS_PER_MODEL) * shared <= MOST_PAIRS:
        return ""
    return (
        f"{models:,} models with {tags:,} tags, and {shared:,} limits, sizes and globs that are held against each, are "
        "too many: use fewer groups and tags, or several manifests"
    )


def _is_tagged(data: Any) -> bool:
    return isinstance(data, Mapping) and isinstance(data.get("tags"), list)


def _is_good_id(text: str) -> bool:
    try:
        return bool(check_id(text))
    except ModelBudgetError:
        return False


def _single_budgets(limits: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each budget on its own, each layer glob too, so that one mistake does not hide the next."""
    for name, value in limits.items():
        if name == "export" and isinstance(value, Mapping):
            yield from (("export", {metric: share}) for metric, share in value.items())
        elif name == "growth_in" and isinstance(value, Mapping):
            yield from (("growth_in", {dim: laws}) for dim, laws in value.items())
        elif name == "layers" and isinstance(value, Mapping) and not set(value) <= set(budgets.BOUNDS):
            yield from (("layers", {glob: layer_limits}) for glob, layer_limits in value.items())
        else:
            yield name, value
