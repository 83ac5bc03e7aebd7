"""The order of operators on one thread, by hand from the rules of TensorFlow's executor."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pytest_modelbudget.backends.tf_memory.nodes import Node
from pytest_modelbudget.backends.tf_memory.order import orders

CASES = {
    "the last that becomes ready stays on the thread, then what was handed over last": (
        {"a": "", "b": "a", "c": "a", "d": "a"},
        "adcb",
    ),
    "what follows on the thread goes before what was handed over": (
        {"a": "", "b": "a", "c": "a", "d": "c", "e": "d"},
        "acdeb",
    ),
    "what is cheap goes first, and nothing expensive stays beside it": (
        {"a": "", "I": "a", "b": "a", "c": "I"},
        "aIcb",
    ),
    "edges of control come after those of data": ({"a": "", "b": "^a", "c": "a"}, "abc"),
    "what needs nothing is ready together": ({"a": "", "z": "", "b": "a", "c": "a"}, "zacb"),
    "what is cheap and needs nothing goes before all else": ({"A": "", "b": "A", "Z": "", "c": "Z"}, "AZcb"),
}


def nodes(graph: dict[str, str]) -> list[Node]:
    """Nodes of one letter from what each needs; capital ones are cheap, `^` is an edge of control."""
    made = []
    for name, needs in graph.items():
        op = SimpleNamespace(type="Identity" if name.isupper() else "MatMul")
        controlled = needs.startswith("^")
        after = [needs[1:]] if controlled else []
        made.append(Node(op, None, name, [] if controlled else [f"{need}:0" for need in needs], [f"{name}:0"], after))
    return made


@pytest.mark.parametrize(("graph", "expected"), CASES.values(), ids=CASES)
def test_order_by_hand(graph: dict[str, str], expected: str) -> None:
    """Each operator when the rules let it."""
    [ordered] = orders(nodes(graph), 1)
    assert "".join(node.name for node in ordered) == expected


def test_what_needs_nothing_has_no_order() -> None:
    """Further orders begin elsewhere, and are the same each time."""
    graph = nodes(dict.fromkeys("ABCDEFGH", ""))
    first, second = ([node.name for node in ordered] for ordered in orders(graph, 2))
    assert first == list("ABCDEFGH")
    assert sorted(second) == first != second
    assert [node.name for node in list(orders(graph, 2))[1]] == second


def test_what_follows_in_a_table_of_addresses_has_no_order() -> None:
    """Of one operator up to eight edges keep theirs; more are shuffled, the same each time."""
    few, many = nodes({"a": "", **dict.fromkeys("bcdefghi", "a")}), nodes({"a": "", **dict.fromkeys("bcdefghij", "a")})
    assert len({"".join(node.name for node in ordered) for ordered in orders(few, 4)}) == 1
    shuffled = ["".join(node.name for node in ordered) for ordered in orders(many, 4)]
    assert len(set(shuffled)) == 4
    assert shuffled == ["".join(node.name for node in ordered) for ordered in orders(many, 4)]


@pytest.mark.slow
def test_a_real_step_runs_in_the_planned_order() -> None:
    """Operator by operator, by TensorFlow's own profiler: products, gradients, reads and assignments of variables."""
    pytest.importorskip("tensorflow")
    command = [sys.executable, "-m", "tests.backends.tf_memory.order_for_real"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert len(report["real"]) > 60
    assert report["planned"] == report["real"]
