"""What an example holds reaches the model as it is, and the example is left as it was."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

from pytest_modelbudget import ModelBudgetError, plan, summarize
from pytest_modelbudget.inputs import from_example
from tests.backends.torch.trace.steered import LENGTHS, Steered, X, counted, really

Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True, slots=True)
class Slotted:
    x: torch.Tensor
    n: int


class Graph:
    """Holds tensors as torch_geometric's `Data` does, two objects deep and under private names."""

    def __init__(self, x: torch.Tensor, edges: torch.Tensor) -> None:
        self._store = UserDict(x=x, edge_index=edges)
        self.lock = threading.Lock()  # cannot be copied

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._store[name]


def by_kind(layer: nn.Module, x: torch.Tensor, state: Any) -> torch.Tensor:
    return layer(layer(x)) if isinstance(state, tuple) else layer(x)


KINDS = [
    pytest.param(lambda layer, p: layer(p.left) + p.right, (Pair(X, X),), id="named tuple"),
    pytest.param(by_kind, (X, (X, X)), id="tuple"),
    pytest.param(by_kind, (X, [X, X]), id="list"),
    pytest.param(lambda layer, d: layer(d[8]), ({8: X, (1, 2): X},), id="keys of any type"),
    pytest.param(
        lambda layer, d: layer(d["x"]) if isinstance(d, OrderedDict) else d["x"], (OrderedDict(x=X),), id="OrderedDict"
    ),
    pytest.param(lambda layer, d: layer(d.data["x"]), (UserDict(x=X),), id="UserDict"),
    pytest.param(lambda layer, d: layer(d.x[: d.n]), (Slotted(X, 2),), id="frozen dataclass with slots"),
    pytest.param(lambda layer, g: layer(g.x)[g.edge_index[0]], (Graph(X, torch.tensor([[0, 1, 2, 0]])),), id="object"),
    pytest.param(lambda layer, x, head: layer(x) if head == "high" else x, (X, "high"), id="text"),
    pytest.param(lambda layer, x, n: layer(x) if n is None else x, (X, None), id="None"),
    pytest.param(lambda layer, x, f: layer(f(x)), (X, torch.relu), id="function"),
    pytest.param(lambda layer, x: layer(x), (X[:0],), id="no rows"),
    pytest.param(lambda layer, x, n: layer(x[:, : n[1]]), (X, numpy.array([1, 5])), id="array"),
    pytest.param(lambda layer, p: layer(p.data), (rnn.pack_sequence([X[0], X[1, :3]]),), id="packed sequence"),
    pytest.param(lambda layer, x, t: layer(x) if t > 0.5 else x, (X, torch.tensor(0.7)), id="number of floats"),
    pytest.param(lambda layer, x, n: layer(x[:, : int(n[-1])]), (X, torch.full((2_000_000,), 5)), id="many numbers"),
    pytest.param(lambda layer, x: layer(x), (nn.Linear(4, 4)(X),), id="a part of a graph"),
    pytest.param(lambda layer, x, y: layer(x) if x is y else x, (X, X), id="the same tensor twice"),
]


@pytest.mark.parametrize("kind", ["built", "live"])
@pytest.mark.parametrize(("way", "example"), KINDS)
def test_what_an_example_holds_reaches_the_model_as_it_is(way: Any, example: tuple[Any, ...], kind: str) -> None:
    """Kinds of containers, keys, objects, texts and numbers; the pass is that of a real call, without one."""
    model = Steered(way)
    summary = summarize(model if kind == "live" else lambda: Steered(way), lambda: example, name="m")
    assert counted(summary) == really(model, *example)
    assert not summary.real_run


class Marked(torch.Tensor):
    """A class of tensors that a forward asks for, as torchvision's images are."""


def test_a_class_of_tensors_stays_what_it_is() -> None:
    """With what is written on it."""
    marked = torch.randn(3, 4).as_subclass(Marked)
    marked.kind = "image"
    way = lambda layer, x: layer(x) if isinstance(x, Marked) and x.kind == "image" else x  # noqa: E731
    assert counted(summarize(Steered(way), (marked,), name="m")) == really(Steered(way), marked)


@pytest.mark.parametrize("sparse", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr], ids=["COO", "CSR"])
def test_a_sparse_matrix_reaches_the_model(sparse: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Its product with numbers of a layer has the shape of the real one."""
    way = lambda layer, a, x: torch.sparse.mm(a, layer(x))  # noqa: E731
    summary = summarize(Steered(way), lambda: (sparse(torch.eye(3)), torch.randn(3, 4)), name="m")
    assert summary.outputs[0].shape == (3, 4)
    assert str(summary.inputs[0]) == "0 float32[3, 3]"


def test_a_nested_tensor_is_shown_with_an_open_dimension() -> None:
    """Its rows have lengths of their own."""
    nested = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=torch.jagged)
    read = from_example((nested,))
    assert str(read.ports[0]) == "0 float32[2, ?, 4]"


LAYOUTS = {
    "coo": lambda dense: dense.to_sparse(),
    "csr": lambda dense: dense.to_sparse_csr(),
    "csc": lambda dense: dense.to_sparse_csc(),
    "bsr": lambda dense: dense.to_sparse_bsr((2, 2)),
    "bsc": lambda dense: dense.to_sparse_bsc((2, 2)),
}


@pytest.mark.parametrize("kind", ["built", "live"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sparse_examples_of_every_layout(layout: str, kind: str) -> None:
    """A model that goes by what is stored in an adjacency does so as in a real call."""
    way = lambda layer, x, adjacency: layer(x[: int(adjacency.to_dense().sum())])  # noqa: E731
    example = (X[0], LAYOUTS[layout](torch.diag(torch.tensor([1.0, 0, 1, 0, 1, 0, 0, 0]))))
    summary = summarize(Steered(way) if kind == "live" else lambda: Steered(way), lambda: example, name="m")
    assert counted(summary) == really(Steered(way), *example) == (2 * 3 * 4 * 4, (3, 4))


def test_objects_of_transformers() -> None:
    """What a tokenizer gives is by name; one output as another model's input stays what it is."""
    transformers = pytest.importorskip("transformers")
    outputs = pytest.importorskip("transformers.modeling_outputs")
    encoded = transformers.BatchEncoding({"x": X, "n": torch.tensor([2])})
    named = lambda layer, x, n: layer(x[:, : n[0]])  # noqa: E731
    assert counted(summarize(Steered(named), encoded, name="m")) == really(Steered(named), **encoded)
    output = outputs.BaseModelOutput(last_hidden_state=X)
    first = lambda layer, out: layer(out.last_hidden_state)  # noqa: E731
    assert counted(summarize(Steered(first), (output,), name="m")) == really(Steered(first), output)


def test_tensors_in_objects_are_named_by_the_way_to_them() -> None:
    """Attributes, fields and keys; private names are skipped."""
    graph = Graph(X, torch.tensor([[0, 1]]))
    way = lambda layer, g, p: layer(g.x)  # noqa: E731
    summary = summarize(Steered(way), (graph, {"p": Pair(X, [X])}), name="m")
    assert [port.name for port in summary.inputs] == ["0.x", "0.edge_index", "1.p.left", "1.p.right.0"]


def test_a_users_example_is_left_as_it_was() -> None:
    """A model that writes to its inputs, and to the objects around them, does not reach the user's own."""

    def way(layer: nn.Module, x: torch.Tensor, n: torch.Tensor, graph: Graph, notes: list[int]) -> torch.Tensor:
        n.add_(1)
        graph._store["edge_index"] += 1
        graph._store["more"] = x
        notes.append(int(n[0]))
        return layer(x.mul_(2))

    example = (X.clone(), LENGTHS.clone(), Graph(X, torch.tensor([[0, 1]])), [1])
    before = copy.deepcopy((example[0], example[1], example[2]._store["edge_index"]))
    summarize(Steered(way), example, name="m")
    assert all(map(torch.equal, (example[0], example[1], example[2]._store["edge_index"]), before))
    assert sorted(example[2]._store) == ["edge_index", "x"]
    assert example[3] == [1]


def test_a_real_run_is_on_the_floats_that_were_given() -> None:
    """Whenever the model sees floats of an example with values, it is those."""
    seen: list[torch.Tensor] = []

    def way(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        seen.append(x.clone())
        y = layer(x)
        return layer(y) if y.sum() > 0 else y

    assert summarize(Steered(way), (X,), name="m").real_run
    values = [x for x in seen if not x.is_meta]
    assert values
    assert all(torch.equal(x, X) for x in values)


@pytest.mark.parametrize("kind", ["built", "live"])
@pytest.mark.parametrize("sign", [1, -1])
def test_floats_of_an_example_decide_as_in_a_real_call(kind: str, sign: int) -> None:
    """No weight takes part in the decision, so that its outcome is known, though only a real run knows it."""
    way = lambda layer, x: layer(x) if x.sum() > 0 else x  # noqa: E731
    x = sign * torch.ones(2, 4)
    summary = summarize(Steered(way) if kind == "live" else lambda: Steered(way), lambda: (x,), name="m")
    assert counted(summary) == really(Steered(way), x)


def test_an_example_is_planned_in_half_precision() -> None:
    """Floats of an example become half, its ids stay."""
    way = lambda layer, x, n: layer(x[:, : int(n)])  # noqa: E731
    halved = plan(Steered(way), (X, torch.tensor(8)), inference={"precision": "bf16"}, name="m")
    whole = plan(Steered(way), (X, torch.tensor(8)), inference=True, name="m")
    assert halved.low_bytes is not None
    assert whole.low_bytes is not None
    assert halved.low_bytes - 8 == (whole.low_bytes - 8) // 2  # the id has 8 bytes


@pytest.mark.parametrize("name", ["tolist", "numpy", "tensor_split"])
def test_nothing_stays_patched(name: str) -> None:
    """What reads values is torch's own again after a pass, also after one that failed."""
    before = vars(torch.Tensor).get(name), getattr(torch, name, None)
    with pytest.raises(ModelBudgetError):
        summarize(Steered(lambda layer, x: 1 / 0), "float32[2, 4]", name="m")
    assert (vars(torch.Tensor).get(name), getattr(torch, name, None)) == before
