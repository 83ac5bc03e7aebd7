"""Pages of MLflow: links that open the right one, and a saved view with this project's columns.

How a saved view is stored is not documented. It is a JSON object in a tag of the experiment, of which the page takes
the fields that it knows; pages that do not know the tag leave it alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pytest_modelbudget.trackers.mlflow.names import NAMES, used_name

VIEW = "modelbudget"
"""The key of the saved view, which links name."""

_VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
_MODE = "workflowType=machine_learning"
"""Without it a page shows an empty list of traces of chats."""

_JOB_COLUMNS = ("tags.`modelbudget.verdict`", *(f"metrics.`session/{name}`" for name in (
    "failed", "params_sum", "budget_used_pct", "training_peak_mib_max",
)))  # fmt: skip
_MODEL_COLUMNS = tuple(f"metrics.`{name}`" for name in (
    NAMES["params"], NAMES["weight_bytes"], NAMES["flops"], used_name("params"), NAMES["training_peak_bytes"],
))  # fmt: skip


def is_history(experiment: str) -> bool:
    """Whether an experiment of this name holds the histories of models."""
    return experiment.endswith("/history")


def experiment_tags(name: str) -> dict[str, str]:
    """The tags of a new experiment."""
    note = "One run for each model, a point wherever the model changed."
    if not is_history(name):
        note = "One run for each run of pytest --model-budget."
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": note,
        _VIEW_TAG: _saved_view(_MODEL_COLUMNS if is_history(name) else _JOB_COLUMNS),
    }


def _saved_view(columns: Sequence[str]) -> str:
    return json.dumps({"selectedColumns": ["attributes.`Source`", *columns], "runsHiddenMode": "FIRST_20_RUNS"})


def base(page: str) -> str:
    """What the links below begin with, for the address of a server; `#` alone leads to the page they are on."""
    return f"{page}/#"


def run(base: str, experiment: str, run_id: str) -> str:
    """The page of one run."""
    return f"{base}/experiments/{experiment}/runs/{run_id}?{_MODE}"


def artifact(base: str, experiment: str, run_id: str, name: str) -> str:
    """A file among a run's artifacts."""
    return f"{base}/experiments/{experiment}/runs/{run_id}/artifacts/{name}?{_MODE}"


def report(base: str, experiment: str, run_id: str) -> str:
    """The HTML report among a run's artifacts."""
    return artifact(base, experiment, run_id, "report.html")


def models(base: str, experiment: str, run_id: str) -> str:
    """The table of models among a run's artifacts."""
    return artifact(base, experiment, run_id, "models.json")


def table(base: str, experiment: str) -> str:
    """All runs of an experiment in a table with this project's columns."""
    return f"{base}/experiments/{experiment}/runs?{_MODE}&viewStateShareKey={VIEW}"


def charts(base: str, experiment: str) -> str:
    """Each model's metrics as lines over the commits."""
    return f"{base}/experiments/{experiment}/runs?{_MODE}&compareRunsMode=CHART"


def side_by_side(base: str, experiment: str) -> str:
    """The tables of several runs beside each other."""
    return f"{base}/experiments/{experiment}/runs?{_MODE}&compareRunsMode=ARTIFACT"


def run_note(note: str, experiment: str, run_id: str, *more: str) -> str:
    """The description of a run with links to what it has, and `more`, below its first line.

    They lead to the page they are on.
    """
    first, _, rest = note.partition("\n")
    links = (
        f"[report]({report('#', experiment, run_id)}) · [table of models]({models('#', experiment, run_id)}) · "
        f"[all runs]({table('#', experiment)}) · [tables side by side]({side_by_side('#', experiment)})"
    )
    return "\n".join([f"{first}\n\n{links}", *(f"\n{line}" for line in more), rest])


def experiment_note(experiment: str, other_experiment: str, *, history: bool) -> str:
    """The description of an experiment, its links in the first line: a page shows no more than that.

    They lead to the page they are on, so that they hold behind any proxy.
    """
    jobs, models = (other_experiment, experiment) if history else (experiment, other_experiment)
    return (
        f"[All models over time]({charts('#', models)}) · [each run of pytest]({table('#', jobs)}) · "
        f"[tables side by side]({side_by_side('#', jobs)})"
    )
