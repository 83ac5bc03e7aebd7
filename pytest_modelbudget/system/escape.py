"""Text of others as it may stand on a terminal, in a log or in a table: it moves no cursor and starts no command."""

from __future__ import annotations

import re

_LONGEST = 400
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_COMMAND = re.compile(r"::(?=.*::)|##(?=(?:vso)?\[)")
_LINE_COMMAND = re.compile(r"^\s*::(?=.*::)|##(?=(?:vso)?\[)", re.MULTILINE)
"""What starts a command when a CI service meets it in a log: `::error::` at the start of a line, `##[error]`,
`##vso[...]`. What is put into tables may come to stand at the start of a line, so there it is looked for everywhere."""


def harmless(text: str, *, longest: int = _LONGEST) -> str:
    """`text` on one line, without control and direction characters or commands to a CI service, cut when very long.

    >>> harmless("a\\x1b[2Jb\\nc")
    'a\\\\x1b[2Jb\\\\nc'
    """
    escaped = _COMMAND.sub(_defuse_command, printable(text))
    return escaped if len(escaped) <= longest else f"{escaped[: longest - 3]}..."


def printable(text: str) -> str:
    """`text` with what does not print escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _defuse_command(command: re.Match[str]) -> str:
    return f"{command[0][:-1]}\\x{ord(command[0][-1]):02x}"


def harmless_lines(text: str) -> str:
    """The same for text of several lines, such as a traceback."""
    return "\n".join(harmless(line) for line in text.splitlines())


def harmless_output(output: str) -> str:
    """What a model's code printed, as it may stand in a log: no colours, no progress bar's past, nothing that acts."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in _COLOUR.sub("", output).split("\n"))
    return without_commands("\n".join(printable(line.expandtabs()) for line in lines))


def without_commands(output: str) -> str:
    """Text of several lines that stay whole, without the commands that a CI service would find in it."""
    return _LINE_COMMAND.sub(_defuse_command, output)
