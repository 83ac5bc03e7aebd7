"""A manifest file as plain data, with the line of every key; YAML or TOML.

YAML scalars are read by rules of our own: `1e6`, `1:30`, `on` and `010` stay the text they were written as, so
that what needs a number can say what is wrong with them. Only `true`, `false`, `null`, `~`, whole numbers
and simple decimals are anything but text.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Keys = tuple[str | int, ...]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[+-]?(?:0|[1-9][0-9_]{0,4000})")  # Python reads no more than 4,300 digits
_FLOAT = re.compile(r"[+-]?(?:0|[1-9][0-9_]*)\.[0-9]+")
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}


@dataclass(frozen=True, slots=True)
class Tree:
    """Plain data and where each key of it was written; `twice` lists keys that were written again, with both lines."""

    data: Any
    lines: dict[Keys, int] = field(default_factory=dict)
    twice: tuple[tuple[Keys, int, int], ...] = ()

    def line(self, keys: Keys) -> int | None:
        """The line of a key path, or of the nearest one above it."""
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.lines:
                return self.lines[keys[:end]]
        return None


class NotReadable(ValueError):
    """The file is not of its format; `line` says where, when that is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def read_yaml(text: str) -> Tree:
    """Read a YAML manifest.

    Raises:
        NotReadable: not YAML, with the line.
    """
    try:
        node = yaml.compose(text, Loader=_LOADER)
        reader = _Reader()
        data = None if node is None else reader.value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise NotReadable(f"not YAML: {error.problem}", mark.line + 1 if mark else None) from None
    except yaml.YAMLError as error:
        raise NotReadable(f"not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise NotReadable("not a manifest: it is nested too deeply") from None
    return Tree(data, reader.lines, tuple(reader.twice))


class _Reader:
    """Walks a YAML node graph; anchors are followed, a merge key (`<<`) fills in what a mapping does not say itself."""

    def __init__(self) -> None:
        self.lines: dict[Keys, int] = {}
        self.twice: list[tuple[Keys, int, int]] = []

    def value(self, node: yaml.Node, keys: Keys) -> Any:
        match node:
            case yaml.MappingNode():
                return self._mapping(node, keys)
            case yaml.SequenceNode():
                return [self._entry(item, (*keys, index)) for index, item in enumerate(node.value)]
            case yaml.ScalarNode():
                return _scalar(node)
        raise NotReadable(f"not a manifest: a {node.tag} has no place here", node.start_mark.line + 1)

    def _entry(self, node: yaml.Node, keys: Keys) -> Any:
        self.lines[keys] = node.start_mark.line + 1
        return self.value(node, keys)

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise NotReadable("a key has to be a word", line)
            name = str(key.value)
            if key.tag == "tag:yaml.org,2002:merge":
                parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for part in parts:
                    if not isinstance(part, yaml.MappingNode):
                        raise NotReadable("what << merges has to be a mapping", line)
                    merged = {**self._mapping(part, keys), **merged}
                continue
            path = (*keys, name)
            if name in found:
                self.twice.append((path, self.lines[path], line))
            self.lines[path] = line
            found[name] = self.value(value, path)
        return {**merged, **found}


def _scalar(node: yaml.ScalarNode) -> Any:
    text = str(node.value)
    if node.style in ("'", '"', "|", ">"):
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    return float(text.replace("_", "")) if _FLOAT.fullmatch(text) else text


def read_toml(text: str, table: tuple[str, ...]) -> Tree:
    """Read one table of a TOML file.

    Raises:
        NotReadable: not TOML, with the line.
    """
    try:
        data: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"line (\d+)", str(error))
        line = int(match[1]) if match else text.count("\n")  # without a number it is the end of the document
        raise NotReadable(f"not TOML: {error}", max(1, line)) from None
    except ValueError:  # Python reads no more than 4,300 digits
        long = re.search(r"[0-9_]{4300}", text)
        line = text.count("\n", 0, long.start()) + 1 if long else 1
        raise NotReadable("not a manifest: a number has too many digits", line) from None
    for name in table:
        data = data.get(name) if isinstance(data, dict) else None
    return Tree(data, {keys[len(table) :]: line for keys, line in _toml_lines(text) if keys[: len(table)] == table})


def _toml_lines(text: str) -> Iterator[tuple[Keys, int]]:
    """The line of each table header and key at the start of a line; good enough to point at, never used to read."""
    header: Keys = ()
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.fullmatch(r"\s*\[\[?([^\]]+)\]\]?\s*(?:#.*)?", line):
            header = _toml_keys(match[1])
            yield from ((header[: end + 1], number) for end in range(len(header)))
        elif match := re.match(
            r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)(?:\s*\.\s*(?:"[^"]*"|[A-Za-z0-9_-]+))*)\s*=""", line
        ):
            keys = (*header, *_toml_keys(match[1]))
            yield keys, number
            for inner in re.finditer(r"""["']?([A-Za-z_][\w*.-]*)["']?\s*=""", line[match.end() :]):
                yield (*keys, inner[1]), number


def _toml_keys(text: str) -> Keys:
    return tuple(part.strip().strip("\"'") for part in re.findall(r""""[^"]*"|'[^']*'|[^.]+""", text))
