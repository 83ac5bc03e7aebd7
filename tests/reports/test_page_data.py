"""What the HTML page embeds: the data of a model, checked by hand, and libraries as they were published."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources

from pytest_modelbudget import reports
from pytest_modelbudget.reports import html
from pytest_modelbudget.reports.data import model_data
from pytest_modelbudget.summary import Layer, Summary
from tests.builders import spec, towers
from tests.pages import DECODER_NOW, checked, decoder


def test_what_feeds_a_row_is_told_by_its_distance() -> None:
    """So that equal blocks read equal; an input by its name, and what is not known as None."""
    rows = [row[1] for row in model_data(checked("net", DECODER_NOW, {}))["rows"]]
    assert rows[:4] == ["tokens", "h.0", "h.0.up", "h.0.down"]
    assert rows[-2:] == ["norm", "head"]
    data = model_data(checked("net", DECODER_NOW, {}))
    assert data["sources"] == [["ids"], [], [2], [1], *([[], [2], [1]] * 5), [1], [1]]
    assert data["inputs"] == [["ids", "int64[B, T]"]]
    unknown = model_data(checked("net", decoder(calls=None), {}))
    assert unknown["sources"][0] is None


def test_what_changed_is_told_row_by_row() -> None:
    """The block that was widened, the norm that came and the dropout that went; all else only follows, or is as it was."""
    data = model_data(checked("net", DECODER_NOW, {}, before=decoder(dropout=True)))
    names = [row[1] for row in data["rows"]]
    states = {names[place]: (state, lost) for place, state, _, _, lost in data["comparison"]["changed"]}
    assert states == {
        "h.0.up": ("follows", [2 - 21]),
        "h.3": ("inside", []),
        "h.3.up": ("changed", []),
        "h.3.down": ("changed", []),
        "norm": ("added", []),
        "head": ("follows", [2]),
    }
    [[dropout, parent, neighbour, fed]] = data["comparison"]["removed"]
    assert (dropout[1], parent, neighbour, fed) == ("drop", -1, 0, [21])
    [earlier] = [row for place, _, row, *_ in data["comparison"]["changed"] if names[place] == "h.3.up"]
    assert (earlier[3], earlier[5]) == ("[B, T, 32]", 8 * 32)
    assert data["compared"] == "since the committed snapshot"
    assert json.loads(json.dumps(data)) == data


def test_a_warning_beside_a_failure_is_shown_once() -> None:
    """The words of a failure have it in them; without a failure it stands alone."""
    warned = {"flops": {"max": "1 MFLOPs", "warn": "1%"}}
    for budgets in (warned, {"params": 6_000, **warned}):
        page = reports.render("html", [checked("towers", towers(), budgets)])
        assert page.count("warn: flops:") == 1


def test_the_libraries_are_those_that_were_published() -> None:
    """Each has the sum that is written down beside its licence, and nothing in the page ends a script or names a host."""
    folder = resources.files("pytest_modelbudget.reports") / "templates" / "vendor"
    listed = dict(re.findall(r"^\| (\S+) \|.*`([0-9a-f]{64})` \|$", (folder / "LICENSES.md").read_text("utf-8"), re.M))
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in html.VENDORED}
    assert sums == listed
    for script in html.scripts():
        assert "</script" not in script.content.lower()
        assert "sourceMappingURL" not in script.content


def test_a_line_has_the_shape_that_went_along_it() -> None:
    """An activation that is called at two widths: each of the two layers behind it was given one of them."""

    def row(path: str, source: str, given: int, *out: int) -> Layer:
        return Layer(
            path, "Any", tuple((spec("B", width),) for width in out), ((source,),), inputs=((spec("B", given),),)
        )

    rows = (
        row("relu", "x", 8, 8, 16),
        row("narrow", "relu", 8, 4),
        row("wide", "relu", 16, 4),
        row("odd", "relu", 32, 4),
    )
    data = model_data(checked("net", Summary("net", "torch", rows), {}))
    assert data["shapes"] == [[1, 1, "[B, 8]"], [2, 2, "[B, 16]"]]
