"""Names a model may hold by accident or malice, and a result that holds one wherever a name can be."""

from __future__ import annotations

from dataclasses import replace

from pytest_modelbudget import budget
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import Place
from pytest_modelbudget.results import Result, Snapshot, SnapshotState, State, check
from pytest_modelbudget.summary import (
    Fit,
    Flops,
    Growth,
    Input,
    LargestSize,
    Layer,
    Lever,
    Margin,
    Part,
    Plan,
    Point,
    Summary,
    Way,
    Weight,
)
from tests.builders import spec

NAMES = {
    "html": "<img src=x onerror=alert(1)>",
    "closing tag": "</pre></td></details><script>alert(1)</script>",
    "closing comment": "--><img src=x onerror=alert(1)>",
    "workflow command": "::error::owned",
    "workflow command with a file": "::warning file=a.py,line=1::owned",
    "workflow command that starts commands": "::stop-commands::owned",
    "older workflow command": "##[error]owned",
    "command of another service": "##vso[task.logissue type=error]owned",
    "encoded newline": "a%0A::error::owned",
    "properties": "a,line=1::owned",
    "pipe": "a|b|c",
    "backtick": "a`b```c",
    "clear screen": "a\x1b[2Jb",
    "link of a terminal": "\x1b]8;;http://example.org\x07a\x1b]8;;\x07",
    "right to left": "a\u202egnp.exe",
    "zero width": "a\u200bb\u2066c",
    "newline": "a\n::error::owned\n| x | y |",
    "carriage return": "a\rOK",
    "yaml": "a: {b: [c, &d *d]} # e",
    "quotes": "\"'\\",
    "template": "{{ 7 * 7 }}{% raw %}",
    "markup": "[bold red]x[/bold red] [link](http://example.org)",
    "mention": "@everyone #1 https://example.org www.example.org",
    "address of mail": "mailto:a@example.org xmpp:b@example.org c.d@example.org",
    "references": "GH-12 #12 o/r#12 @user o/r@8e8c483 8e8c483db84b4bee98b60c0593521ed34d9990e8",
    "very long": "x" * 10_000,
    "line separator": "a\u2028b\x85c",
    "emoji": "🧨層",
    "star": "a*b.0",
    "heading": "# a\n---",
    "fence": "~~~\n```\n</details>",
    "null": "a\0b",
    "command that a table folds": "ÿ\x99;{\U000d93ec\x86ÿ\x99;{\U000d93ec\x86a,line=1::ownedÿ\x99;{\U000d93ec\x86",
}

INVISIBLE = "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
"""Characters that act instead of being seen; none may come out of a report, but for the ends of lines."""


def model(name: str) -> Summary:
    """A model in which everything that can have a name has this one."""
    layers = (
        Layer(name, name, ((spec("B", 3),),), (("x",),), (Weight(name, (3,)),), container=True, flops=6),
        Layer(
            f"{name}.z", name, ((spec("B", 3),),), ((name,),), (Weight("w", (3,), tied_to=f"{name}.{name}"),), flops=6
        ),
    )
    inputs = (Input(name, spec("B", 3)),)
    plan = Plan(
        "training", name, 100, 120, phase="backward", path=name, op=name,
        parts=(Part("param", name, 60), Part("activation", name, 40)),
        timeline=(Point("forward", name, 60), Point("backward", name, 100), Point("optimizer", name, 60)),
        levers=(Lever(name, 50, name),), fits=(Fit(name, 50, 100), Fit(name, 50, 60, 40, (Margin(name, 20),))),
        largest=(LargestSize(name, 3, name),), ways=(Way(name, name, (name,), 1),), notes=(name,),
    )  # fmt: skip
    return Summary(
        name, "torch", layers, inputs, (spec("B", 3),), Flops(12, ((name, 1),)), notes=(name,),
        plans=(plan, Plan("inference", name, None, notes=(name, name))), growth=(Growth(name, "flops", 8, reason=name),),
    )  # fmt: skip


def results(name: str) -> list[Result]:
    """Such a model over its budgets and changed, within them by a hair, not built, and with its snapshot in conflict."""
    place = Place("modelbudget.yaml", 7)
    written = {"params": 1, "layers": {"*": {"params": 1}}}
    entry = ModelEntry("net", build="a:b", budgets=tuple(budget.parse(written, lambda below: place)), place=place)
    near = ModelEntry("near", build="a:b", budgets={"params": {"max": 3, "warn": "50%"}}, place=place)
    summary = model(name)
    before = Snapshot(SnapshotState.DIFFERENT, f"__model_budget__/{name}.yaml", before=replace(summary, layers=()))
    equal = Snapshot(SnapshotState.EQUAL, "__model_budget__/near.yaml")
    broken = Snapshot(SnapshotState.BROKEN, "__model_budget__/net.yaml", problem=name)
    return [
        replace(check(entry, summary, before), nodeid=f"modelbudget.yaml::{name}"),
        replace(check(near, summary, equal), nodeid="modelbudget.yaml::near"),
        replace(check(near, summary, broken), id="torn", nodeid="modelbudget.yaml::torn"),
        Result("mistake", State.BUILD_ERROR, error=f"{name}\nE   ValueError: {name}", place=place),
        Result(name, State.BAD_CONFIG, error=name, nodeid=name),
    ]
