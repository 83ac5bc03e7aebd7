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
from pytest_modelbudget.cli.discover.survey import BuildableModel, survey
from pytest_modelbudget.config import ITEM_NAMES, MANIFEST_NAMES, holds_manifest, read
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.session.registry import make_importable, relative_posix
from pytest_modelbudget.system import writing
from pytest_modelbudget.system.escape import harmless

_SCALES: dict[units.Kind, tuple[tuple[int, str], ...]] = {
    "count": ((10**9, "B"), (10**6, "M"), (10**3, "k"), (1, "")),
    "bytes": ((10**9, " GB"), (10**6, " MB"), (10**3, " kB"), (1, " B")),
    "flops": ((10**12, " TFLOPs"), (10**9, " GFLOPs"), (10**6, " MFLOPs"), (10**3, " kFLOPs"), (1, " FLOPs")),
}

_GENERIC_NAMES = frozenset(
    f"{verb}{noun}" for verb in ("build", "create", "make", "get", "model", "net") for noun in ("", "-model", "-net")
)


def run(options: Namespace) -> int:
    """Look, measure, write, and tell what was left out."""
    root, target = Path.cwd(), Path(options.file)
    headroom = units.parse(options.headroom, "share")
    _check_target(target, force=options.force)
    make_importable(root)
    sources, left_out = scan(root, [_path_inside(root, path) for path in options.paths or ["."]])
    print(f"looking into {len(sources)} file{'' if len(sources) == 1 else 's'} that may define models", file=sys.stderr)
    models, unbuildable = survey(root, sources, seconds=options.timeout)
    unique, duplicates = _without_duplicates(models)
    left_out += [*unbuildable, *duplicates]
    if not unique:
        raise ModelBudgetError(
            "\n".join(["no model was found that can be registered; nothing is written", *map(_left_out_line, left_out)])
        )
    models_by_id = _by_id(unique)
    text = manifest_text(models_by_id, headroom)
    if mistakes := read(text, file=target.name).mistakes:
        raise ModelBudgetError(f"the manifest would not be right, nothing is written: {mistakes[0]}")
    _write(target, text)
    print("\n".join(_closing_lines(models_by_id, left_out, relative_posix(target.resolve(), root.resolve()))))
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
    existing = [name for name in names if (folder / name).is_file() and holds_manifest(folder / name)]
    existing += [target.name] if target.exists() and target.name not in existing else []
    if existing and not force:
        raise ModelBudgetError(f"{existing[0]} is there already, and nothing was done: --force writes over {target}")
    if target.suffix not in (".yaml", ".yml"):
        raise ModelBudgetError(f"{target}: a manifest is a .yaml file")


def _path_inside(root: Path, text: str) -> Path:
    path = (root / text).resolve()
    if not path.exists():
        raise ModelBudgetError(f"there is no {text}")
    if not path.is_relative_to(root.resolve()):
        raise ModelBudgetError(f"{text} is not below this folder, from where models are imported")
    return root / path.relative_to(root.resolve())


def _without_duplicates(models: Sequence[BuildableModel]) -> tuple[list[BuildableModel], list[LeftOut]]:
    """Each model once; a function comes before the class whose instance it returns."""
    unique: dict[tuple[str, str], BuildableModel] = {}
    duplicates = []
    for model in sorted(models, key=lambda model: (model.is_class, model.reference)):
        key = (model.sameness, model.inputs)
        if key in unique:
            duplicates.append(LeftOut(model.reference, f"the same model as {unique[key].reference}"))
        else:
            unique[key] = model
    return sorted(unique.values(), key=lambda model: model.reference), duplicates


def _by_id(models: Sequence[BuildableModel]) -> dict[str, BuildableModel]:
    """A short id for each: `tiny-cnn` for `nets:tiny_cnn` and `nets:TinyCNN`; with its module where two are alike."""
    short_ids = [_short_id(model.reference) for model in models]
    models_by_id: dict[str, BuildableModel] = {}
    for name, model in zip(short_ids, models, strict=True):
        module = model.reference.partition(":")[0]
        unique = name if short_ids.count(name) == 1 and name not in ITEM_NAMES else f"{module}.{name}"
        models_by_id[unique if unique not in models_by_id else model.reference] = model
    return models_by_id


def _short_id(reference: str) -> str:
    """The name in words; that of its module where the name says nothing, as in `gpt:build`."""
    module, _, name = reference.partition(":")
    id_words = _kebab_case(name)
    return _kebab_case(module.rpartition(".")[2]) if id_words in _GENERIC_NAMES else id_words


def _kebab_case(name: str) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).replace("_", "-").lower()
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-") or "model"


def manifest_text(models_by_id: dict[str, BuildableModel], headroom: Fraction | int) -> str:
    """The text of a manifest with these models, their limits `headroom` (a share) above what they have."""
    return "".join(f"{line}\n" for line in _manifest_lines(models_by_id, headroom))


def _manifest_lines(models_by_id: dict[str, BuildableModel], headroom: Fraction | int) -> Iterator[str]:
    yield f"# Written by modelbudget init. Limits are {units.percent(headroom)} above what was there, rounded up."
    yield "version: 1"
    yield "models:"
    for name, model in models_by_id.items():
        yield f"  {name}:"
        yield f"    build: {model.reference}"
        if model.inputs:
            yield f"    inputs: {json.dumps(model.inputs)}  # a guess from its first layer: put the real one here"
        if model.dims:
            yield f"    dims: {{{', '.join(f'{dim}: {size}' for dim, size in model.dims.items())}}}"
        yield f"    budgets: {{{', '.join(_limit_texts(model, headroom))}}}"


def _limit_texts(model: BuildableModel, headroom: Fraction | int) -> Iterator[str]:
    kinds: tuple[tuple[str, units.Kind, int | None], ...] = (
        ("params", "count", model.params),
        ("weight_bytes", "bytes", model.weight_bytes),
        ("flops", "flops", model.flops),
    )
    for metric, kind, value in kinds:
        if value:
            yield f"{metric}: {rounded_above(value, kind, headroom)}"


def rounded_above(value: int, kind: units.Kind, headroom: Fraction | int) -> str:
    """`value` and `headroom` (a share) more, rounded up to two digits, as a manifest has it: `250k`, `1.1 MB`."""
    most = ceil(value * (1 + headroom))
    step = 10 ** max(0, len(str(most)) - 2)
    most = ceil(Fraction(most, step)) * step
    scale, unit = next((scale, unit) for scale, unit in _SCALES[kind] if most >= scale)
    whole, rest = divmod(most, scale)
    return f"{whole}{f'.{rest * 10 // scale}' if rest else ''}{unit}"


def _closing_lines(models_by_id: dict[str, BuildableModel], left_out: Sequence[LeftOut], target: str) -> Iterator[str]:
    yield f"wrote {target} with {len(models_by_id)} model{'' if len(models_by_id) == 1 else 's'}:"
    id_width = max(map(len, models_by_id))
    reference_width = max(len(model.reference) for model in models_by_id.values())
    for name, model in models_by_id.items():
        guessed = f"  inputs guessed: {model.inputs}" if model.inputs else ""
        line = f"  {name:<{id_width}}  {model.params:>13,} params  {model.reference:<{reference_width}}{guessed}"
        yield harmless(line.rstrip())
    if left_out:
        yield "left out:"
        yield from map(_left_out_line, left_out)
    check = "look at the guessed inputs, then: " if any(model.inputs for model in models_by_id.values()) else ""
    yield f"next: {check}modelbudget update{'' if target in MANIFEST_NAMES else f' --file {target}'}"


def _left_out_line(item: LeftOut) -> str:
    return harmless(f"  {item.what}: {item.why}")
