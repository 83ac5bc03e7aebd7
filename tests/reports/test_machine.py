"""Reports for machines, read by the strict parsers of their formats."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest

from pytest_modelbudget import budget, reports
from pytest_modelbudget.budget import Finding
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import Place
from pytest_modelbudget.reports.text import ReportSetting
from pytest_modelbudget.results import Result, Snapshot, SnapshotState, State, check
from pytest_modelbudget.results.groups import RunSummary
from pytest_modelbudget.summary import Flops, Plan, Summary, TimeBound
from pytest_modelbudget.summary.metrics import METRICS
from tests import hostile
from tests.builders import gpt, serving, towers

parser = pytest.importorskip("prometheus_client.openmetrics.parser")
jsonschema = pytest.importorskip("jsonschema")


def result(name: str, written: dict[str, object] | None = None, summary: Summary | None = None, **more: Any) -> Result:
    """The two towers (6,201 params, 24,804 bytes, 12,200 FLOPs), checked."""
    limits = tuple(budget.parse(written or {}, lambda below: Place("modelbudget.yaml", 7)))
    entry = ModelEntry(name, build="a:b", budgets=limits, place=Place("modelbudget.yaml", 5))
    snapshot = Snapshot(SnapshotState.DIFFERENT if "before" in more else SnapshotState.EQUAL, f"{name}.yaml", **more)
    return replace(check(entry, summary or towers(), snapshot), nodeid=f"modelbudget.yaml::{name}")


BROKEN = Result(
    "broken", State.BUILD_ERROR, error="a.py:1\nE   KeyError: 'x'", nodeid="m.yaml::broken", place=Place("m.yaml", 3)
)


def samples(results: list[Result]) -> dict[tuple[str, str], float]:
    """Every sample by its name and the model's, as the strict parser reads them."""
    families = list(parser.text_string_to_metric_families(reports.render("openmetrics", results)))
    assert all(family.type == "gauge" and family.documentation for family in families)
    found = [sample for family in families for sample in family.samples]
    return {(sample.name, sample.labels["model"]): sample.value for sample in found}


def test_metrics_are_the_numbers_of_the_summary() -> None:
    """Exact totals, the share of a limit that is used, and whether the check failed."""
    read = samples([result("a", {"params": 12_402}), result("b", {"params": 1})])
    assert read["model_params", "a"] == 6_201
    assert read["model_weight_bytes", "a"] == 24_804
    assert read["model_flops", "a"] == 12_200
    assert read["model_budget_used_ratio", "a"] == 0.5
    assert (read["model_check_failed", "a"], read["model_check_failed", "b"]) == (0, 1)


def test_metrics_are_written_in_full() -> None:
    """Services compare them as text, so a big number has no exponent."""
    big = replace(towers(), flops=Flops(3 * 10**21))
    assert 'model_flops{model="a"} 3000000000000000000000\n' in reports.render(
        "openmetrics", [result("a", summary=big)]
    )


def test_a_least_time_is_in_seconds_to_the_picosecond() -> None:
    """Its unit is said, as that of bytes is; a step of nanoseconds is not 0."""
    run = Plan("training", "sgd", 7, time_bounds=(TimeBound("T4", 140_051),))
    written = reports.render("openmetrics", [result("a", summary=replace(towers(), plans=(run,)))])
    assert "# UNIT model_min_step_seconds seconds\n" in written
    assert 'model_min_step_seconds{model="a"} 0.000000140051\n' in written
    assert '"0.000000140051"' in reports.render("cyclonedx", [result("a", summary=replace(towers(), plans=(run,)))])


def test_a_metric_that_is_not_known_is_left_out() -> None:
    """It is never 0; FLOPs that are a lower bound have a name of their own."""
    unknown = result("a", summary=replace(towers(), flops=Flops()))
    bound = result("b", summary=replace(towers(), flops=Flops(5, (("my::op", 1),))))
    read = samples([unknown, bound, BROKEN])
    assert not {("model_flops", name) for name in ("a", "b", "broken")} & set(read)
    assert read["model_flops_at_least", "b"] == 5
    assert read["model_check_failed", "broken"] == 1


def test_models_of_equal_ids_have_series_of_their_own() -> None:
    """Two manifests may each declare a model of the same name."""
    twins = [replace(result("a"), nodeid=f"{folder}/modelbudget.yaml::a") for folder in ("x", "y")]
    assert len({name for metric, name in samples(twins) if metric == "model_params"}) == 2


@pytest.mark.parametrize("name", [pytest.param(name, id=word) for word, name in hostile.NAMES.items()])
def test_metrics_of_hostile_names_are_read(name: str) -> None:
    """Labels are escaped."""
    assert samples(hostile.results(name))


QUALITY = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["description", "check_name", "fingerprint", "severity", "location"],
        "additionalProperties": False,
        "properties": {
            "description": {"type": "string", "minLength": 1},
            "check_name": {"type": "string", "pattern": "^modelbudget/[a-z_-]+$"},
            "fingerprint": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            "severity": {"enum": ["info", "minor", "major", "critical", "blocker"]},
            "location": {
                "type": "object",
                "required": ["path", "lines"],
                "properties": {
                    "path": {"type": "string", "pattern": "^[^/]"},
                    "lines": {
                        "type": "object",
                        "required": ["begin"],
                        "properties": {"begin": {"type": "integer", "minimum": 1}},
                    },
                },
            },
        },
    },
}
"""What GitLab's documentation asks of a code quality report."""


def quality(results: list[Result], setting: ReportSetting | None = None) -> list[dict[str, Any]]:
    """The findings, checked against what the service asks for."""
    written = reports.render("codequality", results, *([setting] if setting else []))
    assert written.startswith("[")  # a byte order mark would be refused
    found: list[dict[str, Any]] = json.loads(written)
    jsonschema.validate(found, QUALITY)
    assert len({entry["fingerprint"] for entry in found}) == len(found), "equal fingerprints collapse into one"
    return found


def test_findings_say_severity_and_line() -> None:
    """A broken limit is critical at its line, a model that cannot be built blocks, a change is for information."""
    over = result("over", {"params": 6_000, "weight_bytes": "20 kB"})
    near = result("near", {"params": {"max": 6_300, "warn": "90%"}})
    changed = result("changed", before=gpt())
    found = quality([over, near, changed, BROKEN, result("fine")])
    assert [(one["check_name"], one["severity"], one["location"]["lines"]["begin"]) for one in found] == [
        ("modelbudget/build-error", "blocker", 3),
        ("modelbudget/changed", "info", 5),
        ("modelbudget/params", "minor", 7),
        ("modelbudget/params", "critical", 7),
        ("modelbudget/weight_bytes", "critical", 7),
    ]
    assert found[3]["description"] == "over: params: 6,201 > 6,000 (+201, +3.4%)"


def test_a_finding_keeps_its_fingerprint() -> None:
    """Whatever its numbers and line: else each pipeline would resolve it and find it anew."""
    [one] = quality([result("a", {"params": 6_000})])
    moved = replace(result("a", {"params": 5_000}), violations=tuple(
        replace(violation, budget=replace(violation.budget, place=Place("modelbudget.yaml", 90)))
        for violation in result("a", {"params": 5_000}).violations
    ))  # fmt: skip
    [other] = quality([moved])
    assert one["fingerprint"] == other["fingerprint"]
    assert one["description"] != other["description"]
    assert [entry["fingerprint"] for entry in quality([result("b", {"params": 6_000})])] != [one["fingerprint"]]


def test_paths_are_those_of_the_repository() -> None:
    """The service looks them up from there."""
    [one] = quality([result("a", {"params": 6_000})], ReportSetting(folder="services/vision"))
    assert one["location"]["path"] == "services/vision/modelbudget.yaml"


@pytest.mark.parametrize("name", [pytest.param(name, id=word) for word, name in hostile.NAMES.items()])
def test_findings_of_hostile_names_are_valid(name: str) -> None:
    """Every finding keeps its shape."""
    assert quality(hostile.results(name))


def strict(schema: Any) -> Any:
    """The schema with every object closed, so that a key that is not documented is a mistake."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    return {"additionalProperties": False, **closed} if "properties" in schema and "type" in schema else closed


def test_the_json_report_is_as_documented() -> None:
    """Every key of it is in the schema, and every required key of the schema in it."""
    schema = json.loads((resources.files(reports) / "report.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(strict(schema))
    results = [result("a", {"params": {"max": 6_300, "warn": "90%"}}, before=gpt()), BROKEN, *hostile.results("a|b")]
    results.append(replace(result("served"), summary=replace(towers(), plans=(serving(),))))
    data = json.loads(reports.render("json", results))
    assert [error.message for error in validator.iter_errors(data)] == []
    assert {tuple(error.path) for error in validator.iter_errors({**data, "more": 1})} == {()}
    assert set(re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(schema))) == set(schema["$defs"])


def test_every_metric_is_there_for_machines() -> None:
    """Under its name, as a gauge and in the JSON report; of a GPT whose head is tied, all but the 800 of its table."""
    summary = gpt()
    counted = check(ModelEntry("gpt", build="a:b"), summary, Snapshot(SnapshotState.EQUAL))
    [model] = json.loads(reports.render("json", [counted]))["models"]
    assert list(model["metrics"]) == list(METRICS)
    gauges = reports.render("openmetrics", [counted])
    for name, metric in METRICS.items():
        assert (f"# TYPE model_{name} gauge" in gauges) == (metric.get(summary) is not None)
    assert model["metrics"]["non_embedding_params"] == summary.params - 100 * 8
    assert model["metrics"]["training_peak_bytes"] is None


@pytest.mark.parametrize(
    ("results", "overall", "message", "color"),
    [
        pytest.param([], RunSummary(), "no models", "lightgrey", id="no model"),
        pytest.param([result("a")], RunSummary(), "1 ok", "brightgreen", id="ok"),
        pytest.param([result("a", {"params": {"max": 6_300, "warn": "90%"}})], RunSummary(), "1 ok", "yellow", id="warned"),
        pytest.param([result("a"), result("b", {"params": 1})], RunSummary(), "1 over budget, 1 ok", "red", id="failed"),
        pytest.param([result("a")], RunSummary(findings=(Finding("deselected", "", "1 model was left out"),)), "1 ok", "red", id="not all were checked"),
    ],
)  # fmt: skip
def test_the_badge_is_what_shields_reads(results: list[Result], overall: RunSummary, message: str, color: str) -> None:
    """The fields of its endpoint, version 1; green speaks for all models or does not stand there."""
    badge = json.loads(reports.render("badge", results, ReportSetting(overall=overall)))
    expected = {"schemaVersion": 1, "label": "model budget", "message": message, "color": color}
    assert badge == {**expected, "isError": color == "red"}


def test_the_bill_of_materials_is_valid() -> None:
    """By the published schema, strictly; with the numbers of the two towers, and without those that are not known."""
    validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    unknown = result("b", summary=replace(towers(), flops=Flops()))
    for results in ([], [result("a"), unknown, BROKEN], *map(hostile.results, hostile.NAMES.values())):
        bill = reports.render("cyclonedx", results)
        assert validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(bill) is None
    first, second = json.loads(reports.render("cyclonedx", [result("a"), unknown, BROKEN]))["components"]
    card = first["modelCard"]
    numbers = {one["name"]: one["value"] for one in card["properties"]}
    assert (numbers["modelbudget:params"], numbers["modelbudget:flops"]) == ("6201", "12200")
    assert card["modelParameters"]["inputs"] == [{"format": "user float32[B, 100]"}, {"format": "item float32[B, 20]"}]
    assert not [one for one in second["modelCard"]["properties"] if "flops" in one["name"]]


def test_the_card_says_what_a_model_is() -> None:
    """Architecture, number of params, inputs, outputs and FLOPs; `?` and names of those that were not counted."""
    page = reports.render("card", [result("a"), result("b", summary=replace(towers(), flops=Flops())), BROKEN])
    first, second = page.partition("## <code>b</code>")[::2]
    for line in (
        "| Architecture | <code>keras, 6 layers: 3 Dense, 2 InputLayer, 1 Concatenate</code> |",
        "| Number of parameters | 6,201, of which 6,201 are trained |",
        "| FLOPs of one forward pass at <code>B=1</code> | 12,200 |",
    ):
        assert line in first.splitlines()
    assert "| FLOPs of one forward pass at <code>B=1</code> | ? |" in second
    assert page.endswith("Not counted: <code>broken</code>\n")
