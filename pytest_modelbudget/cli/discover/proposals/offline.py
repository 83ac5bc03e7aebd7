"""Arguments that have a builder fetch weights, and the values with which it does not."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

_FETCHES = re.compile(r"(\w+_)?(pretrained|weights|checkpoint|ckpt)(_(path|file|weights|name|url|backbone|model))?")
_LOADS = re.compile(r"(load|use|download|from)_(pretrained|weights|checkpoint|imagenet)(_\w+)?|download")
_NUMBERS = (int, float)


def without_fetching(parameters: Mapping[str, inspect.Parameter], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name, with those that ask for weights set to none: `weights: null`, `pretrained: false`."""
    changed = dict(kwargs)
    for name, parameter in parameters.items():
        value = kwargs.get(name, parameter.default)
        if value is parameter.empty or not value or not (_FETCHES.fullmatch(name) or _LOADS.fullmatch(name)):
            continue
        if isinstance(value, bool):
            changed[name] = False
        elif not isinstance(value, (*_NUMBERS, list, tuple)):  # weights of a loss are numbers
            changed[name] = None
    return changed
