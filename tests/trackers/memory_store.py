"""An MLflow store in memory that may break off at any request, before it is done or after."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pytest_modelbudget.trackers.mlflow.history import MetricPoints
from pytest_modelbudget.trackers.mlflow.sender import EventReport, _OutboxDelivery
from pytest_modelbudget.trackers.mlflow.store import KEY
from pytest_modelbudget.trackers.mlflow.target import Target

TARGET = Target("sqlite:///x.db", "x")


class BrokenOff(Exception):
    """What a request ends with."""


def _with_points_first(run: Any) -> tuple[bool, int, str]:
    return not run.data.metrics, run.info.start_time, run.info.run_id


@dataclass
class MemoryStore:
    """The methods of `Store` over plain dicts.

    The request number `breaks_at` fails, with its work done or not; with `interrupt`, that is called before it instead.
    """

    experiments: dict[str, dict[str, str]] = field(default_factory=dict)
    runs: dict[str, Any] = field(default_factory=dict)
    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    points: dict[str, dict[str, set[tuple[int, int, float]]]] = field(default_factory=dict)
    parallel: int = 1
    requests: int = 0
    sent_bytes: int = 0
    breaks_at: int = -1
    work_is_done: bool = False
    interrupt: Callable[[], object] | None = None

    def _request(self, work: Any) -> Any:
        self.requests += 1
        if self.interrupt is not None and self.requests == self.breaks_at:
            self.interrupt()
            return work()
        breaks = self.requests == self.breaks_at
        if breaks and not self.work_is_done:
            raise BrokenOff
        answer = work()
        if breaks:
            raise BrokenOff
        return answer

    def experiment(self, name: str) -> str:
        """The id of an experiment is its name."""
        self._request(lambda: self.experiments.setdefault(name, {}))
        return name

    def experiment_tags(self, experiment: str) -> dict[str, str]:
        """Its tags."""
        return self._request(lambda: dict(self.experiments[experiment]))

    def set_experiment_tag(self, experiment: str, name: str, text: str) -> None:
        """Set one."""
        self._request(lambda: self.experiments[experiment].update({name: text}))

    def by_key(self, experiment: str, condition: str) -> dict[str, Any]:
        """The runs that match; of runs that two machines made, one stays."""

        def work() -> dict[str, Any]:
            runs: dict[str, Any] = {}
            for run in sorted(self._matching(experiment, condition), key=_with_points_first):
                if runs.setdefault(run.data.tags[KEY], run) is not run:
                    assert self.interrupt is not None
                    del self.runs[run.info.run_id]
            return runs

        return self._request(work)

    def _matching(self, experiment: str, condition: str) -> list[Any]:
        tags = re.findall(r"tags\.`([^`]+)` = '([^']*)'", condition)
        least = re.findall(r"metrics\.`([^`]+)` >= ([0-9.]+)", condition)
        assert tags
        return [
            run
            for run in self.runs.values()
            if run.info.experiment_id == experiment
            and all(run.data.tags.get(name) == text for name, text in tags)
            and all(run.data.metrics.get(name, -1) >= float(number) for name, number in least)
        ]

    def run_of_key(self, experiment: str, key: str) -> Any:
        """The run of a key."""
        return self.by_key(experiment, f"tags.`{KEY}` = '{key}'").get(key)

    def newest_run(self, experiment: str, condition: str) -> Any:
        """The last of those that match."""
        return self._request(
            lambda: max(self._matching(experiment, condition), key=lambda run: run.info.start_time, default=None)
        )

    def existing_run(self, run_id: str) -> Any:
        """A run that was not deleted."""
        return self._request(lambda: self.runs.get(run_id))

    def newest(self, run: Any) -> tuple[int, dict[str, float]]:
        """The last step, and the values there."""
        last = {name: max(points) for name, points in self.points[run.info.run_id].items()}
        step = max(point[0] for point in last.values())
        return step, {name: point[2] for name, point in last.items() if point[0] == step}

    def create(self, experiment: str, key: str, name: str, start_ms: int, tags: Mapping[str, str]) -> None:
        """A new run."""

        def work() -> None:
            run_id = f"run{self.requests:04d}"
            info = {"run_id": run_id, "run_name": name, "experiment_id": experiment, "status": "RUNNING"}
            run = SimpleNamespace(
                info=SimpleNamespace(**info, start_time=start_ms),
                data=SimpleNamespace(tags={KEY: key, **tags}, metrics={}),
            )
            self.runs[run_id], self.points[run_id] = run, {}

        self._request(work)

    def log(self, run_id: str, points: Iterable[MetricPoints] = (), tags: Mapping[str, str] | None = None) -> None:
        """Points and tags."""
        points, tags = tuple(points), tags or {}

        def work() -> None:
            if run_id not in self.runs:
                raise BrokenOff
            self.sent_bytes += len(json.dumps([str(points), tags]))
            for point in points:
                for name, value in point.metrics.items():
                    self.points[run_id].setdefault(name, set()).add((point.step, point.time_ms, value))
            run = self.runs[run_id]
            run.data.metrics = {name: max(values)[2] for name, values in self.points[run_id].items()}
            run.data.tags.update(tags)

        self._request(work)

    def upload(self, run: Any, folder: Path, into: str | None = None) -> None:
        """The files of a folder."""

        def work() -> None:
            for path in filter(Path.is_file, folder.rglob("*")):
                name = "/".join(filter(None, (into, path.relative_to(folder).as_posix())))
                self.files[run.info.run_id, name] = path.read_bytes()
                self.sent_bytes += path.stat().st_size

        self._request(work)

    def download(self, run: Any, name: str) -> bytes | None:
        """A file."""
        return self._request(lambda: self.files.get((run.info.run_id, name)))

    def end(self, run_id: str, status: str, end_ms: int) -> None:
        """How a run ended."""
        self._request(lambda: setattr(self.runs[run_id].info, "status", status))

    def deliver(self, folder: Path) -> list[dict[str, str]]:
        """Send an outbox, as a new process does; returns what it says."""
        sink = io.StringIO()
        _OutboxDelivery(self, TARGET, EventReport(sink, TARGET)).of(folder, float("inf"))  # type: ignore[arg-type]
        return [json.loads(line) for line in sink.getvalue().splitlines()]

    def lines(self, metric: str = "params/total") -> dict[str, list[tuple[int, float]]]:
        """Step and value of every point of every model's history."""
        return {
            run.info.run_name: sorted((step, value) for step, _, value in self.points[run_id].get(metric, ()))
            for run_id, run in self.runs.items()
            if run.info.experiment_id.endswith("/history")
        }

    def files_of(self, run: Any) -> set[str]:
        """The names of a run's artifacts."""
        return {name for run_id, name in self.files if run_id == run.info.run_id}

    def jobs(self) -> list[Any]:
        """The runs of pytest, in the order of their steps."""
        return sorted(
            (run for run in self.runs.values() if "verdict" in str(run.data.tags)), key=lambda run: run.info.start_time
        )
