"""Tensors that a program leaves to other files (`.ptd`), looked for beside it, by their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pytest_modelbudget.backends.exported.executorch.container import TENSORS, damaged, opened
from pytest_modelbudget.backends.exported.executorch.program import DTYPES, Method, Tensor
from pytest_modelbudget.backends.exported.executorch.xnnpack import Content
from pytest_modelbudget.backends.model_files import DamagedFile, shown

_MOST_FILES = 100


def tensor_file_bytes(path: Path, methods: Iterable[Method]) -> int:
    """The bytes of all files that hold tensors of the program at `path`, 0 where it holds them all itself.

    Raises:
        DamagedFile: a tensor is in none of the files beside the program, in several, or has other sizes there.
    """
    needed = dict(_needed(methods))
    if not needed:
        return 0
    holders: dict[str, Path] = {}
    sizes: dict[Path, int] = {}
    for file in _candidates(path):
        names, sizes[file] = _stored(file, needed)
        for name in names:
            if (other := holders.setdefault(name, file)) != file and other.stem != path.stem:
                raise DamagedFile(f"needs the tensor {name[:100]!r}, which {_both(other, file)} have: keep one of them")
    if missing := [name for name in needed if name not in holders]:
        absent = f"{len(missing):,} of its tensors ({missing[0][:100]!r})"
        raise DamagedFile(f"has {absent} in a .ptd file that is not beside it: put it there")
    return sum(sizes[file] for file in set(holders.values()))


def _needed(methods: Iterable[Method]) -> Iterator[tuple[str, Tensor | Content]]:
    """What the program does not hold, by the names in other files."""
    for method in methods:
        for value in method.values:
            if isinstance(value, Tensor) and value.is_external:
                yield value.name, value
        for delegate in method.delegates:
            contents = delegate.graph.constants.values() if delegate.graph else ()
            yield from ((content.key, content) for content in contents if content.is_outside)


def _candidates(path: Path) -> list[Path]:
    """The files that may belong to it, that of its own name first."""
    files = sorted(path.parent.glob("*.ptd"), key=lambda file: (file.stem != path.stem, file.name))
    return [file for file in files if file.resolve().parent == path.resolve().parent][:_MOST_FILES]


def _both(first: Path, second: Path) -> str:
    return f"{shown(first)} and {shown(second)}"


def _stored(path: Path, needed: Mapping[str, Tensor | Content]) -> tuple[list[str], int]:
    """Which tensors a file has of those that are needed, and its bytes."""
    names = []
    try:
        with opened(path, TENSORS, segments_field=1) as container:
            for entry in container.root.tables(2):
                name, layout = entry.string(0) or "", entry.table(2)
                if (tensor := needed.get(name)) is None:
                    continue
                segment = entry.integer(1, "uint32")
                size = container.segment_sizes[segment] if segment < len(container.segment_sizes) else 0
                if size < tensor.bytes:
                    raise damaged(f"its tensor {name[:100]!r} of {tensor.bytes:,} bytes has {size:,}")
                if (
                    isinstance(tensor, Tensor)
                    and layout is not None
                    and (layout.integers(1), DTYPES.get(layout.integer(0, "int8")))
                    != (
                        tensor.shape,
                        tensor.dtype,
                    )
                ):
                    raise damaged(f"its tensor {name[:100]!r} has other sizes than in the program")
                names.append(name)
            return names, container.file_bytes
    except DamagedFile as problem:
        raise DamagedFile(f"has tensors in {shown(path)}, which {problem}") from None
