"""How files are written: whole or not at all, into what is no file, and without a trace of a write that was killed.

What is new is made in a draft, a folder beside its place that ignores itself in git, and moved from there. A process
that is killed leaves its draft behind, and the next `remove_drafts` removes it.
"""

from __future__ import annotations

import errno
import os
import re
import select
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

_PREFIX, _SUFFIX = ".modelbudget-", ".tmp"
_CHUNK = 4096
"""Bytes that a pipe which is ready takes at once, so that writing them never waits."""

SECONDS_TO_OPEN = 10.0
"""Seconds in which a reader has to open a named pipe."""

SECONDS_TO_READ = 60.0
"""Seconds without progress after which a reader is taken for one that will not read on."""

_STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2}
_DESCRIPTOR = re.compile(
    r"/dev/(?P<stream>stdin|stdout|stderr)|/(?:dev|proc/(?:self|thread-self|(?P<pid>\d+)))/fd/(?P<number>\d+)"
)
_MOST_LINKS = 40
_MOST_TRIES = 10

if sys.platform == "win32":  # an open file cannot be deleted there, which protects a draft that is being written
    from filelock import FileLock

    @contextmanager
    def _shared_lock(folder: Path) -> Iterator[None]:
        yield

    @contextmanager
    def _exclusive_lock(folder: Path) -> Iterator[bool]:
        yield True

    @contextmanager
    def alone_in(folder: Path) -> Iterator[None]:
        """Inside, no other process is in a block like this one of the same folder; each waits for its turn."""
        with FileLock(folder / f"{_PREFIX}lock{_SUFFIX}"):  # which goes with the last that holds it
            yield
else:
    import fcntl

    @contextmanager
    def _shared_lock(folder: Path) -> Iterator[None]:
        """Inside, nobody sweeps `folder`."""
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks: there nothing is ever swept
                fcntl.flock(handle, fcntl.LOCK_SH)
            yield
        finally:
            os.close(handle)

    @contextmanager
    def _exclusive_lock(folder: Path) -> Iterator[bool]:
        """Yields whether no other process writes into `folder`, nor begins to inside."""
        handle = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)

    @contextmanager
    def alone_in(folder: Path) -> Iterator[None]:
        """Inside, no other process is in a block like this one of the same folder; each waits for its turn."""
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks: there the last that writes wins
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


@contextmanager
def draft_folder(home: Path) -> Iterator[Path]:
    """A new folder in `home` for what is moved out of it once it is whole; git ignores it, and leaving removes it.

    `home` is made where it is missing.

    Raises:
        OSError: it cannot be made.
    """
    with ExitStack() as locks:
        folder = _new_draft(home, locks)
        try:
            (folder / ".gitignore").write_bytes(b"*\n")
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _new_draft(home: Path, locks: ExitStack) -> Path:
    """A draft in `home`, which nobody sweeps until the `locks` are left.

    Whoever deletes the last file of a folder removes it, too: it may go while this process is about to write there.
    """
    for _ in range(_MOST_TRIES):
        home.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            locks.enter_context(_shared_lock(home))
            return Path(tempfile.mkdtemp(dir=home, prefix=_PREFIX, suffix=_SUFFIX))
    raise FileNotFoundError(errno.ENOENT, "others remove this folder again and again", str(home))


class DraftFolders(ExitStack):
    """One draft for each folder, for many files that are written into it."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[Path, Path] = {}

    def of(self, home: Path) -> Path:
        """The draft in `home`, made when it is first asked for."""
        if home not in self._made:
            self._made[home] = self.enter_context(draft_folder(home))
        return self._made[home]


def remove_drafts(home: Path) -> None:
    """Remove the drafts in `home` whose process was killed; none while another process writes there."""
    with suppress(OSError):
        leftovers = [path for path in home.iterdir() if path.name.startswith(_PREFIX) and path.name.endswith(_SUFFIX)]
        if not leftovers:
            return
        with _exclusive_lock(home) as is_alone:
            for folder in leftovers if is_alone else ():
                shutil.rmtree(folder, ignore_errors=True)


def write(path: Path, content: str | bytes | Iterator[str], *, made_in: Path | None = None) -> None:
    """Write `content`, in UTF-8, to what `path` stands for, following links; an iterator gives it in pieces.

    A file is replaced as a whole and keeps its mode; folders that are missing are made. A pipe or a device is written
    into, and so is a file that is mounted, which cannot be replaced. `/dev/stdout`, `/dev/fd/3` and the like are what
    the process was started with, and go on where they are. `made_in` is a draft that serves many files.

    Raises:
        OSError: it cannot be written; a file that was there is as it was.
    """
    pieces = map(_encoded, (content,) if isinstance(content, (str, bytes)) else content)
    if _written_in_place(path, pieces):
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with nullcontext(made_in) if made_in else draft_folder(target.parent) as folder:
        _replace(target, pieces, folder)


def write_folder(path: Path, files: Mapping[str, str | bytes]) -> None:
    """Write a folder of files (path in it -> content); it appears only when it is whole.

    Raises:
        OSError: it cannot be written, or is there already; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(path.parent) as folder:
        for name, content in files.items():
            new = folder / path.name / name
            new.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(_encoded(content))
        (folder / path.name).rename(path)


def append(path: Path, content: str, *, follow: bool = True) -> None:
    """Add `content` to the end of what `path` stands for; without `follow` that is a file itself, and no link.

    Raises:
        OSError: it cannot be written.
    """
    data = _encoded(content)
    if not follow or not _written_in_place(path, (data,)):
        with open(path, "ab", opener=None if follow else _no_link) as file:
            file.write(data)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o644)


def _encoded(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")


def is_file(path: Path) -> bool:
    """Whether `path` stands for a file that is there, and for nothing that is written into as it is."""
    return descriptor_of(path) is None and os.path.isfile(path)


def descriptor_of(path: Path) -> int | None:
    """The descriptor of this process that `path` or the link there names, such as 1 for `/dev/stdout`."""
    text = os.path.abspath(path)
    for _ in range(_MOST_LINKS):
        if (number := _descriptor_number(text)) is not None:
            return number
        folder = os.path.realpath(os.path.dirname(text))
        text = os.path.join(folder, os.path.basename(text))
        if (number := _descriptor_number(text)) is not None or not os.path.islink(text):
            return number
        try:
            text = os.path.normpath(os.path.join(folder, os.readlink(text)))
        except OSError:  # of another user's process: told when it is written
            return None
    return None


def _descriptor_number(text: str) -> int | None:
    match = _DESCRIPTOR.fullmatch(text)
    if match is None or match["pid"] not in (None, str(os.getpid())):
        return None
    return _STREAMS[match["stream"]] if match["stream"] else int(match["number"])


def _written_in_place(path: Path, pieces: Iterable[bytes]) -> bool:
    """Whether `path` stands for something that is written into as it is, which was done then."""
    if (number := descriptor_of(path)) is not None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # what was printed before comes before
                stream.flush()
        handle = os.dup(number)
    else:
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            return False
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return False
        handle = _open_for_writing(path, waits=stat.S_ISFIFO(mode))
    try:
        for data in pieces:
            _write_all(handle, data)
    finally:
        os.close(handle)
    return True


def _open_for_writing(path: Path, *, waits: bool) -> int:
    """A pipe or device, opened to write; waits for the reader of a pipe, but not for ever."""
    end = time.monotonic() + SECONDS_TO_OPEN
    while True:
        try:
            return os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
        except OSError as error:
            if not waits or error.errno != errno.ENXIO:
                raise
            if time.monotonic() > end:
                raise TimeoutError(errno.ETIMEDOUT, "nobody reads this pipe") from None
        time.sleep(0.05)


def _write_all(handle: int, data: bytes) -> None:
    remaining = memoryview(data)
    while remaining:
        if not _is_writable(handle):
            raise TimeoutError(errno.ETIMEDOUT, "nobody reads on")
        with suppress(BlockingIOError):
            remaining = remaining[os.write(handle, remaining[:_CHUNK]) :]


def _is_writable(handle: int) -> bool:
    """Whether something can be written now, or fails at once; waits until it can."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(handle, select.POLLOUT)
    return bool(poll.poll(SECONDS_TO_READ * 1000))


def _replace(target: Path, pieces: Iterable[bytes], folder: Path) -> None:
    new_file = folder / "new"
    with new_file.open("wb") as file:
        file.writelines(pieces)
    with suppress(FileNotFoundError):
        os.chmod(new_file, stat.S_IMODE(target.stat().st_mode))
    try:
        os.replace(new_file, target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        shutil.copyfile(new_file, target)
