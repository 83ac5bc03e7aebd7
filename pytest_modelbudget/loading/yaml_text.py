"""YAML as plain data, with the line of every key.

Scalars are read by rules of our own: `1e6`, `1:30`, `on` and `010` stay the text they were written as, so that what
needs a number can say what is wrong with them. Only `true`, `false`, `null`, `~`, whole numbers and simple decimals
are anything but text. Before anything is made of a text, its events are counted, with what aliases would repeat.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from pytest_modelbudget.loading.tree import (
    DEEPEST,
    LONGEST_KEY,
    MOST_NODES,
    InvalidText,
    Keys,
    Tree,
    node_weight,
    refuse_number,
    too_deep,
    too_many,
)

MERGE = "tag:yaml.org,2002:merge"
"""The tag of the key `<<`."""

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Makes plain values alone; the one in C where there is one."""

_INT = re.compile(r"[+-]?(?:0|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[+-]?(?:0|[1-9][0-9_]*)\.[0-9]+")
_WORD_VALUES = {"true": True, "false": False, "null": None, "~": None, "": None}
_UNPRINTABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAGS = frozenset((None, "!", *(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null"))))
_TEXT = "tag:yaml.org,2002:str"
_COLLECTION_TAGS = frozenset((None, "!", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"))


def read_yaml(text: str, most_nodes: int = MOST_NODES) -> Tree:
    """Read one document of YAML, of at most so many values.

    Raises:
        NotReadable: not YAML, several documents, a tag, a loop, or over a bound, with the line.
    """
    if unprintable := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, unprintable.start()) + 1
        raise InvalidText(f"not YAML: the character {unprintable[0]!r} has no place in a text: remove it", line)
    try:
        _Bounds(most_nodes).check(text)
        node = yaml.compose(text, Loader=LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InvalidText(f"not YAML: {_problem_text(error)}", mark.line + 1 if mark else None) from None
    except yaml.YAMLError as error:
        raise InvalidText(f"not YAML: {str(error).splitlines()[0]}") from None
    reader = _YamlReader()
    data = None if node is None else reader.value(node, ())
    return Tree(data, reader.lines, tuple(reader.twice))


def _problem_text(error: yaml.MarkedYAMLError) -> str:
    if "another document" in str(error.problem):
        return "a second document begins here: remove the line ---, or move what follows to a file of its own"
    if "nesting depth" in str(error.problem):
        return str(too_deep(None))
    return str(error.problem)[:500]


@dataclass(slots=True)
class _Collection:
    """A list or mapping that has begun: its anchor, the nodes before it, and the levels of what is in it so far."""

    anchor: str | None
    before: int
    height: int = 0


class _Bounds:
    """Counts what a text would become, event by event; nothing is built of it."""

    def __init__(self, most_nodes: int) -> None:
        self.nodes, self.most_nodes = 0, most_nodes
        self.open: list[_Collection] = []
        self.anchored: dict[str, tuple[int, int]] = {}
        """The nodes and levels of what has an anchor."""

    def check(self, text: str) -> None:
        """Nothing, for a text within the bounds.

        Raises:
            NotReadable: over a bound, a tag or a loop.
        """
        for event in yaml.parse(text, Loader=LOADER):
            if isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, yaml.CollectionStartEvent):
                self._begin(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._end()
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event)
            if self.nodes > self.most_nodes:
                raise too_many(_line_of(event), self.most_nodes)

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        if event.tag not in _TAGS:
            raise _tag_error(event)
        self.nodes += node_weight(event.value)
        if event.anchor is not None:
            self.anchored[event.anchor] = node_weight(event.value), 0

    def _begin(self, event: yaml.CollectionStartEvent) -> None:
        if event.tag not in _COLLECTION_TAGS:
            raise _tag_error(event)
        if len(self.open) >= DEEPEST:
            raise too_deep(_line_of(event))
        self.open.append(_Collection(event.anchor, self.nodes))
        self.nodes += 1

    def _end(self) -> None:
        collection = self.open.pop()
        if collection.anchor is not None:
            self.anchored[collection.anchor] = self.nodes - collection.before, collection.height + 1
        self._raise_height(collection.height + 1)

    def _raise_height(self, height: int) -> None:
        """What stands in the innermost open collection has so many levels."""
        if self.open:
            self.open[-1].height = max(self.open[-1].height, height)

    def _alias(self, event: yaml.AliasEvent) -> None:
        if any(collection.anchor == event.anchor for collection in self.open):
            reason = f"nested too deeply: *{event.anchor} stands inside of &{event.anchor}, so it would never end"
            raise InvalidText(reason, _line_of(event))
        nodes, height = self.anchored.get(str(event.anchor), (1, 0))
        if len(self.open) + height > DEEPEST:
            raise too_deep(_line_of(event))
        self.nodes += nodes
        self._raise_height(height)


def _line_of(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _tag_error(event: Any) -> InvalidText:
    return InvalidText(f"a tag (!{event.tag[:100]}) has no place here: write plain values without one", _line_of(event))


class _YamlReader:
    """Walks a YAML node graph; anchors are followed, a merge key (`<<`) fills in what a mapping does not say itself."""

    def __init__(self) -> None:
        self.lines: dict[Keys, int] = {}
        self.twice: list[tuple[Keys, int, int]] = []

    def value(self, node: yaml.Node, keys: Keys) -> Any:
        """A node as plain data.

        Raises:
            NotReadable: a key that is no scalar, or what is merged is no mapping.
        """
        match node:
            case yaml.MappingNode():
                return self._mapping(node, keys)
            case yaml.SequenceNode():
                return [self._entry(item, (*keys, index)) for index, item in enumerate(node.value)]
            case yaml.ScalarNode():
                return _scalar_value(node)
        raise InvalidText(f"a {node.tag} has no place here", node.start_mark.line + 1)

    def _entry(self, node: yaml.Node, keys: Keys) -> Any:
        self.lines[keys] = node.start_mark.line + 1
        return self.value(node, keys)

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == MERGE:
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    merged = self._merge(source, keys, line, merged)
                continue
            name = _key_name(key, line)
            path = (*keys, name)
            if name in own:
                self.twice.append((path, self.lines[path], line))
            self.lines[path] = line
            own[name] = self.value(value, path)
        return {**merged, **own}

    def _merge(self, node: yaml.Node, keys: Keys, line: int, merged: dict[str, Any]) -> dict[str, Any]:
        """`merged` with what one more mapping says; the first that says something wins."""
        if not isinstance(node, yaml.MappingNode):
            raise InvalidText("<< takes a mapping, or a list of mappings", line)
        for name, value in self.value(node, keys).items():
            merged.setdefault(name, value)
        return merged


def _key_name(key: yaml.Node, line: int) -> str:
    if not isinstance(key, yaml.ScalarNode):
        raise InvalidText("a key has to be a word", line)
    if len(key.value) > LONGEST_KEY:
        raise InvalidText(f"a key of {len(key.value):,} characters: keys have at most {LONGEST_KEY:,}", line)
    return str(key.value)


def _scalar_value(node: yaml.ScalarNode) -> Any:
    text = str(node.value)
    if node.style in ("'", '"', "|", ">") or node.tag == _TEXT:  # of plain ones that has what says !!str, or is text
        return text
    if text in _WORD_VALUES:
        return _WORD_VALUES[text]
    if _INT.fullmatch(text):
        refuse_number(text, node.start_mark.line + 1)
        return int(text.replace("_", ""))
    if _FLOAT.fullmatch(text):
        refuse_number(text, node.start_mark.line + 1)
        return float(text.replace("_", ""))
    return text
