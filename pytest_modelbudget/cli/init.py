"""`modelbudget init`: a manifest of the models that a project can build."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_modelbudget import units
from pytest_modelbudget.cli.discover.manifest import by_id, flow, manifest_text
from pytest_modelbudget.cli.discover.source.evidence import gather
from pytest_modelbudget.cli.discover.source.scan import scan
from pytest_modelbudget.cli.discover.trial.outcomes import BuildableModel, LeftOut, Skeleton
from pytest_modelbudget.cli.discover.trial.survey import SurveyLimits, survey
from pytest_modelbudget.config import MANIFEST_NAMES, holds_manifest, read
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.session.registry import make_importable, relative_posix
from pytest_modelbudget.system import writing
from pytest_modelbudget.system.escape import harmless

_MOST_ALIKE = 3
"""Functions of a file that differ by nothing but literals, and are tried where no file is named."""

_MOST_NAMED = 3
"""Things that are left out for one reason, and named."""


def run(options: Namespace) -> int:
    """Look, measure, write, and tell what was left out."""
    root, target = Path.cwd(), Path(options.file)
    headroom = units.parse(options.headroom, "share")
    _check_target(target, force=options.force)
    make_importable(root)
    sources, left_out = scan(root, [_path_inside(root, path) for path in options.paths or ["."]])
    print(f"looking into {len(sources)} file{'' if len(sources) == 1 else 's'} that may define models", file=sys.stderr)
    limits = SurveyLimits(options.timeout, options.total, alike=None if options.paths else _MOST_ALIKE)
    outcomes = survey(root, sources, gather(root), limits=limits)
    models = [item for item in outcomes if isinstance(item, BuildableModel)]
    unique, duplicates = _without_duplicates(sorted(models, key=lambda model: (model.reference, model.variant)))
    skeletons = [item for item in outcomes if isinstance(item, Skeleton)]
    left_out += [*(item for item in outcomes if isinstance(item, LeftOut)), *duplicates]
    if not unique and not skeletons:
        reasons = _folded(left_out)
        raise ModelBudgetError("\n".join(["no model was found that can be registered; nothing is written", *reasons]))
    models_by_id = by_id(unique)
    text = manifest_text(models_by_id, skeletons, headroom)
    if mistakes := read(text, file=target.name).mistakes:
        raise ModelBudgetError(f"the manifest would not be right, nothing is written: {mistakes[0]}")
    _write(target, text)
    print(
        "\n".join(_closing_lines(models_by_id, skeletons, left_out, relative_posix(target.resolve(), root.resolve())))
    )
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
    """Each model once; one of a table of names comes last, a function before the class whose instance it returns."""
    unique: dict[tuple[str, str, int | None], BuildableModel] = {}
    duplicates = []
    for model in sorted(models, key=lambda model: (bool(model.variant), model.is_class, model.reference)):
        key = (model.sameness, str(model.inputs), model.flops)
        if key in unique:
            duplicates.append(LeftOut(model.reference, f"the same model as {unique[key].reference}"))
        else:
            unique[key] = model
    return sorted(unique.values(), key=lambda model: (model.reference, model.variant)), duplicates


def _closing_lines(
    models_by_id: dict[str, BuildableModel], skeletons: Sequence[Skeleton], left_out: Sequence[LeftOut], target: str
) -> Iterator[str]:
    count = f"{len(models_by_id)} model{'' if len(models_by_id) == 1 else 's'}"
    yield f"wrote {target} with {count}{':' if models_by_id else ''}"
    id_width = max(map(len, models_by_id), default=0)
    reference_width = max((len(model.reference) for model in models_by_id.values()), default=0)
    for name, model in models_by_id.items():
        line = (
            f"  {name:<{id_width}}  {model.params:>13,} params  {model.reference:<{reference_width}}  {_doubts(model)}"
        )
        yield harmless(line.rstrip())
    if skeletons:
        yield "as comments, to be filled in:"
        yield from _folded([LeftOut(skeleton.reference, skeleton.why) for skeleton in skeletons])
    if left_out:
        yield "left out:"
        yield from _folded(left_out)
    option = "" if target in MANIFEST_NAMES else f" --file {target}"
    check = "look at what was guessed, then: " if any(map(_doubts, models_by_id.values())) else ""
    yield (
        f"next: {check}modelbudget update{option}"
        if models_by_id
        else f"next: install what is missing, or fill in {target}"
    )


def _doubts(model: BuildableModel) -> str:
    """What of a model is a guess."""
    inputs = model.inputs if isinstance(model.inputs, str) else flow(model.inputs) if model.inputs else ""
    guesses = [f"guessed: {', '.join(model.guessed)}"] if model.guessed else []
    guesses += [f"inputs guessed: {inputs}"] if inputs and not model.inputs_seen else []
    return "; ".join(guesses)


def _folded(left_out: Sequence[LeftOut]) -> Iterator[str]:
    """A line for each reason, with the first names and how many more there are."""
    names_by_reason: dict[str, list[str]] = {}
    for item in left_out:
        names_by_reason.setdefault(_reason_of_kind(item), []).append(item.what)
    for reason, names in names_by_reason.items():
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        count = f"{len(names)} x " if len(names) > 1 else ""
        yield harmless(f"  {count}{reason}: {', '.join(names[:_MOST_NAMED])}{more}")


def _reason_of_kind(item: LeftOut) -> str:
    """The reason without what differs between things that are left out for the same one."""
    if item.why.startswith("the same model as "):
        return "the same model as another one"
    if item.why.startswith("like "):
        return "like others of its file, which is to be named to have all"
    return re.sub(r"^needs arguments: .*", "needs arguments that nothing is known of", item.why)
