"""The process that imports a project's modules and builds its models: `python -m ....worker JOB OUT`.

It writes a line of JSON for each thing it begins and each thing it found, so that the one who started it knows where
it was when it died.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from pytest_modelbudget import backends
from pytest_modelbudget.backends.coexist import coexisting
from pytest_modelbudget.check import ModelEntry
from pytest_modelbudget.cli.discover.evidence import Candidate, candidates
from pytest_modelbudget.cli.discover.guess import Guess, guesses
from pytest_modelbudget.registry import importable
from pytest_modelbudget.run import run
from pytest_modelbudget.summary import Summary

Line = dict[str, Any]


def main(job: Path, out: Path) -> None:
    """Do the job: import each module in it and measure what it builds."""
    task = json.loads(job.read_text(encoding="utf-8"))
    importable(Path(task["root"]))
    with out.open("a", encoding="utf-8", buffering=1) as file:

        def write(line: Line) -> None:
            file.write(json.dumps(line) + "\n")

        for module in task["modules"]:
            write({"kind": "module", "module": module})
            for line in _module(module, frozenset(task["parts"]), frozenset(task["skip"]), write):
                write(line)
            write({"kind": "done", "module": module})
        write({"kind": "end"})


def _module(name: str, parts: frozenset[str], skip: frozenset[str], begin: Callable[[Line], None]) -> Iterator[Line]:
    try:
        with coexisting():
            module = import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        yield {"kind": "left", "what": name, "why": f"cannot be imported: {_reason(error)}"}
        return
    with coexisting():
        found = [one for one in candidates(module, parts) if f"{name}:{one.name}" not in skip]
    for candidate in found:
        reference = f"{name}:{candidate.name}"
        if candidate.lacks:
            yield {"kind": "left", "what": reference, "why": candidate.lacks}
            continue
        begin({"kind": "build", "what": reference})
        yield _measured(reference, candidate)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _measured(reference: str, candidate: Candidate) -> Line:
    """The numbers of one model, with the inputs it knows or the first guess that it runs on."""
    summary, why = _counted(ModelEntry(id=reference, build=reference))
    guess: Guess | None = None
    if summary is None:
        tries, reason = _guesses(reference)
        why = reason or why
        for guess in tries:
            summary, _ = _counted(ModelEntry(id=reference, build=reference, inputs=guess.inputs, dims=guess.dims))
            if summary is not None:
                break
        else:
            why = why if reason or not tries else "runs on none of the inputs that its first layer suggests"
    if summary is None:
        return {"kind": "left", "what": reference, "why": why}
    return {
        "kind": "found",
        "reference": reference,
        "is_class": candidate.is_class,
        "guess": None if guess is None else asdict(guess),
        "framework": summary.framework,
        "params": summary.params,
        "weight_bytes": summary.weight_bytes,
        "flops": None if summary.flops.is_lower_bound else summary.flops.value,
        "sameness": _sameness(summary),
    }


def _counted(entry: ModelEntry) -> tuple[Summary | None, str]:
    """The summary of a model that runs on its inputs, or why there is none."""
    result = run(entry, Path(), snapshots=False)
    summary = result.summary
    if summary is not None and summary.flops.value is None and not summary.outputs:
        return None, next(iter(summary.notes), "its shapes are not known")
    lines = [line.removeprefix("E").strip() for line in result.error.splitlines() if line.startswith("E ")]
    return summary, (lines[-1] if lines else result.error.partition("\n")[0])


def _guesses(reference: str) -> tuple[tuple[Guess, ...], str]:
    module, _, name = reference.partition(":")
    build = getattr(import_module(module), name)
    try:
        active = backends.loaded()
        with coexisting(), backends.preserved(active), backends.abstract(active):
            return guesses(build())
    except Exception as error:
        return (), f"cannot be built: {_reason(error)}"


def _sameness(summary: Summary) -> str:
    """Equal for models with equal rows."""
    rows = [(layer.path, layer.type, layer.weights_text, layer.connected_to) for layer in summary.layers]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
