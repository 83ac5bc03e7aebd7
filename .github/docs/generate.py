"""Hooks of mkdocs: parts of pages that are made from the code, and files of the repository that pages link to.

`<!-- generated: NAME -->` in a page is replaced by what the function of that name in `PARTS` returns. A relative link
that leads out of `docs/` gets its file: Markdown becomes a page, anything else is copied.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import pytest_modelbudget
from pytest_modelbudget.cli.words import build_parser
from pytest_modelbudget.planner import devices
from pytest_modelbudget.plugin import pytest_addoption
from pytest_modelbudget.plugin.fixture import ModelBudget

REPOSITORY: Final = Path(__file__).resolve().parents[2]
DOCS: Final = REPOSITORY / "docs"
README: Final = REPOSITORY / "README.md"
OUTSIDE: Final = "project"
"""The folder of the site for files that are not in docs/."""

ALWAYS: Final = ("CHANGELOG.md", ".github/CONTRIBUTING.md", ".github/SECURITY.md")
_MARK = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.MULTILINE)
_LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside of docs/ that pages link to."""
    pages = [Path(file.abs_src_path) for file in files if file.src_uri.endswith(".md") and file.abs_src_path]
    wanted = {REPOSITORY / name for name in ALWAYS}
    wanted |= {target for page in [*pages, *sorted(wanted)] for target in _targets(page)}
    for path in sorted(wanted - {README}):
        files.append(File.generated(config, _home(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill the generated parts in, and lead links out of docs/ to the copies."""
    filled = _MARK.sub(lambda match: PARTS[match[1]](), markdown)
    source, uri = Path(str(page.file.abs_src_path)), page.file.src_uri
    return _LINK.sub(lambda match: f"{match[1]}{_moved(match[2], source, uri)}{match[3] or ''})", filled)


def _targets(page: Path) -> Iterator[Path]:
    """The files outside of docs/ that a page links to."""
    for match in _LINK.finditer(page.read_text(encoding="utf-8")):
        target = Path(os.path.normpath(page.parent / match[2]))
        if target.is_file() and not target.is_relative_to(DOCS):
            yield target


def _home(path: Path) -> str:
    """Where the site has a file of the repository; a site has no hidden folders."""
    if path == README:  # the site begins with a page that says the same
        return "index.md"
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return "/".join([OUTSIDE, *(part.lstrip(".") for part in path.relative_to(REPOSITORY).parts)])


def _moved(link: str, source: Path, uri: str) -> str:
    """A link of the file `source` as the page `uri` of the site has to write it."""
    target = Path(os.path.normpath(source.parent / link))
    return os.path.relpath(_home(target), os.path.dirname(uri) or ".") if target.is_file() else link


class _Options:
    """Notes what a plugin adds to pytest's options."""

    def __init__(self) -> None:
        self.parser = ArgumentParser("pytest", usage=argparse.SUPPRESS, add_help=False, formatter_class=_wide)
        self.ini: list[str] = []

    def getgroup(self, *_: str) -> _Options:
        return self

    def addoption(self, *flags: str, **settings: Any) -> None:
        self.parser.add_argument(*flags, **settings)

    def addini(self, name: str, text: str, **_: Any) -> None:
        self.ini.append(f"  {name:<22}{text}")


def _wide(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=34, width=100)


def options() -> str:
    """The help of pytest's options, and of the keys of its configuration file."""
    noted = _Options()
    pytest_addoption(noted)  # type: ignore[arg-type]
    help_text = noted.parser.format_help().partition("\n")[2].rstrip()
    return _text("\n".join([help_text, "", "configuration file:", *noted.ini]))


def commands() -> str:
    """The help of each command, and of the commands below it."""
    os.environ["COLUMNS"] = "100"
    return "\n\n".join(f"### {parser.prog}\n\n{_text(parser.format_help())}" for parser in _parsers(build_parser()))


def _parsers(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield below
                yield from _parsers(below)


def device_table() -> str:
    """The devices that are known by name."""
    path = Path(str(devices.__file__)).with_name("devices.yaml")
    rows = [
        f"| {row['name']} | {', '.join(row['names'])} | {row['capability']} | {_capacity(row)} |"
        for row in yaml.safe_load(path.read_text(encoding="utf-8"))["devices"]
    ]
    return "\n".join(["| name | also | capability | capacity |", "| --- | --- | --- | ---: |", *rows])


def _capacity(row: Mapping[str, Any]) -> str:
    return str(row["total"]) if "total" in row else f"{row['exact']:,} B"


def report_schema() -> str:
    """The keys of each object of the JSON report."""
    schema = json.loads((REPOSITORY / "pytest_modelbudget/reports/report.schema.json").read_text(encoding="utf-8"))
    parts = [("The report", schema), *((f"A {name}", _object(part)) for name, part in schema["$defs"].items())]
    return "\n\n".join(_schema_table(title, part) for title, part in parts)


def _object(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object among what may stand in a place."""
    return next((choice for choice in part.get("anyOf", ()) if "properties" in choice), part)


def _schema_table(title: str, part: Mapping[str, Any]) -> str:
    text = f"{part['description']}.\n\n" if "description" in part and title != "The report" else ""
    head = ["| key | type | there | meaning |", "| --- | --- | --- | --- |"]
    return f"## {title}\n\n{text}" + "\n".join([*head, *_schema_rows(part)])


def _schema_rows(part: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for key, value in part.get("properties", {}).items():
        there = "always" if key in part.get("required", ()) else "if known"
        yield f"| `{before}{key}` | {_type(value)} | {there} | {_cell(value.get('description', ''))} |"
        yield from _schema_rows(value, f"{before}{key}.")


def _type(value: Mapping[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#a-{name.lower()})"
    if "enum" in value or "const" in value:
        return ", ".join(f"`{_cell(json.dumps(choice))}`" for choice in value.get("enum", [value.get("const")]))
    if "anyOf" in value:
        return " or ".join(_type(choice) for choice in value["anyOf"])
    if value.get("type") == "array" and "items" in value:
        return f"list of {_type(value['items'])}"
    kinds = value.get("type", "any")
    return " or ".join(kinds) if isinstance(kinds, list) else str(kinds)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def api() -> str:
    """Signature and docstring of each public name."""
    functions = [name for name in pytest_modelbudget.__all__ if inspect.isfunction(getattr(pytest_modelbudget, name))]
    classes = [name for name in pytest_modelbudget.__all__ if name not in functions]
    parts = [_documented(name, getattr(pytest_modelbudget, name)) for name in functions]
    parts.append(_documented("model_budget.check", ModelBudget.check))
    hooks = import_module("pytest_modelbudget.plugin.hooks")
    parts.append(_documented("pytest_modelbudget_finish", hooks.pytest_modelbudget_finish))
    parts += [_documented_class(name, getattr(pytest_modelbudget, name)) for name in classes]
    return "\n\n".join(parts)


def _documented(name: str, function: Callable[..., object]) -> str:
    return f"### {name}\n\n{_text(_signature(name, function), 'python')}\n\n{_prose(inspect.getdoc(function) or '')}"


def _signature(name: str, function: Callable[..., object]) -> str:
    """A call with its types, with a line for each parameter where it is long."""
    signature = inspect.signature(function)
    parameters = [str(value) for key, value in signature.parameters.items() if key != "self"]
    kinds = [value.kind for key, value in signature.parameters.items() if key != "self"]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        parameters.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    result = str(signature.return_annotation).strip("'")
    short = f"{name}({', '.join(parameters)}) -> {result}"
    lines = "".join(f"    {parameter},\n" for parameter in parameters)
    return (short if len(short) <= 80 else f"{name}(\n{lines}) -> {result}").replace("'", "")


def _documented_class(name: str, shape: type) -> str:
    members = [
        f"| `{key}` | {_cell(_first_sentence(value))} |"
        for key, value in vars(shape).items()
        if not key.startswith("_") and (isinstance(value, property) or inspect.isfunction(value))
    ]
    fields = [
        f"| `{key}: {_cell(str(kind))}` | |"
        for key, kind in vars(shape).get("__annotations__", {}).items()
        if key[0] != "_"
    ]
    table = ["| attribute | meaning |", "| --- | --- |", *fields, *members] if fields or members else []
    return f"### {name}\n\n{_prose(inspect.getdoc(shape) or '')}\n\n" + "\n".join(table)


def _first_sentence(member: Any) -> str:
    return (inspect.getdoc(member) or "").partition("\n\n")[0]


def _prose(text: str) -> str:
    return re.sub(
        r"^Raises:\n((?:    .*\n?)+)", lambda match: f"Raises:\n\n{_raised(match[1])}", text, flags=re.MULTILINE
    )


def _raised(lines: str) -> str:
    return "\n".join(
        f"- {line[4:]}" if re.match(r"    \S", line) else f"  {line.strip()}" for line in lines.splitlines()
    )


def _text(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "options": options,
    "commands": commands,
    "devices": device_table,
    "report-schema": report_schema,
    "api": api,
}
