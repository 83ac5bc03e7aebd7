"""`modelbudget schema` knows every key that the manifest has."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_modelbudget.budget import BOUNDS
from pytest_modelbudget.cli import main
from pytest_modelbudget.config import read, schema
from pytest_modelbudget.planner import Inference, Training
from pytest_modelbudget.summary.metrics import ADDITIVE_METRICS, LAYER_METRICS, METRICS

EXAMPLE = Path(__file__).parents[2] / "examples" / "modelbudget.yaml"
FULL = """
version: 1
defaults: {batch: 2, dims: {T: 8}, framework: torch, optional: true, run: abstract, budgets: {params: {warn: 95%}}, training: {batch: 4}}
tags: {edge: {budgets: {weight_bytes: 2 MB, fits: 24 GB}, sum: {params: 10M}, training: {precision: null}, inference: null}}
groups: {towers: {models: ["*-tower"], tags: [edge], budgets: {flops: 1 GFLOPs}, sum: {flops: {max: 1 GFLOPs, warn: 90%}}}}
models:
  short: nets:build
  long:
    build: nets:build
    args: [1]
    kwargs:
      width: 2
      config: {call: "nets:Config", args: [{call: "nets:Rope"}], kwargs: {dtype: {ref: "torch:float16"}}}
      list: [{literal: {call: a name}}, {ref: "nets:names"}, {reference: x, ref: y, call: 3}]
    inputs: {args: ["float32[B, 2]"], kwargs: {training: false}}
    tags: [edge]
    samples: 60000
    run: real
    training:
      batch: 8
      dims: {T: 2048}
      optimizer: sgd
      optimizer_options: {momentum: 0.9}
      precision: bf16-mixed
      gradient_accumulation: 4
      checkpointing: nets:blocks
      foreach: true
      fused: false
      zero_grad: after
      loss: cross_entropy
      trainable: ["head.*"]
      lora: {rank: 8, targets: [q_proj]}
      sharding: {fsdp: 8}
      compile: false
      kernels: cpu
    inference: {batch: 1, dims: {T: 1}, precision: fp16, kv_cache: 128, kernels: cuda}
    budgets:
      params: {max: 3M, min: 1k, growth: "+2%", ratchet: {slack: 2%}, waive: {max: 4M, until: "2030-01-31", reason: new}}
      flops: null
      inherited: warn
      training_peak_bytes: {max: 24 GiB, growth: "+1%"}
      fits: [24 GB, 16 GiB]
      growth_in: {T: {activation_bytes: linear, flops: {max_exponent: 1.5}}, B: {training_peak_bytes: null}, S: null}
      layers: {"dense*": {params: 3k, share: 90%}, "old*": null}
  counted: {build: "nets:build", budgets: {layers: 12}}
  saved: {build: nets/model.keras}
  folder: ./exported
  planned: {build: "nets:build", training: true, inference: false, budgets: {fits: null}}
sources: [nets:source]
"""
WRONG = (
    "versio: 1",
    "version: 2",
    'models: {"a b": "x:y"}',
    "models: {a: no_colon}",
    'models: {a: {bild: "x:y"}}',
    "models: {a: {}}",
    'models: {a: {build: "x:y", samples: 0}}',
    'models: {a: {build: "x:y", budgets: {parms: 3k}}}',
    'models: {a: {build: "x:y", budgets: {params: {maximum: 3k}}}}',
    'models: {a: {build: "x:y", budgets: {params: {waive: {max: 3k}}}}}',
    'models: {a: {build: "x:y", budgets: {layers: {"d*": {layers: 3}}}}}',
    "groups: {g: {sum: {layers: 3}}}",
    'models: {a: {build: "x:y", run: fast}}',
    'models: {a: {build: "x:y", args: [{call: transformers.GPT2Config}]}}',
    'models: {a: {build: "x:y", args: [[{call: "x:y", kwarg: {}}]]}}',
    'models: {a: {build: "x:y", kwargs: {a: {call: "x:y", args: {}}}}}',
    'models: {a: {build: "x:y", kwargs: {a: {call: "x:y", kwargs: {b: {ref: 3}}}}}}',
    "defaults: {run: true}",
    'models: {a: {build: "x:y", training: {bacth: 3}}}',
    'models: {a: {build: "x:y", training: {batch: 0}}}',
    'models: {a: {build: "x:y", training: {optimizer: adamz}}}',
    'models: {a: {build: "x:y", training: {compile: true}}}',
    'models: {a: {build: "x:y", inference: {optimizer: sgd}}}',
    'models: {a: {build: "x:y", inference: soon}}',
    'models: {a: {build: "x:y", budgets: {fits: 24}}}',
    'models: {a: {build: "x:y", budgets: {fits: []}}}',
    'models: {a: {build: "x:y", budgets: {growth_in: {T: linear}}}}',
    'models: {a: {build: "x:y", budgets: {growth_in: {T: {params: linear}}}}}',
    'models: {a: {build: "x:y", budgets: {growth_in: {T: {flops: cubic}}}}}',
)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The schema as it is printed."""
    assert main(["schema"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_it_has_every_key(printed: dict[str, Any]) -> None:
    """Of the manifest, of its parts, of budgets and of limits."""
    kinds = printed["definitions"]
    assert set(printed["properties"]) == set(schema.Manifest.model_fields)
    for shape in (schema.Defaults, schema.Model, schema.Tag, schema.Group):
        assert set(kinds[shape.__name__]["properties"]) == set(shape.model_fields)
        assert kinds[shape.__name__]["additionalProperties"] is False
    assert set(kinds["Budgets"]["properties"]) == {*METRICS, "inherited", "fits", "growth_in", "export"}
    for name, recipe in (("training", Training), ("inference", Inference)):
        assert set(kinds[name]["properties"]) == {field.name for field in fields(recipe)}
    assert set(kinds["Budgets"]["properties"]["params"]["anyOf"][1]["properties"]) == set(BOUNDS)
    assert set(kinds["Budgets"]["properties"]["layers"]["anyOf"][1]["additionalProperties"]["properties"]) == set(
        LAYER_METRICS
    )
    assert set(kinds["Sum"]["properties"]) == set(ADDITIVE_METRICS)


def test_it_says_how_to_use_it(printed: dict[str, Any]) -> None:
    """The line that editors read, in the schema and in the help."""
    line = "# yaml-language-server: $schema=modelbudget.schema.json"
    assert line in printed["$comment"]


def test_it_has_the_form_of_schemastore(printed: dict[str, Any]) -> None:
    """Draft 7 with its address and a title, no keyword of a later draft, and a meaning for each key that people write."""
    assert printed["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert printed["$id"] == "https://json.schemastore.org/modelbudget.json"
    assert not re.search(r'"(\$defs|prefixItems|unevaluated\w+|dependent\w+|\$anchor)":', json.dumps(printed))
    assert printed["title"]
    for name in ("Defaults", "Model", "Tag", "Group"):
        assert all(shape.get("description") for shape in printed["definitions"][name]["properties"].values()), name
    assert all(shape.get("description") for shape in printed["properties"].values())


def test_what_the_manifest_takes_is_valid(printed: dict[str, Any]) -> None:
    """The example and every key at once; the manifest itself has no mistakes in them either."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft7Validator.check_schema(printed)
    for text in (EXAMPLE.read_text(encoding="utf-8"), FULL):
        assert read(text, file="modelbudget.yaml").mistakes == ()
        jsonschema.validate(yaml.safe_load(text), printed)


@pytest.mark.parametrize("text", WRONG)
def test_what_the_manifest_refuses_is_not_valid(printed: dict[str, Any], text: str) -> None:
    """An editor underlines what the run would complain of."""
    jsonschema = pytest.importorskip("jsonschema")
    assert read(text, file="modelbudget.yaml").mistakes
    assert not jsonschema.Draft7Validator(printed).is_valid(yaml.safe_load(text))
