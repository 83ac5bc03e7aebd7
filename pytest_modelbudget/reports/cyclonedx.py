"""CycloneDX 1.6: each model as a machine-learning component with its model card, for a bill of materials (ML-BOM).

Numbers that the standard has no field for are properties named `modelbudget:METRIC`; what is not known is left out.
The same models give the same text: a bill has neither a time nor a number of its own unless somebody adds them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pytest_modelbudget.reports import text
from pytest_modelbudget.reports.card import architecture
from pytest_modelbudget.results import Result
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import METRICS
from pytest_modelbudget.system.escape import harmless


def pieces(results: Sequence[Result], setting: text.ReportSetting = text.DEFAULT_SETTING) -> Iterator[str]:
    """A component for each model that was counted, by its id."""
    counted = sorted((result for result in results if result.summary), key=lambda result: (result.id, result.nodeid))
    names = text.unique_names(counted)
    head = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"tools": {"components": [_tool()]}},
    }
    yield json.dumps(head, indent=1).removesuffix("\n}") + ',\n "components": '
    components = (_component(name, result.summary) for name, result in zip(names, counted, strict=True))
    yield from text.json_list(components, depth=1)
    yield "\n}\n"


def _tool() -> dict[str, Any]:
    try:
        return {"type": "application", "name": "pytest-modelbudget", "version": version("pytest-modelbudget")}
    except PackageNotFoundError:  # run from its sources
        return {"type": "application", "name": "pytest-modelbudget"}


def _component(name: str, summary: Summary | None) -> dict[str, Any]:
    assert summary is not None
    return {
        "type": "machine-learning-model",
        "bom-ref": f"model:{harmless(name)}",
        "name": harmless(name),
        "modelCard": {
            "modelParameters": {
                "modelArchitecture": harmless(architecture(summary)),
                "inputs": [{"format": harmless(str(port))} for port in summary.inputs],
                "outputs": [{"format": harmless(str(spec))} for spec in summary.outputs],
            },
            "properties": [{"name": f"modelbudget:{key}", "value": value} for key, value in _properties(summary)],
        },
    }


def _properties(summary: Summary) -> Iterator[tuple[str, str]]:
    yield "framework", summary.framework
    if summary.sizes:
        yield "sizes", ", ".join(f"{name}={size}" for name, size in summary.sizes)
    for name, metric in METRICS.items():
        if (value := metric.get(summary)) is not None:
            key = "flops_at_least" if name == "flops" and summary.flops.is_lower_bound else name
            yield key, text.number_text(name, value)
