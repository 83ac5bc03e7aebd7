"""Counts every model of a zoo, in one process: `python tests/benchmarks/zoo.py timm` (or `torchvision`, `transformers`).

Each model is built from its default configuration and counted at its own input size with a symbolic batch. One JSON
line per model is printed (or written to `--out`), the verdict at the end: failures, numbers that differ from the
published ones in `tests/data`, operators without a formula, mean CPU seconds. Needs `pip install timm transformers`,
which the project itself never does. `--part 0/4` takes every fourth model, beginning with the first.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import logging
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from pytest_modelbudget.backends import torch as backend  # noqa: E402
from pytest_modelbudget.inputs import parse  # noqa: E402
from pytest_modelbudget.summary import Summary  # noqa: E402

DATA = ROOT / "tests" / "data"
PATIENCE = 120  # CPU seconds for one model, then it counts as failed
TOKENS, SAMPLES = 64, 16_000


@dataclass(frozen=True, slots=True)
class Sample:
    """A model to count: its inputs follow from the built model; published numbers where there are any."""

    name: str
    build: Callable[[], Any]
    inputs: Callable[[Any], Any]
    params: int | None = None
    gmacs: float | None = None


def _table(file: str) -> Iterator[dict[str, str]]:
    with (DATA / file).open() as lines:
        yield from csv.DictReader(line for line in lines if not line.startswith("#"))


def timm_models() -> Iterator[Sample]:
    """Every registered name of timm, at the input size of its default weights."""
    import timm

    known = {(row["model"], row["image"]): row for row in _table("timm.csv")}

    def image(model: Any) -> str:
        channels, height, width = (model.pretrained_cfg or {}).get("input_size", (3, 224, 224))
        return f"float32[B, {channels}, {height}, {width}]"

    for name in timm.list_models():
        shown = timm.get_pretrained_cfg(name)
        row = known.get((name, str(shown.input_size[-1])) if shown else ("", ""), {})
        yield Sample(
            name, lambda name=name: timm.create_model(name), image, _number(row.get("params")), _real(row.get("gmacs"))
        )


def torchvision_models() -> Iterator[Sample]:
    """Every builder of torchvision: images, lists of images for detectors, clips, pairs of frames."""
    from torchvision import models

    known = {row["builder"]: row for row in _table("torchvision_params.csv") if row["kwargs"] == "{}"}
    for name in models.list_models():
        row = known.get(name, {})
        module = models.get_model_builder(name).__module__
        size = row.get("input") or ("1x3x299x299" if "inception" in name else "1x3x224x224")
        batch = f"float32[{', '.join(['B', *size.split('x')[1:]])}]"
        inputs: Any = [batch]
        if ".detection" in module:
            inputs = {"args": [["float32[3, 320, 320]"]]}
        elif ".video" in module and "input" not in row:
            inputs = ["float32[B, 3, 16, 224, 224]"]
        elif ".optical_flow" in module:
            inputs = ["float32[B, 3, 128, 128]"] * 2
        kwargs: dict[str, Any] = {"weights": None}
        if ".detection" in module or ".segmentation" in module:
            kwargs["weights_backbone"] = None
        yield Sample(
            name,
            lambda name=name, kwargs=kwargs: models.get_model(name, **kwargs),
            lambda model, inputs=inputs: inputs,
            _number(row.get("params")),
            _real(row.get("gmacs")),
        )


def transformers_models() -> Iterator[Sample]:
    """One model of each architecture of transformers, from its default configuration."""
    import transformers
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kinds = ("MODEL_FOR_CAUSAL_LM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM", "MODEL_FOR_IMAGE_CLASSIFICATION", "MODEL")
    tables = [getattr(modeling_auto, f"{kind}_MAPPING_NAMES") for kind in kinds]
    for kind, configuration in CONFIG_MAPPING_NAMES.items():
        found = next((table[kind] for table in tables if kind in table), None)
        if found is None:
            continue
        names = (found,) if isinstance(found, str) else found

        def build(name: str = names[0], configuration: str = configuration) -> Any:
            return getattr(transformers, name)(getattr(transformers, configuration)())

        yield Sample(kind, build, _of_transformers)


def _of_transformers(model: Any) -> dict[str, Any]:
    config, main = model.config, model.main_input_name
    main, *others = [main] if isinstance(main, str) else main
    ids = f"int64[B, {TOKENS}]"
    if main == "input_ids":
        decoder = {"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {}
        image = {"pixel_values": _image(config.vision_config)} if _is_pair(config) else {}
        return {"input_ids": ids, **decoder, **image}
    if main == "pixel_values":  # and beside it, for OneFormer, what to look for in words
        return {main: _image(config), **dict.fromkeys(others, f"int64[B, {getattr(config, 'task_seq_len', 77)}]")}
    if main == "input_features":
        mels = getattr(config, "num_mel_bins", getattr(config, "feature_size", 80))
        frames = 2 * getattr(config, "max_source_positions", 1500)
        decoder = {"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {}
        return {main: f"float32[B, {mels}, {frames}]", **decoder}
    return {main: f"float32[B, {SAMPLES}]"}


def _is_pair(config: Any) -> bool:
    """Whether a text and an image go in beside each other, as in CLIP."""
    return hasattr(config, "vision_config") and hasattr(config, "projection_dim")


def _image(config: Any) -> str:
    size = getattr(config, "image_size", 224) or 224
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return f"float32[B, {getattr(config, 'num_channels', 3)}, {height}, {width}]"


def _number(text: str | None) -> int | None:
    return int(text) if text else None


def _real(text: str | None) -> float | None:
    return float(text) if text else None


ZOOS = {"timm": timm_models, "torchvision": torchvision_models, "transformers": transformers_models}


def count(sample: Sample) -> dict[str, Any]:
    """One line of the report; CPU seconds are those of building and counting."""
    begin = time.process_time()
    try:
        with _patience():
            with backend.global_state_restored(), backend.abstract():
                model = sample.build()
            built = time.process_time()
            inputs = parse(sample.inputs(model))
            sizes = dict.fromkeys(inputs.symbols, 1)
            summary = backend.summarize(model, name=sample.name, inputs=inputs, sizes=sizes, built_here=True)
    except (Exception, TimeoutError) as mistake:
        text = f"{type(mistake).__name__}: {mistake}"
        return {"model": sample.name, "seconds": time.process_time() - begin, "error": text}
    end = time.process_time()
    return {
        "model": sample.name,
        "seconds": round(end - begin, 3),
        "build": round(built - begin, 3),
        "params": summary.params,
        "flops": summary.flops.value,
        "uncounted": dict(summary.flops.uncounted),
        "notes": summary.notes,
        "differs": _differs(sample, summary),
    }


def _differs(sample: Sample, summary: Summary) -> str | None:
    if sample.params not in (None, summary.params):
        return f"params {summary.params:,} instead of {sample.params:,}"
    if sample.gmacs is not None and abs((summary.flops.value or 0) / 2e9 - sample.gmacs) > 1e-4 + 0.002 * sample.gmacs:
        return f"{(summary.flops.value or 0) / 2e9:.4f} GMACs instead of {sample.gmacs}"
    return None


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TimeoutError(f"more than {PATIENCE} CPU s")

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def verdict(lines: list[dict[str, Any]]) -> str:
    """The totals, then every failure and every difference."""
    good = [line for line in lines if "error" not in line]
    seconds = sorted(line["seconds"] for line in good) or [0.0]
    mean = sum(seconds) / len(seconds)
    uncounted: Counter[str] = Counter()
    for line in good:
        uncounted.update(line["uncounted"].keys())
    real = sum(any("run on the CPU" in note for note in line["notes"]) for line in good)
    text = [
        f"{len(lines)} models, {len(lines) - len(good)} failed, {real} run with memory; CPU seconds: mean {mean:.3f}, "
        f"median {seconds[len(seconds) // 2]:.3f}, most {seconds[-1]:.2f}",
        f"operators without a formula, by models that use them: {dict(uncounted.most_common())}",
    ]
    text += [f"  differs: {line['model']}: {line['differs']}" for line in good if line["differs"]]
    text += [
        f"  failed: {line['model']}: {' | '.join(line['error'].splitlines())[:400]}"
        for line in lines
        if "error" in line
    ]
    return "\n".join(text)


def main() -> None:
    """Count and report."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("zoo", choices=ZOOS)
    options.add_argument("names", nargs="*", help="these models alone")
    options.add_argument("--part", default="0/1")
    options.add_argument("--out", type=argparse.FileType("w"), default=sys.stdout)
    given = options.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    first, step = map(int, given.part.split("/"))
    samples = [one for one in ZOOS[given.zoo]() if not given.names or one.name in given.names][first::step]
    lines = []
    for sample in samples:
        lines.append(count(sample))
        print(json.dumps(lines[-1]), file=given.out, flush=True)
    print(verdict(lines))


if __name__ == "__main__":
    main()
