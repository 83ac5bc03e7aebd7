"""Results for the HTML page, and the page as it is opened in a browser."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.results import Result, Snapshot, SnapshotState, State, check
from pytest_modelbudget.summary import Input, Layer, Summary, Weight
from tests.builders import gpt, spec, towers

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")


@contextmanager
def launched(driver: Any) -> Iterator[Any]:
    """The browser of this machine, without a window; without one the test is skipped."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium or Chrome here")
    root = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    started = driver.chromium.launch(executable_path=path, args=root)
    yield started
    started.close()


@dataclass(frozen=True, slots=True)
class Opened:
    """A page in the browser; `asked` are the addresses it loaded, `problems` what its console said."""

    page: Any
    asked: list[str]
    problems: list[str]

    def section(self, name: str) -> Any:
        """The part about one model, opened by a click on its name."""
        self.page.locator("#models a", has_text=re.compile(f"^{re.escape(name)}$")).click()
        section = self.page.locator(
            "section", has=self.page.locator("h2 bdi", has_text=re.compile(f"^{re.escape(name)}$"))
        )
        section.locator("table.layers").wait_for()
        return section

    def names(self, locator: str) -> list[str]:
        """The texts of all that a selector finds."""
        return [text.strip() for text in self.page.locator(locator).all_inner_texts()]


def checked(name: str, summary: Summary, budgets: dict[str, object], before: Summary | None = None) -> Result:
    """A model held against its budgets and its snapshot."""
    snapshot = Snapshot(
        SnapshotState.DIFFERENT if before else SnapshotState.EQUAL, f"__model_budget__/{name}.yaml", before=before
    )
    result = check(ModelEntry(name, build="a:b", budgets=budgets), summary, snapshot)
    return replace(result, nodeid=f"modelbudget.yaml::{name}")


def nested() -> Summary:
    """Two stages: the first holds 30 params, the second 3,000 in one layer and 60 in another; and a head with 10."""
    layers = [Layer("one", "Stage", container=True, flops=0), leaf("one.conv", 30)]
    layers += [
        Layer("two", "Stage", container=True, flops=0),
        leaf("two.wide", 3_000),
        leaf("two.thin", 60),
        leaf("head", 10),
    ]
    return Summary("nested", "torch", tuple(layers), (), (spec("B", 1),))


def leaf(path: str, params: int) -> Layer:
    """A layer with that many params."""
    return Layer(path, "Linear", ((spec("B", 1),),), (("x",),), (Weight("weight", (params,)),), flops=2 * params)


FEW = [
    checked("towers", towers(), {"params": 7_000}),
    checked("gpt", gpt(40), {}, before=gpt(38)),
    checked("nested", nested(), {"params": {"max": 3_200, "warn": "90%"}}),
    checked("over", towers(), {"params": 6_000}),
    Result("broken", State.BUILD_ERROR, error="nets.py:41: in build\n    x\nE   KeyError: 'widht'"),
]


def decoder(wide: int = 32, *, dropout: bool = False, norm: bool = False, calls: int | None = 1) -> Summary:
    """Six blocks of two layers each; the inner width of the fourth is `wide`, that of the others 32."""

    def row(path: str, kind: str, source: str, shape: tuple[int, ...], out: int = 8) -> Layer:
        weights = (Weight("weight", shape),) if shape else ()
        fed = () if calls is None else ((source,),)
        return Layer(path, kind, ((spec("B", "T", out),),), fed, weights, calls=calls)

    rows = [row("tokens", "Embedding", "ids", (100, 8))]
    rows += [row("drop", "Dropout", "tokens", ())] if dropout else []
    for block in range(6):
        inner = wide if block == 3 else 32
        rows.append(Layer(f"h.{block}", "Block", container=True, calls=calls))
        rows.append(row(f"h.{block}.up", "Linear", last_leaf(rows), (inner, 8), inner))
        rows.append(row(f"h.{block}.down", "Linear", f"h.{block}.up", (8, inner)))
    rows += [row("norm", "LayerNorm", rows[-1].path, (8,))] if norm else []
    rows.append(row("head", "Linear", rows[-1].path, (100, 8), 100))
    return Summary("net", "torch", tuple(rows), (Input("ids", spec("B", "T", dtype="int64")),))


def last_leaf(rows: list[Layer]) -> str:
    """The path of the last row that holds no others."""
    return next(row.path for row in reversed(rows) if not row.container)


DECODER_NOW = decoder(wide=64, norm=True)
