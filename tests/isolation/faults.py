"""Builders that do something to their process; a project has them as `faults.py`, beside `fakenet.py`."""

from __future__ import annotations

import atexit
import builtins
import ctypes
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings

from fakenet import Model

from pytest_modelbudget import backends

backends.BACKENDS["fakenet"] = "fakenet"


def good():
    """Nothing wrong with it."""
    return Model(dense=(32, 64))


def segfault():
    ctypes.string_at(0)


def abort():
    os.abort()


def leave():
    os._exit(0)


def leave_with_code():
    os._exit(3)


def terminated():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def exits():
    sys.exit(0)


def exits_at_the_end():
    atexit.register(sys.exit, 3)
    return good()


def leaves_at_the_end():
    atexit.register(os._exit, 0)
    return good()


def loops():
    while True:
        pass


def sleeps():
    time.sleep(1000)


def loops_in_c():
    sum(itertools.repeat(0))


def hoards():
    kept = [bytearray(os.urandom(1 << 20)) * 64 for _ in range(200)]
    time.sleep(60)
    return kept


def hoards_in_a_child():
    subprocess.run(
        [sys.executable, "-c", "import time\nkept = [bytearray(b'x') * (1 << 30)]\ntime.sleep(60)"], check=True
    )


def forks():
    os.fork()
    return good()


def starts_a_thread():
    threading.Thread(target=sleeps).start()
    return good()


def leaves_from_a_thread():
    threading.Timer(0.05, os._exit, (0,)).start()
    time.sleep(60)


def replaces_len():
    builtins.len = None
    return good()


def replaces_open():
    builtins.open = lambda *args, **options: None
    return good()


def removes_print():
    del builtins.print
    return good()


def empties_path():
    sys.path.clear()
    return good()


def empties_modules():
    sys.modules.clear()
    return good()


def patches_json():
    json.dumps = lambda *args, **options: "{}"
    return good()


def patches_warnings():
    warnings.warn = lambda *args, **options: None
    warnings.formatwarning = str
    return good()


def raises_limits():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return good()


def takes_a_folder():
    sys.path.pop()
    return good()


def closes_files():
    os.closerange(0, 200)
    return good()


def closes_output():
    sys.stdout.close()
    sys.stderr.close()
    return good()


def writes_everywhere():
    for number in range(3, 30):
        try:
            os.write(number, b"garbage " * 100)
        except OSError:
            pass
    return good()


def limits_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    return good()


def limits_memory():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))
    return good()


def recurses():
    return recurses()


def recurses_without_limit():
    sys.setrecursionlimit(1 << 30)
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    deep = []
    for _ in range(10_000_000):
        deep = [deep]
    repr(deep)
    return good()


def lowers_the_recursion_limit():
    sys.setrecursionlimit(60)
    return good()


def sets_an_alarm():
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    return good()


def empties_the_environment():
    os.environ.clear()
    return good()


def leaves_the_folder():
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)
    raise ValueError("nowhere")


def asks():
    return input("which width? ")


def traces():
    sys.settrace(lambda *args: None)
    return good()


class Unspeakable(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def unspeakable():
    raise Unspeakable


def generator_exit():
    raise GeneratorExit


def no_memory():
    raise MemoryError


def nothing():
    return None
