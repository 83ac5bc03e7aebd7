"""Manifests: what they register, and every mistake at once with its line."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from textwrap import dedent

import pytest

from pytest_modelbudget import model
from pytest_modelbudget.config import LoadedManifest, holds_manifest, load
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Inputs
from pytest_modelbudget.summary import TensorSpec


def read(tmp_path: Path, text: str, name: str = "modelbudget.yaml") -> LoadedManifest:
    """The manifest of that text."""
    path = tmp_path / name
    path.write_text(dedent(text))
    return load(path, file=name)


def limits(entry: ModelEntry) -> dict[tuple[str | None, str, str], object]:
    """An entry's limits by layer, metric and bound."""
    return {budget.key: budget.limit for budget in entry.parsed_budgets}


FULL = """\
    version: 1
    defaults:
      batch: 4
      dims: {T: 128}
      budgets: {params: {max: 1M, warn: 90%}, buffers: 10}
    tags:
      edge: {budgets: {params: 500k}}
    groups:
      small: {models: "net*", budgets: {params: 400k, flops: 1 GFLOPs}}
    models:
      net/one:
        build: pkg.mod:build
        args: [3]
        kwargs: {classes: 10}
        inputs: {ids: "int64[B, T]"}
        tags: [edge]
        samples: 60_000
        dims: {T: 64}
        budgets:
          weight_bytes: 1 MB
          buffers: null
          layers: {"dense*": {params: 210k}}
      other: {build: "pkg:other", tags: [edge]}
    sources: ["zoo:models"]
"""


RUNS = """\
    defaults: {run: abstract}
    models:
      detector: {build: "nets:detector", run: real}
      other: {build: "nets:other"}
"""


def test_how_models_run_is_inherited(tmp_path: Path) -> None:
    """A model's own `run` before that of the defaults; without either the model decides."""
    assert [entry.run for entry in read(tmp_path, RUNS).entries] == ["real", "abstract"]
    [entry] = read(tmp_path, "models: {net: 'nets:net'}").entries
    assert entry.run is None
    inherited = read(tmp_path, RUNS).apply(ModelEntry(id="decorated", build="nets:net"))
    assert inherited.run == "abstract"


def test_a_full_manifest(tmp_path: Path) -> None:
    """Everything a model can say, with what it inherits: model over groups and tags over defaults."""
    loaded = read(tmp_path, FULL)
    assert loaded.mistakes == ()
    one, other = loaded.entries
    assert (one.id, one.build, one.args, one.kwargs) == ("net/one", "pkg.mod:build", (3,), {"classes": 10})
    assert one.inputs == Inputs((), {"ids": TensorSpec(("B", "T"), "int64")})
    assert (one.batch, one.dims, one.samples, one.tags) == (4, {"T": 64}, 60_000, ("edge",))
    assert str(one.place) == "modelbudget.yaml:11"
    assert limits(one) == {
        (None, "params", "max"): 400_000,
        (None, "params", "warn"): pytest.approx(0.9),
        (None, "flops", "max"): 10**9,
        (None, "weight_bytes", "max"): 10**6,
        ("dense*", "params", "max"): 210_000,
    }
    assert limits(other)[(None, "params", "max")] == 500_000
    assert limits(other)[(None, "buffers", "max")] == 10
    assert {str(budget.place) for budget in other.parsed_budgets} == {"modelbudget.yaml:5", "modelbudget.yaml:7"}
    assert [(reference, str(place)) for reference, place in loaded.sources] == [("zoo:models", "modelbudget.yaml:24")]


def test_tags_and_groups_hold_in_the_order_of_the_file(tmp_path: Path) -> None:
    """The later one wins, whichever section it stands in."""
    text = """\
        groups:
          all: {models: ["*"], budgets: {params: 1k}}
        tags:
          big: {budgets: {params: 2k}}
        models:
          net: {build: "a:b", tags: [big]}
    """
    (entry,) = read(tmp_path, text).entries
    assert limits(entry) == {(None, "params", "max"): 2000}


def test_groups_and_their_sums(tmp_path: Path) -> None:
    """A group is made of ids, of tags, or of both; a sum has its own limits and lines."""
    text = """\
        tags:
          edge: {sum: {params: 10M}}
        groups:
          bundle:
            models: "app/*"
            tags: [edge]
            sum:
              weight_bytes: {max: 24 MiB, warn: 90%}
        models:
          app/one: {build: "a:b"}
          two: {build: "a:b", tags: [edge]}
          three: {build: "a:b"}
    """
    loaded = read(tmp_path, text)
    levels = {level.name: level for level in loaded.layers}
    assert [(one.metric, one.bound, one.limit, str(one.place)) for one in levels["group bundle"].sums] == [
        ("weight_bytes", "max", 24 * 2**20, "modelbudget.yaml:8"),
        ("weight_bytes", "warn", Fraction(9, 10), "modelbudget.yaml:8"),
    ]
    assert [entry.id for entry in loaded.entries if levels["group bundle"].matches(entry)] == ["app/one", "two"]
    assert [entry.id for entry in loaded.entries if levels["tag edge"].matches(entry)] == ["two"]


def test_toml(tmp_path: Path) -> None:
    """The same tree in pyproject.toml, with lines to point at."""
    text = """\
        [project]
        name = "x"

        [tool.modelbudget.models.net]
        build = "net:Net"
        inputs = [1, 3, 32, 32]

        [tool.modelbudget.models.net.budgets]
        params = "25k"
        flops = 5

        [tool.modelbudget.models.good]
        build = "net:Net"
        budgets = {params = "1k"}
    """
    loaded = read(tmp_path, text, "pyproject.toml")
    assert [str(mistake) for mistake in loaded.mistakes] == [
        "pyproject.toml:10: budgets.flops: 5 needs a unit: write e.g. 4.1 GFLOPs or 2 GMACs (a multiply-add is 2 FLOPs)"
    ]
    (good,) = loaded.entries
    assert str(good.place) == "pyproject.toml:12"
    assert str(good.parsed_budgets[0].place) == "pyproject.toml:14"


VALUES = {"n": "int64[] = 3", "lengths": "int64[B] = T", "mask": "bool[B, T] = true", "ids": "int64[B, T] < 32000"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param(
            "modelbudget.yaml", f"models:\n  net:\n    build: 'a:b'\n    inputs: {json.dumps(VALUES)}", id="yaml"
        ),
        pytest.param(
            "modelbudget.yaml",
            "models:\n  net:\n    build: 'a:b'\n    inputs:\n"
            + "".join(f"      {key}: {value}\n" for key, value in VALUES.items()),
            id="yaml without quotes",
        ),
        pytest.param(
            "pyproject.toml",
            "[tool.modelbudget.models.net]\nbuild = 'a:b'\n[tool.modelbudget.models.net.inputs]\n"
            + "".join(f"{key} = '{value}'\n" for key, value in VALUES.items()),
            id="toml",
        ),
    ],
)
def test_values_of_inputs(name: str, text: str, tmp_path: Path) -> None:
    """A value or a bound is a part of the input's text, in each kind of manifest."""
    [entry] = read(tmp_path, text, name).entries
    assert isinstance(entry.inputs, Inputs)
    assert {port.name: str(port.spec) for port in entry.inputs.ports} == VALUES


def test_yaml_anchors_and_merge_keys(tmp_path: Path) -> None:
    """What people use against repetition works."""
    text = """\
        models:
          a: &base
            build: "m:a"
            inputs: [1, 2]
            budgets: {params: 5}
          b:
            <<: *base
            build: "m:b"
    """
    a, b = read(tmp_path, text).entries
    assert (b.build, b.inputs, b.parsed_budgets[0].limit) == ("m:b", a.inputs, 5)


GOOD = "\n  good: {build: 'pkg:good'}\n"


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        pytest.param("models:\n  net: {build: 'a:b', inpts: 3}", ["2: unknown key 'inpts', did you mean 'inputs'"], id="unknown key"),
        pytest.param("models:\n  net:\n    build: 'a:b'\n    precision: bf16\n    batch: 0\n    training: {batch: x}\n    budgets: {parms: 3}", ["5: models.net.batch: input should be greater", "4: unknown key 'precision', which is written as training: {precision: ...}; known", "7: budgets: there is no metric 'parms'", "6: training.batch: write a whole number"], id="unknown key beside others"),
        pytest.param("modles: {}\nmodels:", ["1: unknown key 'modles', did you mean 'models'"], id="unknown section"),
        pytest.param("models:\n  net: {build: 'a:b'}\n  net: {build: 'c:d'}", ["3: the model id 'net' is used twice (first in line 2)"], id="duplicate id"),
        pytest.param("models:\n  ../net: {build: 'a:b'}", ["2: bad model id '../net'"], id="id that climbs"),
        pytest.param("models:\n  a::b: {build: 'a:b'}", ["2: bad model id 'a::b'"], id="id with pytest's separator"),
        pytest.param("models:\n  a@b: {build: 'a:b'}", ["2: bad model id 'a@b'"], id="id with @"),
        pytest.param("models:\n  net: {build: nothing}", ["2: build: 'nothing' is not a reference: write module:callable"], id="no reference"),
        pytest.param("models:\n  net: {inputs: [1]}", ["2: models.net.build is missing"], id="no build"),
        pytest.param("models:\n  net:\n    build: 'a:b'\n    inputs: 'float32[B'", ["4: inputs: 'float32[B' is not a tensor"], id="inputs"),
        pytest.param("models:\n  net:\n    build: 'a:b'\n    budgets:\n      params: 1e6", ["5: budgets.params: '1e6' is not a quantity (YAML reads exponents"], id="exponent"),
        pytest.param("models:\n  net: {build: 'a:b', budgets: {weight_bytes: 1:30}}", ["2: budgets.weight_bytes: '1:30' is not a quantity (YAML reads a:b"], id="sexagesimal"),
        pytest.param("models:\n  net: {build: 'a:b', optional: on}", ["2: models.net.optional: write true or false, not 'on'"], id="on"),
        pytest.param("models:\n  net: {build: 'a:b', budgets: {params: 010}}", ["2: budgets.params: '010' is not a quantity"], id="octal"),
        pytest.param("models:\n  net: {build: 'a:b', budgets: {params: -5}}", ["2: budgets.params: -5 is negative"], id="negative"),
        pytest.param("models:\n  net: {build: 'a:b', batch: 0}", ["2: models.net.batch: input should be greater than 0"], id="batch of nothing"),
        pytest.param("models:\n  net: {build: 'a:b', budgets: {params: {min: 9, max: 3}}}", ["2: budgets.params: min 9 is above max 3"], id="min above max"),
        pytest.param("models:\n  net:\n    build: 'a:b'\n    budgets:\n      parms: 3\n      weight_bytes: 5\n      layers:\n        x: {params: -1}", ["5: budgets: there is no metric 'parms'", "6: budgets.weight_bytes: 5 needs a unit", "8: budgets.layers.x.params: -1 is negative"], id="all at once"),
        pytest.param("models:\n  net: 3", ["2: models.net: input should be"], id="model not a mapping"),
        pytest.param("groups:\n  g: {sum: {params: 1k}}\nmodels:", ["2: groups.g has no models: write models: \"glob*\" or tags: [...]"], id="group of nobody"),
        pytest.param("tags:\n  t:\n    sum:\n      params: 1k\n      largest_layer_share: 5%\n      flops: 3\nmodels:", ["5: sum: largest_layer_share cannot be added up; known are params", "6: sum.flops: 3 needs a unit"], id="sums"),
        pytest.param("tags:\n  t:\n    sum:\n      params: {min: 1k}\nmodels:", ["4: sum.params: a sum has no 'min': write params: {max: ..., warn: 95%}"], id="sum without a max"),
        pytest.param("models:\n  net:\n    build: 'a:b'\n    budgets:\n      params:\n        max: 1k\n        growth: 2", ["7: budgets.params.growth: 2 needs a sign and a unit"], id="growth without a unit"),
        pytest.param("models:\n  net:\n    build: 'a:b'\n    budgets:\n      params:\n        waive:\n          max: 1k\n          until: soon\n          reason: x", ["8: budgets.params.waive.until: 'soon' is not a day"], id="waiver without a day"),
        pytest.param("models:\n  net: {build: 'a:b', inherited: warn}", ["2: unknown key 'inherited'"], id="inherited beside the budgets"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, text: str, mistakes: list[str]) -> None:
    """Each mistake has its line and says what would be right; the sound model beside it stays usable."""
    loaded = read(tmp_path, text + GOOD)
    shown = [str(mistake) for mistake in loaded.mistakes]
    assert len(shown) == len(mistakes)
    for line, expected in zip(shown, mistakes, strict=True):
        assert line.startswith(f"modelbudget.yaml:{expected}")
    assert [entry.id for entry in loaded.entries] == ["good"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("models: [unclosed", "not YAML", id="not YAML"),
        pytest.param("models:\n\tnet: 1", ":2: not YAML", id="tab"),
        pytest.param("", "an empty manifest", id="empty"),
        pytest.param("- 1", "not a mapping", id="list"),
        pytest.param("version: 2\nmodels: {net: {build: 'a:b'}}", ":1: version 2 is not known", id="version 2"),
        pytest.param("a: &a [*a]", "nested too deeply", id="endless"),
        pytest.param("? [1, 2]\n: 3", "a key has to be a word", id="list as key"),
        pytest.param("models: !!python/object:os.system {}", "", id="python tag"),
    ],
)
def test_a_manifest_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    """It registers nothing and says why; no tag of YAML runs code."""
    loaded = read(tmp_path, text)
    assert loaded.entries == ()
    if words:
        assert words in str(loaded.mistakes[0])
        assert loaded.mistakes[0].model is None


def test_holds_manifest(tmp_path: Path) -> None:
    """A pyproject.toml is one only with the table."""
    path = tmp_path / "pyproject.toml"
    path.write_text("[project]\nname = 'x'\n")
    assert not holds_manifest(path)
    path.write_text("[tool.modelbudget]\n")
    assert holds_manifest(path)
    assert holds_manifest(tmp_path / "modelbudget.yaml")


def test_the_decorator_gives_an_entry() -> None:
    """The decorated name becomes a value with the place of the function."""

    @model(inputs="float32[B, 4]", tags=["edge"], budgets={"params": "1k"}, run="real")
    def net() -> object:
        return None

    assert isinstance(net, ModelEntry)
    assert (net.id, net.tags, net.parsed_budgets[0].limit, net.run) == ("net", ("edge",), 1000, "real")
    assert net.place is not None
    assert net.place.file == __file__


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inputs": "float32[B"}, "is not a tensor"),
        ({"inputs": "int64[B] = 0.5"}, "int64 holds whole numbers"),
        ({"budgets": {"parms": 1}}, "did you mean 'params'"),
        ({"name": "a b"}, "bad model id"),
        ({"run": "fast"}, "run: 'fast' is not known: write real or abstract"),
    ],
)
def test_mistakes_in_a_decorator_name_its_line(options: dict[str, object], words: str) -> None:
    """They are raised where the test module is imported."""
    with pytest.raises(ModelBudgetError, match=r"test_manifest\.py:\d+: ") as caught:
        model(**{"name": "net", **options})(lambda: None)  # type: ignore[arg-type]
    assert words in str(caught.value)
