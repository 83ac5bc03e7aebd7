"""Where models are counted when not one after the other here: workers of this machine, or of a cluster.

The seam is `concurrent.futures`: whatever submits a function is an engine. `task` is what is submitted, one model, and
what comes back, as data; `workers` are the isolated workers of a process that runs tasks; `dispatch` keeps an executor
busy and takes what is done. `local` and `dask` are engines: each opens a `Pool`.
"""

from __future__ import annotations

from pytest_modelbudget.executors.dispatch import Completed, Lost, Pool, count_all
from pytest_modelbudget.executors.task import Attempt, Task, count_task

__all__ = ["Attempt", "Completed", "Lost", "Pool", "Task", "count_all", "count_task"]
