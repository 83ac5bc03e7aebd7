"""Results of any kind, from a worker to the controller."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

from pytest_modelbudget import budget
from pytest_modelbudget.budget import Baseline, Budget, Finding
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import Place
from pytest_modelbudget.results import Result, Snapshot, SnapshotState, State, check, codec
from pytest_modelbudget.results.groups import ModelGroup
from pytest_modelbudget.summary import Fit, Growth, LargestSize, Lever, Margin, Part, Plan, Point, Summary, Way
from pytest_modelbudget.summary.metrics import LAYER_METRICS, METRICS
from tests.fuzz import strategies
from tests.fuzz.strategies import fuzzed, names, words

_BYTES = st.none() | st.integers(0, 2**60)
_PLACES = st.none() | st.builds(Place, words, st.none() | st.integers(1, 10**6))


def listed(item: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """None, one or two of them."""
    return st.lists(item, max_size=2).map(tuple)


plans = st.builds(
    Plan,
    kind=st.sampled_from(["training", "inference"]), recipe=names, peak_bytes=_BYTES, reserved_bytes=_BYTES, low_bytes=_BYTES,
    high_bytes=_BYTES, phase=st.sampled_from(["", "forward", "backward"]), path=names, op=words,
    parts=listed(st.builds(Part, st.just("param"), words, st.integers(0, 2**60))),
    timeline=listed(st.builds(Point, st.just("forward"), words, st.integers(0, 2**60))),
    levers=listed(st.builds(Lever, words, st.integers(0, 2**60), words)), fits=listed(st.builds(Fit, words, st.integers(1, 2**60), _BYTES, _BYTES, listed(st.builds(Margin, words, st.integers(0, 2**60))))),
    ways=listed(st.builds(Way, words, words, listed(words), st.integers(0, 99))), largest=listed(st.builds(LargestSize, words, st.integers(0, 99), words)), ranks=st.integers(1, 9), communication_bytes=_BYTES,
    notes=listed(names),
)  # fmt: skip
growth = st.builds(
    Growth, words, st.sampled_from(sorted(METRICS)), st.integers(1, 99), listed(st.tuples(st.integers(2, 9), st.integers(0, 2**60))),
    st.none() | st.integers(0, 4), st.none() | st.floats(0, 9), _BYTES, st.none() | st.floats(0, 1), words,
)  # fmt: skip


@st.composite
def whole_summaries(draw: st.DrawFn) -> Summary:
    """Models with all that a run may know of them."""
    layers = tuple(
        replace(layer, inputs=draw(strategies.calls), activation_bytes=draw(_BYTES))
        for layer in draw(strategies.summaries).layers[:4]
    )
    sizes = draw(st.dictionaries(words, st.integers(1, 99), max_size=2))
    return replace(
        draw(strategies.summaries), layers=layers, samples=draw(st.none() | st.integers(1, 10**9)), sizes=tuple(sizes.items()),
        notes=draw(listed(names)), activation_bytes=draw(_BYTES), real_run=draw(st.booleans()), optimizer_bytes=draw(_BYTES),
        plans=draw(listed(plans)), growth=draw(listed(growth)),
    )  # fmt: skip


limits = st.one_of(
    st.builds(Budget, st.sampled_from(sorted(METRICS)), st.sampled_from(["max", "min"]), st.integers(0, 2**60), place=_PLACES),
    st.builds(Budget, st.sampled_from(sorted(METRICS)), st.just("growth"), st.fractions(0, 9), place=_PLACES, relative=st.booleans()),
    st.builds(Budget, st.sampled_from(sorted(LAYER_METRICS)), st.just("max"), st.fractions(0, 9) | st.integers(0, 99), st.sampled_from(["*", "[", "fc*"])),
    st.builds(Budget, st.just("params"), st.just("waive"), st.integers(0, 99), until=st.dates(), reason=names),
    st.builds(Budget, st.just("fits"), st.just("fits"), st.integers(1, 2**40), devices=st.just(("24 GB", "A"))),
    st.builds(Budget, st.just("flops"), st.just("law"), st.integers(0, 2), dim=st.sampled_from(["T", "B"])),
    st.builds(Budget, st.just("params"), st.just("warn"), st.fractions(0, 1).filter(bool)),
)  # fmt: skip
findings = st.builds(Finding, st.sampled_from(["waiver", "ratchet"]), words, names, _PLACES)
stored = st.sampled_from(
    [
        SnapshotState.DIFFERENT,
        SnapshotState.MISSING,
        SnapshotState.OFF,
        SnapshotState.EQUAL,
        SnapshotState.REFUSED,
        SnapshotState.BROKEN,
    ]
)


@st.composite
def results(draw: st.DrawFn) -> Result:
    """A model that was checked against another state of it and a base, or one that could not be built."""
    if draw(st.integers(0, 3)) == 0:
        state = draw(st.sampled_from([State.BUILD_ERROR, State.BAD_CONFIG, State.SKIPPED, State.OBSOLETE]))
        return Result(
            draw(names), state, error=draw(names), place=draw(_PLACES), files=draw(listed(names)), nodeid=draw(names)
        )
    after = draw(whole_summaries())
    before = draw(
        st.one_of(st.just(after), strategies.summaries.map(lambda other: replace(after, layers=other.layers)))
    )
    entry = ModelEntry(
        "net", build="a:b", budgets=budget.merge(draw(listed(limits))), tags=draw(listed(words)), place=draw(_PLACES)
    )
    kind = draw(stored)
    snapshot = Snapshot(
        kind, draw(words), draw(words), before if kind is SnapshotState.DIFFERENT else None, draw(names), draw(names)
    )
    base = draw(st.none() | st.builds(Baseline, names, st.none() | st.just(before), words, st.none() | listed(limits)))
    result = check(entry, after, snapshot, accept=draw(st.booleans()), base=base, day=date(2030, 1, 1))
    return replace(
        result,
        findings=(*result.findings, *draw(listed(findings))),
        nodeid=draw(names),
        seconds=draw(st.integers(0, 99)) / 4,
    )


@fuzzed(results(), share=0.5)
def test_every_result_arrives_whole(result: Result) -> None:
    """As plain JSON, with every number exact, and with what the model was."""
    data = codec.result_dict(result)
    assert json.loads(json.dumps(data)) == data
    json.dumps(data, allow_nan=False)
    assert codec.unpack(codec.pack(result)) == result


@fuzzed(st.builds(ModelGroup, names, words, listed(limits), listed(names), _PLACES), findings)
def test_groups_and_findings_arrive_whole(group: ModelGroup, finding: Finding) -> None:
    """The same for what is said of no single model."""
    assert codec.group_from(json.loads(json.dumps(codec.group_dict(group)))) == group
    assert codec.finding_from(json.loads(json.dumps(codec.finding_dict(finding)))) == finding


@fuzzed(st.fractions() | st.integers())
def test_numbers_keep_their_kind(number: Fraction | int) -> None:
    """A share stays a share, also one that is whole."""
    arrived = codec._number_from(json.loads(json.dumps(codec.number_text(number))))
    assert (arrived, type(arrived)) == (number, type(number))
