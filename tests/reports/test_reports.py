"""Reports: the same numbers in every form, and nothing from a model that could do harm."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from pytest_modelbudget import budget, reports, snapshot
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import Place
from pytest_modelbudget.reports import table, terminal, text
from pytest_modelbudget.results import Result, Snapshot, SnapshotState, State, check, codec
from pytest_modelbudget.summary import Export, FileFacts, Fit, Flops, Layer, Plan, Summary, Weight
from tests.builders import gpt, towers


def result(
    written: dict[str, object] | None = None, summary: Summary | None = None, before: Summary | None = None
) -> Result:
    """The two-input model, checked."""
    limits = tuple(budget.parse(written or {}, lambda below: Place("modelbudget.yaml", 7)))
    entry = ModelEntry("towers", build="a:b", budgets=limits, place=Place("modelbudget.yaml", 5))
    stored = Snapshot(
        SnapshotState.DIFFERENT if before else SnapshotState.EQUAL, "__model_budget__/towers.yaml", before=before
    )
    return replace(check(entry, summary or towers(), stored), nodeid="modelbudget.yaml::towers")


def test_names_of_models_stay_whole() -> None:
    """At 80 columns other cells go on in the next line first, and so may headings, above the rule."""
    real = replace(towers(), real_run=True)
    names = ("user-and-item-towers", "towers")
    results = [
        replace(result({"params": 6_000, "weight_bytes": "20 kB"}, real), id=name, accepted=True) for name in names
    ]
    lines = table.results_text(results).splitlines()
    rule = lines.index("=" * 80)
    assert " ".join(" ".join(lines[:rule]).split()).count("budget") == 1
    assert all(any(line.startswith(f"{name} ") for line in lines[rule + 1 :]) for name in names)
    assert max(map(len, lines)) <= 80


def test_a_failure_says_number_limit_distance_place_and_cure() -> None:
    """Everything a reviewer needs, at once."""
    before = replace(towers(), layers=towers().layers[:-1])
    shown = terminal.failure(result({"params": "6k", "weight_bytes": "20 kB"}, before=before), rows=0).splitlines()
    assert shown[0] == "towers: OVER BUDGET"
    assert "  params: 6,201 > 6,000 (+201, +3.4%)  [modelbudget.yaml:7]" in shown
    assert "  weight_bytes: 24,804 bytes > 20,000 bytes (+4,804, +24.0%)  [modelbudget.yaml:7]" in shown
    assert "  largest layers: dense 5,050 (81.4%), dense_1 1,050 (16.9%), dense_2 101 (1.6%)" in shown
    assert "    params 6,100 -> 6,201  (+101, +1.66%)" in shown
    assert "    + dense_2  Dense [B, 1], 101 params: in*out + out: 100*1 + 1 = 101" in shown
    assert shown[-2:] == [
        "first:   make it fit, or change the broken limits (modelbudget.yaml:7)",
        'then:    pytest --model-budget-update "modelbudget.yaml::towers"',
    ]


def test_many_changes_are_cut_with_a_count() -> None:
    """The twenty rows that moved most params, and how many more there are."""
    grown = replace(
        gpt(40),
        layers=tuple(
            replace(layer, weights=(Weight("weight", (100 + index,)),)) if layer.type == "LayerNorm" else layer
            for index, layer in enumerate(gpt(40).layers)
        ),
    )
    shown = terminal.failure(result(summary=grown, before=gpt(40)), rows=0)
    assert "    ... and 20 more changes" in shown
    assert shown.count("~ h.") == 20


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        pytest.param(result({"params": 1, "layers": 1}), "params: 6,201 > 1 (+6,200, +620000.0%) (+1 more)", id="over"),
        pytest.param(result(before=replace(towers(), layers=towers().layers[:-1])), "params 6,100 -> 6,201  (+101, +1.66%), 1 row changed", id="changed"),
        pytest.param(Result("net", State.BUILD_ERROR, error="a.py:1: in f\n    x\nE   KeyError: 'y'"), "KeyError: 'y'", id="build error"),
    ],
)  # fmt: skip
def test_short_line(outcome: Result, line: str) -> None:
    """One line for pytest's short summary."""
    assert terminal.short_reason(outcome) == line


def test_the_closing_table() -> None:
    """One line a model, failures first, then the verdict."""
    results = [
        replace(result(), id="a"),
        replace(result({"params": 6_300}), id="b"),
        replace(result({"params": 1}), id="c"),
    ]
    lines = list(terminal.closing_lines(results, width=80))
    rows = [re.split(r"  +", line) for line in lines[0].splitlines()[2:]]
    assert rows == [
        ["c", "6,201", "6,201", "12.20 k", "24.22 KiB", "params 620100.0%", "OVER BUDGET"],
        ["a", "6,201", "6,201", "12.20 k", "24.22 KiB", "-"],
        ["b", "6,201", "6,201", "12.20 k", "24.22 KiB", "params 98.4%"],
    ]
    assert lines[-1].endswith("1 over budget, 2 ok")


def test_a_real_run_is_marked_in_every_report_and_in_no_snapshot() -> None:
    """A model that the abstract pass could not decide says so beside its numbers; the committed file stays the same."""
    ran = replace(result(), summary=replace(towers(), real_run=True))
    assert table.summary_text(replace(towers(), real_run=True)).startswith("Model: two-towers (keras, real run)\n")
    for shown in ("\n".join(terminal.closing_lines([ran])), reports.render("md", [ran]), reports.render("html", [ran])):
        assert "(real run)" in shown
    assert "real run" not in "\n".join(terminal.closing_lines([result()]))
    assert json.loads(reports.render("json", [ran]))["models"][0]["summary"]["real_run"] is True
    assert codec.unpack(codec.pack(ran)).summary == ran.summary


def test_a_model_that_was_not_run_is_named() -> None:
    """Its params are checked, and a green line does not stand for the rest; a model with inputs is none of these."""
    weights_alone = replace(result(), id="bare", summary=replace(towers(), inputs=(), outputs=(), flops=Flops(None)))
    lines = list(terminal.closing_lines([result(), weights_alone]))
    assert lines[-2] == "note: bare has no inputs: not run, so that shapes, connections and FLOPs are not checked"
    assert not any(line.startswith("note: ") for line in terminal.closing_lines([result()]))
    same = snapshot.render(replace(towers(), real_run=True), declared="a.py")
    assert same == snapshot.render(towers(), declared="a.py")


@pytest.mark.parametrize(
    ("limit", "shown"), [(6_201, "params 100.0%"), (6_200, "params >100.0%"), (3_100, "params 200.0%"), (None, "-")]
)
def test_budget_used(limit: int | None, shown: str) -> None:
    """One param over a limit of thousands does not read as the limit."""
    assert text.used_text(result({} if limit is None else {"params": limit})) == shown


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        pytest.param({"kv_cache_bytes": "1 GB"}, "cache ?", id="metric"),
        pytest.param({"fits": ["24 GB", "80 GB"]}, "device ?", id="a device among others"),
        pytest.param({"growth_in": {"B": {"flops": "linear"}}}, "FLOPs in B ?", id="law"),
    ],
)
def test_budget_used_of_an_unknown_number(written: dict[str, object], shown: str) -> None:
    """It is neither over its limit nor within it."""
    plan = Plan("training", "sgd", 7, fits=(Fit("24 GB", 24 * 10**9, 7), Fit("80 GB", 80 * 10**9, None)))
    entry = ModelEntry("towers", build="a:b", budgets=tuple(budget.parse(written, lambda _: None)))
    assert text.used_text(check(entry, replace(towers(), plans=(plan,)), Snapshot(SnapshotState.OFF))) == shown


@pytest.mark.parametrize(
    ("written", "base", "shown"),
    [
        pytest.param({"params": {"max": 7_000, "growth": "+2%"}}, 6_000, "params growth 167.5%", id="growth"),
        pytest.param({"params": {"max": 7_000, "growth": "+0%"}}, 6_000, "params growth over", id="no growth at all"),
        pytest.param({"params": {"max": 7_000, "growth": "+5%"}}, 6_000, "params 88.6%", id="growth that is allowed"),
        pytest.param({"params": {"max": 6_200, "growth": "+2%"}}, 6_000, "params >100.0%", id="a max before growth"),
        pytest.param({"params": 7_000, "layers": {"min": 12}}, None, "layers min 50.0%", id="min"),
        pytest.param(
            {"params": 7_000, "layers": {"dense": {"params": 2_525}}}, None, "layer params 200.0%", id="a layer"
        ),
    ],
)
def test_budget_used_is_that_of_the_limit_that_fails(written: dict[str, object], base: int | None, shown: str) -> None:
    """6,201 params: 201 more than the base, of the 120 that 2% of it are; beside a failure nothing looks like a pass."""
    limits = tuple(budget.parse(written, lambda below: None))
    width = None if base is None else Weight("kernel", (base,))
    earlier = None if width is None else replace(towers(), layers=(Layer("dense", "Dense", weights=(width,)),))
    entry = ModelEntry("towers", build="a:b", budgets=limits)
    baseline = None if earlier is None else budget.Baseline("HEAD^1", earlier)
    assert text.used_text(check(entry, towers(), Snapshot(SnapshotState.OFF), base=baseline)) == shown


def test_a_markdown_page_stays_below_the_limit_of_step_summaries() -> None:
    """Cut under 900 KiB, with a count."""
    many = [replace(result(), id=f"model-{n}", state=State.BUILD_ERROR, error="x\n" * 9_000) for n in range(100)]
    page = reports.render("md", many)
    assert len(page.encode()) < 901 * 1024
    assert "did not fit" in page


def test_json_reads_back() -> None:
    """The machine report holds every number."""
    data = json.loads(reports.render("json", [result()]))
    assert data["schema"] == 1
    assert data["models"][0]["summary"]["params"] == 6201


def test_params_that_cannot_be_seen_are_no_number_in_any_table() -> None:
    """A delegate, or a shard that is not there, hides some: what can be seen is no total."""
    hidden = replace(result(), summary=replace(towers(), file=FileFacts(9, unseen="a delegate")))
    tables = [
        "\n".join(terminal.closing_lines([hidden])),
        reports.render("md", [hidden]),
        reports.render("card", [hidden]),
    ]
    assert not any(shown in text for text in tables for shown in ("6,201", "6.20k", "24.22 KiB"))
    assert "? params" in repr(hidden.summary)


def test_a_card_says_which_file_it_is_of() -> None:
    """With the model that it was exported from, where that is known."""
    shipped = replace(towers(), file=FileFacts(12_345), export=Export("towers", {}))
    assert "| File | 12,345 bytes, exported from <code>towers</code> |" in reports.render(
        "card", [replace(result(), summary=shipped)]
    )
