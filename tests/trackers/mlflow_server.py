"""A real MLflow server on loopback, a proxy before it that breaks what a test wants broken, and repositories."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from pytest_modelbudget.results import Result, codec
from tests.trackers.mlflow_helpers import SECRET, SOURCES

RUN = """
import json, sys
from pathlib import Path
from pytest_modelbudget.results import codec as wire
from pytest_modelbudget.trackers import tracker

results = [wire.result_from(one) for one in json.loads(sys.stdin.read())]
delivery = tracker("mlflow").log(results, Path.cwd(), exit_failed=False, deadline=float(sys.argv[1]))
imported = "mlflow" in sys.modules
print(json.dumps({"ok": delivery.ok, "lines": delivery.lines, "links": delivery.links, "imported": imported}))
"""


@dataclass(frozen=True, slots=True)
class Repository:
    """A user's repository; `log` does there what a run of pytest does."""

    path: Path
    environment: dict[str, str]

    def git(self, *arguments: str) -> str:
        """A git command."""
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
        return subprocess.run(
            ["git", *identity, *arguments],
            cwd=self.path,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    def commit(self, when: int) -> str:
        """An empty commit at a time, in seconds; returns its id."""
        date = {"GIT_AUTHOR_DATE": f"{when} +0000", "GIT_COMMITTER_DATE": f"{when} +0000"}
        Repository(self.path, self.environment | date).git("commit", "-q", "--allow-empty", "-m", "x")
        return self.git("rev-parse", "HEAD")

    def start(self, results: Sequence[Result], deadline: float = 120) -> subprocess.Popen[str]:
        """Begin to log, as a process of its own."""
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(deadline)],
            cwd=self.path, env=self.environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps([codec.result_dict(one) for one in results]))
        process.stdin.close()
        return process

    def log(self, results: Sequence[Result], deadline: float = 120) -> dict[str, Any]:
        """Log, and return what came back."""
        return finished(self.start(results, deadline))

    def send(self) -> subprocess.Popen[str]:
        """Begin to send what was kept, as the command for it does."""
        return subprocess.Popen(
            [sys.executable, "-m", "pytest_modelbudget.trackers.mlflow", "send"],
            cwd=self.path, env=self.environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a process that logs came to."""
    assert process.stdout is not None
    said = json.loads(process.stdout.read())
    assert process.wait() == 0
    assert isinstance(said, dict)
    return said


def repository(path: Path, name: str = "nets", **environment: str) -> Repository:
    """A new repository, with an origin whose address holds a password."""
    ours = ("MLFLOW_", "MODELBUDGET_", "GITHUB_", "GITLAB_", "GIT_")
    inherited = {key: text for key, text in os.environ.items() if not key.startswith(ours) and key != "CI"}
    repo = Repository(path, inherited | {"PYTHONPATH": str(SOURCES)} | environment)
    path.mkdir(parents=True)
    repo.git("init", "-q", "-b", "trunk")
    repo.git("remote", "add", "origin", f"https://me:{SECRET}@example.com/team/{name}.git")
    return repo


@dataclass(frozen=True, slots=True)
class Store:
    """What an MLflow store holds."""

    client: Any
    uri: str

    def runs(self, experiment: str) -> list[Any]:
        """The runs of an experiment, oldest first."""
        found = self.client.get_experiment_by_name(experiment)
        return list(self.client.search_runs([found.experiment_id], order_by=["attributes.start_time"])) if found else []

    def run(self, experiment: str, name: str) -> Any:
        """The only run of a name."""
        [run] = [run for run in self.runs(experiment) if run.info.run_name == name]
        return run

    def points(self, run: Any, metric: str) -> list[tuple[int, float]]:
        """Step and value of every point."""
        return sorted((point.step, point.value) for point in self.client.get_metric_history(run.info.run_id, metric))

    def files(self, run: Any, folder: str | None = None) -> set[str]:
        """The paths of a run's artifacts."""
        found: set[str] = set()
        for path, is_folder in self._listed(run.info.run_id, folder):
            found |= self.files(run, path) if is_folder else {path}
        return found

    def _listed(self, run_id: str, folder: str | None) -> list[tuple[str, bool]]:
        """A server is asked directly: MLflow's newer clients cannot list the artifacts of older servers."""
        if not self.uri.startswith("http"):
            return [(one.path, one.is_dir) for one in self.client.list_artifacts(run_id, folder)]
        query = urlencode({"run_id": run_id, **({"path": folder} if folder else {})})
        with urlopen(f"{self.uri}/api/2.0/mlflow/artifacts/list?{query}", timeout=60) as answer:
            return [(one["path"], one["is_dir"]) for one in json.load(answer).get("files", [])]

    def text(self, run: Any, path: str, into: Path) -> str:
        """An artifact."""
        return Path(self.client.download_artifacts(run.info.run_id, path, str(into))).read_text(encoding="utf-8")


def store_at(uri: str) -> Store:
    """The store at an address."""
    from mlflow import MlflowClient

    return Store(MlflowClient(tracking_uri=uri), uri)


def local_store(repo: Repository) -> Store:
    """The embedded store of a repository."""
    return store_at(f"sqlite:///{repo.path}/.modelbudget/mlflow.db")


@contextmanager
def server(folder: Path, port: int, python: str = sys.executable, backend: str = "") -> Iterator[str]:
    """A tracking server on loopback, with a database file as `backend` unless another is given."""
    command = [
        python, "-m", "mlflow", "server", "--backend-store-uri", backend or f"sqlite:///{folder}/server.db",
        "--artifacts-destination", str(folder / "artifacts"), "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    environment = {name: text for name, text in os.environ.items() if not name.startswith("MLFLOW_")}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        assert process.poll() is None, (folder / "server.log").read_text(encoding="utf-8")
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(30)


@dataclass(frozen=True, slots=True)
class Request:
    """A request that passes the proxy; `number` counts those of the same method and path."""

    method: str
    path: str
    number: int


Fault = Callable[[Request], "Answer | str | None"]
"""What is wrong with a request: None for nothing, an answer in place of the server's, or one of the words below."""

SILENT, DRIPS, LOST = "silent", "drips", "lost"
"""No answer at all; a byte a second; the server does it, and its answer never arrives."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A status with a body."""

    status: int
    body: str = "{}"
    kind: str = "application/json"


@dataclass(slots=True)
class Proxy:
    """A server's address with faults; `seen` has the requests so far, `fault` can be exchanged at any time."""

    port: int
    fault: Fault
    over: threading.Event = field(default_factory=threading.Event)
    seen: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def note(self, method: str, path: str) -> Request:
        """A request that has come."""
        with self.lock:
            plain = path.partition("?")[0]
            number = sum(one.method == method and one.path == plain for one in self.seen) + 1
            self.seen.append(Request(method, plain, number))
            return self.seen[-1]


@contextmanager
def proxy(upstream: int, fault: Fault = lambda _: None) -> Iterator[Proxy]:
    """A proxy before the server at a port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found = state.fault(state.note(self.command, self.path))
            self.close_connection = True
            if found == SILENT:
                state.over.wait(600)
            elif found == DRIPS:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not state.over.wait(1):
                    self.wfile.write(b" ")
            elif isinstance(found, Answer):
                self._answer(found.status, found.kind, found.body.encode())
            else:
                line = http.client.HTTPConnection("127.0.0.1", upstream, timeout=60)
                line.request(self.command, self.path, body, dict(self.headers))
                answer = line.getresponse()
                content = answer.read()
                if found != LOST:
                    self._answer(answer.status, answer.headers.get("Content-Type", ""), content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

        def _answer(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that was killed is what these tests are about."""

    listener = Quiet(("127.0.0.1", 0), Handler)
    state = Proxy(listener.server_address[1], fault)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        state.over.set()
        listener.shutdown()
        listener.server_close()
