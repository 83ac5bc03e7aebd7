"""Peaks in snapshots: recorded at the end, outside of the digest and of the comparison, rewritten by updates alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.results import SnapshotState, State, check
from pytest_modelbudget.snapshot import compare, read, render, write
from pytest_modelbudget.summary import Plan, ServingCache, Summary
from tests.builders import HOSTILE, towers

TRAINING = Plan("training", "batch 32, adamw, bf16-mixed", 44_000_000, 46_137_344)
INFERENCE = Plan("inference", "T 128, fp32", None, notes=("not planned",))
SERVING = Plan("serving", "bf16, 8 requests", 9_000, 10_000, cache=ServingCache(8_000, 80))
ESTIMATES = """\
estimates:
  training: {recipe: "batch 32, adamw, bf16-mixed", peak_bytes: 44000000, reserved_bytes: 46137344}
  inference: {recipe: "T 128, fp32", peak_bytes: null}
  serving: {recipe: "bf16, 8 requests", peak_bytes: 9000, reserved_bytes: 10000, kv_cache_bytes: 8000, kv_bytes_per_token: 80}
"""
ENTRY = ModelEntry("two-towers", "nets:towers")


def planned(*plans: Plan) -> Summary:
    """The towers with plans."""
    return replace(towers(), plans=plans)


def text(summary: Summary) -> str:
    """Its snapshot."""
    return render(summary, declared="")


def test_shape() -> None:
    """A line for each planned run; all above is as without plans, the digest too."""
    assert text(planned(TRAINING, INFERENCE, SERVING)) == text(towers()) + ESTIMATES


def test_they_are_read_back() -> None:
    """Recipe, peak and reserve, and what is not known."""
    summary = read(text(planned(TRAINING, INFERENCE, SERVING)))
    assert summary.plans == (TRAINING, replace(INFERENCE, notes=()), SERVING)
    assert read(text(towers())).plans == ()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_recipes(name: str) -> None:
    """A recipe names what users wrote: any text comes back as it was, and cannot pass for another line."""
    summary = planned(replace(TRAINING, recipe=f"batch 1, {name}\nestimates:\n  x"))
    assert read(text(summary)).plans == summary.plans
    assert list(yaml.safe_load(text(summary))["estimates"]) == ["training"]


@pytest.mark.parametrize(
    "committed",
    [
        pytest.param(planned(replace(TRAINING, peak_bytes=1)), id="another peak"),
        pytest.param(planned(replace(TRAINING, recipe="batch 1, sgd, fp32")), id="another recipe"),
        pytest.param(towers(), id="none yet"),
        pytest.param(planned(TRAINING, INFERENCE), id="one more"),
    ],
)
def test_estimates_alone_are_no_change(tmp_path: Path, committed: Summary) -> None:
    """OK in a plain run, without a word; an update writes them."""
    fresh = planned(TRAINING)
    before = compare(tmp_path, ENTRY, committed)
    write(tmp_path, ".", before.path, before.text)
    stored = compare(tmp_path, ENTRY, fresh)
    assert (stored.stored, stored.note, stored.before) == (SnapshotState.RESTATED, "", None)
    plain, update = (check(ENTRY, fresh, stored, accept=accept) for accept in (False, True))
    assert (plain.state, plain.to_write, plain.changes) == (State.OK, False, ())
    assert (update.state, update.to_write) == (State.OK, True)
    write(tmp_path, ".", stored.path, stored.text)
    assert compare(tmp_path, ENTRY, fresh).stored is SnapshotState.EQUAL


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param("params: 6201\n", "params: 6202\n", SnapshotState.BROKEN, id="a total edited by hand"),
        pytest.param(
            "peak_bytes: 44000000", "peak_bytes: lots", SnapshotState.RESTATED, id="an estimate edited by hand"
        ),
        pytest.param("  training:", "<<<<<<< ours\n  training:", SnapshotState.BROKEN, id="a conflict among estimates"),
    ],
)
def test_edited_files(tmp_path: Path, old: str, new: str, expected: SnapshotState) -> None:
    """What is compared is guarded by the digest; a conflict is one wherever it is."""
    summary = planned(TRAINING)
    written = compare(tmp_path, ENTRY, summary)
    write(tmp_path, ".", written.path, written.text.replace(old, new))
    assert compare(tmp_path, ENTRY, summary).stored is expected


@pytest.mark.parametrize(
    "estimates",
    [
        pytest.param("estimates: 7\n", id="no mapping"),
        pytest.param("estimates:\n  training: 7\n", id="no fields"),
        pytest.param("estimates:\n  training: {recipe: fp32}\n", id="no peak"),
        pytest.param("estimates:\n  training: {recipe: fp32, peak_bytes: many}\n", id="no number"),
        pytest.param("estimates:\n  training: {recipe: fp32, peak_bytes: true}\n", id="true is no number"),
        pytest.param("estimates:\n  sleeping: {recipe: fp32, peak_bytes: 1}\n", id="another kind"),
    ],
)
def test_damaged_estimates(estimates: str) -> None:
    """Where a file has to be read, what is no estimate is told."""
    with pytest.raises(ModelBudgetError, match=r"damaged|digest"):
        read(text(towers()) + estimates)


def test_a_model_without_rows() -> None:
    """The line of no layers stays a line."""
    summary = Summary("empty", "torch", (), plans=(TRAINING,))
    assert read(text(summary)).plans == (TRAINING,)
    assert text(summary).startswith(text(replace(summary, plans=())))
