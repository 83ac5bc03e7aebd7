"""Names pieced together from everything that acts somewhere, through all that shows them."""

from __future__ import annotations

import json
import re

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from pytest_modelbudget import reports
from pytest_modelbudget.results import Result
from tests import hostile
from tests.fuzz.strategies import fuzzed, names
from tests.fuzz.test_wire import results
from tests.reports.test_hostile_names import OF_OUR_OWN, PLAIN, RENDERERS, Tags, rendered

TAGS = {"html": Tags(reports.render("html", PLAIN)).seen}
TAGS |= {kind: Tags(rendered(kind, "plain")).seen for kind in ("md", "comment")}


def nothing_acts(renderer: str, shown: str) -> None:
    """No invisible character, and no command to a CI service but our own."""
    assert not re.search(hostile.INVISIBLE, shown)
    commands = [line for line in shown.split("\n") if re.match(r"\s*::.*::", line)]
    assert all(re.match(OF_OUR_OWN, line) for line in commands) if renderer == "annotations" else not commands
    if renderer != "json":
        assert not re.search(r"##(vso)?\[", shown)


@fuzzed(names, share=0.4)
def test_nothing_that_acts_comes_out_of_any_renderer(name: str) -> None:
    """And each report stays what it is: JSON, metrics, a page with its own tags and no more."""
    built = hostile.results(name)
    for renderer, render in RENDERERS.items():
        nothing_acts(renderer, render(built))
    assert Tags(reports.render("html", built)).seen == TAGS["html"]
    for kind in ("md", "comment"):
        assert Tags(rendered(kind, name)).seen == TAGS[kind]
    assert json.loads(reports.render("json", built))["models"]
    assert all(json.loads(reports.render("codequality", built)))
    assert list(text_string_to_metric_families(reports.render("openmetrics", built)))


@fuzzed(results(), results(), share=0.2)
def test_any_results_are_shown(one: Result, other: Result) -> None:
    """Numbers of any size, what is unknown, changes and findings: every report can be made of them."""
    for kind in reports.REPORTS:
        assert reports.render(kind, [one, other])
    for renderer in ("annotations", "failure", "short line", "closing"):
        nothing_acts(renderer, RENDERERS[renderer]([one, other]))
