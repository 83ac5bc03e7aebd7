"""Values of inputs: those that were given reach the model, and those that were not are never made up in silence."""

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
from torch.utils.flop_counter import FlopCounterMode

from pytest_modelbudget import ModelBudgetError, Summary, plan, summarize
from pytest_modelbudget.inputs import from_example

Seen = tuple[int | None, tuple[int | str | None, ...]]
X = torch.randn(3, 8, 4)


class Steered(nn.Module):
    """One layer, and a function of it and of the inputs."""

    def __init__(self, way: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.way = way

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.way(self.layer, *args, **kwargs)


def really(model: nn.Module, *args: Any, **kwargs: Any) -> Seen:
    """FLOPs and output shape of a real call, by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        out = model.eval()(*args, **kwargs)
    return counter.get_total_flops(), tuple(out.shape)


def counted(summary: Summary) -> Seen:
    return summary.flops.value, summary.outputs[0].shape


def outcome(way: Any, inputs: list[str]) -> tuple[Summary | None, str]:
    """What is counted, or why it is not."""
    try:
        return summarize(lambda: Steered(way), inputs, name="m"), ""
    except ModelBudgetError as failure:
        return None, str(failure)


def repeated(layer: nn.Module, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    for _ in range(n):  # type: ignore[call-overload]
        x = layer(x)
    return x


def by_rows(layer: nn.Module, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    return torch.cat([layer(row[:length]) for row, length in zip(x, n.tolist(), strict=True)])


def packed(layer: nn.Module, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    return layer(rnn.pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False).data)


def selected(layer: nn.Module, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    return layer(x)[n]


LENGTHS = torch.tensor([5, 2, 7])
MASK = torch.tensor([True, False, True])
WAYS = [
    pytest.param(lambda layer, x, n: layer(x[:, : int(n)]), torch.tensor(3), id="int()"),
    pytest.param(lambda layer, x, n: layer(x[:, :n]), torch.tensor(3), id="end of a slice"),
    pytest.param(repeated, torch.tensor(3), id="range()"),
    pytest.param(lambda layer, x, n: layer(x) if n > 0 else x, torch.tensor(3), id="comparison"),
    pytest.param(lambda layer, x, n: layer(x) if n else x, torch.tensor(True), id="truth"),
    pytest.param(lambda layer, x, n: layer(x[:, : n.max()]), LENGTHS, id="largest length"),
    pytest.param(by_rows, LENGTHS, id="tolist()"),
    pytest.param(packed, LENGTHS, id="packed sequence"),
    pytest.param(lambda layer, x, n: layer(x[:, : int(n.numpy()[0])]), LENGTHS, id="numpy()"),
    pytest.param(lambda layer, x, n: layer(x[:, : int(numpy.asarray(n)[0])]), LENGTHS, id="array of numpy"),
    pytest.param(lambda layer, x, n: layer(x[:, : int(numpy.from_dlpack(n)[0])]), LENGTHS, id="dlpack"),
    pytest.param(lambda layer, x, n: layer(x[:, : torch.tensor([n[0], n[1]]).max()]), LENGTHS, id="tensor of a list"),
    pytest.param(lambda layer, x, n: layer(x) if "0, 0" in str(n) else x, torch.tensor([0, 0]), id="text"),
    pytest.param(lambda layer, x, n: layer(x.repeat_interleave(n, 0)), LENGTHS, id="repeated rows"),
    pytest.param(lambda layer, x, n: layer(x[0].tensor_split(n)[0]), LENGTHS[:1], id="tensor_split"),
    pytest.param(lambda layer, x, n: layer(x[0][n.unique()]), torch.tensor([1, 1, 0]), id="unique"),
    pytest.param(lambda layer, x, n: layer(x[n.nonzero()[:, 0]]), torch.tensor([1, 0, 1]), id="nonzero"),
    pytest.param(lambda layer, x, n: layer(x[n]), MASK, id="mask of an input"),
    pytest.param(selected, MASK, id="mask of an activation"),
    pytest.param(lambda layer, x, n: layer(x[torch.arange(3) < n]), torch.tensor(2), id="comparison with positions"),
    pytest.param(lambda layer, x, n: layer(x).masked_select(n[:, None, None]).reshape(-1, 4), MASK, id="masked_select"),
    pytest.param(lambda layer, x, n: layer(x[:, : len(torch.bincount(n))]), torch.tensor([1, 3]), id="bincount"),
    pytest.param(
        lambda layer, x, n: layer(nn.functional.one_hot(n).float() @ x[0, : n.max() + 1]), LENGTHS, id="one_hot"
    ),
    pytest.param(
        lambda layer, x, n: layer(x) if torch.equal(n, torch.ones(3)) else x, torch.ones(3).long(), id="equal"
    ),
]


@pytest.mark.parametrize("kind", ["built", "live"])
@pytest.mark.parametrize(("way", "value"), WAYS)
def test_the_values_of_examples_steer_as_in_a_real_call(way: Any, value: torch.Tensor, kind: str) -> None:
    """FLOPs and output shape are those of a call with the same tensors."""
    model = Steered(way)
    summary = summarize(model if kind == "live" else lambda: Steered(way), lambda: (X, value), name="m")
    assert counted(summary) == really(model, X, value)
    assert not any("assumed" in note for note in summary.notes)


@pytest.mark.parametrize(("way", "value"), WAYS)
def test_values_that_nobody_gave_are_told(way: Any, value: torch.Tensor) -> None:
    """A path that reads one has FLOPs or shapes that are unknown, and a note that says what to write; or it fails so."""
    spec = f"{'bool' if value.dtype is torch.bool else 'int64'}{list(value.shape)}"
    cure = f'give its value, as in "{spec} = {"true" if value.dtype is torch.bool else 3}"'
    summary, failure = outcome(way, ["float32[3, 8, 4]", spec])
    if summary is None:
        assert cure in failure
        return
    assert [note for note in summary.notes if cure in note and "input 1 (" in note]
    assert summary.flops.value is None or None in summary.outputs[0].shape


def looked_up(layer: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    table = torch.zeros(10, 4)
    bias = torch.zeros_like(mask, dtype=torch.float32).masked_fill(mask == 0, -1e9)
    return layer(table[ids % 10] + bias[..., None] + torch.ones_like(ids).cumsum(-1)[..., None])


def test_values_that_are_only_computed_with_are_no_matter() -> None:
    """Look-ups, arithmetic and masks that nobody asks for a value need no note."""
    summary = summarize(lambda: Steered(looked_up), ["int64[B, 6]", "int64[B, 6]"], name="m")
    assert summary.notes == ()
    assert counted(summary) == (2 * 6 * 4 * 4, ("B", 6, 4))


def test_a_shape_read_off_an_input_is_no_value() -> None:
    """What is made like an input, but not of its values, may be asked for."""
    way = lambda layer, x, n: layer(x) if torch.ones_like(n).all() else x  # noqa: E731
    assert summarize(lambda: Steered(way), ["float32[3, 4]", "int64[3]"], name="m").notes == ()


def test_a_read_that_changes_nothing_keeps_the_numbers() -> None:
    """Masks that are asked whether all is true, both ways at the same cost: the note says so."""

    def way(layer: nn.Module, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return layer(x) if mask.all() else layer(x * mask[..., None])

    summary = summarize(lambda: Steered(way), ["float32[3, 4]", "bool[3]"], name="m")
    assert counted(summary) == (2 * 3 * 4 * 4, (3, 4))
    [note] = summary.notes
    assert note.startswith("the forward pass reads input 1 (bool[3]); false was assumed")


def test_in_a_real_run_values_that_nobody_gave_are_told_too() -> None:
    """A model that decides by its activations is run with memory; that it reads an input as well is still said."""

    def way(layer: nn.Module, x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        y = layer(x)
        return y[: int(n)] if y.sum() > 1e9 else y[: int(n) + 1]

    summary = summarize(lambda: Steered(way), ["float32[3, 4]", "int64[]"], name="m")
    assert summary.real_run
    assert any("input 1 (int64[])" in note for note in summary.notes)


def test_what_a_real_run_makes_of_ids_is_no_value_of_theirs() -> None:
    """After an embedding the numbers are the model's."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(5, 4), nn.Linear(4, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            y = self.layer(self.table(ids))
            return y if y.sum() > 1e9 else y * 2

    summary = summarize(Routed, "int64[2, 3]", name="m")
    assert summary.real_run
    assert not any("input 0" in note for note in summary.notes)


def test_rows_that_depend_on_a_value_are_unknown() -> None:
    """FLOPs of a row, and what is held for its backward pass, are unknown where another value gives other ones."""
    summary = summarize(lambda: Steered(repeated), ["float32[3, 8, 4]", "int64[]"], name="m")
    assert summary.flops.value is None
    assert summary.activation_bytes is None


class Gate(nn.Module):
    """One of two layers, as an input says."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, on: torch.Tensor) -> torch.Tensor:
        return self.first(x) if on else self.second(x)


def test_a_layer_that_another_value_calls_is_not_uncalled() -> None:
    """The sum is the same for both ways; whether a layer is called is not known."""
    summary = summarize(Gate, ["float32[3, 4]", "bool[]"], name="m")
    assert counted(summary) == (2 * 3 * 4 * 4, (3, 4))
    assert any("steers" in note for note in summary.notes)
    assert {layer.path: layer.flops for layer in summary.layers} == {"first": None, "second": None}
    assert summary.layers[0].calls is None


def test_plans_tell_which_values_they_are_for() -> None:
    """The peak of a step whose length was made up says so."""
    way = lambda layer, x, n: layer(x[:, : int(n) + 1])  # noqa: E731
    made_up = plan(lambda: Steered(way), ["float32[3, 8, 4]", "int64[]"], inference=True, name="m")
    assert any('as in "int64[] = 3"' in note for note in made_up.notes)
    assert plan(lambda: Steered(way), ["float32[3, 8, 4]", "int64[] = 3"], inference=True, name="m").notes == ()


# What was declared


def test_a_declared_number_is_the_value() -> None:
    """As in a real call with it, and without a note."""
    summary = summarize(lambda: Steered(repeated), ["float32[3, 8, 4]", "int64[] = 3"], name="m")
    assert counted(summary) == really(Steered(repeated), X, torch.tensor(3))
    assert summary.notes == ()
    assert str(summary.inputs[1]) == "1 int64[] = 3"


def test_a_declared_word_is_the_value() -> None:
    """`true` for every element of a mask."""
    summary = summarize(lambda: Steered(selected), ["float32[3, 8, 4]", "bool[3] = true"], name="m")
    assert counted(summary) == really(Steered(selected), X, torch.ones(3, dtype=torch.bool))


def test_a_declared_float_is_the_value() -> None:
    """A threshold decides, although floats have no values otherwise."""
    way = lambda layer, x, t: layer(x) if t > 0.5 else x  # noqa: E731
    for threshold in (0.25, 0.75):
        summary = summarize(lambda: Steered(way), ["float32[3, 8, 4]", f"float32[] = {threshold}"], name="m")
        assert counted(summary) == really(Steered(way), X, torch.tensor(threshold))
        assert not summary.real_run


def test_a_declared_state_is_where_the_layer_is() -> None:
    """Floats of several dimensions have to be on the device of the weights."""
    summary = summarize(lambda: nn.GRU(4, 5), ["float32[3, 2, 4]", "float32[1, 2, 5] = 0"], name="m")
    assert summary.outputs[0].shape == (3, 2, 5)
    assert not summary.real_run


def test_a_declared_dimension_follows_its_size(count: Callable[..., Summary]) -> None:
    """Lengths that are T at every size: what is cut to them is T long."""
    way = lambda layer, x, n: layer(x[:, : n.max()])  # noqa: E731
    summary = count(lambda: Steered(way), ["float32[B, 50, 4]", "int64[B] = T"], B=2, T=9)
    assert counted(summary) == (2 * 2 * 9 * 4 * 4, ("B", "T", 4))
    assert summary.notes == ()


def test_ids_below_a_bound() -> None:
    """They are spread over the range, the same each time, and differ between inputs."""
    seen: list[torch.Tensor] = []

    def way(layer: nn.Module, x: torch.Tensor, *ids: torch.Tensor) -> torch.Tensor:
        seen.extend(ids)
        return layer(x)

    for _ in range(2):
        summarize(lambda: Steered(way), ["float32[3, 4]", "int64[4, 50] < 7", "int64[4, 50] < 7"], name="m")
    first, second = seen[:2]
    assert set(first.unique().tolist()) == set(range(7))
    assert not torch.equal(first, second)
    assert all(torch.equal(one, first) for one in seen[::2])


def test_what_depends_on_drawn_ids_is_unknown() -> None:
    """A bound is no value: how many are not 0 follows from the draw."""

    def way(layer: nn.Module, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return layer(x[ids != 0])

    summary = summarize(lambda: Steered(way), ["float32[64, 4]", "int64[64] < 3"], name="m")
    assert counted(summary) == (None, (None, 4))
    assert any("numbers below 3 were drawn" in note and '"int64[64] = 3"' in note for note in summary.notes)


def test_ids_that_are_all_different_by_luck() -> None:
    """Few of many ids are rarely the same, so a pass on equal ones shows that their number matters."""

    def way(layer: nn.Module, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return layer(x[ids.unique()])

    summary = summarize(lambda: Steered(way), ["float32[1000, 4]", "int64[5] < 1000"], name="m")
    assert counted(summary) == (None, (None, 4))


def test_a_value_that_the_size_makes_too_large(count: Callable[..., Summary]) -> None:
    """A dimension's size has to fit into the dtype."""
    with pytest.raises(ModelBudgetError, match=r"inputs: 1: int8\[B\] = T: 300 does not fit into int8"):
        count(lambda: Steered(selected), ["float32[B, 8, 4]", "int8[B] = T"], B=3, T=300)


# What examples hold

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


# What fails

CURES = [
    pytest.param(
        packed,
        ["float32[3, 8, 4]", "int64[3]"],
        "the values of input 1 are read; 0",
        id="lengths of zeros",
    ),
    pytest.param(lambda layer, x: layer(x[:, :2]), ["float32[3, 8]"], "check that `inputs:` fits", id="shapes"),
    pytest.param(lambda layer, x: layer(x), {"y": "int64[3, 4]"}, "check that `inputs:` fits", id="arguments"),
    pytest.param(lambda layer, x: layer.weight.nothing, ["float32[3, 4]"], "the model's own code raised it", id="own"),
]


@pytest.mark.parametrize(("way", "inputs", "cure"), CURES)
def test_a_failure_says_what_to_do_about_it(way: Any, inputs: Any, cure: str) -> None:
    """The cure fits the failure, and no other one is named."""
    with pytest.raises(ModelBudgetError) as caught:
        summarize(lambda: Steered(way), inputs, name="m")
    last = str(caught.value).splitlines()[-1]
    assert cure in last
    assert "test_values.py:" in str(caught.value)


@pytest.mark.parametrize("inputs", ["int64[B, 5] = 3", "int64[B, 5] < 32000", "int64[B, 5] = -1"])
def test_ids_have_to_be_in_the_table(inputs: str) -> None:
    """As in a real call, although nothing is looked up without memory."""
    with pytest.raises(ModelBudgetError, match=r'give a bound, as in "int64\[B, 5\] < 32000"'):
        summarize(lambda: nn.Embedding(3, 4), inputs, name="m")
    with pytest.raises(ModelBudgetError, match="index out of range"):
        summarize(lambda: nn.Embedding(3, 4), (torch.tensor([3]),), name="m")


def test_ids_that_are_out_of_range_in_a_real_run_ask_for_a_bound() -> None:
    """There a table is really looked up in."""

    def way(layer: nn.Module, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        y = layer(x)
        return nn.functional.embedding(ids, y) if y.sum() < 1e9 else y

    with pytest.raises(ModelBudgetError, match=r'give a bound, as in "int64\[B, 5\] < 32000"'):
        summarize(lambda: Steered(way), ["float32[3, 4]", "int64[B, 5] = 3"], name="m")


def test_the_line_in_an_installed_package_is_not_that_of_its_plumbing() -> None:
    """Where no line is the user's, it is the innermost one of the package, not of torch or the standard library."""
    torchvision = pytest.importorskip("torchvision")
    with pytest.raises(ModelBudgetError, match=r"at torchvision/models/resnet\.py:\d+"):
        summarize(torchvision.models.resnet18, "float32[1, 5, 32, 32]", name="m")


def test_a_line_inside_a_context_manager_is_the_users() -> None:
    """`with` of a generator goes through the standard library, which is not where the mistake is."""

    def way(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autograd.profiler.record_function("part"), torch.random.fork_rng(devices="none"):
            return layer(x)

    with pytest.raises(ModelBudgetError) as caught:
        summarize(lambda: Steered(way), "float32[2, 4]", name="m")
    assert "test_values.py:" in str(caught.value).splitlines()[0]
    assert "contextlib" not in str(caught.value)
