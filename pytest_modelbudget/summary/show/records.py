"""The rows of a layer table as flat records: for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary.model import Layer, Summary
from pytest_modelbudget.system.escape import harmless

_NUMBERS = (
    "params", "trainable_params", "non_trainable_params", "buffers", "weight_bytes", "flops",
    "activation_bytes", "calls",
)  # fmt: skip
_TEXTS = ("path", "type", "output", "connected_to")
COLUMNS = (*_TEXTS[:3], *_NUMBERS, _TEXTS[3])

_FORMULA = tuple("=+-@\t\r")
"""What a spreadsheet takes for the beginning of a formula."""


def records(summary: Summary) -> list[dict[str, Any]]:
    """One record for each row; None is unknown. Numbers are of the row alone, so that a column can be summed up."""
    return [_record(layer) for layer in summary.layers]


def _record(layer: Layer) -> dict[str, Any]:
    texts = (layer.path, layer.type, layer.output_text, "; ".join(map(", ".join, layer.connected_to)))
    return {**dict(zip(_TEXTS, texts, strict=True)), **{name: getattr(layer, name) for name in _NUMBERS}}


def csv_text(summary: Summary) -> str:
    """The records with a line of names above; what is unknown is empty, and no text is taken for a formula."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records(summary):
        writer.writerow([_csv_cell(record[name]) for name in COLUMNS])
    return sink.getvalue()


def _csv_cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = harmless(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def data_frame(summary: Summary) -> Any:
    """The records as a pandas DataFrame; unknown numbers are missing values.

    Raises:
        ModelBudgetError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ModelBudgetError(f"a data frame needs pandas ({error}): pip install pandas") from None
    rows = records(summary)
    columns = {name: [row[name] for row in rows] for name in COLUMNS}
    exact = {name: pandas.array(columns[name], dtype=_dtype(columns[name])) for name in _NUMBERS}
    return pandas.DataFrame({**columns, **exact})


def _dtype(numbers: Sequence[int | None]) -> str:
    """Integers with missing values, as objects where a number is larger than those hold."""
    return "Int64" if all(number is None or number < 2**63 for number in numbers) else "object"
