"""Whether our plans say what trained on a card of 24 GB: `python tests/benchmarks/timm_24gb.py`.

`tests/data/memory/timm_24gb.csv` has, for each model of timm, the largest batch of 512, 384, 256, 192, 128, ... that trained on an RTX 3090; the
next larger one ran out of memory (`results/benchmark-train-amp-nchw-pt112-cu113-rtx3090.csv` and `benchmark.py` of
huggingface/pytorch-image-models, whose `_try_run` goes down by `decay_batch_step`). So each row is two runs whose
outcome is known, save that nothing larger than 512 was tried. A plan is right where it fits at the first and not at the
second; `tight` is neither right nor wrong, and shown apart. The bar: at most 5 % of the planned runs are wrong.

Settings are those of that script in August 2022: torch 1.12 with CUDA 11.3, NCHW, autocast in float16 without a scaler,
SGD with Nesterov's momentum, without foreach; gradients are set to zero and not let go of (`zero_grad` of torch before
2.0), no dropout that a model does not have by itself, attention as matrices (timm 0.6 had no fused one). Definitions are
those of the timm that is installed: a model that it does not have, or has with other params, is left out by name.
Needs `pip install timm`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ["TIMM_FUSED_ATTN"] = "0"
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from pytest_modelbudget.backends.torch.model.build import abstract  # noqa: E402
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel  # noqa: E402
from pytest_modelbudget.backends.torch.training.step import record_step  # noqa: E402
from pytest_modelbudget.inputs import Inputs, parse  # noqa: E402
from pytest_modelbudget.planner import Training  # noqa: E402
from pytest_modelbudget.planner.devices import Device, context, device_by_name  # noqa: E402
from pytest_modelbudget.planner.libraries import blas_workspaces, with_blas  # noqa: E402
from pytest_modelbudget.planner.margins import fit_trace  # noqa: E402
from pytest_modelbudget.summary import Fit  # noqa: E402

TABLE = ROOT / "tests" / "data" / "memory" / "timm_24gb.csv"
TORCH, CUDA, LARGEST = "1.12.0", "11.3", 512
RECIPE = Training(
    optimizer="sgd",
    optimizer_options={"momentum": 0.9, "nesterov": True},
    precision="fp16-mixed",
    foreach=False,
    zero_grad="never",
    loss="cross_entropy",
)


@dataclass(frozen=True, slots=True)
class Row:
    """A model at a size of image, the largest batch of it that trained, and its params in millions."""

    model: str
    image: int
    batch: int
    params: float

    @property
    def next_batch(self) -> int | None:
        """The batch that was tried before, and ran out of memory."""
        from timm.utils import decay_batch_step

        batch, tried = LARGEST, None
        while batch > self.batch:
            batch, tried = decay_batch_step(batch), batch
        return tried


@dataclass(frozen=True, slots=True)
class Side:
    """What was planned of one batch of a row, and whether it `ran`."""

    model: str
    batch: int
    ran: bool
    fit: Fit

    @property
    def right(self) -> bool | None:
        """Whether the plan says so; None where it is tight."""
        return None if self.fit.fits is None else self.fit.fits == self.ran


def rows(path: Path) -> list[Row]:
    """The rows of the table."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [
        Row(line["model"], int(line["train_img_size"]), int(line["train_batch_size"]), float(line["param_count"]))
        for line in csv.DictReader(lines)
    ]


def card() -> Device:
    """The RTX 3090 of the table, with the context of CUDA before 11.7."""
    return replace(device_by_name("RTX 3090"), context=context("cuda", CUDA))


def sides(row: Row) -> Iterator[Side]:
    """Both runs of a row.

    Raises:
        LookupError: the model that is installed is another one.
    """
    model = build(row)
    for batch, ran in ((row.batch, True), (row.next_batch, False)):
        if batch is not None:
            yield Side(row.model, batch, ran, planned(model, row, batch))


def build(row: Row) -> Any:
    """The row's model, on meta.

    Raises:
        LookupError: timm has no such model, or another one under its name.
    """
    import timm

    if not timm.is_model(row.model):
        raise LookupError("timm has it no more")
    known = timm.get_pretrained_cfg(row.model)
    with abstract():
        if known and known.input_size[-1] == row.image:
            model = timm.create_model(row.model)
        else:
            try:
                model = timm.create_model(row.model, img_size=row.image)
            except TypeError:  # convolutions alone take any size
                model = timm.create_model(row.model)
            except RuntimeError as error:  # its weights have no such tag
                raise LookupError(f"timm has it no more: {error}") from error
    params = round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2)
    if abs(params - row.params) > 0.011:
        raise LookupError(f"other params: {params} M, not {row.params} M")
    return model.train()


def planned(model: Any, row: Row, batch: int) -> Fit:
    """Whether a step of this batch fits."""
    inputs = parse(f"float32[B, 3, {row.image}, {row.image}]")
    assert isinstance(inputs, Inputs)
    trace = record_step(RunnableModel(row.model, model, inputs), {"B": batch}, replace(RECIPE, batch=batch))
    on = card()
    return fit_trace(with_blas(trace, blas_workspaces(TORCH, on)), on, repeats=1)


def main() -> int:
    """Print a line for each side that is not right, and the shares; 1 when more than 5 % are wrong, or none is planned."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--every", type=int, default=1, help="look at each so manieth row alone")
    parser.add_argument("--part", default="0/1", help="K/N: look at the K-th of N parts alone")
    parser.add_argument("--json", type=Path, help="a file that all sides are written to, a line for each")
    parser.add_argument("--models", nargs="*", help="look at these alone")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    part, parts = map(int, options.part.split("/"))
    chosen = [row for row in rows(options.table)[:: options.every] if not options.models or row.model in options.models]
    found: list[Side] = []
    left_out = not_planned = 0
    for row in chosen[part::parts]:
        start = time.process_time()
        try:
            pair = list(sides(row))
        except LookupError as reason:
            left_out += 1
            print(f"{row.model}: left out: {reason}", flush=True)
            continue
        except Exception as error:
            not_planned += 1
            print(f"{row.model}: not planned: {type(error).__name__}: {error}".splitlines()[0], flush=True)
            continue
        found += pair
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                for side in pair:
                    data = {**asdict(side), "low": side.fit.low, "high": side.fit.high, "verdict": side.fit.verdict}
                    file.write(json.dumps({**data, "seconds": time.process_time() - start}) + "\n")
        for side in pair:
            if side.right is not True:
                print(line_of(side), flush=True)
    right = [side.right for side in found]
    good = right.count(True) + right.count(None)
    print(f"{len(chosen[part::parts])} rows: {left_out} left out, {not_planned} not planned")
    print(f"{len(found)} sides: {right.count(True)} right, {right.count(None)} tight, {right.count(False)} wrong")
    print(f"right or tight: {good / max(1, len(found)):.1%}, tight: {right.count(None) / max(1, len(found)):.1%}")
    return 0 if found and good >= 0.95 * len(found) else 1


def line_of(side: Side) -> str:
    """`resnet50 batch 256 ran: does not fit (23.1 to 25.0 of 23.69 GiB: ...)`."""
    low, high = (size / 2**30 for size in (side.fit.low or 0, side.fit.high or 0))
    margins = ", ".join(f"{margin.cause} {margin.bytes / 2**30:.2f}" for margin in side.fit.margins)
    outcome = "ran" if side.ran else "ran out"
    capacity = side.fit.capacity / 2**30
    return f"{side.model} batch {side.batch} {outcome}: {side.fit.verdict} ({low:.2f} to {high:.2f} of {capacity:.2f}: {margins})"


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
