"""What is printed is dropped when nobody takes it, and never an error."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pytest_modelbudget.system.streams import UnfailingStream
from tests.system.test_writing import environment

posix = pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices of POSIX")


def test_what_is_written_arrives() -> None:
    """And everything else of the stream is as it was."""
    stream = io.StringIO()
    lasting = UnfailingStream(stream)
    assert lasting.write("abc") == 3
    lasting.flush()
    assert (stream.getvalue(), lasting.getvalue(), lasting.isatty()) == ("abc", "abc", False)


@posix
def test_a_reader_that_has_gone_is_no_error() -> None:
    """What is held back is dropped too, so that Python's own flush at the end finds nothing."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as stream:
        lasting = UnfailingStream(stream)
        for _ in range(3):
            assert lasting.write("x" * 10_000) == 10_000
            lasting.flush()
        stream.flush()


def test_a_stream_that_was_closed_is_no_error() -> None:
    """User code may close standard output."""
    with tempfile.TemporaryFile("w") as stream:
        stream.close()
        lasting = UnfailingStream(stream)
        assert lasting.write("x") == 1
        lasting.flush()


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", b"a\\xdf\\u4e16\nb"), ("latin-1", b"a\xdf\\u4e16\nb"), ("cp437", b"a\xe1\\u4e16\nb")],
)
def test_a_character_that_the_encoding_lacks_is_escaped(encoding: str, shown: bytes) -> None:
    """It alone: lines stay lines."""
    sink = io.BytesIO()
    lasting = UnfailingStream(io.TextIOWrapper(sink, encoding=encoding, newline="\n"))
    assert lasting.write("a\xdf\u4e16\nb") == 5
    lasting.flush()
    assert sink.getvalue() == shown


@posix
@pytest.mark.parametrize(
    ("redirected", "said"),
    [
        (">&-", ""),
        (">&- 2>&- <&-", ""),
        (">/dev/full", f"output is lost: {os.strerror(errno.ENOSPC)}"),
        ("| true", ""),
    ],
    ids=["closed", "all closed", "full", "a reader that reads nothing"],
)
def test_a_command_ends_with_its_own_code(tmp_path: Path, redirected: str, said: str) -> None:
    """And files that it opens are not taken for its output."""
    code = (
        "import os, sys; from pytest_modelbudget.system import streams\n"
        "with streams.lasting():\n"
        "    file = open('file', 'w')\n"
        "    print('printed ' * 5000); os.system('echo printed')\n"
        "sys.exit(7)\n"
    )
    command = f'{{ "$0" -c "$1"; echo $? >code; }} {redirected}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, code], cwd=tmp_path, env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (tmp_path / "code").read_text() == "7\n"
    assert (tmp_path / "file").read_text() == ""
    assert [line for line in done.stderr.splitlines() if "echo" not in line] == said.splitlines()
