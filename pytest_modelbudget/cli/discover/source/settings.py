"""Settings files of a project: what they build by the names they have for it, and mappings of names to values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pytest_modelbudget.cli.discover.source.calls import WrittenCall
from pytest_modelbudget.cli.discover.source.parsers import WrittenDefaults
from pytest_modelbudget.cli.discover.source.values import Unreadable, as_call, as_mapping
from pytest_modelbudget.loading import InvalidText, read_yaml

_CONVENTIONS = (("_target_", ""), ("class_path", "init_args"), ("target", "params"))
"""How a mapping names what it builds, and where its arguments are: Hydra, Lightning's command line, OmegaConf."""

_MOST_NODES = 20_000
_LEAST_NAMES = 2


def read_settings(text: str, suffix: str) -> Any:
    """The data of a YAML or JSON file; None where it is none."""
    try:
        return json.loads(text) if suffix == ".json" else read_yaml(text, _MOST_NODES).data
    except (InvalidText, ValueError, RecursionError):
        return None


def settings_calls(path: str, data: Any) -> Iterator[WrittenCall]:
    """The calls that a file describes: `_target_: pkg.nets.Net` with its arguments."""
    for item in _mappings(data):
        target, arguments = _target(item)
        if not target:
            continue
        kwargs, complete = {}, True
        for name, value in arguments.items():
            try:
                kwargs[name] = _value(value, data)
            except Unreadable:
                complete = False
        yield WrittenCall(target, [], kwargs, complete, path, is_example=False)


def settings_defaults(path: str, data: Any) -> Iterator[WrittenDefaults]:
    """Each mapping of a file with at least two plain values."""
    for item in _mappings(data):
        values: dict[str, Any] = {}
        for name, value in item.items():
            try:
                values[str(name)] = _value(value, data)
            except Unreadable:
                continue
        if len(values) >= _LEAST_NAMES and not _target(item)[0]:
            yield WrittenDefaults(path, values)


def _mappings(data: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(data, Mapping):
        yield data
        for item in data.values():
            yield from _mappings(item)
    elif isinstance(data, list):
        for item in data:
            yield from _mappings(item)


def _target(item: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    for key, holder in _CONVENTIONS:
        name = item.get(key)
        module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
        arguments = (item.get(holder) or {}) if holder else {k: v for k, v in item.items() if not k.startswith("_")}
        if module and f"{module}.{attribute}".replace(".", "").isidentifier() and isinstance(arguments, Mapping):
            return f"{module}:{attribute}", arguments
    return "", {}


def _value(value: Any, root: Any, steps: int = 0) -> Any:
    """A value of the file as a manifest has it, with `${a.b}` replaced by what it points to."""
    if steps > 10:
        raise Unreadable
    if isinstance(value, str) and "${" in value:
        return _value(_resolved(value, root), root, steps + 1)
    if isinstance(value, Mapping):
        target, arguments = _target(value)
        items = {str(name): _value(item, root, steps + 1) for name, item in (arguments if target else value).items()}
        return as_call(target, [], items) if target else as_mapping(items)
    if isinstance(value, list):
        return [_value(item, root, steps + 1) for item in value]
    return value


def _resolved(text: str, root: Any) -> Any:
    path = text[2:-1]
    if not text.startswith("${") or not text.endswith("}") or ":" in path or "${" in path:
        raise Unreadable
    for key in path.split("."):
        if not isinstance(root, Mapping) or key not in root:
            raise Unreadable
        root = root[key]
    return root
