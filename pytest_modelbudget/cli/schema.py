"""`modelbudget schema`: the JSON schema of the manifest, made from what reads it."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import fields
from typing import Any

from pytest_modelbudget import units
from pytest_modelbudget.budget import BOUNDS
from pytest_modelbudget.config.schema import Manifest, Model
from pytest_modelbudget.planner.growth import LAWS
from pytest_modelbudget.planner.recipe_keys import REFERENCE, Key, key_of
from pytest_modelbudget.planner.recipe_reading import RECIPE_TYPES
from pytest_modelbudget.summary.export import EXPORT_METRICS
from pytest_modelbudget.summary.metrics import ADDITIVE_METRICS, GROWING, LAYER_METRICS, METRICS

_USE = (
    "Save as modelbudget.schema.json (modelbudget schema > modelbudget.schema.json) and write as the first line of "
    "modelbudget.yaml: # yaml-language-server: $schema=modelbudget.schema.json"
)
_ADDRESS = "https://json.schemastore.org/modelbudget.json"
_ID = "^[A-Za-z0-9._/:+=-]+$"
_BUILD = rf"{REFERENCE['pattern']}|^[^:]*[/\\][^:]*$|\.(keras|h5|hdf5)$"
_WRITTEN: dict[units.Kind, str] = {
    "count": "230k, 26M, 25_557_032",
    "bytes": "24 MiB, 24 MB",
    "flops": "4.1 GFLOPs, 2 GMACs",
    "share": "95%",
    "ratio": "0.5, 12",
    "seconds": "120 ms, 1.5 s",
}
_MEANING = {
    "max": "at most this",
    "min": "at least this",
    "warn": "a share of max above which a model passes with a warning: 95%",
    "growth": 'at most this more than the base has: "+2%", "+500k"',
    "waive": 'allows more for a while: {max: 31M, until: 2030-12-31, reason: "why"}',
    "ratchet": "modelbudget tighten lowers max to what is there: true, or {slack: 2%}",
    "inherited": "warn: what is over at the base and no worse here only warns",
}
_WAIVER = {
    "type": ["object", "null"],
    "properties": {
        "max": {"type": ["string", "number"]},
        "until": {"type": "string", "format": "date"},
        "reason": {"type": "string"},
    },
    "required": ["max", "until", "reason"],
    "additionalProperties": False,
}
_RATCHET = {
    "anyOf": [
        {"type": ["boolean", "null"]},
        {"type": "object", "properties": {"slack": {"type": "string"}}, "additionalProperties": False},
    ]
}
_DEVICE = {"type": "string", "description": 'a device by name ("A100 80GB"), or its memory: "24 GB"'}
_DEVICES = [_DEVICE, {"type": "array", "items": _DEVICE, "minItems": 1}]
_FITS_OPTIONS = {
    "type": "object",
    "properties": {
        "device": {"anyOf": _DEVICES},
        "shown": {"type": "string", "description": "the capacity that nvidia-smi shows: 24564 MiB"},
        "calibrate": {
            "type": "object",
            "properties": {"reserved": {"type": "string"}, "shown": {"type": "string"}},
            "required": ["reserved", "shown"],
            "additionalProperties": False,
            "description": "one measured run: what torch had reserved, and what nvidia-smi showed",
        },
        "tight": {"enum": ["warn", "fail"], "description": "of runs that may or may not fit: warn (they pass) or fail"},
        "max": {"anyOf": _DEVICES},
    },
    "additionalProperties": False,
}
_FITS = {
    "anyOf": [*_DEVICES, {"type": "null"}, _FITS_OPTIONS],
    "description": "the planned runs fit each of these devices",
}
_EXPORT_SHARE = {"type": ["string", "null"], "description": "written 26% or +1%"}
_LAW = {
    "anyOf": [
        {"enum": [*LAWS, None]},
        {
            "type": "object",
            "properties": {"max_exponent": {"type": ["number", "string"]}},
            "required": ["max_exponent"],
            "additionalProperties": False,
        },
    ]
}
_ARGUMENT = {"$ref": "#/definitions/Argument"}
_CALL = {
    "type": "object",
    "description": "what a call returns",
    "properties": {
        "call": REFERENCE,
        "args": {"type": "array", "items": _ARGUMENT},
        "kwargs": {"type": "object", "additionalProperties": _ARGUMENT},
    },
    "additionalProperties": False,
}
_ARGUMENTS = {
    "description": 'any value; {call: "module:Config", args: [...], kwargs: {...}} is what that returns, '
    '{ref: "module:name"} what it names, {literal: {...}} the mapping itself',
    "if": {
        "type": "object",
        "required": ["call"],
        "anyOf": [{"propertyNames": {"enum": ["call", "args", "kwargs"]}}, {"properties": {"call": REFERENCE}}],
    },
    "then": _CALL,
    "else": {
        "if": {"type": "object", "required": ["ref"], "maxProperties": 1},
        "then": {"properties": {"ref": REFERENCE}},
        "else": {
            "if": {"not": {"type": "object", "required": ["literal"], "maxProperties": 1}},
            "then": {"items": _ARGUMENT, "additionalProperties": _ARGUMENT},
        },
    },
}
"""One argument of a builder, as `arguments` reads it."""
_RESOURCES = {
    "type": ["object", "null"],
    "description": "what building and counting one model may take: {seconds: 300, memory: 8 GiB}",
    "properties": {
        "seconds": {"type": ["number", "null"], "exclusiveMinimum": 0},
        "memory": {"type": ["string", "null"], "description": "written 8 GiB or 8 GB"},
    },
    "additionalProperties": False,
}
_RECIPES = {
    "training": "one training step",
    "inference": "one forward pass without gradients",
    "serving": "an engine that serves requests",
}
_INHERITED = {"enum": ["warn", "fail", None]}


_KEYS = {
    "version": "version of this format",
    "models": "id: model, or id: build in short",
    "sources": "each names a function that yields ModelEntry values, for large registries",
    "defaults": "what holds for models that do not say otherwise",
    "tags": "tag: budgets, recipes and sums of its models",
    "groups": "group: its models, their budgets, recipes and sums",
    "args": "positional arguments of build",
    "kwargs": "named arguments of build",
    "Model.tags": "tags of this model",
    "samples": "size of the training set, for params_per_sample",
    "exported_from": "id of the model that a file was made from, which its numbers are held against",
    "batch": "size of the dimension B, 1 without it",
    "dims": "sizes of other named dimensions: {T: 128}",
    "framework": "imported before build runs, for builders that import it inside",
    "optional": "true: skip the model when its framework is missing, in CI too",
    "run": "real: run the model with memory for weights and activations; abstract: never",
    "isolate": "false: build the model in the process of the run, not in a worker",
    "snapshot": "layers: a file with every row for each model, as without it; totals: a line in a file of many models",
    "training": "what memory is planned for: one training step; true for a recipe without keys",
    "inference": "what memory is planned for: one forward pass; true for a recipe without keys",
    "serving": "what memory is planned for: an engine that serves requests; true for a recipe without keys",
    "budgets": "limits by metric, and under layers by glob over layer paths",
    "sum": "limits on the sum over all models: max and warn, by metric",
    "Group.models": "globs over the ids of models",
    "Group.tags": "tags whose models belong to the group",
}
"""What each key is for, where its own shape does not say so."""


def run(options: Namespace) -> int:
    """Print the schema."""
    print(json.dumps(json_schema(), indent=2))
    return 0


def json_schema() -> dict[str, Any]:
    """The JSON schema of a manifest, with what its open parts mean: draft 7, as SchemaStore and editors take it."""
    schema = Manifest.model_json_schema(ref_template="#/definitions/{model}")
    kinds: dict[str, Any] = schema.pop("$defs")
    kinds["Model"] = Model.model_json_schema()
    kinds["Argument"] = _ARGUMENTS
    kinds["Model"]["properties"]["args"]["items"] = _ARGUMENT
    kinds["Model"]["properties"]["kwargs"]["additionalProperties"] = _ARGUMENT
    kinds["Budgets"] = _budgets()
    kinds["Sum"] = _object({name: _limit(METRICS[name].kind, ("max", "warn")) for name in ADDITIVE_METRICS})
    kinds |= {kind: _recipe(kind) for kind in RECIPE_TYPES}
    for kind in kinds.values():
        for name in set(RECIPE_TYPES) & set(kind.get("properties", {})):
            kind["properties"][name] = {"anyOf": [{"$ref": f"#/definitions/{name}"}, {"type": ["boolean", "null"]}]}
        for name in ("budgets", "sum"):
            if name in kind.get("properties", {}):
                kind["properties"][name] = {
                    "$ref": "#/definitions/Budgets" if name == "budgets" else "#/definitions/Sum"
                }
    kinds["Model"]["properties"]["build"].update(
        pattern=_BUILD, description="module:callable, returns the model; or a file: nets/model.keras, ./saved_model"
    )
    kinds["Model"]["properties"]["inputs"] = {
        "description": (
            'what the model is called with: "float32[B, 3, 224, 224]", "int64[B] = T", "int64[B, T] < 32000", '
            "a list, a mapping, or module:callable"
        )
    }
    for level in ("Model", "Defaults"):
        kinds[level]["properties"]["limits"] = _RESOURCES
    schema["properties"]["models"] = {
        "type": "object",
        "propertyNames": {"pattern": _ID},
        "additionalProperties": {"anyOf": [{"$ref": "#/definitions/Model"}, {"type": "string", "pattern": _BUILD}]},
    }
    schema["properties"]["sources"]["items"] = REFERENCE
    for name, kind in {"Manifest": schema, **kinds}.items():
        for key, shape in kind.get("properties", {}).items():
            shape.pop("title", None)  # its name once more
            if name not in RECIPE_TYPES and (meaning := _KEYS.get(f"{name}.{key}", _KEYS.get(key))):
                kind["properties"][key] = _described(shape, meaning)
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "$id": _ADDRESS, "$comment": _USE}
    return {**head, **schema, "title": "pytest-modelbudget manifest", "definitions": kinds}


def _described(shape: dict[str, Any], meaning: str) -> dict[str, Any]:
    """A key with its meaning, beside which draft 7 would not see a reference."""
    return {"description": meaning, **({"allOf": [shape]} if "$ref" in shape else shape)}


def _budgets() -> dict[str, Any]:
    metrics = {name: {**_limit(metric.kind, BOUNDS), "description": metric.meaning} for name, metric in METRICS.items()}
    layers = _object({name: _limit(kind, BOUNDS) for name, kind in LAYER_METRICS.items()}, nullable=True)
    by_glob = {"type": "object", "description": "by glob over layer paths", "additionalProperties": layers}
    # `layers` is a metric (their number) and the mapping of globs, whichever is written.
    metrics["layers"] = {"anyOf": [metrics["layers"], by_glob]}
    if "inherited" in BOUNDS:
        metrics["inherited"] = {**_INHERITED, "description": _MEANING["inherited"]}
    metrics["fits"] = _FITS
    metrics["growth_in"] = {
        "type": "object",
        "description": "by dimension (B, T, ...): the law by which numbers may grow with it",
        "additionalProperties": _object(dict.fromkeys(GROWING, _LAW), nullable=True),
    }
    metrics["export"] = {
        **_object(dict.fromkeys(EXPORT_METRICS, _EXPORT_SHARE), nullable=True),
        "description": "of a file with exported_from: the share of its model's number that it may have, or have more",
    }
    return _object(metrics)


def _recipe(kind: str) -> dict[str, Any]:
    """The keys of a recipe; null takes a key of a wider level away."""
    recipe = RECIPE_TYPES[kind]
    keys = {field.name: _nullable(_key(key_of(recipe, field.name))) for field in fields(recipe)}
    return {**_object(keys), "description": "what is planned: " + _RECIPES[kind]}


def _key(key: Key) -> dict[str, Any]:
    return {**key.schema, "description": key.meaning} if key.meaning else dict(key.schema)


def _nullable(shape: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [shape, {"type": "null"}]}


def _limit(kind: units.Kind, bounds: tuple[str, ...]) -> dict[str, Any]:
    """A bare max, null, or a mapping of bounds."""
    quantity = {"type": ["string", "number", "null"], "description": f"written {_WRITTEN[kind]}"}
    shapes: dict[str, dict[str, Any]] = {
        "max": quantity,
        "min": quantity,
        "warn": {"type": ["string", "null"]},
        "growth": {"type": ["string", "integer", "null"]},
        "waive": _WAIVER,
        "ratchet": _RATCHET,
        "inherited": _INHERITED,
    }
    return {
        "anyOf": [
            quantity,
            _object({name: {**shapes[name], "description": _MEANING[name]} for name in bounds}),
        ]
    }


def _object(properties: dict[str, Any], *, nullable: bool = False) -> dict[str, Any]:
    return {
        "type": ["object", "null"] if nullable else "object",
        "properties": properties,
        "additionalProperties": False,
    }
