"""The events of a recording, written to the log of `MODELBUDGET_DEBUG`."""

from __future__ import annotations

from pytest_modelbudget.planner import MemoryEvent, MemoryTrace
from pytest_modelbudget.system.debug import DebugLog

MOST_EVENTS = 1_000
"""Events of one recording that are written; a step of a large model has tens of thousands."""


def show_memory_trace(memory_trace: MemoryTrace, log: DebugLog | None) -> None:
    """Write what was held before and the first events, each with what it made (storage: bytes) and let go of."""
    if log is None or not log.shows("memory"):
        return
    log.write(
        "memory", f"{len(memory_trace.held)} storages of {memory_trace.held_bytes():,} bytes are held before the run"
    )
    for event, alive in zip(memory_trace.events[:MOST_EVENTS], memory_trace.alive(), strict=False):
        with log.inside(event.path):
            log.write("memory", f"{_text(event)}; {alive:,} bytes alive")
    if (left_out := len(memory_trace.events) - MOST_EVENTS) > 0:
        log.write("memory", f"{left_out:,} more events are not shown")


def _text(event: MemoryEvent) -> str:
    name = f"{event.phase}: {event.op}" if event.op else "nothing runs"
    made = [f"+{storage}: {size:,}" for storage, size in event.made]
    freed = [f"-{storage}" for storage in event.freed]
    inside = [f"{event.workspace:,} inside the kernel"] if event.workspace else []
    return ", ".join((name, *made, *freed, *inside))
