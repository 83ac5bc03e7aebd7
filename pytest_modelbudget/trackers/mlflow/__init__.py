"""MLflow: each run of pytest becomes a run there, and each model a history.

The pytest process writes an outbox entry of plain files and starts the sender; it never imports mlflow. An
entry that could not be delivered stays and is sent by the next run, or by `send_outbox`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from pytest_modelbudget.base.git import Git, NoGit
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.results import Result
from pytest_modelbudget.system.escape import harmless
from pytest_modelbudget.trackers import Delivery
from pytest_modelbudget.trackers.mlflow import content, facts, outbox, views
from pytest_modelbudget.trackers.mlflow.choosing import MOST_BEGUN
from pytest_modelbudget.trackers.mlflow.process import OVER, Event, Sender
from pytest_modelbudget.trackers.mlflow.target import Target, missing_secret, target_from

DEADLINE = 60.0
"""Seconds that sending may take at the end of a run of pytest; `MODELBUDGET_MLFLOW_TIMEOUT` says otherwise."""

_LOCAL_PAGE = "http://127.0.0.1:5000"
"""Where `mlflow ui` serves its pages."""


def log(results: Sequence[Result], root: Path, *, exit_failed: bool, deadline: float | None = None) -> Delivery:
    """Send `results` to `MLFLOW_TRACKING_URI`, or to the embedded store in `root`, within `deadline` seconds.

    Failures of tracking come back as lines, never as exceptions; what was not delivered is kept in the outbox.
    """
    if name := missing_secret(os.environ):
        reason = f"{name} is set but empty, as in the build of a fork, which gets no secrets"
        return Delivery(True, (f"mlflow: skipped: {reason}",))
    return _without_raising(lambda target: _deliver(results, root, target, exit_failed, deadline))


def send_outbox(root: Path, *, deadline: float = 3600.0, out: TextIO | None = None) -> int:
    """Send what the outbox of `root` holds for the target of the environment, and print how that went.

    Returns an exit status: 0 when nothing is left for this target.
    """
    delivery = _without_raising(lambda target: _resend(root, target, deadline))
    for line in delivery.lines:
        print(line, file=out or sys.stdout)
    return 0 if delivery.ok else 1


def _without_raising(act: Callable[[Target], Delivery]) -> Delivery:
    """What `act` delivers; a failure of tracking must not change what a run of tests decided."""
    target: Target | None = None
    try:
        target = target_from(Path.cwd(), os.environ)
        delivery = act(target)
    except Exception as error:
        detail = f": {next(iter(str(error).splitlines()), '')}" if target else ""
        delivery = Delivery(False, (f"mlflow: nothing was logged ({type(error).__name__}{detail})",))
    scrub = target.scrub if target else str
    links = tuple((name, scrub(link)) for name, link in delivery.links)
    return Delivery(delivery.ok, tuple(harmless(scrub(line)) for line in delivery.lines), links)


def _deliver(
    results: Sequence[Result], root: Path, target: Target, exit_failed: bool, deadline: float | None
) -> Delivery:
    folder = _outbox(root)
    sender = Sender(root, folder, target, _deadline(os.environ) if deadline is None else deadline)
    try:
        repository_facts = facts.gather(root, os.environ)
        wish = os.environ.get("MODELBUDGET_MLFLOW_HISTORY", "").strip().lower()
        no_history = repository_facts.no_history(wish, shared=not target.local)
        entry, files = content.make_entry(
            results,
            repository_facts,
            target=target.shown,
            key=uuid.uuid4().hex,
            now_ms=int(time.time() * 1000),
            exit_failed=exit_failed,
            history=not no_history,
        )
        path = outbox.write(folder, entry, files)
        dropped = outbox.trim(folder)
        events, ended = sender.finish()
    finally:
        sender.end()
    links = tuple(_links(_delivery_event(events, path.name), target, of_moved=entry.totals is not None))
    rest_follows = _is_unfinished(events, path, "later")  # the first run of a thousand models should not fail for it
    waiting_here, elsewhere = outbox.count_waiting(folder, target.shown)
    lines = [
        *_outcome_lines(events, ended, path, target),
        *_moved_lines(_delivery_event(events, path.name), entry.totals),
        *_link_lines(links, root, target),
        *_remark_lines(events, dropped, path.name, repository_facts, no_history),
        *_waiting_lines(waiting_here - rest_follows, elsewhere),
    ]
    return Delivery(rest_follows or not path.exists(), tuple(lines), links if target.is_server else ())


def _resend(root: Path, target: Target, deadline: float) -> Delivery:
    folder = _outbox(root)
    waiting_count, elsewhere = outbox.count_waiting(folder, target.shown)
    damaged = [f"  not sent: {reason}" for reason in outbox.damaged(folder)]
    if not waiting_count:
        message = f"mlflow: nothing is waiting for {target.shown}"
        return Delivery(not damaged, (message, *damaged, *_waiting_lines(0, elsewhere)))
    sender = Sender(root, folder, target, deadline)
    events, ended = sender.finish()
    sent_events = [event for event in events if event["event"] == "sent"]
    remaining, elsewhere = outbox.count_waiting(folder, target.shown)
    lines = [f"mlflow: sent {len(sent_events)} of {waiting_count} to {target.shown}"]
    partial = [path for path in outbox.entries(folder) if _is_unfinished(events, path, "later", "short")]
    lines += [f"  {_history_progress(path)}" for path in partial]
    if remaining > len(partial):
        lines += _reason_lines([event for event in events if "reason" in event], ended)
    lines += _link_lines(tuple(_links(sent_events[0] if sent_events else None, target)), root, target)
    return Delivery(not remaining, (*lines, *damaged, *_waiting_lines(remaining, elsewhere)))


def _outbox(root: Path) -> Path:
    """Where entries wait; it is the user's own, so never what a commit brought.

    Raises:
        ModelBudgetError: git has it, or a link leads elsewhere.
    """
    folder = outbox.project_folder(root) / "outbox"
    with suppress(NoGit):
        if Git(root).tracked(f"{outbox.FOLDER}/outbox"):
            folder_name = f"{outbox.FOLDER}/outbox"
            raise ModelBudgetError(
                f"{folder_name} is committed, so anybody may have written it: git rm -r --cached {folder_name}"
            )
    return folder


def _deadline(environ: Mapping[str, str]) -> float:
    try:
        return float(environ["MODELBUDGET_MLFLOW_TIMEOUT"])
    except (KeyError, ValueError):
        return DEADLINE


def _delivery_event(events: Sequence[Event], name: str) -> Event | None:
    """The last event that says where an entry went."""
    return next((event for event in reversed(events) if event.get("run") and event["entry"] == name), None)


def _trouble_events(events: Sequence[Event], name: str) -> list[Event]:
    return [
        event for event in events if "reason" in event and (event["event"] == "stopped" or event.get("entry") == name)
    ]


def _is_unfinished(events: Sequence[Event], path: Path, *kinds: str) -> bool:
    """Whether an entry is kept for want of time alone: `later` for histories that begin with it, `short` for others."""
    event_kinds = {event["event"] for event in events if event.get("entry") == path.name}
    if "begun" in event_kinds and any(event["event"] == OVER for event in events):  # in the middle of one that begins
        event_kinds.add("later")
    return path.exists() and not event_kinds.isdisjoint(kinds) and not _trouble_events(events, path.name)


def _outcome_lines(events: Sequence[Event], ended: str, path: Path, target: Target) -> Iterator[str]:
    """What became of this run's entry: sent, sent in part, or why not."""
    if not path.exists():  # it was sent, perhaps by the sender of another run of pytest at the same time
        yield f"mlflow: logged to {target.shown}"
        return
    if _is_unfinished(events, path, "later", "short"):
        yield f"mlflow: logged to {target.shown}"
        yield f"  {_history_progress(path)}, the rest follows with the next runs or `modelbudget mlflow send`"
        return
    first, *cure = _reason_lines(_trouble_events(events, path.name), ended)
    if _delivery_event(events, path.name) is None:
        yield f"mlflow: not sent: {first.strip()}"
    else:
        yield f"mlflow: logged to {target.shown}, but the histories of models not yet: {first.strip()}"
    yield from cure


def _moved_lines(event: Event | None, table: outbox.TotalsRecord | None) -> Iterator[str]:
    """Of very many models: which were logged one by one, and that the numbers of the others are there too."""
    if event is None or table is None:
        return
    moved = int(event.get("moved", -1))
    if moved > MOST_BEGUN:
        yield f"  {moved:,} models moved, too many to begin histories; totals of all {table.models:,} in one file"
    elif moved > 0:
        noun = "model" if moved == 1 else "models"
        yield f"  {moved:,} {noun} that moved, totals of {table.models - moved:,} others in one file"
    elif moved == 0:
        yield f"  no model moved, totals of {table.models:,} models in one file"
    else:
        begins = "; the history of a model begins when it moves" if table.history else ""
        yield f"  totals of {table.models:,} models in one file{begins}"


def _history_progress(path: Path) -> str:
    """How many of an entry's histories have been written; it may have gone in this moment."""
    with suppress(outbox.UnreadableEntry):
        entry = outbox.read(path)
        if entry.totals is not None:
            return f"{len(outbox.done_keys(path)):,} histories of models that moved are written"
        models = entry.history
        done_count = len(outbox.done_keys(path) & {model.key for model in models})
        return f"{done_count:,} of {len(models):,} histories of models are written"
    return "some histories of models are written"


def _reason_lines(troubles: Sequence[Event], ended: str) -> list[str]:
    if not troubles:
        return [f"  {ended}"]
    cure = troubles[0].get("cure")
    return [f"  {troubles[0]['reason']}", *([f"  {cure}"] if cure else [])]


def _links(event: Event | None, target: Target, *, of_moved: bool = False) -> Iterator[tuple[str, str]]:
    if event is None or not (target.is_server or target.is_database):
        return
    base = views.base(target.shown if target.is_server else _LOCAL_PAGE)
    yield "this run", views.run(base, event["experiment"], event["run"])
    yield "its report", views.report(base, event["experiment"], event["run"])
    if event.get("history"):
        yield f"{'models that moved, ' if of_moved else 'all models '}over time", views.charts(base, event["history"])
    yield "all runs", views.table(base, event["experiment"])


def _link_lines(links: Sequence[tuple[str, str]], root: Path, target: Target) -> Iterator[str]:
    if links and target.is_database:
        yield f"  look at it with: {_ui_command(root, target)}"
    for name, link in links:
        yield f"  {name}: {link}"


def _ui_command(root: Path, target: Target) -> str:
    if not target.local:
        return f'{_mlflow_command(Path.cwd())} ui --backend-store-uri "$MLFLOW_TRACKING_URI"'
    folder = root.resolve()
    go = "" if Path.cwd() == folder else f"cd {shlex.quote(str(folder))} && "
    return f"{go}{_mlflow_command(folder)} ui --backend-store-uri sqlite:///{target.shown}"


def _mlflow_command(folder: Path) -> str:
    """How a shell in `folder` starts the mlflow of this environment, whether that is activated or not."""
    script = shutil.which("mlflow", path=str(Path(sys.executable).parent))
    if script is None:
        return f"{shlex.quote(sys.executable)} -m mlflow"
    if shutil.which("mlflow") == script:
        return "mlflow"
    path = Path(script)
    return shlex.quote(str(path.relative_to(folder) if path.is_relative_to(folder) else path))


def _waiting_lines(count: int, elsewhere: int) -> Iterator[str]:
    if count:
        cure = "the next run with --model-budget-mlflow or `modelbudget mlflow send`"
        yield f"  kept in {outbox.FOLDER}/outbox: {count}; {cure} sends them"
    if elsewhere:
        yield f"  kept for other values of MLFLOW_TRACKING_URI: {elsewhere}"


def _remark_lines(
    events: Sequence[Event], dropped: Sequence[str], name: str, repository_facts: facts.RepositoryFacts, no_history: str
) -> Iterator[str]:
    if no_history:
        yield f"  no point in the histories of the models: {no_history}"
    elif repository_facts.shallow:
        yield "  the clone is shallow, so steps are commit times in minutes; fetch-depth: 0 gives commit counts"
    others = sum(event["event"] == "sent" and event["entry"] != name for event in events)
    if others:
        yield f"  also sent what was waiting from {others} earlier {'run' if others == 1 else 'runs'}"
    for event in events:
        if event["event"] == "damaged":
            yield f"  removed from the outbox: {event['reason']}"
    for dropped_run in dropped:
        yield f"  the outbox was full: dropped {dropped_run}"
