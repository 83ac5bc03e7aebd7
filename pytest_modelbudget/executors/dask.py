"""Dask as an engine: a cluster of this machine's own for one run, or any that is there.

Models are counted in isolated workers inside of Dask's, so what a builder does to its process costs Dask nothing. A
worker of Dask that is gone costs the models that it was at, and they are not tried again where the cluster allows that
to be said (`allowed-failures: 0` in one's own).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import cloudpickle
import dask
from distributed import Client, KilledWorker, LocalCluster, WorkerPlugin
from distributed.comm import get_address_host_port
from distributed.security import Security

from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.executors import probe, shipping
from pytest_modelbudget.executors.dispatch import Lost, Pool
from pytest_modelbudget.executors.local import core_count
from pytest_modelbudget.executors.task import Task
from pytest_modelbudget.executors.workers import WORKERS
from pytest_modelbudget.loading import UnreadableFile, is_file, read_bytes

T = TypeVar("T")

OWN = "dask"
"""The word for a cluster of one's own."""

_SECONDS_TO_CONNECT = 10
_SECONDS_FOR_WORKERS = 60
_SECONDS_TO_ANSWER = 60
_SECONDS_TO_END = 15
_SECONDS_BETWEEN_LOOKS = 0.5
_LOOKS_AT_FILE = 4

_WHERE = (
    "write tcp://scheduler:8786 (tls://), the path of a scheduler's file, or dask for a cluster of this machine's own"
)

_LOGGERS = ("distributed", "distributed.client", "tornado", "tornado.application", "asyncio")

_OWN_CLUSTER = {
    "distributed.scheduler.allowed-failures": 0,
    "distributed.nanny.pre-spawn-environ": {},
}
"""A model that kills its worker kills no other, and the variables are the user's own."""


@contextmanager
def dask_pool(where: str, most: int | None, root: Path, entries: Sequence[ModelEntry]) -> Iterator[Pool]:
    """The workers of the cluster at `where`, at most so many models at a time; one's own has a worker for each core.

    Raises:
        ModelBudgetError: there is no cluster, or its workers cannot count these models.
    """
    own = where == OWN
    with _quiet_logs(), _client(where, min(most or core_count(), len(entries))) as client:
        run = uuid.uuid4().hex
        _wait_for_worker(client, where)
        plugin = RunPlugin(run) if own else RunPlugin(run, shipping.packed_project(root), _versions(client, entries))
        _within(_SECONDS_TO_ANSWER, partial(client.register_plugin, plugin), "take the project's files")
        task = partial(Task.here if own else _shipped_task, run, root)
        try:
            yield Pool(_DaskExecutor(client), _Slots(client, most), task)
        finally:
            with suppress(Exception):  # what matters is there already
                _end_run(client, plugin)


def _end_run(client: Client, plugin: RunPlugin) -> None:
    if client.status == "running":  # a cluster that is gone has nothing of the run any more
        _within(_SECONDS_TO_END, partial(client.unregister_worker_plugin, plugin.name), "end the run")


def _shipped_task(run: str, root: Path, entry: ModelEntry) -> Task:
    return Task(run, entry, ".", shipping.shipped_surroundings(root), shipped=True)


class RunPlugin(WorkerPlugin):  # type: ignore[misc]
    """Brings the files of a project to each worker of a cluster, also one that comes later, and ends the run there.

    One that comes later has to have the `versions` of the others too: else its models fail, and say what it lacks.
    """

    def __init__(self, run: str, packed: bytes = b"", versions: Mapping[str, str] | None = None) -> None:
        self.name = f"modelbudget-{run}"
        self._run, self._packed, self._versions = run, packed, versions or {}

    async def setup(self, worker: Any) -> None:
        """Unpack them in the worker's own folder."""
        if self._packed:
            await asyncio.to_thread(self._unpack, worker.address, Path(worker.local_directory))
        else:
            _leave_interrupts()

    def _unpack(self, address: str, folder: Path) -> None:
        names = [name for name in self._versions if name != "Python"]
        try:
            probe.check_alike(self._versions, {address: probe.installed(names)}, names)
        except ModelBudgetError as fault:
            shipping.refuse(self._run, str(fault))
            return
        shipping.unpack(self._run, self._packed, folder)

    async def teardown(self, worker: Any) -> None:
        """End what counts models of the run, and remove its files."""
        await asyncio.to_thread(WORKERS.end, self._run)
        await asyncio.to_thread(shipping.remove, self._run)


def _leave_interrupts() -> None:
    """Have Ctrl-C reach only the process that asked: a terminal sends it to all that it started."""
    with suppress(ValueError):  # where the worker is no process of its own
        signal.signal(signal.SIGINT, lambda *_: None)


class _DaskExecutor(Executor):
    """Submits to a cluster; errors of the cluster are told as what they mean for the model, or for the run."""

    def __init__(self, client: Client) -> None:
        self._executor = client.get_executor(pure=False, retries=0)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        try:
            inner: Future[T] = self._executor.submit(fn, *args, **kwargs)
        except Exception as error:
            raise Lost(_lost(f"{type(error).__name__}: {error}")) from None
        outer: Future[T] = Future()
        outer.set_running_or_notify_cancel()
        inner.add_done_callback(partial(_settle, outer))
        return outer


def _settle(outer: Future[T], inner: Future[T]) -> None:
    if inner.cancelled():
        outer.set_exception(Lost(_lost()))
    elif (error := inner.exception()) is None:
        outer.set_result(inner.result())
    else:
        outer.set_exception(_translated(error))


def _translated(error: BaseException) -> BaseException:
    if not isinstance(error, KilledWorker):
        return error
    count, address = error.allowed_failures + 1, error.last_worker.address
    died = f"{count} workers of the cluster died, the last at" if count > 1 else "the worker of the cluster died, at"
    return ModelBudgetError(
        f"{died} {address}, while the model was counted: killed, short of memory, or its machine is gone; it is not "
        "tried again"
    )


def _lost(reason: str = "") -> str:
    return f"the connection to the Dask scheduler was lost{f' ({reason})' if reason else ''}"


@dataclass(slots=True)
class _Slots:
    """The threads of all workers, as the scheduler knows them, looked at now and then."""

    client: Client
    most: int | None
    count: int = 0
    looked: float = 0.0
    empty_since: float | None = None

    def __call__(self) -> int:
        now = time.monotonic()
        if now - self.looked < _SECONDS_BETWEEN_LOOKS:
            return self.count
        try:
            threads = sum(_within(_SECONDS_TO_ANSWER, self.client.nthreads, "answer").values())
        except ModelBudgetError as error:
            raise Lost(_lost(str(error))) from None
        self.looked, self.count = time.monotonic(), threads if self.most is None else min(threads, self.most)
        self.empty_since = None if threads else self.empty_since or now
        if self.empty_since is not None and now - self.empty_since > _SECONDS_FOR_WORKERS:
            raise Lost(f"the cluster had no worker for {_SECONDS_FOR_WORKERS} s")
        return self.count


@contextmanager
def _client(where: str, workers: int) -> Iterator[Client]:
    with _own_cluster(workers) if where == OWN else nullcontext(_address(where)) as address:
        try:
            client = Client(address, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
        except Exception as error:  # not there, or no scheduler, or with other certificates
            raise ModelBudgetError(
                f"--on {where}: no Dask scheduler answers there within {_SECONDS_TO_CONNECT} s "
                f"({type(error).__name__}: {error})"
            ) from None
        try:
            yield client
        finally:
            with suppress(Exception):
                client.close(timeout=_SECONDS_TO_END)


def _address(where: str) -> str:
    """The address of a scheduler, which `where` is or names the file of.

    Raises:
        ModelBudgetError: it is neither, or there are no certificates for it.
    """
    address = where if "://" in where else _address_in(where)
    try:
        get_address_host_port(address)  # Dask takes half a minute to refuse it
    except (ValueError, ImportError) as error:
        raise ModelBudgetError(f"--on {where}: {_WHERE} ({error})") from None
    if address.startswith("tls:") and Security().get_connection_args("client").get("ssl_context") is None:
        raise ModelBudgetError(f"--on {where}: Dask's configuration has no certificates (distributed.comm.tls)")
    return address


def _address_in(file: str) -> str:
    if not is_file(Path(file)):
        raise ModelBudgetError(f"--on {file}: {_WHERE}")
    for _ in range(_LOOKS_AT_FILE):
        with suppress(UnreadableFile, OSError, ValueError, LookupError, TypeError):  # while it is being written
            return str(json.loads(read_bytes(Path(file)))["address"])
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    raise ModelBudgetError(f"--on {file}: no file that dask scheduler --scheduler-file wrote")


@contextmanager
def _own_cluster(workers: int) -> Iterator[LocalCluster]:
    """Processes of one thread each; only this user's, by certificates that are made for the run, and only from here."""
    try:
        security = Security.temporary()
    except ImportError:
        raise ModelBudgetError("--on dask needs cryptography: pip install 'pytest-modelbudget[dask]'") from None
    seed = os.environ.get("PYTHONHASHSEED", "random")  # else Dask has one of its own
    with dask.config.set({**_OWN_CLUSTER, "distributed.nanny.environ.PYTHONHASHSEED": seed}):
        cluster = LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1", protocol="tls://",
            dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False}, memory_limit=None,
            silence_logs=logging.CRITICAL, security=security,
        )  # fmt: skip
        try:
            yield cluster
        finally:
            with suppress(Exception):  # all results are there
                cluster.close(timeout=_SECONDS_TO_END)


def _wait_for_worker(client: Client, where: str) -> None:
    try:
        client.wait_for_workers(1, timeout=_SECONDS_FOR_WORKERS)
    except Exception as error:
        raise ModelBudgetError(
            f"--on {where}: the cluster had no worker within {_SECONDS_FOR_WORKERS} s ({type(error).__name__}): "
            "start workers first"
        ) from None


def _versions(client: Client, entries: Sequence[ModelEntry]) -> Mapping[str, str]:
    """What all workers have installed.

    Raises:
        ModelBudgetError: one lacks something, or has it in another version.
    """
    names = probe.asked_for(entries)
    with probed_by_value():
        ask = partial(client.run, probe.installed, names, on_error="return")
        answers = _within(_SECONDS_TO_ANSWER, ask, "say what is installed")
    probe.check_alike(probe.installed(names), answers, names)
    return dict(next(iter(answers.values())))


@contextmanager
def probed_by_value() -> Iterator[None]:
    """Inside, the probe travels as its code, to where this package may be missing."""
    cloudpickle.register_pickle_by_value(probe)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(probe)


def _within(seconds: float, call: Callable[[], T], what: str) -> T:
    """What a call to the cluster gives, which may never come.

    Raises:
        ModelBudgetError: it takes longer, or fails.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)

    thread = Thread(target=run, name="modelbudget-dask", daemon=True)
    thread.start()
    thread.join(seconds)
    if not results:
        reason = f" ({type(errors[0]).__name__}: {errors[0]})" if errors else f" within {seconds:g} s"
        raise ModelBudgetError(f"--on: the cluster did not {what}{reason}")
    return results[0]


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Without Dask's own log: what matters of it is said."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
