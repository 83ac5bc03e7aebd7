"""A registered model: what it is built from, and what it is held against."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal, get_args

from pytest_modelbudget import budget as budget_module
from pytest_modelbudget import inputs as inputs_module
from pytest_modelbudget.budget import Budget, Rule
from pytest_modelbudget.entry import arguments, resources
from pytest_modelbudget.errors import ModelBudgetError, Place
from pytest_modelbudget.inputs import Example, Inputs
from pytest_modelbudget.planner import written
from pytest_modelbudget.planner.recipe import AnyRecipe
from pytest_modelbudget.planner.recipe_reading import RECIPE_TYPES

_ID = re.compile(r"[A-Za-z0-9._/:+=-]+")
MODEL_SUFFIXES = (
    ".keras", ".h5", ".hdf5", ".onnx", ".tflite", ".pte", ".pt2", ".pt", ".pth", ".ckpt", ".safetensors",
    ".safetensors.index.json", ".bin.index.json", ".gguf", ".mlmodel", ".mlpackage", ".torchscript",
)  # fmt: skip
"""How the names of models' files end; what a file is, its content says."""

RunMode = Literal["real", "abstract"]
"""How a model may be run: with memory for its weights and activations, or without; see `ModelEntry.run`."""

SnapshotKind = Literal["layers", "totals"]
"""What is committed of a model: a file with its rows, or its totals, a line of a file; see `ModelEntry.snapshot`."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One registered model, the same whichever door it came through.

    `build` is a callable or `"module:callable"`, called with `args` and `kwargs`, or the path of a model's file
    (see `names_file`), relative to `home`. `args` and `kwargs` (with the calls that `arguments` reads), `inputs`,
    `budgets`, `training`, `inference` and `serving` may be given as they are written in a manifest; they are read, and
    mistakes raised, on construction. The last three are what is planned of it (see `recipes`): False for nothing,
    None where nothing is said, so that the manifest's defaults hold.
    `run` is `real` for a run with memory for weights and activations, `abstract` for none whatever happens, and None
    where the model decides: a real run only when it needs values.
    `limits` are what building and counting it may take (see `resources`), and `isolate` whether that happens in a
    process of its own: it does where nothing is said. `snapshot` is `totals` for a line in a file that many models
    share, `layers` for a file of its own with every row; None where nothing is said, which ends as `layers`.
    `place` is where it was registered, `home` the folder (relative to the root) whose `__model_budget__`
    holds its snapshot, and `declared` the name that snapshot says it was declared in. `source` is the `module:callable`
    that yielded it, empty where none did. `exported_from` is the id of the model that a file was made from, and
    `original` that model, once it is known.

    Raises:
        ModelBudgetError: a bad id, `run`, `snapshot`, size or limits, arguments, inputs, budgets or recipes that do not
            parse.
    """

    id: str
    build: Callable[..., object] | str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    inputs: Inputs | Example | Any = None
    batch: int | None = None
    dims: Mapping[str, int] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    samples: int | None = None
    budgets: tuple[Rule, ...] | Mapping[str, Any] = ()
    framework: str | None = None
    optional: bool = False
    place: Place | None = None
    home: str = "."
    declared: str = ""
    training: written.RecipeSection | Any = None
    inference: written.RecipeSection | Any = None
    serving: written.RecipeSection | Any = None
    run: RunMode | None = None
    limits: resources.ResourceLimits | Mapping[str, Any] | None = field(default_factory=resources.ResourceLimits)
    isolate: bool | None = None
    snapshot: SnapshotKind | None = None
    source: str = ""
    exported_from: str | None = None
    original: ModelEntry | None = None

    def __post_init__(self) -> None:
        check_id(self.id)
        for name, words in (("run", get_args(RunMode)), ("snapshot", get_args(SnapshotKind))):
            if (word := getattr(self, name)) is not None and word not in words:
                raise ModelBudgetError(f"{name}: {word!r} is not known: write {' or '.join(words)}")
        for name, size in {**({} if self.batch is None else {"batch": self.batch}), **self.dims}.items():
            _check_size(name, size)
        for name, values in (("args", tuple(self.args)), ("kwargs", dict(self.kwargs))):
            read = arguments.read(values, (name,), lambda _: self.place) if values else values
            object.__setattr__(self, name, read)
        object.__setattr__(self, "limits", resources.parse(self.limits))
        object.__setattr__(self, "tags", (self.tags,) if isinstance(self.tags, str) else tuple(self.tags))
        object.__setattr__(self, "inputs", inputs_module.parse(self.inputs))
        if isinstance(self.budgets, Mapping):
            object.__setattr__(self, "budgets", tuple(budget_module.parse(self.budgets, lambda _: self.place)))
        for title in RECIPE_TYPES:
            object.__setattr__(self, title, written.read(title, getattr(self, title)))

    @property
    def recipes(self) -> tuple[AnyRecipe, ...]:
        """What is planned of it."""
        recipes = (written.recipe(title, getattr(self, title)) for title in RECIPE_TYPES)
        return tuple(recipe for recipe in recipes if recipe is not None)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Its budgets, always parsed: limits, and what lifts those of wider levels."""
        assert isinstance(self.budgets, tuple)
        return self.budgets

    @property
    def parsed_budgets(self) -> tuple[Budget, ...]:
        """The limits that hold for it."""
        return budget_module.merge(self.rules)


def check_id(text: object) -> str:
    """Return a model id when it is a good one: `A-Za-z0-9._/:+=-`, no `..`, no empty part, no `::`.

    Raises:
        ModelBudgetError: it is not, with what is wrong.
    """
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise ModelBudgetError(f"bad model id {text!r}: use letters, digits and . _ / : + = - only")
    parts = text.split("/")
    if "::" in text or any(part in ("", ".", "..") or part.startswith(".") for part in parts):
        raise ModelBudgetError(
            f"bad model id {text!r}: each part between slashes needs a name that does not begin with a dot, "
            "and '::' is pytest's"
        )
    return text


def _check_size(name: str, size: object) -> None:
    """Nothing, for a size of a dimension: a whole number from 1 up.

    Raises:
        ModelBudgetError: it is none.
    """
    if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
        raise ModelBudgetError(f"{name}: {size!r} is not a size: write a whole number from 1 up")


def names_file(build: str) -> bool:
    """Whether `build` is the path of a model's file or folder, rather than `module:callable`.

    One that ends as models' files do (`MODEL_SUFFIXES`), or any path with a slash in it (a SavedModel folder:
    `./saved`).
    """
    if build.lower().endswith(MODEL_SUFFIXES):
        return True
    drive_or_none = re.sub(r"^[A-Za-z]:(?=[/\\])", "", build)
    return bool(re.search(r"[/\\]", build)) and ":" not in drive_or_none and not build.endswith(".py")


def duplicates(entries: tuple[ModelEntry, ...], path_of: Callable[[ModelEntry], str]) -> dict[str, list[ModelEntry]]:
    """Entries whose snapshot would be the same file, also on file systems that ignore case."""
    by_path: dict[str, list[ModelEntry]] = {}
    for entry in entries:
        by_path.setdefault(path_of(entry).casefold(), []).append(entry)
    return {path: sharing for path, sharing in by_path.items() if len(sharing) > 1}
