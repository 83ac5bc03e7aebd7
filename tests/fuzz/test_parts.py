"""Parts of any run, from the machine that wrote them to the merge."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import strategies as st

from pytest_modelbudget.base import BaseCommit, Checkout
from pytest_modelbudget.parts import ObsoleteFiles, PartHead, Registered, RunRegistry, file
from pytest_modelbudget.results import Result, codec
from pytest_modelbudget.results.groups import ModelGroup
from tests.fuzz.strategies import fuzzed, names, words
from tests.fuzz.test_wire import findings, limits, listed, results

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
