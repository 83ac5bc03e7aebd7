"""Files of every format that somebody made to hurt, as a user meets them: each in a process with little time and memory.

What a format has of its own stands in its own test; here is that nothing of any of them runs, waits, or takes the
machine, and that each is refused by one sentence with its name.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.backends.exported.litert_files import Graph, Stored, litert
from tests.backends.exported.make_archives import archive, entry, safetensors

DATA = Path(__file__).parents[2] / "data" / "exported"
SECONDS, MEMORY = 5, 500 * 2**20
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


class _Command:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


COMMAND = pickle.dumps({"w": _Command()}, protocol=2)


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def _message(*fields: tuple[int, int | bytes]) -> bytes:
    """A message of protocol buffers, by the numbers of its fields."""
    return b"".join(
        _varint(number << 3) + _varint(value & (2**64 - 1))
        if isinstance(value, int)
        else _varint(number << 3 | 2) + _varint(len(value)) + value
        for number, value in fields
    )


def _onnx(*graph: tuple[int, int | bytes]) -> bytes:
    return _message((1, 8), (7, _message(*graph)), (8, _message((2, 18))))


def _initializer(*dims: int, **fields: bytes) -> tuple[int, bytes]:
    stored = [(9, fields["raw"])] if "raw" in fields else []
    outside = [(13, _message((1, b"location"), (2, fields["location"]))), (14, 1)] if "location" in fields else []
    return 5, _message(*((1, dim) for dim in dims), (2, 1), (8, fields.get("name", b"w")), *stored, *outside)


def _nested_ifs(depth: int) -> bytes:
    """`If` in `If`, each in an attribute of the one around it."""
    graph = _message((1, _message((4, b"Identity"))))
    for _ in range(depth):
        graph = _message((1, _message((4, b"If"), (5, _message((1, b"then_branch"), (6, graph), (20, 5))))))
    return _message((1, 8), (7, graph), (8, _message((2, 18))))


def _file(name: str, content: bytes) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return name

    return make


def _link(name: str, target: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).symlink_to(target)
        return name

    return make


def _folder(name: str, *files: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).mkdir()
        for file in files:
            (folder / name / file).write_bytes(b"{}")
        return name

    return make


def _pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe.onnx")
    return "pipe.onnx"


def _archive(name: str, members: dict[str, bytes | int]) -> Callable[[Path], str]:
    return lambda folder: archive(folder / name, members).name


def _bomb(name: str, member: str, megabytes: int = 150) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        with (
            zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
            file.open(member, "w", force_zip64=True) as stream,
        ):
            for _ in range(megabytes):
                stream.write(bytes(2**20))
        return name

    return make


def _tensors(name: str, entries: dict[str, object], size: int = 0) -> Callable[[Path], str]:
    return lambda folder: safetensors(folder / name, entries, size).name


def _cut(name: str, share: float = 0.5) -> Callable[[Path], str]:
    content = (DATA / name).read_bytes()
    return _file(name, content[: int(len(content) * share)])


def _extended(path: Path, name: str) -> str:
    path.write_bytes((DATA / name).read_bytes())
    os.truncate(path, 4 * 10**9)
    return path.name


def _many(count: int) -> dict[str, object]:
    return {f"t{number}": entry("F32", [0], 0, 0) for number in range(count)}


_NAME = "w\x1b[31m\n::error::\u202e"
_DEEP = b'{"a": ' + b"[" * 500_000
HOSTILE: dict[str, tuple[Callable[[Path], str], str]] = {
    "nothing": (_file("m.onnx", b""), "is empty"),
    "a pointer of Git LFS": (_file("m.pte", LFS), "pointer of Git LFS, not the model: run git lfs pull"),
    "a pointer of Git LFS, of weights": (_file("m.safetensors", LFS), "run git lfs pull"),
    "a pointer of Git LFS, of a graph": (_file("m.onnx", LFS), "run git lfs pull"),
    "a pointer of git-annex": (_file("m.tflite", b"/annex/objects/SHA256E-s9--00.tflite\n"), "run git annex get"),
    "a link of git-annex": (_link("m.onnx", ".git/annex/objects/a/b/SHA256E-s9--00/m.onnx"), "run git annex get"),
    "a link of git-annex from below": (_link("m.pt", "../../.git/annex/objects/a/b/c/m.pt"), "run git annex get"),
    "a picture": (_file("m.pt2", b"\x89PNG\r\n\x1a\n" + bytes(900)), "is no model that can be read"),
    "a picture that says it is a graph": (_file("m.onnx", b"\x89PNG\r\n\x1a\n" + bytes(900)), "damaged|no ONNX"),
    "GGUF": (_file("m.gguf", b"GGUF" + bytes(900)), "GGUF file, which is not read"),
    "GGUF by another name": (_file("m.pte", b"GGUF" + bytes(900)), "GGUF file, which is not read"),
    "Core ML": (_file("m.mlmodel", b"\x08\x05\x12\x04\x0a\x02hi"), "Core ML model, which is not read"),
    "a package of Core ML": (_folder("m.mlpackage", "Manifest.json"), "Core ML model, which is not read"),
    "TorchScript": (_archive("m.pt", {"data.pkl": b"", "constants.pkl": b"", "code/m.py": b""}), "TorchScript"),
    "a folder": (_folder("m.onnx"), "is a folder"),
    "a pipe": (_pipe, "is a pipe or a device"),
    "a device": (_link("m.onnx", "/dev/zero"), "is a pipe or a device"),
    "a command in a pickle": (_file("m.pth", COMMAND), "is a pickle, but none of torch.save|needs posix.system"),
    "a command in a state dict": (_archive("m.pt", {"data.pkl": COMMAND}), "needs posix.system, and of a pickle nothing"),
    "half an archive": (_file("m.pt2", b"PK\3\4" + bytes(900)), "damaged or truncated zip|its zip archive"),
    "a bomb of a pickle": (_bomb("m.pt", "m/data.pkl"), "would take 157,286,400 bytes|compressed"),
    "a bomb of a graph": (_bomb("m.pt2", "m/models/model.json"), "would take 157,286,400 bytes|compressed"),
    "deep JSON": (_archive("m.pt2", {"models/model.json": _DEEP}), "nested too deeply"),
    "a header of 2^62 bytes": (_file("m.safetensors", (2**62).to_bytes(8, "little") + b"{}" + bytes(90)), "no model|header"),
    "a header that is deep": (_file("m.safetensors", len(_DEEP).to_bytes(8, "little") + _DEEP), "damaged|nested"),
    "a tensor of 2^62": (_tensors("m.safetensors", {"w": entry("F32", [2**62, 4], 0, 4)}, 4), "damaged"),
    "a tensor of -4": (_tensors("m.safetensors", {"w": entry("F32", [-4], 0, 16)}, 16), "damaged"),
    "tensors in each other": (
        _tensors("m.safetensors", {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, 12), "damaged"
    ),
    "a weight of 2^62": (_file("m.onnx", _onnx(_initializer(2**62, 4, raw=b"1234"))), "damaged"),
    "a weight of -4": (_file("m.onnx", _onnx(_initializer(-4, raw=b"1234"))), "damaged"),
    "a weight above": (_file("m.onnx", _onnx(_initializer(4, location=b"../../etc/passwd"))), "outside|folder"),
    "a weight of the system": (_file("m.onnx", _onnx(_initializer(4, location=b"/etc/passwd"))), "outside|folder"),
    "a message of 2^60 bytes": (_file("m.onnx", b"\x08\x08\x3a" + _varint(2**60)), "damaged|ends"),
    "branches in branches": (_file("m.onnx", _nested_ifs(3000)), "more than 32 graphs lie in each other"),
    "a name that writes on a terminal": (_tensors("m.safetensors", {_NAME: entry("F32", [-4], 0, 16)}, 16), "damaged"),
    "a weight whose name does": (_file("m.onnx", _onnx(_initializer(-4, raw=b"1", name=_NAME.encode()))), "damaged"),
    "a weight of a long name": (_file("m.onnx", _onnx(_initializer(-4, raw=b"1", name=b"w" * 10**6))), "damaged"),
    "a tensor of a long name": (_tensors("m.safetensors", {"w" * 10**6: entry("F32", [-4], 0, 16)}, 16), "damaged"),
    "a weight above, by a long name": (_file("m.onnx", _onnx(_initializer(4, location=b"../" * 10**5))), "damaged|folder"),
    "half a graph of LiteRT": (_cut("cnn_int8.tflite"), "damaged"),
    "an offset outside": (_file("m.tflite", b"\xff\xff\xff\x7fTFL3" + bytes(90)), "damaged"),
    "elements without number": (
        _file("m.tflite", litert(Graph("", "", {"w": Stored("float32[2]", fields={2: [2**31 - 1] * 9})}, []))), "damaged|takes"
    ),
    "half a program": (_cut("convolutions.pte"), "damaged"),
    "a program of another version": (_file("m.pte", b"\x20\0\0\0ET99" + bytes(90)), "is of version ET99"),
    "a program outside itself": (
        _file("m.pte", b"\x30\0\0\0ET12eh00" + (32).to_bytes(4, "little") + b"\xff" * 24 + bytes(90)), "damaged"
    ),
}  # fmt: skip

LARGE: dict[str, tuple[Callable[[Path], str], str]] = {
    "60,000 tensors": (_tensors("m.safetensors", _many(60_000)), ""),
    "4 GB behind a program": (lambda folder: _extended(folder / "m.pte", "convolutions.pte"), ""),
    "4 GB of weights": (_tensors("m.safetensors", {"w": entry("F32", [10**9], 0, 4 * 10**9)}, 4 * 10**9), ""),
}
"""What is no damage: it is read, within the same bounds."""

_CHILD = """
import json, os, resource, sys
from pathlib import Path
from pytest_modelbudget import ModelBudgetError, summarize
import pytest_modelbudget.backends.exported, pytest_modelbudget.backends.costs.flop_rules

def refusal(name):
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    try:
        summarize(Path(name))
    except ModelBudgetError as error:
        return str(error)
    except BaseException as error:
        return f"ended by {type(error).__name__}: {error}"
    return "read"

for name in json.loads(sys.argv[1]):
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.chdir(Path(name).parent)
        os.write(writing, refusal(Path(name).name).encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    print(json.dumps(text if not status else f"killed by signal {status}"), flush=True)
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str, list[str]]]:
    """The name of each file, what was said of it, and what lay beside it afterwards; all in one run."""
    folder = tmp_path_factory.mktemp("hostile")
    names: dict[str, str] = {}
    for number, (case, (make, _)) in enumerate({**HOSTILE, **LARGE}.items()):
        (folder / str(number)).mkdir()
        names[case] = make(folder / str(number))
    paths = [str(folder / str(number) / name) for number, name in enumerate(names.values())]
    script = _CHILD.replace("MEMORY", str(MEMORY)).replace("SECONDS", str(SECONDS))
    run = subprocess.run([sys.executable, "-c", script, json.dumps(paths)], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    said = [json.loads(line) for line in run.stdout.splitlines()]
    return {
        case: (name, text, sorted(os.listdir(folder / str(number))))
        for number, ((case, name), text) in enumerate(zip(names.items(), said, strict=True))
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE)
def test_it_is_refused_by_its_name_within_bounds(refusals: dict[str, tuple[str, str, list[str]]], case: str) -> None:
    """One sentence that says what is wrong, and nothing ran or was left behind."""
    name, text, beside = refusals[case]
    assert text.startswith(f"{name} "), text
    assert re.search(HOSTILE[case][1], text), text
    assert text.isprintable()
    assert len(text) < 1000
    assert beside == [name]


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE)
def test_what_is_large_is_read_within_bounds(refusals: dict[str, tuple[str, str, list[str]]], case: str) -> None:
    """Its weights are not."""
    assert refusals[case][1] == "read"
