"""Runs of very many models: one table of their numbers, histories of what moved, wherever a delivery breaks off."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pytest_modelbudget.results import Result, State
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.trackers import mlflow
from pytest_modelbudget.trackers.mlflow import choosing, content, outbox, tables, totals
from pytest_modelbudget.trackers.mlflow.facts import RepositoryFacts
from pytest_modelbudget.trackers.mlflow.model_records import model_key
from tests.builders import towers
from tests.trackers.memory_store import MemoryStore
from tests.trackers.mlflow_helpers import needs_mlflow, result, wider
from tests.trackers.mlflow_server import local_store, repository

CALM = [f"net-{number}" for number in range(4)]


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four models are as good as a hundred thousand, but for MLflow itself."""
    monkeypatch.setattr(content, "MOST_WHOLE", 3)
    monkeypatch.setattr(content, "MOST_MODELS", 0)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("a/__model_budget__/zoo/net_b.yaml", "a/__model_budget__/zoo/net_b.yaml", id="a file of its own"),
        pytest.param("a/__model_budget__/zoo@nets.totals.yaml", "a/__model_budget__/zoo/net_b.yaml", id="a line of a shared file"),
        pytest.param("", "a.py::net", id="no snapshot"),
    ],
)  # fmt: skip
def test_the_key_of_a_model_is_its_own(path: str, expected: str) -> None:
    """Also where models share a file, so that its line of history goes on when it moves into one."""
    checked = replace(zoo()[0], id="zoo/net:b", nodeid="a.py::net")
    assert model_key(replace(checked, snapshot=replace(checked.snapshot, path=path))) == expected


Made = tuple[outbox.OutboxEntry, dict[str, str | bytes]]


def made(step: int, results: Sequence[Result], *, history: bool = True, created_ms: int = 0) -> Made:
    """What a run of pytest at a commit puts into the outbox."""
    place = RepositoryFacts("nets", commit=f"{step:040x}", branch="main", commit_ms=1000 * step, step=step)
    now_ms = created_ms or 10**12 + step
    return content.make_entry(
        results, place, target="x", key=f"key{now_ms}", now_ms=now_ms, exit_failed=False, history=history
    )


def run(folder: Path, step: int, results: Sequence[Result], *, history: bool = True, created_ms: int = 0) -> None:
    """A run of pytest at a commit, with nothing sent yet."""
    outbox.write(folder, *made(step, results, history=history, created_ms=created_ms))


def zoo(more: Iterable[Result] = (), without: str = "") -> list[Result]:
    """The calm models and some more."""
    calm = result(towers())
    names = [name for name in CALM if name != without]
    snapshots = [replace(calm.snapshot, path=f"__model_budget__/{name}.yaml") for name in names]
    return [
        *(replace(calm, id=name, snapshot=snapshot) for name, snapshot in zip(names, snapshots, strict=True)),
        *more,
    ]


def numbers(store: MemoryStore, step: int) -> dict[str, float]:
    """The params of every model at a commit, as the store has them."""
    [job] = [job for job in store.jobs() if json.loads(job.data.tags[tables.TABLE])["step"] == step]
    table = tables.read(store, job.info.run_id)  # type: ignore[arg-type]
    assert table is not None
    return {line.model: line.metrics["params/total"] for line in table}


def moved(events: Sequence[dict[str, str]]) -> str:
    """How many models moved, as the sender says."""
    return events[-1]["moved"]


def test_a_history_begins_when_a_model_moves(tmp_path: Path) -> None:
    """With what it was at the last commit before; whoever never moves is in the tables, of every run."""
    store = MemoryStore()
    run(tmp_path, 1, zoo([result(towers(), "mover")]))
    assert "moved" not in store.deliver(tmp_path)[-1]
    assert store.lines() == {}
    run(tmp_path, 2, zoo([result(towers(), "mover")]))
    assert moved(store.deliver(tmp_path)) == "0"
    run(tmp_path, 4, zoo([result(wider(51), "mover"), result(towers(), "newcomer")], without=CALM[2]))
    assert moved(store.deliver(tmp_path)) == "2"
    assert store.lines() == {"mover": [(2, 6201), (4, 6302)], "newcomer": [(4, 6201)]}
    run(tmp_path, 5, zoo([result(wider(51), "mover"), result(towers(), "newcomer")], without=CALM[2]))
    assert moved(store.deliver(tmp_path)) == "0"
    run(tmp_path, 6, zoo([result(towers(), "mover"), result(towers(), "newcomer")], without=CALM[2]))
    assert moved(store.deliver(tmp_path)) == "1"
    assert store.lines()["mover"] == [(2, 6201), (4, 6302), (5, 6302), (6, 6201)]
    calm = dict.fromkeys(CALM, 6201)
    assert numbers(store, 1) == numbers(store, 2) == {**calm, "mover": 6201}
    assert numbers(store, 4) == {name: 6201 for name in CALM if name != CALM[2]} | {"mover": 6302, "newcomer": 6201}
    assert numbers(store, 6)["mover"] == 6201


def test_a_run_in_which_nothing_moved_sends_as_little_of_many_as_of_few(tmp_path: Path) -> None:
    """The table of an earlier run has it all; of ninety models as of thirty, but for the digits of sums."""
    sizes = []
    for more in (26, 86):
        folder, store = tmp_path / str(more), MemoryStore()
        results = zoo(replace(zoo()[0], id=f"m{number}") for number in range(more))
        run(folder, 1, results)
        store.deliver(folder)
        first, before = store.sent_bytes, store.requests
        run(folder, 2, results)
        store.deliver(folder)
        sizes.append(store.sent_bytes - first)
        assert store.requests - before < 20
        assert store.files_of(store.jobs()[1]) == {"report.html", "models.json"}
    assert sizes[1] - sizes[0] < 100
    assert sizes[1] < 200_000


def test_models_that_moved_have_their_layers_where_the_run_knows_that(tmp_path: Path) -> None:
    """Of one that moved since an earlier run, and not since the base, it is said how to come by them."""
    store, known = MemoryStore(), result(wider(51), "known")
    run(tmp_path, 1, zoo([result(towers(), "known"), result(towers(), "unknown")]))
    store.deliver(tmp_path)
    failed = replace(known, state=State.OVER_BUDGET)
    run(tmp_path, 2, zoo([failed, result(wider(51), "unknown")]))
    store.deliver(tmp_path)
    latest = {
        history.info.run_name: store.files[history.info.run_id, "latest/layers.json"].decode()
        for history in store.runs.values()
        if history.info.experiment_id.endswith("/history")
    }
    assert '"dense", 5151, "Dense"' in latest["known"]
    assert "at commit 000000000000, modelbudget show counts them" in latest["unknown"]
    assert {"models/known/summary.html", tables.DIFFERING} <= store.files_of(store.jobs()[1])
    assert [line[0] for line in json.loads(store.files[store.jobs()[1].info.run_id, "models.json"])["data"]] == [
        "known"
    ]


def test_very_many_failures_are_listed_in_part_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of all has each of them."""
    monkeypatch.setattr(content, "MOST_LISTED", 2)
    failed = [replace(result(towers(), f"m{number}"), state=State.CHANGED) for number in range(5)]
    entry, files = made(1, zoo(failed))
    assert [line[0] for line in json.loads(files["job/models.json"])["data"]] == ["m0", "m1"]
    note = entry.job.tags[outbox.NOTE]
    assert "3 more models failed or changed: see the table of all" in note
    assert "| `m1` | CHANGED |" in note
    assert CALM[0] not in note
    packed = files[totals.FILE]
    assert isinstance(packed, bytes)
    assert sum(line.failed for line in totals.rows(packed)) == 5


def test_very_many_moves_begin_no_history_and_lose_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have one go on; the others begin with their next move, from what they were."""
    monkeypatch.setattr(choosing, "MOST_BEGUN", 1)
    store = MemoryStore()
    states: list[dict[str, Summary]] = [
        {"a": towers(), "b": towers()}, {"a": wider(51), "b": towers()}, {"a": wider(52), "b": wider(52)}, {"a": wider(52), "b": wider(53)},
    ]  # fmt: skip
    for step, state in enumerate(states, 1):
        run(tmp_path, step, zoo(result(summary, name) for name, summary in state.items()))
        store.deliver(tmp_path)
    assert store.lines() == {"a": [(1, 6201), (2, 6302), (3, 6403)], "b": [(3, 6403), (4, 6504)]}
    assert numbers(store, 3)["b"] == 6403


def test_another_selection_of_models_in_between_hides_no_move(tmp_path: Path) -> None:
    """A run of some sees a move and its return is seen by the run of all."""
    store, extra = MemoryStore(), [result(towers(), f"x{number}") for number in range(10)]
    run(tmp_path, 1, zoo([*extra, result(towers(), "mover")]))
    run(tmp_path, 2, zoo([result(wider(51), "mover")]))
    run(tmp_path, 3, zoo([*extra, result(towers(), "mover")]))
    run(tmp_path, 4, zoo([*extra, result(towers(), "mover")]))
    store.deliver(tmp_path)
    assert store.lines() == {"mover": [(1, 6201), (2, 6302), (3, 6201)]}


def test_a_run_that_comes_late_adds_its_point_and_hides_none(tmp_path: Path) -> None:
    """What a model was at an earlier commit is no move of a later one."""
    store = MemoryStore()
    for step, summary in ((1, towers()), (2, wider(51)), (4, wider(51))):
        run(tmp_path, step, zoo([result(summary, "mover")]))
        store.deliver(tmp_path)
    run(tmp_path, 3, zoo([result(wider(52), "mover"), result(towers(), "other")]), created_ms=10**12 + 100)
    store.deliver(tmp_path)
    run(tmp_path, 5, zoo([result(wider(51), "mover")]))
    store.deliver(tmp_path)
    points = store.lines()["mover"]
    assert set(points) >= {(1, 6201), (2, 6302), (3, 6403), (5, 6302)}
    assert "other" not in store.lines()
    assert numbers(store, 3)["other"] == 6201


def test_a_project_that_becomes_large_goes_on_with_its_histories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And back: nobody gets a second line, and nothing that did not move gets a point."""
    store = MemoryStore()
    for step, most, summary in ((1, 99, towers()), (2, 3, towers()), (3, 3, wider(51)), (4, 99, wider(52))):
        monkeypatch.setattr(content, "MOST_WHOLE", most)
        run(tmp_path, step, zoo([result(summary, "mover")]))
        store.deliver(tmp_path)
    calm = {name: [(1, 6201)] for name in CALM}
    assert store.lines() == {**calm, "mover": [(1, 6201), (2, 6201), (3, 6302), (4, 6403)]}


def test_a_pull_request_has_a_table_and_no_histories(tmp_path: Path) -> None:
    """Nor does it become what the next run on the default branch is held against."""
    store = MemoryStore()
    run(tmp_path, 1, zoo([result(towers(), "mover")]))
    run(tmp_path, 2, zoo([result(wider(51), "mover")]), history=False)
    run(tmp_path, 3, zoo([result(wider(52), "mover")]))
    store.deliver(tmp_path)
    assert store.lines() == {"mover": [(1, 6201), (3, 6403)]}
    assert numbers(store, 2)["mover"] == 6302


@pytest.mark.parametrize("loss", ["deleted", "damaged"])
def test_a_table_that_is_gone_from_the_store_is_sent_anew(tmp_path: Path, loss: str) -> None:
    """And nothing is said to have moved, since nothing is known of before."""
    store = MemoryStore()
    run(tmp_path, 1, zoo([result(towers(), "mover")]))
    store.deliver(tmp_path)
    [job] = store.jobs()
    if loss == "deleted":
        del store.runs[job.info.run_id]
    else:
        store.files[job.info.run_id, tables.FILE] = b"x"
    run(tmp_path, 2, zoo([result(wider(51), "mover")]))
    assert "moved" not in store.deliver(tmp_path)[-1]
    assert (store.lines(), numbers(store, 2)["mover"]) == ({}, 6302)
    run(tmp_path, 3, zoo([result(wider(52), "mover")]))
    store.deliver(tmp_path)
    assert store.lines() == {"mover": [(2, 6302), (3, 6403)]}


@pytest.mark.parametrize(
    ("work_is_done", "every"),
    [
        pytest.param(False, 3, id="refused, some requests"),
        pytest.param(False, 1, id="refused", marks=pytest.mark.slow),
        pytest.param(True, 1, id="answer lost", marks=pytest.mark.slow),
    ],
)
def test_a_delivery_that_breaks_off_anywhere_comes_to_the_same(tmp_path: Path, work_is_done: bool, every: int) -> None:
    """At each of its requests; the next run finishes it, each run and each point once."""
    first, third = zoo([result(towers(), "mover")]), zoo([result(wider(51), "mover"), result(towers(), "newcomer")])
    runs = [made(step, results) for step, results in enumerate((first, first, third), 1)]
    whole = delivered(tmp_path / "whole", MemoryStore(), runs)
    assert whole.lines() == {"mover": [(2, 6201), (3, 6302)], "newcomer": [(3, 6201)]}
    for number in range(1, whole.requests + 1, every):
        store = MemoryStore(breaks_at=number, work_is_done=work_is_done)
        delivered(tmp_path / str(number), store, runs)
        assert store.lines() == whole.lines(), number
        assert [numbers(store, step) for step in (1, 2, 3)] == [numbers(whole, step) for step in (1, 2, 3)]
        assert all(job.data.tags["modelbudget.state"] == "complete" for job in store.jobs())


@pytest.mark.parametrize(
    ("first", "later", "every"),
    [
        pytest.param(3, towers(), 4, id="earlier is slower, moves back, some requests"),
        pytest.param(3, towers(), 1, id="earlier is slower, moves back", marks=pytest.mark.slow),
        pytest.param(4, wider(52), 1, id="later is slower, moves on", marks=pytest.mark.slow),
    ],
)
def test_two_commits_that_are_sent_at_once_hide_no_move(tmp_path: Path, first: int, later: Summary, every: int) -> None:
    """At whichever request of one the other comes between, every point is what its commit had, and the last one holds."""
    summaries = dict(enumerate((towers(), towers(), wider(51), later, later, wider(53)), 1))
    runs = {step: made(step, zoo([result(summary, "mover")])) for step, summary in summaries.items()}
    measured = {step: summary.params for step, summary in summaries.items()}
    for number in range(2, 100, every):
        store, one, other = MemoryStore(), tmp_path / f"{number}-one", tmp_path / f"{number}-other"
        for step in (1, 2):
            outbox.write(one, *runs[step])
            store.deliver(one)
        outbox.write(one, *runs[first])
        outbox.write(other, *runs[7 - first])
        store.interrupt, store.breaks_at = partial(store.deliver, other), store.requests + number
        store.deliver(one)
        was_between = not outbox.entries(other)
        for step in (5, 6):
            outbox.write(one, *runs[step])
            store.deliver(one)
        if not was_between:
            break
        assert outbox.entries(one) == [], number
        line = store.lines()["mover"]
        assert set(line) <= set(measured.items()), number
        assert line[-2:] == [(5, measured[5]), (6, measured[6])], (number, line)
        assert all(numbers(store, step)["mover"] == params for step, params in measured.items())
    assert number > 10


def delivered(folder: Path, store: MemoryStore, runs: Sequence[Made]) -> MemoryStore:
    """The store after runs that were each sent as soon as they were there, and once more at the end."""
    for entry in runs:
        outbox.write(folder, *entry)
        store.deliver(folder)
    store.deliver(folder)
    assert outbox.entries(folder) == []
    return store


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        pytest.param({}, "  totals of 100,000 models in one file; the history of a model begins when it moves", id="first"),
        pytest.param({"moved": "0"}, "  no model moved, totals of 100,000 models in one file", id="none"),
        pytest.param({"moved": "1"}, "  1 model that moved, totals of 99,999 others in one file", id="one"),
        pytest.param({"moved": "12"}, "  12 models that moved, totals of 99,988 others in one file", id="some"),
        pytest.param({"moved": "2000"}, "  2,000 models moved, too many to begin histories; totals of all 100,000 in one file", id="many"),
    ],
)  # fmt: skip
def test_the_terminal_says_what_was_logged(event: dict[str, str], expected: str) -> None:
    """How many models moved, and that the others are not lost."""
    record = outbox.TotalsRecord(100_000, "nets", "", {}, "k", "f", {}, history=True)
    assert list(mlflow._moved_lines(event, record)) == [expected]


@pytest.mark.slow
@needs_mlflow
def test_an_embedded_store_of_two_hundred_models(tmp_path: Path) -> None:
    """What MLflow itself gives back."""
    repo = repository(tmp_path / "checkout", "nets")
    calm = [replace(zoo()[0], id=f"m{number}") for number in range(201)]
    for step, summary in enumerate((towers(), wider(51)), 1):
        repo.commit(1_700_000_000 + step)
        logged = repo.log([*calm, result(summary, "mover")])
    assert logged["lines"][1] == "  1 model that moved, totals of 201 others in one file"
    store = local_store(repo)
    line = store.points(store.run("modelbudget/nets/history", "mover"), "params/total")
    assert line == [(1, 6201), (2, 6302)]
    jobs = store.runs("modelbudget/nets")
    files = [{"all-models.csv.gz"}, {"differing-models.csv.gz"}]
    assert [store.files(job) - {"report.html", "models.json"} for job in jobs] == files
    assert jobs[1].data.metrics["session/models"] == 202
