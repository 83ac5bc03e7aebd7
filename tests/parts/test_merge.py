"""Parts that are merged come to what one run comes to, or to all reasons why they do not."""

from __future__ import annotations

import json

import pytest

from tests.parts.conftest import REPORT_WORDS, Zoo


@pytest.mark.parametrize(
    "update", [pytest.param((), id="check"), pytest.param(("--model-budget-update",), id="update")]
)
def test_merged_parts_are_the_unsharded_run(zoo: Zoo, update: tuple[str, ...]) -> None:
    """Every report is the same byte for byte, and so are the exit code and the snapshots that an update run writes."""
    before = zoo.project.snapshots()
    codes = [zoo.part(number, 3, *update) for number in (1, 2, 3)]
    assert zoo.project.snapshots() == before
    merged = zoo.merge(".", *(f"--report={word}" for word in REPORT_WORDS))
    from_parts, written = zoo.reports(), zoo.project.snapshots()
    zoo.repository.git("checkout", "-q", "--", ".")
    whole = zoo.project.run(*update, *(f"--model-budget-report={word}" for word in REPORT_WORDS))
    assert not merged.err
    assert from_parts == zoo.reports()
    assert written == zoo.project.snapshots()
    assert (merged.code, 1 in codes, set(codes) <= {0, 1}) == (whole.ret, True, True)
    models = {model["id"]: model["state"] for model in json.loads(from_parts["report.json"])["models"]}
    assert (models["group edge"], models["snapshot-files"], models["wide"]) == (
        "OVER BUDGET",
        "OBSOLETE",
        "OVER BUDGET",
    )
    kinds = {finding["kind"] for finding in json.loads(from_parts["report.json"])["findings"]}
    assert {"snapshot deleted"} <= kinds
