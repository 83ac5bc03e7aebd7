"""The end of a part's own run: it is written, and says in one line what it leaves to the merge."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pytest_modelbudget.engine.naming import FRAMEWORK_MODULES
from pytest_modelbudget.parts import file
from pytest_modelbudget.parts.merging import PRODUCT
from pytest_modelbudget.parts.part import PartHead
from pytest_modelbudget.parts.request import PartRequest
from pytest_modelbudget.results import Result, State, codec
from pytest_modelbudget.results.groups import names_text
from pytest_modelbudget.session.finish import NOT_COLLECTED, Finished, in_order

_DISTRIBUTIONS = (*FRAMEWORK_MODULES, "timm", "transformers")
"""What decides what a model is, as pip knows it."""


def versions() -> dict[str, str]:
    """What is installed here, looked up without importing any of it."""
    installed = {PRODUCT: version(PRODUCT), "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def finish_part(results: Sequence[Result], request: PartRequest, head: PartHead) -> Finished:
    """Write a part with its results; what came of it. Nothing is judged that needs the other parts."""
    ordered = in_order(results)
    done = Finished(results=tuple(ordered), written="accepted")
    unknown = any(finding.kind == NOT_COLLECTED for finding in head.findings)
    done.failed = bool(head.exit_status) or unknown or any(result.state is State.NOT_CHECKED for result in ordered)
    if strangers := sorted({result.nodeid for result in ordered} - set(head.selected)):
        done.problems.append(
            f"{names_text(strangers)} checks a model and does not name the fixture model_budget among its arguments, "
            "so that parts cannot know of it: name it there"
        )
        return done
    try:
        file.write(request.path, head, map(codec.pack, ordered))
    except OSError as error:
        done.problems.append(f"the part {request.path} cannot be written ({error.strerror or error})")
        return done
    done.lines += [*filter(None, [request.note]), _line(request.path, head)]
    return done


def _line(path: Path, head: PartHead) -> str:
    which = f"part {head.shard}" if head.shard else "a part"
    count = len(head.registry.nodes)
    return (
        f"{which}: {len(head.selected)} of {count} model{'' if count == 1 else 's'} in {path.name}; no verdict yet: "
        f"sums, obsolete snapshots, the base{', what is written' if head.update else ''} and missing models are for "
        f"modelbudget merge"
    )
