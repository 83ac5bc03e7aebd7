"""The documents as programs: their code blocks, and what these print when a reader follows a page from top to bottom.

    python -m tests.documents docs/how-to/zoo.md

follows one page in a new folder and prints what each of its commands prints now, to be compared or pasted.

What a block is follows from its language and first line:

- `python`, `yaml`, `toml`, `ini` that begin with a comment naming a file: that file of the reader's project;
- other `python`: a script, run in the project;
- other `yaml`, `toml` with `version: 1`: a manifest, read for mistakes;
- `console`: commands behind `$`, run in the project, each with lines of what it prints (`...` leaves some out);
- `text`, `json`: what something printed;
- any of them behind `<!-- not run: why -->`: nothing is done.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted(path.relative_to(REPOSITORY).as_posix() for path in [REPOSITORY / "README.md", *DOCS.rglob("*.md")])
"""All pages of the documentation, the README among them, as paths in the repository."""

OUTPUT = ("text", "json")
SOURCES = ("python", "yaml", "toml", "ini")
_BLOCK = re.compile(r"(?:^<!-- not run: ([^\n]+?) -->\n+)?^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"\A# ([\w./-]+\.\w+)\n")
_CI_VARIABLES = ("CI", "TF_BUILD", "BUILD_NUMBER", "GITHUB_", "CI_", "PYTEST_", "MLFLOW_", "MODELBUDGET_", "GIT_")


@dataclass(frozen=True, slots=True)
class Block:
    """A code block of a page; `reason` is why it is not run, where the page says one."""

    language: str
    text: str
    line: int
    reason: str

    @property
    def file(self) -> str:
        """The file of the reader's project that it is, if it is one."""
        match = _FILE.match(self.text) if self.language in SOURCES else None
        return match[1] if match else ""

    @property
    def kind(self) -> str:
        """`skipped`, `output`, `file`, `script`, `manifest`, `console`, or empty for what a page should not have."""
        if self.reason:
            return "skipped"
        if self.language in OUTPUT:
            return "output"
        if self.file:
            return "file"
        if self.language in ("yaml", "toml") and re.search(r"^version ?[:=] 1$", self.text, re.MULTILINE):
            return "manifest"
        return {"python": "script", "console": "console"}.get(self.language, "")

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """The commands of a console, each with the lines that the page shows of its output."""
        commands: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                commands.append((line[2:], []))
            else:
                commands[-1][1].append(line)
        return commands


_READER = {
    **{f"GIT_{role}_NAME": "A Reader" for role in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{role}_EMAIL": "reader@example.org" for role in ("AUTHOR", "COMMITTER")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "init.defaultBranch",
    "GIT_CONFIG_VALUE_0": "main",
    "COLUMNS": "80",
    "NO_COLOR": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTEST_ADDOPTS": "-p no:cacheprovider",
}
"""The reader's own machine: no CI, a terminal of 80 columns, git as it comes."""


def text_of(page: str) -> str:
    """The Markdown of a page."""
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """The code blocks of a page, in order."""
    text = text_of(page)
    return [
        Block(match[2], match[3], text.count("\n", 0, match.start(2)) + 1, match[1] or "")
        for match in _BLOCK.finditer(text)
    ]


@dataclass(frozen=True, slots=True)
class Step:
    """A command or script that was run: at which line of the page, what it showed there, and what it prints."""

    line: int
    command: str
    shown: Sequence[str]
    printed: Sequence[str]
    status: int

    @property
    def missing(self) -> list[str]:
        """The shown lines that were not printed, in that order; times may differ."""
        printed = iter([_without_times(line) for line in self.printed])
        return [line for line in self.shown if line != "..." and _without_times(line) not in printed]


def _without_times(line: str) -> str:
    """A line as it is in every run: times and commits are others each time."""
    return re.sub(r"\b[0-9a-f]{7}\b", "COMMIT", re.sub(r"\b\d+(\.\d+)? ?s\b", "N s", line.rstrip()))


def follow(page: str, root: Path) -> Iterator[Step]:
    """Do in `root` what a page says, from top to bottom."""
    for block in blocks(page):
        if block.kind == "file":
            (root / block.file).parent.mkdir(parents=True, exist_ok=True)
            (root / block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "script":
            yield run(root, [sys.executable, "-c", block.text], block.line, "a script", ())
        elif block.kind == "console":
            for command, shown in block.commands:
                yield run(root, ["bash", "-c", command], block.line, command, shown)


def run(root: Path, words: list[str], line: int, command: str, shown: Sequence[str]) -> Step:
    """One command as on a terminal of 80 columns on a user's own machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_CI_VARIABLES)}
    tools = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    paths = os.pathsep.join([str(REPOSITORY), str(root)] if command == "a script" else [str(REPOSITORY)])
    done = subprocess.run(
        words, cwd=root, env={**kept, **_READER, "PATH": tools, "PYTHONPATH": paths}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", timeout=300,
    )  # fmt: skip
    return Step(line, command, shown, done.stdout.splitlines(), done.returncode)


if __name__ == "__main__":
    for _page in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as _folder:
            for _step in follow(_page, Path(_folder)):
                print(f"{_page}:{_step.line}$ {_step.command}   [status {_step.status}]", *_step.printed, sep="\n")
                print(*(f"MISSING: {_line}" for _line in _step.missing), sep="\n")
