"""All that a project's files show of how its models are built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pytest_modelbudget.cli.discover.source.calls import WrittenCall, written_calls
from pytest_modelbudget.cli.discover.source.parsers import WrittenDefaults, parser_defaults
from pytest_modelbudget.cli.discover.source.scan import is_test, module_name
from pytest_modelbudget.cli.discover.source.settings import read_settings, settings_calls, settings_defaults
from pytest_modelbudget.cli.discover.source.snippets import Snippet, document_snippets, module_snippets, parsed
from pytest_modelbudget.cli.walk import project_files
from pytest_modelbudget.config import MANIFEST_NAMES
from pytest_modelbudget.loading import UnreadableFile, decode_text, read_bytes

_DOCUMENTS = (".md", ".rst")
_SETTINGS = (".yaml", ".yml", ".json")
_EXAMPLE_FOLDERS = frozenset(("examples", "example", "docs", "doc", "demo", "demos", "scripts", "notebooks"))
_MOST_BYTES = 400_000
_MOST_FILES = 3_000
_MOST_PER_NAME = 6
_MOST_DEFAULTS = 60


@dataclass(slots=True)
class Evidence:
    """Calls by the last part of the name they call, defaults of command lines and settings, and paths of YAML files."""

    calls: dict[str, list[WrittenCall]] = field(default_factory=dict)
    parsers: list[WrittenDefaults] = field(default_factory=list)
    settings: list[WrittenDefaults] = field(default_factory=list)
    yaml_files: list[str] = field(default_factory=list)

    def of(self, name: str, required: Iterable[str]) -> dict[str, Any]:
        """What concerns a builder of this name with these required arguments, as plain data."""
        calls = sorted(self.calls.get(name, ()), key=_usefulness)[:_MOST_PER_NAME]
        needed = set(required)
        settings = [item for item in self.settings if len(needed) > 1 and needed <= item.values.keys()]
        return {
            "calls": [call.as_data() for call in calls],
            "parsers": [asdict(item) for item in self.parsers[:_MOST_DEFAULTS]],
            "settings": [asdict(item) for item in settings[:_MOST_DEFAULTS]],
            "yaml_files": self.yaml_files[:_MOST_DEFAULTS],
        }

    def mentions(self, name: str) -> int:
        """How often a builder of this name is called."""
        return len(self.calls.get(name.partition(".")[0], ()))

    def documented(self) -> frozenset[str]:
        """Names that documentation calls: whoever uses the project builds them, whatever else does."""
        return frozenset(
            name
            for name, calls in self.calls.items()
            if any(call.is_example and not call.where.partition(":")[0].endswith(".py") for call in calls)
        )


def gather(root: Path) -> Evidence:
    """Read all files of a project that are its own; what cannot be read is passed over."""
    evidence = Evidence()
    for number, path in enumerate(project_files(root)):
        if number > _MOST_FILES:
            break
        relative = path.relative_to(root)
        text = _text(path) if path.suffix in (".py", *_DOCUMENTS, *_SETTINGS) else None
        if text is None or path.name in MANIFEST_NAMES or relative.parts[0] == "__model_budget__":
            continue
        if path.suffix in _SETTINGS:
            _add_settings(evidence, relative.as_posix(), text, path.suffix)
            continue
        for snippet in _snippets(root, path, text):
            for call in written_calls(snippet):
                _add_call(evidence, call)
            evidence.parsers.extend(parser_defaults(snippet))
    return evidence


def _text(path: Path) -> str | None:
    try:
        return decode_text(read_bytes(path)) if path.stat().st_size <= _MOST_BYTES else None
    except (OSError, UnreadableFile, ValueError):
        return None


def _snippets(root: Path, path: Path, text: str) -> Iterator[Snippet]:
    relative = path.relative_to(root)
    if path.suffix in _DOCUMENTS:
        yield from document_snippets(relative.as_posix(), text)
        return
    try:
        tree = parsed(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    is_example = is_test(relative) or bool(_EXAMPLE_FOLDERS & set(relative.parts))
    yield from module_snippets(relative.as_posix(), module_name(root, path), tree, is_example=is_example)


def _add_settings(evidence: Evidence, path: str, text: str, suffix: str) -> None:
    data = read_settings(text, suffix)
    for call in settings_calls(path, data):
        _add_call(evidence, call)
    evidence.settings.extend(settings_defaults(path, data))
    if suffix != ".json" and isinstance(data, dict):
        evidence.yaml_files.append(path)


def _add_call(evidence: Evidence, call: WrittenCall) -> None:
    name = call.target.rpartition(":")[2].rpartition(".")[2]
    evidence.calls.setdefault(name, []).append(call)


def _usefulness(call: WrittenCall) -> tuple[bool, bool, bool, int]:
    """The order in which calls are tried: whole ones, those whose inputs are seen, documented ones, detailed ones."""
    return not call.complete, not call.inputs, not call.is_example, -len(call.args) - len(call.kwargs)
