"""Changes of data that tests make, one value at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def put(*keys: str | int, value: object) -> Callable[[Any], None]:
    """A change of the value at these keys."""

    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change
