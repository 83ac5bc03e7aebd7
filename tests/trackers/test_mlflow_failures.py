"""MLflow: a failure of tracking is a line with the cure; nothing is lost, nothing waits for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_modelbudget.trackers import mlflow as tracker
from pytest_modelbudget.trackers.mlflow import target, trouble
from tests.builders import towers
from tests.trackers.mlflow_helpers import (
    SECRET,
    free_port,
    needs_mlflow,
    result,
    silent_server,
    waiting,
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with nothing of MLflow in the environment."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "GITHUB_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_refused_connection_loses_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its line names the server without the password, which is in no file either."""
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:{port}")
    delivery = tracker.log([result(towers())], root, exit_failed=False)
    assert not delivery.ok
    assert delivery.lines[0].startswith(f"mlflow: not sent: nobody answers at http://127.0.0.1:{port} (")
    assert delivery.lines[-1].startswith("  kept in .modelbudget/outbox: 1;")
    [entry] = waiting(root)
    written = [path for path in (root / ".modelbudget").rglob("*") if path.is_file()]
    assert entry / "job" / "report.html" in written
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert SECRET not in "".join(delivery.lines)
    assert (root / ".modelbudget" / ".gitignore").read_text(encoding="utf-8") == "*\n"


def test_a_missing_mlflow_is_one_line_with_the_cure(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry waits until it is installed."""
    stub = root / "stub" / "mlflow"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'mlflow'\", name='mlflow')\n", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(stub.parent))
    delivery = tracker.log([result(towers())], root, exit_failed=False)
    assert not delivery.ok
    assert delivery.lines[:2] == (
        "mlflow: not sent: mlflow is not installed",
        "  pip install 'pytest-modelbudget[mlflow]'",
    )
    assert len(waiting(root)) == 1


def test_a_sender_that_dies_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends it, the last thing it said is passed on."""
    stub = root / "stub" / "mlflow"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text(
        "import os, sys\nprint('no more memory', file=sys.stderr, flush=True)\nos._exit(9)\n", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(stub.parent))
    delivery = tracker.log([result(towers())], root, exit_failed=False)
    assert delivery.lines[0] == "mlflow: not sent: the sender ended with status 9: no more memory"
    assert len(waiting(root)) == 1


def test_a_folder_that_cannot_be_written_is_a_line(root: Path) -> None:
    """Tracking never raises."""
    (root / ".modelbudget").write_text("a file", encoding="utf-8")
    delivery = tracker.log([result(towers())], root, exit_failed=False)
    assert not delivery.ok
    assert delivery.lines[0].startswith("mlflow: nothing was logged (FileExistsError")


def error_of(kind: str, message: str, **fields: object) -> Exception:
    """An error as MLflow raises it, known by the name of its class."""
    error = type(kind, (Exception,), dict(fields))(message)
    assert isinstance(error, Exception)
    return error


@pytest.mark.parametrize(
    ("error", "uri", "reason", "cure"),
    [
        pytest.param(
            error_of("UnsupportedModelRegistryStoreURIException", "unsupported"), "",
            "mlflow-skinny cannot open a database", "pip install mlflow", id="skinny and the embedded store",
        ),
        pytest.param(
            error_of("UnsupportedModelRegistryStoreURIException", "unsupported"), "foo://x",
            "mlflow does not know how to open foo://x", "correct", id="unknown scheme",
        ),
        pytest.param(
            error_of("MlflowException", "The filesystem tracking backend is in maintenance mode"), "./mlruns",
            "mlflow no longer writes to folders", "sqlite:///mlflow.db", id="folder of files",
        ),
        pytest.param(
            error_of("RestException", "who?", error_code="UNAUTHENTICATED"), "http://h",
            "http://h does not let this user in", "MLFLOW_TRACKING_TOKEN", id="no login",
        ),
        pytest.param(
            error_of("MlflowException", "failed with error code 403 != 200"), "http://h",
            "http://h does not let this user in", "MLFLOW_TRACKING_TOKEN", id="forbidden",
        ),
        pytest.param(
            error_of("MlflowException", "too many 503 error responses"), "http://h",
            "http://h answers with error 503", "", id="server error",
        ),
        pytest.param(
            ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2"), "postgresql://h/x",
            "mlflow needs the module psycopg2", "install", id="driver",
        ),
        pytest.param(ValueError("odd\nmore"), "http://h", "ValueError: odd", "", id="anything else"),
    ],
)  # fmt: skip
def test_a_failure_is_explained(error: Exception, uri: str, reason: str, cure: str) -> None:
    """With the cure where there is one."""
    found = trouble.explain_error(error, target.target_from(Path("/work"), {"MLFLOW_TRACKING_URI": uri}))
    assert found.reason.startswith(reason)
    assert cure in found.cure


JOB, BEGUN, OVER = {"event": "job", "entry": "one"}, {"event": "begun", "entry": "one"}, {"event": "over"}


@pytest.mark.parametrize(
    ("events", "later"),
    [
        pytest.param([JOB, BEGUN, {"event": "later", "entry": "one"}], True, id="the sender stopped in time"),
        pytest.param([JOB, BEGUN, OVER], True, id="the deadline came amid new histories"),
        pytest.param([JOB, OVER], False, id="the deadline came before a change was written"),
        pytest.param([JOB, {"event": "short", "entry": "one"}], False, id="no time for changes"),
        pytest.param([JOB, BEGUN], False, id="the sender died"),
        pytest.param(
            [JOB, BEGUN, {"event": "failed", "entry": "one", "reason": "x"}, OVER], False, id="a failure, too"
        ),
        pytest.param([JOB, {"event": "later", "entry": "other"}], False, id="another run's"),
    ],
)
def test_only_histories_that_begin_may_come_later(tmp_path: Path, events: list[dict[str, str]], later: bool) -> None:
    """That they are not there yet fails no run; anything else that is missing does where it is required."""
    (tmp_path / "one").mkdir()
    assert tracker._is_unfinished(events, tmp_path / "one", "later") == later
    assert not tracker._is_unfinished(events, tmp_path / "sent", "later")


BLOCKED = """
import os, socket, subprocess, sys

line = socket.create_connection(("127.0.0.1", int(os.environ["PORT"])))
line.sendall(b"here")
subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[line.fileno()])
"""


def test_a_sender_that_hangs_is_ended_with_all_it_started(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection it shares with a process of its own is closed only when both are gone."""
    stub = root / "stub" / "mlflow"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text(BLOCKED, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(stub.parent))
    with silent_server() as server:
        monkeypatch.setenv("PORT", str(server.getsockname()[1]))
        delivery = tracker.log([result(towers())], root, exit_failed=False, deadline=2)
        assert delivery.lines[0] == "mlflow: not sent: no answer within 2 s"
        line = server.accept()[0]
        with line:
            line.settimeout(5)
            assert line.recv(4) == b"here"
            assert line.recv(1) == b""
    assert len(waiting(root)) == 1


@pytest.mark.slow
@needs_mlflow
def test_a_silent_server_is_left_at_the_deadline(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no time limit of MLflow's own in the way; the entry is kept."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    with silent_server() as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        delivery = tracker.log([result(towers())], root, exit_failed=False, deadline=20)
        first_look, request = server.accept()[0], server.accept()[0]
        with first_look, request:
            request.settimeout(5)
            assert request.recv(100_000).startswith(b"GET /api/")
    assert delivery.lines[0] == "mlflow: not sent: no answer within 20 s"
    assert len(waiting(root)) == 1
