"""Parts of any run, from the machine that wrote them to the merge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import strategies as st

from pytest_modelbudget import reports
from pytest_modelbudget.base import NO_BASE, Base, BaseCommit, Checkout
from pytest_modelbudget.parts import ObsoleteFiles, PartHead, Registered, RunRegistry, file
from pytest_modelbudget.parts.merging import contradictions
from pytest_modelbudget.reports import terminal
from pytest_modelbudget.results import Result, codec
from pytest_modelbudget.results.groups import ModelGroup
from pytest_modelbudget.session.finish import Collected, finish_run
from tests.fuzz.strategies import attempted, fuzzed, names, words
from tests.fuzz.test_wire import findings, limits, listed, results
from tests.parts.test_file import forged, lines_of

heads = st.builds(
    PartHead, versions=st.dictionaries(names, names, max_size=2),
    checkout=st.builds(Checkout, st.sampled_from(["", "a" * 40]), names, st.dictionaries(names, st.just("b" * 64), max_size=1)),
    base=st.builds(BaseCommit, st.sampled_from(["", "c" * 64]), names, names, names),
    registry=st.builds(
        RunRegistry, listed(st.builds(Registered, names, names, st.sampled_from(["model", "mistakes", "test"]), st.none(), listed(words))),
        st.dictionaries(names, st.just("d" * 64), max_size=1), listed(st.builds(ModelGroup, names, words, listed(limits), listed(names))),
    ),
    selected=listed(names), update=st.booleans(), shard=st.sampled_from(["", "2/8"]), findings=listed(findings),
    obsolete=listed(st.builds(ObsoleteFiles, names, names, listed(names))), exit_status=st.integers(0, 5), failed_tests=listed(names),
)  # fmt: skip


@fuzzed(heads, st.lists(results(), max_size=2), share=0.1)
def test_every_part_is_read_as_it_was_written(head: PartHead, given: list[Result]) -> None:
    """Heads and results, with all that a reader of reports sees; written again, the bytes are the same."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.part")
        file.write(path, head, map(codec.pack, given))
        data = path.read_bytes()
        part = file.read(path)
        assert (part.head, part.results) == (head, tuple(given))
        file.write(path, part.head, map(codec.pack, part.results))
        assert path.read_bytes() == data


def _places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Each place in plain data where something stands."""
    yield path
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inside:
        yield from _places(value, (*path, key))


@st.composite
def altered_results(draw: st.DrawFn) -> bytes:
    """A line of a result in which one value is another."""
    data = json.loads(codec.packed_line(codec.pack(draw(results()))))
    place = draw(st.sampled_from(list(_places(data))[1:]))
    holder = data
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = draw(st.none() | st.booleans() | st.integers() | names | st.just([]) | st.just({}))
    return json.dumps(data).encode()


@fuzzed(heads, altered_results(), share=0.1)
def test_what_somebody_made_up_is_refused_or_shown(head: PartHead, line: bytes) -> None:
    """A part with a right digest and any one value of a result: the one error, or a result of which reports are made."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.part")
        file.write(path, head, ())
        lines = lines_of(path.read_bytes())
        path.write_bytes(forged([lines[0], line, b'{"results": 1}']))
        part, _ = attempted(file.read, path)
        if part is not None:
            list(finish_run(part.results, Base(Path(folder), NO_BASE), Collected(list(head.registry.groups))))
            list(terminal.closing_lines(part.results))
            reports.render("json", part.results)
            contradictions([part])
