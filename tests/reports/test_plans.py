"""Planned runs in every report: the sentences, the tables, the curve, and what machines read."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from pytest_modelbudget import reports
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.reports import terminal, text
from pytest_modelbudget.results import Result, Snapshot, SnapshotState, check
from pytest_modelbudget.summary import Fit, Growth, Margin, Plan, Way
from pytest_modelbudget.trackers.mlflow import names
from tests.builders import serving, towers, training

MIB = 2**20


def result(*planned: Plan, growth: tuple[Growth, ...] = (), budgets: dict[str, Any] | None = None) -> Result:
    """The towers with plans, checked."""
    summary = replace(towers(), plans=planned, growth=growth)
    return check(ModelEntry("towers", build="a:b", budgets=budgets or {}), summary, Snapshot(SnapshotState.EQUAL))


BUDGETS = {"fits": "40 MiB"}


def test_a_failure_without_a_table_tells_the_run() -> None:
    """In Markdown, where no layer table follows; params have nothing to do with it."""
    shown = terminal.failure(result(training(), budgets=BUDGETS), rows=0)
    assert (
        "fits: training needs 45.00 MiB of 40.00 MiB on 40 MiB: short by 5.000 MiB; levers: checkpointing: blocks"
        in shown
    )
    assert "  training (batch 32, adamw, bf16-mixed): peak 40.00 MiB in backward of dense_2; " in shown
    assert "largest layers" not in shown
    assert "largest layers" in terminal.failure(result(training(), budgets={**BUDGETS, "params": 1}), rows=0)


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        pytest.param({"fits": ["40 MiB", "80 MiB"]}, "device 112.5%", id="the fullest device"),
        pytest.param({"fits": "80 MiB"}, "device 56.2%", id="of those that limit"),
        pytest.param({"training_peak_bytes": "50 MiB"}, "training 80.0%", id="a peak"),
    ],
)
def test_used(budgets: dict[str, Any], expected: str) -> None:
    """Devices count among the limits that are used most."""
    assert text.used_text(result(training(), budgets=budgets)) == expected


def test_markdown() -> None:
    """A table of runs, when there are any."""
    page = reports.render("md", [result(training(), Plan("inference", "fp32", None, notes=("no_kernels",)))])
    assert "| Model | Planned run | Peak | Where | Reserved | Devices |" in page
    rows = [line for line in page.splitlines() if "ing (" in line or "inference (" in line]
    assert [[html.unescape(re.sub("<.*?>", "", cell)).strip() for cell in row.split("|")[1:-1]] for row in rows] == [
        [
            "towers", "training (batch 32, adamw, bf16-mixed)", "40.00 MiB", "in backward of dense_2", "44.00 MiB",
            "fits 80 MiB (needs 45.00 MiB of 80.00 MiB); does not fit 40 MiB (needs 45.00 MiB of 40.00 MiB); not known "
            "whether it fits abacus",
        ],
        ["towers", "inference (fp32)", "?", "no_kernels", "?", "-"],
    ]  # fmt: skip
    assert "Planned run" not in reports.render("md", [result()])


def test_openmetrics() -> None:
    """The peak as a gauge, the device as a share; what is not known is left out."""
    page = reports.render("openmetrics", [result(training(), Plan("inference", "fp32", None), budgets=BUDGETS)])
    assert 'model_training_peak_bytes{model="towers"} 41943040' in page
    assert "# UNIT model_training_peak_bytes bytes" in page
    assert 'model_budget_used_ratio{model="towers",metric="fits"} 1.125000' in page
    assert "model_inference_peak_bytes" not in page


def test_mlflow_names() -> None:
    """In MiB, beside the other numbers of memory."""
    found = names.metrics(replace(towers(), plans=(training(),)))
    assert found["memory/training_peak_mib"] == 40
    assert "memory/inference_peak_mib" not in found


@pytest.mark.parametrize("kind", ["codequality", "comment", "md"])
def test_a_device_that_is_too_small_is_a_finding(kind: str) -> None:
    """In every report that lists broken limits, with the numbers."""
    words = "training needs 45.00 MiB of 40.00 MiB on 40 MiB: short by 5.000 MiB"
    assert words in html.unescape(reports.render(kind, [result(training(), budgets=BUDGETS)]))


@pytest.mark.parametrize("kind", ["comment", "md", "html", "json"])
def test_a_tight_fit_and_the_way_out_are_shown(kind: str) -> None:
    """What is not known of the need, by name, and the recipe to paste."""
    tight = Fit("40 MiB", 40 * MIB, 45 * MIB, 36 * MIB, (Margin("fragmentation", 9 * MIB),))
    plan = replace(training(), fits=(tight,), ways=(Way("40 MiB", "training: {batch: 4}", ("batch: 4",), 3),))
    page = html.unescape(reports.render(kind, [result(plan, budgets={"fits": {"device": "40 MiB", "tight": "fail"}})]))
    words = "training is tight on 40 MiB: needs 36.00 MiB to 45.00 MiB of 40.00 MiB: fragmentation 9.000 MiB"
    assert f"{words}; cheapest way to fit 40 MiB: training: {{batch: 4}}" in page


def drawing(page: str) -> ElementTree.Element:
    """The first drawing of a page."""
    found = re.search(r"<svg .*?</svg>", page, re.DOTALL)
    assert found
    return ElementTree.fromstring(found[0])


def test_html() -> None:
    """The sentences, the curve with its words, what is alive at the peak, and what would change it."""
    page = reports.render("html", [result(training(), growth=(Growth("T", "flops", 8, reason="no such position"),))])
    assert '<h3 id="p1-1">Memory of one training step</h3>' in page
    assert '<td>activations</td><td>dense_2</td><td class="number">20.00 MiB</td><td class="number">50.0%</td>' in page
    assert '<td>checkpointing: blocks</td><td class="number">22.00 MiB</td><td>about a third more compute</td>' in page
    assert "flops in T: ? (no such position)" in page
    svg = drawing(page)
    assert (svg.get("role"), svg.get("aria-labelledby")) == ("img", "p1-1-t")
    title = svg.find("title")
    assert title is not None
    assert title.text == (
        "Memory alive in one training step, operator by operator: from 13.00 MiB it rises to a peak of 40.00 MiB in "
        "backward of dense_2 and ends with 16.00 MiB."
    )
    assert [band.get("class") for band in svg.iter("rect")] == ["band forward", "band backward", "band optimizer"]
    assert "style=" not in ElementTree.tostring(svg, encoding="unicode")  # the page's own policy would not let it
    assert "<svg" not in reports.render("html", [result(Plan("training", "sgd", None))])


def test_serving() -> None:
    """What requests keep is told beside the peak, by kinds of tensors, and by its own metrics."""
    served = result(serving(), budgets={"kv_cache_bytes": "4 GiB", "kv_bytes_per_token": "1 MiB"})
    shown = terminal.failure(served, rows=0)
    assert "kv_cache_bytes: 8,589,934,592 bytes > 4,294,967,296 bytes" in shown
    assert (
        "cache 8.000 GiB, 132.0 KiB a token, 1.000 MiB of it in blocks that are not full: 64 tensors keep every token, "
        "100.0 MiB a request; 2 tensors keep the last 4,095 tokens, 20.00 MiB a request; 2 tensors keep the same for any "
        "number of tokens, 8.000 MiB a request"
    ) in shown
    assert 'model_kv_bytes_per_token{model="towers"} 135168' in reports.render("openmetrics", [served])
    assert names.metrics(replace(towers(), plans=(serving(),)))["memory/kv_cache_mib"] == 8 * 1024
    assert "Memory of serving, in its largest pass" in reports.render("html", [served])
