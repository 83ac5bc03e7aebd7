"""Where results are sent: a tracking server or database, or the embedded local store. Keeps its secrets to itself."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from pytest_modelbudget.trackers.mlflow.outbox import FOLDER

LOCAL_FILE = "mlflow.db"
LOCAL_URI = f"sqlite:///{LOCAL_FILE}"
"""The embedded store, opened from its own folder: a `?` or `#` in the path of that folder would end the address."""

_SECRETS = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "DATABRICKS_TOKEN")
"""Variables of MLflow's that hold secrets, or may."""

_CONNECT = 3.0
"""Seconds to connect; a server that cannot be reached would block mlflow's client for minutes."""


@dataclass(frozen=True, slots=True)
class Target:
    """A place to send to; `uri` may hold credentials and is for the sender alone, `shown` never holds any."""

    uri: str = field(repr=False)
    shown: str
    local: bool = False
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def is_server(self) -> bool:
        """Whether it has pages to link to."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def is_database(self) -> bool:
        """Whether it is opened directly, for which mlflow-skinny does not suffice."""
        return re.match(r"(sqlite|postgresql|mysql|mssql)\b", self.uri) is not None

    def scrub(self, text: str) -> str:
        """`text` without credentials, wherever they came from."""
        text = text.replace(self.uri, self.shown)
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return re.sub(r"://[^\s/@]+@", "://", text)


def target_from(cwd: Path, environ: Mapping[str, str]) -> Target:
    """The target that the environment asks for: `MLFLOW_TRACKING_URI`, else the embedded store."""
    variable = environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not variable:
        return Target(LOCAL_URI, f"{FOLDER}/{LOCAL_FILE}", local=True)
    uri = _absolute(variable, cwd)
    userinfo, query = _userinfo(uri), "".join(re.split(r"([?#])", uri, maxsplit=1)[2:])
    password = userinfo.partition(":")[2]
    secrets = (
        userinfo,
        password,
        unquote(password),
        *re.split("[?#=&]", query),
        *(environ.get(name, "") for name in _SECRETS[1:]),
    )
    shown = re.split("[?#]", uri.replace(f"{userinfo}@", "", 1) if userinfo else uri)[0].rstrip("/")
    longest_first = sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True)
    return Target(uri, shown, secrets=tuple(longest_first))


def missing_secret(environ: Mapping[str, str]) -> str:
    """The first variable that is set to nothing; CI services do so where a build is not given its secrets."""
    return next((name for name in _SECRETS if not environ.get(name, "x").strip()), "")


def _userinfo(uri: str) -> str:
    """What stands before the `@` of the host; also when a password holds a `/` that was not encoded."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme in ("file", "sqlite"):  # a file's path may hold an @
        return ""
    host = re.split("[/?#]", rest)[0]
    odd_port = re.search(r":[^\]]*[^\]0-9][^\]]*$", host) is not None
    return (rest if odd_port and "@" not in host else host).rpartition("@")[0]


def _absolute(uri: str, cwd: Path) -> str:
    """The sender works in another folder, so a relative path is made absolute."""
    if match := re.fullmatch(r"sqlite:///(?![/:])(?![A-Za-z]:)(.+)", uri):
        return f"sqlite:///{(cwd / match[1]).as_posix()}"
    if match := re.fullmatch(r"file:(?!/)(.+)", uri):
        return (cwd / match[1]).as_uri()
    is_path = ":" not in uri and uri not in ("databricks", "databricks-uc", "uc")
    return (cwd / uri).as_uri() if is_path else uri


def unreachable(target: Target) -> str | None:
    """Why nobody answers at a server's address; None when somebody does, or when it cannot be told."""
    if not target.is_server:
        return None
    try:
        parts = urlsplit(target.uri)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return f"{target.shown} is not an address"
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return None
    try:
        socket.create_connection((host, port), timeout=_CONNECT).close()
    except OSError as error:
        return f"nobody answers at {target.shown} ({error.strerror or error})"
    return None
