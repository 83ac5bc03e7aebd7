"""What vLLM printed when it started: weights, the peak of its profiling run, and its pool of tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_modelbudget.api import plan

ROWS: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[3] / "data" / "serving_logs.yaml").read_text(encoding="utf-8")
)
GIB = 2**30


@pytest.mark.slow
@pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in ROWS])
def test_published_log(row: dict[str, Any]) -> None:
    """Weights and bytes of a token are within 1 % of the log, its peak where the sampler is what takes most, too."""
    transformers = pytest.importorskip("transformers")
    sizes = dict(row["config"])
    config = getattr(transformers, sizes.pop("class"))(**sizes)
    build = partial(transformers.AutoModelForCausalLM.from_config, config)

    served = plan(build, "int64[B, T]", name="model", serving=row["serving"])

    assert served.peak_bytes is not None, served.notes
    assert served.cache is not None
    roles = served.by_role()
    if "weights" in row:
        within = row.get("weights_within", 1) / 100
        assert roles["param"] / GIB == pytest.approx(row["weights"], rel=within)
    if "pool" in row:
        assert served.cache.bytes_per_token == pytest.approx(row["pool"]["gib"] * GIB / row["pool"]["tokens"], rel=0.01)
    if "peak" in row:
        peak = served.peak_bytes - roles["param"] - roles["cache"]
        assert peak / GIB == pytest.approx(row["peak"], rel=row.get("peak_within", 1) / 100)
