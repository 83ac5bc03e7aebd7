"""Manifests of any shape: models that are registered, or mistakes with their file and line, never a traceback."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import yaml
from hypothesis import strategies as st

from pytest_modelbudget.config import LoadedManifest, read
from pytest_modelbudget.summary.metrics import METRICS
from tests.fuzz.strategies import fuzzed
from tests.fuzz.test_budgets import limits, quantities
from tests.fuzz.test_inputs import trees

_KEYS = st.sampled_from([
    "version", "defaults", "tags", "groups", "models", "sources", "build", "args", "kwargs", "inputs", "batch", "dims",
    "samples", "framework", "optional", "run", "training", "inference", "budgets", "sum", "call", "ref", "literal", "max",
    "optimizer", "lora", "precision", "net", "a/b", "edge", "B", "T", "*", "", "bild", "manifest", "é", "a.b", "<<", "0",
])  # fmt: skip

_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 10**6), st.floats(), quantities, st.text(max_size=6), st.dates(),
    st.sampled_from(["a:b", "net.keras", "./saved", "real", "torch", "float32[B, 3]", "1e6", "1:30", "on", "adamw", "x:y.z"]),
    st.sampled_from([10**30, 10**400, -0.0, "9" * 4400, "&a", "*a", "!!python/object", "{", "]", "%", "@", "\t", "\0"]),
)  # fmt: skip

anything = st.recursive(
    _SCALARS, lambda below: st.lists(below, max_size=3) | st.dictionaries(_KEYS, below, max_size=4), max_leaves=8
)

_IDS = st.sampled_from(["net", "a/b", "x:y", "edge", "../x", "a::b", "", "sources", ".hidden", "CON", "é", "n" * 300])


def some(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with some of these keys, now and then with an odd value, or an odd key."""
    odd = st.one_of(st.just({}), st.just({}), st.just({}), st.dictionaries(_KEYS, anything, max_size=1))
    known = st.fixed_dictionaries(
        {}, optional={key: st.one_of(value, value, value, anything) for key, value in keys.items()}
    )
    return st.builds(lambda good, bad: {**good, **bad}, known, odd)


_RECIPES = some(batch=st.integers(0, 64), optimizer=st.sampled_from(["adamw", "sgd", "x"]), dims=st.just({"T": 8}))
_SIZES = st.dictionaries(st.sampled_from(["B", "T"]), st.integers(0, 9), max_size=2)
_TAGS = st.lists(st.sampled_from(["edge", "big"]), max_size=2)
_CALLS = some(
    call=st.sampled_from(["a:b", "a.b"]),
    args=st.lists(_SCALARS, max_size=2),
    kwargs=st.dictionaries(_KEYS, _SCALARS, max_size=2),
)

models = some(
    build=st.sampled_from(["zoo:small", "net.keras", "./saved", "zoo.small"]), args=st.lists(_SCALARS | _CALLS, max_size=2),
    kwargs=st.dictionaries(_KEYS, _SCALARS | _CALLS, max_size=2), inputs=trees, batch=st.integers(-1, 8), dims=_SIZES,
    tags=_TAGS, samples=st.integers(0, 10**6), framework=st.sampled_from(["torch", "keras", "jax"]), optional=st.booleans(),
    run=st.sampled_from(["real", "abstract", "maybe"]), training=_RECIPES, inference=_RECIPES, budgets=limits,
)  # fmt: skip

manifests = some(
    version=st.sampled_from([1, 1, 1, 2, "1", True, 1.0]),
    defaults=some(batch=st.integers(0, 8), dims=_SIZES, framework=st.just("torch"), training=_RECIPES, budgets=limits),
    tags=st.dictionaries(st.sampled_from(["edge", "big"]), some(budgets=limits, sum=limits, inference=_RECIPES), max_size=2),
    groups=st.dictionaries(st.sampled_from(["all", "g"]), some(models=st.sampled_from(["*", ["net"], []]), tags=_TAGS, sum=limits), max_size=2),
    models=st.dictionaries(_IDS, models | st.sampled_from(["zoo:small", None, 3]), max_size=3),
    sources=st.lists(st.sampled_from(["a:b", "a.b", ""]), max_size=2),
)  # fmt: skip
"""Manifests with every key there is, and in places something else."""


def sound(loaded: LoadedManifest, text: str) -> None:
    """Every mistake has its place and says something in one line; what is registered is whole."""
    lines = len(text.splitlines()) + 1  # what is missing at the end is missing behind the last line
    for mistake in loaded.mistakes:
        assert mistake.place.file == loaded.file
        assert mistake.place.line is None or 1 <= mistake.place.line <= lines
        assert str(mistake)
    names = {entry.id for entry in loaded.entries}
    assert names.isdisjoint({mistake.model for mistake in loaded.mistakes})
    for entry in loaded.entries:
        assert entry.place is not None
        assert entry.place.file == loaded.file
        assert all(
            one.limit is not None and one.metric in (*METRICS, "*", "fits", "share") for one in entry.parsed_budgets
        )


def toml(value: Any) -> str:
    """A value as TOML, which has no null."""
    match value:
        case dict():
            return f"{{{', '.join(f'{json.dumps(str(key))} = {toml(item)}' for key, item in value.items() if item is not None)}}}"
        case list() | tuple():
            return f"[{', '.join(toml(item) for item in value if item is not None)}]"
        case bool():
            return str(value).lower()
        case int() | date():
            return str(value)
        case float():
            return repr(value)
        case _:
            return json.dumps(str(value)).replace("\x7f", "\\u007f")


def written(manifest: dict[str, Any]) -> str:
    """A `pyproject.toml`, with a table for each model."""
    lines = ["[tool.modelbudget]"]
    lines += [
        f"{json.dumps(key)} = {toml(value)}" for key, value in manifest.items() if key != "models" and value is not None
    ]
    models = manifest.get("models")
    for name, model in models.items() if isinstance(models, dict) else ():
        if isinstance(model, dict):
            lines.append(f"[tool.modelbudget.models.{json.dumps(str(name))}]")
            lines += [f"{json.dumps(str(key))} = {toml(value)}" for key, value in model.items() if value is not None]
    return "\n".join(lines) + "\n"


@fuzzed(manifests, st.sampled_from([True, False, None]))
def test_any_yaml_is_models_and_mistakes(manifest: dict[str, Any], flow: bool | None) -> None:
    """Whatever stands under the keys, in block or flow style."""
    text = yaml.dump(manifest, default_flow_style=flow, allow_unicode=True, sort_keys=False, width=200)
    loaded = read(text, file="sub/modelbudget.yaml")
    sound(loaded, text)
    assert all(mistake.place.line for mistake in loaded.mistakes) or not manifest


@fuzzed(manifests)
def test_any_toml_is_models_and_mistakes(manifest: dict[str, Any]) -> None:
    """The same in a table of `pyproject.toml`."""
    text = written(manifest)
    sound(read(text, file="pyproject.toml"), text)


_LINES = st.sampled_from([
    "models:", "  net: a:b", "  net:", "    build: zoo:small", "    inputs: 'float32[B, 3]'", "    budgets: {params: 1k}",
    "    budgets: &a {params: 1k}", "    budgets: *a", "    <<: *a", "    <<: 3", "    <<: [*a, 4]", "    <<: &a", "- x", "? [a]",
    "? {a: b}", ": c", "  *a : b", "version: 1", "version: !!int 1", "a: !!python/object:os.system x", "&a [*a]", "b: &b {b: *b}",
    "---", "...", "%TAG ! x:", "\t", "'", '"', "{", "}", "[", "]", "|", ">", "#", "!", "\ufeff", "\0", "\x85", "é: ü", "x: 0x10",
    "[tool.modelbudget]", "[tool.modelbudget.models.net]", "build = 'a:b'", "build = 'a:b", "budgets.params = 1", "a = 1979-05-27",
    "[[tool.modelbudget]]", "tool = 3", "[tool]", "modelbudget = []", "x = nan", "x = 1e400", "x = " + "9" * 4400, "x: " + "9" * 4400,
])  # fmt: skip


@fuzzed(
    st.lists(_LINES | st.text(max_size=8), max_size=8).map("\n".join),
    st.sampled_from(["modelbudget.yaml", "pyproject.toml"]),
)
def test_any_text_is_a_manifest_or_mistakes(text: str, file: str) -> None:
    """Lines in any order, with anchors, tags, merges and what is no YAML or TOML at all."""
    sound(read(text, file=file), text)
