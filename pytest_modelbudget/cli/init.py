"""`modelbudget init`: a manifest of the models that a project can build."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import ceil
from pathlib import Path

from pytest_modelbudget import units
from pytest_modelbudget.cli.discover.scan import LeftOut, scan
from pytest_modelbudget.cli.discover.survey import Found, survey
from pytest_modelbudget.config import ITEM_NAMES, MANIFEST_NAMES, holds_manifest, read
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.session.registry import importable, relative
from pytest_modelbudget.system import writing
from pytest_modelbudget.system.escape import harmless

_SCALES: dict[units.Kind, tuple[tuple[int, str], ...]] = {
    "count": ((10**9, "B"), (10**6, "M"), (10**3, "k"), (1, "")),
    "bytes": ((10**9, " GB"), (10**6, " MB"), (10**3, " kB"), (1, " B")),
    "flops": ((10**12, " TFLOPs"), (10**9, " GFLOPs"), (10**6, " MFLOPs"), (10**3, " kFLOPs"), (1, " FLOPs")),
}

_SAY_NOTHING = frozenset(
    f"{verb}{noun}" for verb in ("build", "create", "make", "get", "model", "net") for noun in ("", "-model", "-net")
)


def run(options: Namespace) -> int:
    """Look, measure, write, and tell what was left out."""
    root, target = Path.cwd(), Path(options.file)
    room = units.parse(options.headroom, "share")
    _check_target(target, force=options.force)
    importable(root)
    sources, left = scan(root, [_inside(root, path) for path in options.paths or ["."]])
    print(f"looking into {len(sources)} file{'' if len(sources) == 1 else 's'} that may define models", file=sys.stderr)
    found, more = survey(root, sources, seconds=options.timeout)
    kept, same = _different(found)
    left += [*more, *same]
    if not kept:
        raise ModelBudgetError(
            "\n".join(["no model was found that can be registered; nothing is written", *map(_left, left)])
        )
    named = _named(kept)
    text = manifest(named, room)
    if wrong := read(text, file=target.name).mistakes:
        raise ModelBudgetError(f"the manifest would not be right, nothing is written: {wrong[0]}")
    _write(target, text)
    print("\n".join(_closing(named, left, relative(target.resolve(), root.resolve()))))
    return 0


def _write(target: Path, text: str) -> None:
    """Write the manifest whole or not at all.

    Raises:
        ModelBudgetError: it cannot be written; what was there is as it was.
    """
    try:
        writing.write(target, text)
    except OSError as error:
        raise ModelBudgetError(f"{target} cannot be written ({error.strerror or error})") from None


def _check_target(target: Path, *, force: bool) -> None:
    folder = target.resolve().parent
    names = (*MANIFEST_NAMES, "pyproject.toml")
    there = [name for name in names if (folder / name).is_file() and holds_manifest(folder / name)]
    there += [target.name] if target.exists() and target.name not in there else []
    if there and not force:
        raise ModelBudgetError(f"{there[0]} is there already, and nothing was done: --force writes over {target}")
    if target.suffix not in (".yaml", ".yml"):
        raise ModelBudgetError(f"{target}: a manifest is a .yaml file")


def _inside(root: Path, text: str) -> Path:
    path = (root / text).resolve()
    if not path.exists():
        raise ModelBudgetError(f"there is no {text}")
    if not path.is_relative_to(root.resolve()):
        raise ModelBudgetError(f"{text} is not below this folder, from where models are imported")
    return root / path.relative_to(root.resolve())


def _different(found: Sequence[Found]) -> tuple[list[Found], list[LeftOut]]:
    """Each model once; a function comes before the class whose instance it returns."""
    first: dict[tuple[str, str], Found] = {}
    left = []
    for one in sorted(found, key=lambda one: (one.is_class, one.reference)):
        key = (one.sameness, one.inputs)
        if key in first:
            left.append(LeftOut(one.reference, f"the same model as {first[key].reference}"))
        else:
            first[key] = one
    return sorted(first.values(), key=lambda one: one.reference), left


def _named(found: Sequence[Found]) -> dict[str, Found]:
    """A short id for each: `tiny-cnn` for `nets:tiny_cnn` and `nets:TinyCNN`; with its module where two are alike."""
    short = [_short(one.reference) for one in found]
    named: dict[str, Found] = {}
    for name, one in zip(short, found, strict=True):
        module = one.reference.partition(":")[0]
        unique = name if short.count(name) == 1 and name not in ITEM_NAMES else f"{module}.{name}"
        named[unique if unique not in named else one.reference] = one
    return named


def _short(reference: str) -> str:
    """The name in words; that of its module where the name says nothing, as in `gpt:build`."""
    module, _, name = reference.partition(":")
    words = _words(name)
    return _words(module.rpartition(".")[2]) if words in _SAY_NOTHING else words


def _words(name: str) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).replace("_", "-").lower()
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-") or "model"


def manifest(named: dict[str, Found], room: Fraction | int) -> str:
    """The text of a manifest with these models, their limits `room` (a share) above what they have."""
    return "".join(f"{line}\n" for line in _lines(named, room))


def _lines(named: dict[str, Found], room: Fraction | int) -> Iterator[str]:
    yield f"# Written by modelbudget init. Limits are {units.percent(room)} above what was there, rounded up."
    yield "version: 1"
    yield "models:"
    for name, one in named.items():
        yield f"  {name}:"
        yield f"    build: {one.reference}"
        if one.inputs:
            yield f"    inputs: {json.dumps(one.inputs)}  # a guess from its first layer: put the real one here"
        if one.dims:
            yield f"    dims: {{{', '.join(f'{dim}: {size}' for dim, size in one.dims.items())}}}"
        yield f"    budgets: {{{', '.join(_limits(one, room))}}}"


def _limits(one: Found, room: Fraction | int) -> Iterator[str]:
    kinds: tuple[tuple[str, units.Kind, int | None], ...] = (
        ("params", "count", one.params),
        ("weight_bytes", "bytes", one.weight_bytes),
        ("flops", "flops", one.flops),
    )
    for metric, kind, value in kinds:
        if value:
            yield f"{metric}: {above(value, kind, room)}"


def above(value: int, kind: units.Kind, room: Fraction | int) -> str:
    """`value` and `room` (a share) more, rounded up to two digits, as a manifest has it: `250k`, `1.1 MB`."""
    most = ceil(value * (1 + room))
    step = 10 ** max(0, len(str(most)) - 2)
    most = ceil(Fraction(most, step)) * step
    scale, unit = next((scale, unit) for scale, unit in _SCALES[kind] if most >= scale)
    whole, rest = divmod(most, scale)
    return f"{whole}{f'.{rest * 10 // scale}' if rest else ''}{unit}"


def _closing(named: dict[str, Found], left: Sequence[LeftOut], target: str) -> Iterator[str]:
    yield f"wrote {target} with {len(named)} model{'' if len(named) == 1 else 's'}:"
    wide = max(map(len, named))
    far = max(len(one.reference) for one in named.values())
    for name, one in named.items():
        guessed = f"  inputs guessed: {one.inputs}" if one.inputs else ""
        line = f"  {name:<{wide}}  {one.params:>13,} params  {one.reference:<{far}}{guessed}"
        yield harmless(line.rstrip())
    if left:
        yield "left out:"
        yield from map(_left, left)
    check = "look at the guessed inputs, then: " if any(one.inputs for one in named.values()) else ""
    yield f"next: {check}modelbudget update{'' if target in MANIFEST_NAMES else f' --file {target}'}"


def _left(one: LeftOut) -> str:
    return harmless(f"  {one.what}: {one.why}")
