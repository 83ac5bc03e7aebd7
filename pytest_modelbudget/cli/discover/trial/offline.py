"""A worker that fetches nothing: libraries are told so, and sockets to other machines are refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from pytest_modelbudget.backends.patching import all_patched

_DEAD_PROXY = "http://127.0.0.1:9"
"""For programs that the worker starts: nothing answers there."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "disabled",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), _DEAD_PROXY),
}
"""Variables of the worker."""


class NetworkRefused(OSError):
    """Code wants something from another machine."""

    def __init__(self) -> None:
        super().__init__("wants to fetch something, and init uses no network")


@contextmanager
def worker_environment() -> Iterator[None]:
    """Inside, this process has the variables of `ENVIRONMENT`, for the worker that it starts and asks."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


@contextmanager
def no_network() -> Iterator[None]:
    """Inside, names of machines are not looked up and connections to them are refused.

    Sockets within this machine that are no internet addresses work as ever.
    """
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise NetworkRefused

    def checked(function: Any) -> Any:
        def call(own: socket.socket, address: Any) -> Any:
            if own.family in (socket.AF_INET, socket.AF_INET6):
                raise NetworkRefused
            return function(own, address)

        return call

    with all_patched(
        [
            (socket.socket, "connect", checked(connect)),
            (socket.socket, "connect_ex", checked(connect_ex)),
            (socket, "getaddrinfo", refuse),
            (socket, "gethostbyname", refuse),
            (socket, "create_connection", refuse),
        ]
    ):
        yield
