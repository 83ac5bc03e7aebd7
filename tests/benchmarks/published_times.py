"""Our least times against published times of runs: `python tests/benchmarks/published_times.py`.

The truth are the rows of `tests/data/times/published_times.csv`. No least time may be above its published time; the
ranks of both are to correlate by at least 0.95. Each line shows both, and how many times as long the run took. The
option `--markdown` prints the table of groups for the documentation, and words run only rows that have each of them.
Steps of models that are cut over ranks are planned on one, without their optimizer, which is cut too. Where the row is
of a whole batch on many `devices`, its least time is that of one device, divided by their number.
Needs `pip install timm transformers diffusers`.
"""

from __future__ import annotations

import csv
import sys
import time
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import correlation, median
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from pytest_modelbudget.backends.torch.model.build import abstract  # noqa: E402
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel  # noqa: E402
from pytest_modelbudget.backends.torch.training.step import record_step  # noqa: E402
from pytest_modelbudget.planner import Inference, Recipe, Training  # noqa: E402
from pytest_modelbudget.planner.time_bound import time_bounds  # noqa: E402
from pytest_modelbudget.planner.traffic import Work  # noqa: E402
from pytest_modelbudget.summary import TimeBound  # noqa: E402
from tests.benchmarks.published_time_models import DENOISERS, inputs_of, is_language_model, model_of  # noqa: E402

TABLE = ROOT / "tests" / "data" / "times" / "published_times.csv"
LEAST_CORRELATION = 0.95


@dataclass(frozen=True, slots=True)
class Row:
    """A published row with the least time that is planned for it."""

    data: Mapping[str, str]
    bound: TimeBound

    @property
    def factor(self) -> float:
        """How many times as long as the least time the run took."""
        return float(self.data["milliseconds"]) * 1e9 / self.picoseconds

    @property
    def picoseconds(self) -> float:
        """The least time, where the devices share the work evenly and exchange nothing."""
        assert self.bound.picoseconds
        return self.bound.picoseconds / int(self.data["devices"])

    @property
    def group(self) -> str:
        """The rows that it is summed up with."""
        if self.data["model"] in DENOISERS:
            return "steps of diffusion"
        if is_language_model(self.data["model"]):
            return f"{self.data['kind']}, language models"
        return f"{self.data['kind']}, images" + (", batch 1 or 8" if int(self.data["batch"]) <= 8 else "")


def recipe_of(row: Mapping[str, str]) -> Recipe:
    """What a row ran."""
    precision: Any = row["precision"]
    if row["kind"] == "training":
        options = {"momentum": 0.9} if row["optimizer"] == "sgd" else {}
        fp8 = {"fp8": "tensorwise", "precision": "bf16-mixed"} if precision == "fp8" else {"precision": precision}
        return Training(
            optimizer=row["optimizer"], optimizer_options=options, loss="cross_entropy", checkpointing=row["checkpointing"],
            **fp8,
        )  # fmt: skip
    return Inference(precision=precision, kv_cache=int(row["size"]) if row["kind"] == "decoding" else 0)


@cache
def work_of(model: str, kind: str, batch: int, size: int, recipe: Any) -> tuple[Work, ...]:
    """What the operators of a run have to do."""
    run: Recipe = recipe.value
    with abstract():
        network = model_of(model, size)
    inputs = inputs_of(model, size, {"bf16": "bfloat16", "fp16": "float16"}.get(run.precision, "float32"))
    sizes = {"B": batch, **({"T": 1 if kind == "decoding" else size} if is_language_model(model) else {})}
    return record_step(RunnableModel(model, network, inputs), sizes, run).work or ()


@dataclass(frozen=True)
class _Hashable:
    """A recipe as the key of a cache, by its text."""

    value: Recipe

    def __hash__(self) -> int:
        return hash(repr(self.value))


def planned(row: Mapping[str, str]) -> Row:
    """A row with its least time."""
    work = work_of(row["model"], row["kind"], int(row["batch"]), int(row["size"]), _Hashable(recipe_of(row)))
    [bound] = time_bounds(work, [row["device"]])
    assert bound.picoseconds, bound.reason
    return Row(row, bound)


def published_rows() -> list[dict[str, str]]:
    """The rows of the table."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def rank_correlation(rows: Iterable[Row]) -> float:
    """Spearman's coefficient of least and published times."""
    members = list(rows)
    return correlation(
        ranks([row.picoseconds for row in members]),
        ranks([float(row.data["milliseconds"]) for row in members]),
    )


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value, equal ones in the middle of theirs."""
    ordered = sorted(values)
    return [bisect_left(ordered, value) + bisect_right(ordered, value) for value in values]


def show(row: Row) -> str:
    """One line."""
    data, bound = row.data, row.bound
    total = sum(part.picoseconds for part in bound.parts)
    memory = sum(part.picoseconds for part in bound.parts if part.limited == "memory")
    return (
        f"{data['id']:5}{data['model']:30}{data['kind']:10}{data['batch']:>6}{data['size']:>7} {data['precision']:11}"
        f"{data['device']:15}{data['devices']:>5}{row.picoseconds / 1e9:12.3f}{float(data['milliseconds']):12.3f}"
        f"{row.factor:8.2f}{memory / total:8.0%}"
    )


def groups(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows by group."""
    by_group: dict[str, list[Row]] = {}
    for row in rows:
        by_group.setdefault(row.group, []).append(row)
    return dict(sorted(by_group.items()))


def main(arguments: list[str]) -> int:
    """Print the table; the exit status is 1 when a bar is missed, or no row has the words."""
    warnings.simplefilter("ignore")
    words = [argument for argument in arguments if not argument.startswith("--")]
    start = time.process_time()
    print(f"{'id':5}{'model':30}{'kind':10}{'batch':>6}{'size':>7} {'precision':11}{'device':15}{'n':>5}"
          f"{'least ms':>12}{'published':>12}{'factor':>8}{'memory':>8}")  # fmt: skip
    rows = []
    for data in published_rows():
        if all(any(word in value for value in data.values()) for word in words):
            rows.append(planned(data))
            print(show(rows[-1]), flush=True)
    above = [row.data["id"] for row in rows if row.factor < 1]
    print(f"\n{len(rows)} rows, {len(above)} with a least time above the published one {above or ''}".rstrip())
    for group, members in groups(rows).items():
        factors = sorted(row.factor for row in members)
        cells = (f"{len(members)}", *(f"{value:.1f}" for value in (factors[0], median(factors), factors[-1])))
        line = f"| {group} | {' | '.join(cells)} |"
        print(line if "--markdown" in arguments else f"{group:50}{'  '.join(f'{cell:>6}' for cell in cells)}")
    ranked = rank_correlation(rows) if len(rows) > 2 else 1.0
    print(f"rank correlation {ranked:.4f}, {time.process_time() - start:.0f} CPU s")
    return 0 if rows and not above and ranked >= LEAST_CORRELATION else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
