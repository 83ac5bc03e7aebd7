"""Failures of sending: the reason and the cure, in words."""

from __future__ import annotations

import re

from pytest_modelbudget.trackers.mlflow.target import Target

_TRANSIENT = (408, 429, 500, 502, 503, 504)
"""Answers of a server that may be better a moment later."""


class SendError(Exception):
    """Why nothing or not all could be sent, with the cure."""

    def __init__(self, reason: str, cure: str = "") -> None:
        super().__init__(reason)
        self.reason, self.cure = reason, cure


def explain_error(error: Exception, target: Target) -> SendError:
    """Any failure as a reason and a cure."""
    if isinstance(error, SendError):
        return error
    kind, message = type(error).__name__, next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, ModuleNotFoundError):
        return SendError(f"mlflow needs the module {error.name} for {target.shown}", "install the package that has it")
    if kind == "UnsupportedModelRegistryStoreURIException" and target.is_database:
        cure = "pip install mlflow, or set MLFLOW_TRACKING_URI to a server"
        return SendError(f"mlflow-skinny cannot open a database such as {target.shown}", cure)
    if kind == "UnsupportedModelRegistryStoreURIException":
        return SendError(f"mlflow does not know how to open {target.shown}", "correct MLFLOW_TRACKING_URI")
    if "maintenance mode" in message:
        cure = "set MLFLOW_TRACKING_URI to a server or to sqlite:///mlflow.db, or unset it"
        return SendError(f"mlflow no longer writes to folders such as {target.shown}", cure)
    if _is_unauthorized(error, message):
        cure = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return SendError(f"{target.shown} does not let this user in", cure)
    if code := _http_status(message):
        cure = "it has had too many requests" if code == 429 else "the server's own log says why"
        return SendError(f"{target.shown} answers with error {code}", f"{cure}; the entry is sent again by a later run")
    if "read timed out" in message.lower():
        return SendError(f"{target.shown} does not answer", "look whether the server is well")
    return SendError(f"{kind}: {message}"[:500])


def is_transient(error: Exception) -> bool:
    """Whether the same may work a moment later: a busy or broken server, an answer that was lost."""
    if isinstance(error, SendError):
        return False
    message = str(error).lower()
    lost_connection = ("connection aborted", "remote end closed", "connection reset", "incompleteread", "broken pipe")
    return _http_status(message) in _TRANSIENT or any(word in message for word in lost_connection)


def _http_status(message: str) -> int | None:
    """The status of an answer, as MLflow's and requests' messages give it."""
    patterns = (
        r"too many (\d{3}) error responses",
        r"error code (\d{3})\b",
        r"^(\d{3}) (?:server|client) error",
    )
    status_match = next((match for pattern in patterns if (match := re.search(pattern, message, re.IGNORECASE))), None)
    return int(status_match[1]) if status_match else None


def _is_unauthorized(error: Exception, message: str) -> bool:
    if getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return True
    return _http_status(message) in (401, 403)
