"""The `modelbudget` command: the engine of `pytest --model-budget`, without pytest.

words.py has the words of the command line; each command is a module with `run(options) -> int`, imported when it is
asked for, so that `--help` imports no framework. project.py finds the manifest, targets.py what a word stands for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from pytest_modelbudget.cli.words import build_parser
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.system import debug, streams


def main(argv: Sequence[str] | None = None) -> int:
    """Do what `argv` (else the command line) says; returns the exit code, see `modelbudget --help`.

    That nobody reads what is printed, `head` having seen enough, changes nothing.
    """
    with streams.lasting():
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character gets it escaped
                stream.reconfigure(errors="backslashreplace")
        try:
            return _run(argv)
        except KeyboardInterrupt:
            print("modelbudget: interrupted", file=sys.stderr)
            return 130


def _run(argv: Sequence[str] | None) -> int:
    try:
        options = build_parser().parse_args(argv)
    except SystemExit as leaving:  # argparse has said why
        return leaving.code if isinstance(leaving.code, int) else 2
    try:
        debug.current()  # a word that it does not know is one error, not one of each model
        command: Any = import_module(f"pytest_modelbudget.cli.{options.module}")
        code: int = command.run(options)
    except ModelBudgetError as mistake:
        from pytest_modelbudget.system.escape import harmless_lines

        print(f"modelbudget: {harmless_lines(str(mistake))}", file=sys.stderr)
        return 2
    return code
