"""Artifacts: models and their layers as the files and tables that MLflow's pages show. Pure; touches no file."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from html import escape
from typing import Any

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import InvalidText, read_json
from pytest_modelbudget.reports import html, table, text
from pytest_modelbudget.results import Result, State, codec
from pytest_modelbudget.summary import Layer, Summary
from pytest_modelbudget.summary.show import cells, records
from pytest_modelbudget.system.escape import harmless, harmless_lines
from pytest_modelbudget.trackers.mlflow import names

ARCHIVE = "all-models.zip"
"""What a run has of the models without artifacts of their own."""

RESULT = "result.json"
"""A model's outcome as data (`wire.result_dict`), from which every other file of it can be made."""

_TEXT_WIDTH = 120
"""Columns of a summary as text; the page scrolls, a terminal's 80 would fold."""

Cell = str | int | float


def slug_of(name: str) -> str:
    """`name` as a name for files and pages; a short hash keeps apart what the replacing would make equal.

    >>> slug_of("resnet50"), slug_of("a/b")
    ('resnet50', 'a_b-c14cddc0')
    """
    slug = re.sub("[^A-Za-z0-9._-]", "_", name)[:150]
    return slug if slug == name and re.match("[^.]", slug) else f"{slug.lstrip('.')}-{sha256_hex(name)[:8]}"


def sha256_hex(value: str) -> str:
    """A fingerprint of `value`, 64 hexadecimal digits."""
    return hashlib.sha256(value.encode("utf-8", "backslashreplace")).hexdigest()


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """One result, and what is made of it more than once: `slug`, `data` of its summary, the same as `text`, `numbers`.

    Making these walks through all layers, of which a run of many models has a hundred thousand.
    """

    result: Result
    slug: str
    data: Mapping[str, Any]
    text: str
    numbers: Mapping[str, float]


def measure(result: Result, slug: str) -> MeasuredModel:
    """A result with what is made of it."""
    if result.summary is None:
        return MeasuredModel(result, slug, {}, "null", {})
    data = result.summary.to_dict()
    return MeasuredModel(result, slug, data, json.dumps(data), names.metrics(result.summary, result.limits))


def _result_json(model: MeasuredModel) -> str:
    """The `result.json` of a model; its summary, by far the most of it, was made into text before."""
    head = json.dumps({**codec.result_dict(replace(model.result, summary=None)), "summary": None})
    return f"{head.removesuffix('null}')}{model.text}}}\n"


def model_files(model: MeasuredModel) -> dict[str, str]:
    """The files of one model in a run: name -> text."""
    result, data = model.result, _result_json(model)
    if result.summary is None:
        return {"error.txt": harmless_lines(result.error) + "\n", RESULT: data}
    files = {
        "summary.txt": table.summary_text(result.summary, width=_TEXT_WIDTH) + "\n",
        "summary.html": html.page([result]),
        "layers.json": layers_table(result.summary),
        RESULT: data,
    }
    if result.changes:
        files["snapshot.diff.txt"] = "".join(f"{harmless(str(change))}\n" for change in result.changes)
    return files


def latest_files(summary: Summary) -> dict[str, str]:
    """The files beside a model's history: its newest state, whatever became of it in that run."""
    return {"summary.html": html.page([Result(summary.model, State.OK, summary)]), "layers.json": layers_table(summary)}


def latest_elsewhere(commit: str) -> dict[str, str]:
    """The same beside a history whose run has only the numbers of all models, where a model has no files of its own."""
    sentence = f"The layers of this model are not here: at commit {commit[:12]}, modelbudget show counts them."
    row = (sentence, *[cells.UNKNOWN] * (len(_LAYER_COLUMNS) - 1))
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Layers</title><p>{escape(sentence)}</p></html>\n'
    )
    return {"summary.html": page, "layers.json": _table_json(_LAYER_COLUMNS, iter([row]))}


def summary_files(summary: Summary) -> dict[str, str]:
    """The files of one model in a run of training; `modelbudget show` and `diff` read the last one."""
    text_table = table.summary_text(summary, width=_TEXT_WIDTH) + "\n"
    return {"summary.txt": text_table, **latest_files(summary), "summary.json": json.dumps(summary.to_dict())}


class Archive:
    """A zip of models by slug: each one's outcome as data and its layers as a table for spreadsheets."""

    def __init__(self) -> None:
        self.models = 0
        self._sink = io.BytesIO()
        self._zip = zipfile.ZipFile(self._sink, "w", zipfile.ZIP_DEFLATED)

    def add(self, model: MeasuredModel) -> None:
        """Put one model into it."""
        self.models += 1
        for name, content in _archive_files(model).items():
            self._zip.writestr(zipfile.ZipInfo(f"{model.slug}/{name}"), content, zipfile.ZIP_DEFLATED, 1)

    def content(self) -> bytes:
        """The finished archive."""
        self._zip.close()
        return self._sink.getvalue()


def _archive_files(model: MeasuredModel) -> Mapping[str, str]:
    if model.result.summary is None:
        return model_files(model)
    return {RESULT: _result_json(model), "layers.csv": records.csv_text(model.result.summary)}


def summary_in(data: str) -> Summary:
    """The summary in a `result.json`.

    Raises:
        ModelBudgetError: there is none in it.
    """
    try:
        result = read_json(data)
    except InvalidText as error:
        raise ModelBudgetError(str(error)) from None
    return Summary.checked(result.get("summary") if isinstance(result, dict) else None)


_MODEL_COLUMNS = (
    "model", "params", "trainable", "non-trainable", "buffers", "weights MiB", "GFLOPs", "layers",
    "largest layer %", "budget used %", "state",
)  # fmt: skip
"""No dots, which the page shows as empty columns; key first and params second, which its comparison starts with."""

_LAYER_COLUMNS = ("layer", "params", "type", "output shape", "trainable params", "connected to")


def models_table(rows: Iterable[Sequence[Cell]]) -> str:
    """The table of all models, of their `model_row`s."""
    return _table_json(_MODEL_COLUMNS, iter(rows))


def layers_table(summary: Summary) -> str:
    """The table of a model's layers."""
    return _table_json(_LAYER_COLUMNS, map(_layer_cells, summary.layers))


def _table_json(columns: Sequence[str], rows: Iterator[Sequence[Cell]]) -> str:
    """A table as MLflow stores and shows it."""
    return json.dumps({"columns": columns, "data": list(rows)})


def model_row(model: MeasuredModel) -> tuple[Cell, ...]:
    """A model's row in the table of all models."""
    result, numbers = model.result, model.numbers
    most_used = text.most_used_limit(result)
    values = [_number_cell(numbers.get(names.NAMES[name])) for name in _MODEL_METRICS]
    if names.AT_LEAST in numbers:
        values[_MODEL_METRICS.index("flops")] = f">={numbers[names.AT_LEAST]}"
    share: Cell = "-" if most_used is None else f"{most_used[0]} {_percent(most_used[1])}"
    return (harmless(result.id), *values, share, result.state.value)


_MODEL_METRICS = (
    "params", "trainable_params", "non_trainable_params", "buffers", "weight_bytes", "flops", "layers",
    "largest_layer_share",
)  # fmt: skip


def _number_cell(value: float | None) -> Cell:
    if value is None:
        return cells.UNKNOWN
    return int(value) if value.is_integer() else value


def _percent(share: Fraction) -> float:
    return float(f"{float(share * 100):.4g}") if names.fits_float(share * 100) else float("inf")


def _layer_cells(layer: Layer) -> tuple[Cell, ...]:
    return (
        harmless(layer.path),
        layer.params,
        harmless(layer.type),
        harmless(cells.output(layer)),
        layer.trainable_params,
        harmless(cells.connections(layer)),
    )
