"""A manifest's text with some of its values replaced; all else stays as the user wrote it: comments, quotes, line ends.

YAML is cut and joined at the places of its scalars, which leaves every other byte as it was; writers of YAML that keep
comments lay a text out anew. Of TOML, tomlkit keeps every byte itself. Both see a text that was read within the bounds
of `loading` before.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from functools import reduce
from operator import getitem
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from pytest_modelbudget.config.manifest import PYPROJECT_TABLE
from pytest_modelbudget.config.tree import Keys, Tree, read_toml, read_yaml
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading.toml_text import is_quickly_edited
from pytest_modelbudget.loading.yaml_text import LOADER, MERGE

if TYPE_CHECKING:
    from tomlkit.items import Item


class ManifestText(Protocol):
    """The text of a manifest as data; `shared` says that one text may hold values of several models, by aliases."""

    tree: Tree
    shared: bool

    def place(self, keys: Keys) -> Hashable | None:
        """Where the plain value at a key path is written, the same for paths to one text; None when nowhere."""
        ...

    def replaced(self, values: Mapping[Keys, str]) -> str:
        """The text with other values at these key paths, each of which has a place.

        Raises:
            ModelBudgetError: it cannot be rewritten.
        """
        ...


def manifest_text(text: str, file: str) -> ManifestText:
    """The text of the manifest `file`, which names its format."""
    return _Toml(text, file) if file.endswith(".toml") else _Yaml(text)


class _Yaml:
    def __init__(self, text: str) -> None:
        self._text = text
        self.tree = read_yaml(text)
        self._root = yaml.compose(text, Loader=LOADER)
        self.shared = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=LOADER))

    def place(self, keys: Keys) -> tuple[int, int] | None:
        """Where the scalar begins and ends."""
        node = _node_at(self._root, keys)
        return (node.start_mark.index, node.end_mark.index) if isinstance(node, yaml.ScalarNode) else None

    def replaced(self, values: Mapping[Keys, str]) -> str:
        """From the last to the first, quotes kept."""
        text = self._text
        spans = [(span, new) for keys, new in values.items() if (span := self.place(keys)) is not None]
        for (start, end), new in sorted(spans, reverse=True):
            quote = text[start] if text[start] in "\"'" else ""
            text = f"{text[:start]}{quote}{new}{quote}{text[end:]}"
        return text


class _Toml:
    shared = False

    def __init__(self, text: str, file: str) -> None:
        self._text, self._file = text, file
        self.tree = read_toml(text, PYPROJECT_TABLE)

    def place(self, keys: Keys) -> Keys:
        """TOML writes each value once."""
        return keys

    def replaced(self, values: Mapping[Keys, str]) -> str:
        """Quotes are kept; what comes out is read before it is used."""
        new = {(*PYPROJECT_TABLE, *keys): value for keys, value in values.items()}
        text = _rewritten_toml(self._text, new) if is_quickly_edited(self._text) else None
        if text is None:
            listed = "".join(f"\n  {'.'.join(map(str, keys))} = {value}" for keys, value in new.items())
            raise ModelBudgetError(f"{self._file}: it cannot be rewritten; write these limits there yourself:{listed}")
        return text


def _rewritten_toml(text: str, values: Mapping[Keys, str]) -> str | None:
    """The text with these values, None when it says anything else besides them."""
    import tomlkit  # here, so that a run of pytest does without

    expected = read_toml(text, ()).data
    document: Any = tomlkit.parse(text)
    for (*above, last), value in values.items():
        table = reduce(getitem, above, document)
        table[last] = _toml_value(table[last], value)
        reduce(getitem, above, expected)[last] = table[last].unwrap()
    rewritten = tomlkit.dumps(document)
    return rewritten if read_toml(rewritten, ()).data == expected else None


def _toml_value(before: Item, new: str) -> Item:
    """A value of TOML in the quotes of the one before; without quotes that was a number, and so is the new one."""
    import tomlkit

    written = before.as_string()
    if written[:1] not in ("'", '"'):
        return tomlkit.value(new)
    return tomlkit.string(new, literal=written.startswith("'"), multiline=written[:3] in ("'''", '"""'))


def _node_at(node: yaml.Node | None, keys: Keys) -> yaml.Node | None:
    """The node at a key path; a key that a mapping does not have itself may come from what it merges."""
    if not keys or not isinstance(node, yaml.MappingNode):
        return node if not keys else None
    for key, value in reversed(node.value):
        if key.tag != MERGE and str(key.value) == str(keys[0]):
            return _node_at(value, keys[1:])
    for merged in _merged_nodes(node):
        if (found := _node_at(merged, keys)) is not None:
            return found
    return None


def _merged_nodes(node: yaml.MappingNode) -> Iterator[yaml.Node]:
    for key, value in node.value:
        if key.tag == MERGE:
            yield from value.value if isinstance(value, yaml.SequenceNode) else [value]
