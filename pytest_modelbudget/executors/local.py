"""Isolated workers of this machine, several at a time."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil

from pytest_modelbudget.executors.dispatch import Pool
from pytest_modelbudget.executors.task import Task
from pytest_modelbudget.executors.workers import WORKERS
from pytest_modelbudget.isolation import Isolation


@contextmanager
def local_pool(jobs: int, root: Path, first: Isolation) -> Iterator[Pool]:
    """So many workers, each with a thread that waits for it; `first` is the one that is there already."""
    run = uuid.uuid4().hex
    executor = ThreadPoolExecutor(jobs, thread_name_prefix="modelbudget-jobs")
    WORKERS.lend(run, first)
    try:
        yield Pool(executor, lambda: jobs, partial(Task.here, run, root))
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        WORKERS.end(run)
        executor.shutdown()


def core_count() -> int:
    """Cores that this process may use: physical ones, since two threads of a core count hardly faster than one."""
    try:
        usable = len(psutil.Process().cpu_affinity())
    except (AttributeError, psutil.Error):  # not on every system
        usable = psutil.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))
