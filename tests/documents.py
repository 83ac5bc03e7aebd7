"""The documents as programs: their code blocks, and what these print when a reader follows a page from top to bottom.

    python -m tests.documents docs/how-to/zoo.md

follows one page in a new folder and prints what each of its commands prints now, and which shown lines are missing
there. With `--write` these are replaced by what is printed; look at the difference before it is committed.

What a block is follows from its language and first line:

- `python`, `yaml`, `toml`, `ini` that begin with a comment naming a file: that file of the reader's project;
- other `python`: a script, run in the project;
- other `yaml`, `toml` with `version: 1`: a manifest, read for mistakes;
- `console`: commands behind `$`, run in the project, each with lines of what it prints (`...` leaves some out);
- `text`, `json`: what something printed: right behind a `console` whose last command shows nothing, what that printed,
  and behind `$ ... --file examples`, which is run in the repository, what the examples give; both with torch 2.14;
- any of them behind `<!-- not run: why -->`: nothing is done.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted(path.relative_to(REPOSITORY).as_posix() for path in [REPOSITORY / "README.md", *DOCS.rglob("*.md")])
"""All pages of the documentation, the README among them, as paths in the repository."""

OUTPUT = ("text", "json")
SOURCES = ("python", "yaml", "toml", "ini")
_BLOCK = re.compile(r"(?:^<!-- not run: ([^\n]+?) -->\n+)?^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ON_EXAMPLES = re.compile(r"\A\$ (modelbudget plan .* --file examples)\n")
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
    "PYTEST_ADDOPTS": "-p no:cacheprovider -p no:hypothesispytest",
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
    """A command or script that was run: at which line of the page, what it showed there, and what it prints.

    `is_output` says that it showed it in a block of `text`, whose numbers are those of one release of torch.
    """

    line: int
    command: str
    shown: Sequence[str]
    printed: Sequence[str]
    status: int
    is_output: bool = False

    @property
    def missing(self) -> list[str]:
        """The shown lines that were not printed, in that order; times may differ."""
        printed = iter([_without_times(line) for line in self.printed])
        return [line for line in self.shown if line != "..." and _without_times(line) not in printed]


def _without_times(line: str) -> str:
    """A line as it is in every run: times and commits are others each time."""
    return re.sub(
        r"\b[0-9a-f]{7}\b", "COMMIT", re.sub(r"\b\d+(\.\d+)? ?s\b( \(\d+:\d\d:\d\d\))?", "N s", line.rstrip())
    )


def follow(page: str, root: Path) -> Iterator[Step]:
    """Do in `root` what a page says, from top to bottom."""
    silent: Step | None = None  # the command right before a block, where the page shows none of its lines
    for block in blocks(page):
        before, silent = silent, None
        if block.kind == "file":
            (root / block.file).parent.mkdir(parents=True, exist_ok=True)
            (root / block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "script":
            yield run(root, [sys.executable, "-c", block.text], block.line, "a script", ())
        elif block.kind == "console":
            for command, shown in block.commands:
                step = run(root, ["bash", "-c", command], block.line, command, shown)
                silent = None if shown else step
                yield step
        elif block.kind == "output" and before is not None:
            yield replace(before, line=block.line, shown=block.text.splitlines(), is_output=True)
        elif block.kind == "output" and (match := _ON_EXAMPLES.match(block.text)):
            shown = block.text.splitlines()[1:]
            yield replace(run(REPOSITORY, ["bash", "-c", match[1]], block.line, match[1], shown), is_output=True)


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


def refreshed(step: Step) -> list[str]:
    """The shown lines as they are printed now: each part between `...` that is not, is the part most like it."""
    lines: list[str] = []
    rest = list(step.printed)
    for dots, part in groupby(step.shown, key=lambda line: line == "..."):
        shown = list(part)
        if not dots:
            shown, rest = _most_like(shown, rest)
        lines += shown
    return lines


def _most_like(shown: list[str], printed: list[str]) -> tuple[list[str], list[str]]:
    """The printed lines from the one like the first shown to the one like the last, and those behind them."""
    if not printed:
        return [], []
    first = max(range(len(printed)), key=lambda at: _likeness(shown[0], printed[at]))
    last = max(range(first, len(printed)), key=lambda at: _likeness(shown[-1], printed[at]))
    return [line.rstrip() for line in printed[first : last + 1]], printed[last + 1 :]


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, _without_times(one), _without_times(other)).ratio()


def rewrite(page: str, steps: Sequence[Step]) -> None:
    """Put into a page what its commands print now, where that differs from what is shown."""
    text = text_of(page)
    for step in steps:
        if step.missing:
            old, new = ("\n".join([*lines, ""]) for lines in (step.shown, refreshed(step)))
            if (head := f"$ {step.command}\n") + old in text:
                old, new = head + old, head + new
            text = text.replace(old, new, 1)
    (REPOSITORY / page).write_text(text, encoding="utf-8")


def main(words: Sequence[str]) -> None:
    """Follow the pages that are named; with `--write` their outputs are brought up to date."""
    for page in [word for word in words if word != "--write"]:
        with tempfile.TemporaryDirectory() as folder:
            steps = list(follow(page, Path(folder)))
        for step in steps:
            print(f"{page}:{step.line}$ {step.command}   [status {step.status}]", *step.printed, sep="\n")
            print(*(f"MISSING: {line}" for line in step.missing), sep="\n")
        if "--write" in words:
            rewrite(page, steps)


if __name__ == "__main__":
    main(sys.argv[1:])
