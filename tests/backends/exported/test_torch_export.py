"""Exported programs of torch: the same numbers as their models have, without torch; and which files are refused."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pytest_modelbudget import Summary, summarize
from pytest_modelbudget.backends.costs.flop_rules import rules_of
from pytest_modelbudget.backends.costs.free.torch_export import ZERO
from pytest_modelbudget.backends.exported import torch_export
from pytest_modelbudget.backends.exported.torch_export.dimensions import dimension
from pytest_modelbudget.backends.exported.torch_export.nodes import modules_of, type_of
from pytest_modelbudget.backends.model_files import DamagedFile
from pytest_modelbudget.backends.torch.costs.rules import cost_of
from tests.backends.exported.make_archives import archive
from tests.backends.exported.make_torch import MODELS, Tied, Transposed, as_older_torch, dynamic, export, save

NEWER_LAYOUT = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9), reason="takes the archives of torch 2.9 and later apart"
)
REST = ("recurrent", "language model", "equal branches")


def totals(summary: Summary) -> tuple[object, ...]:
    """The numbers that a program has of its model."""
    return summary.params, summary.buffers, summary.trainable_params, summary.weight_bytes, summary.flops


@pytest.mark.parametrize(
    "name",
    ["transposed", "products", *(pytest.param(name, marks=pytest.mark.slow) for name in REST)],
)
def test_a_program_has_the_numbers_of_its_model(tmp_path: Path, name: str) -> None:
    build, inputs = MODELS[name]
    exported = summarize(export(build(), inputs, tmp_path / "m.pt2"))
    declared = [f"{str(each.dtype).removeprefix('torch.')}{list(each.shape)}" for each in inputs]
    assert totals(exported) == totals(summarize(build().eval(), declared))
    assert exported.notes == ()


@pytest.mark.slow
def test_a_program_of_core_operators_has_the_same_numbers(tmp_path: Path) -> None:
    """What torch took apart when it was exported is counted by the rules of torch."""
    build, inputs = MODELS["language model"]
    whole, apart = (torch.export.export(build().eval(), inputs) for _ in range(2))
    torch.export.save(whole, tmp_path / "whole.pt2")
    torch.export.save(apart.run_decompositions(), tmp_path / "apart.pt2")
    assert totals(summarize(tmp_path / "apart.pt2")) == totals(summarize(tmp_path / "whole.pt2"))


def test_of_two_branches_the_cheaper_one_counts_and_the_choice_is_named(tmp_path: Path) -> None:
    build, inputs = MODELS["branches"]
    summary = summarize(export(build(), inputs, tmp_path / "m.pt2"))
    assert (summary.flops.value, summary.flops.uncounted) == (2 * 2 * 8 * 8, (("cond", 1),))
    assert summary.params == 72 + 288 + 264


class LowRank(torch.nn.Module):
    """A product of three operands, whose cheapest order depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((8, 16), (16, 4)))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,ij,jk->bk", rows, self.down, self.up)


@pytest.mark.parametrize("batch", [2, 64])
def test_operands_of_einsum_are_multiplied_in_the_order_that_torch_chose(tmp_path: Path, batch: int) -> None:
    rows = torch.zeros(batch, 8)
    with FlopCounterMode(display=False) as counter:
        LowRank()(rows)
    assert summarize(export(LowRank(), (rows,), tmp_path / "m.pt2")).flops.value == counter.get_total_flops()


@NEWER_LAYOUT
@pytest.mark.parametrize("version", ["2.7", "2.8"])
def test_files_of_older_versions_have_the_same_numbers(tmp_path: Path, version: str) -> None:
    """Their weights are in state dicts, and the torch that is installed takes the same files."""
    path = export(Tied(), MODELS["language model"][1], tmp_path / "m.pt2")
    older = as_older_torch(path, version)
    loaded = torch.export.load(older)
    assert [tuple(weight.shape) for weight in loaded.state_dict.values()]
    assert totals(summarize(older)) == totals(summarize(path))
    assert torch_export.read(older).operators == torch_export.read(path).operators
    older.write_bytes(older.read_bytes().replace(b"PK\3\4", b"PK\3\5"))
    with pytest.raises(DamagedFile):
        torch_export.read(older)


@pytest.mark.slow
def test_sizes_of_inputs_stay_open(tmp_path: Path) -> None:
    """FLOPs follow them: attention grows with the square of the length, all else with its product by the batch."""
    path = export(Tied(), (torch.zeros(2, 16, dtype=torch.int64),), tmp_path / "m.pt2", dynamic(B=0, T=1))
    at = {}
    for sizes in ((1, 16), (3, 40)):
        summary = summarize(path, inputs=["int64[B, T]"], dims={"B": sizes[0], "T": sizes[1]})
        at[sizes] = summary.flops.value
        live = summarize(Tied().eval(), [f"int64[{sizes[0]}, {sizes[1]}]"])
        assert summary.flops == live.flops
    assert str(summary.outputs[0]) == "float32[B, T, 50]"
    assert "dimension 1 of ids was exported for 2 to 4,096" in summary.notes


def test_rows_are_the_modules_that_the_exporter_kept(tmp_path: Path) -> None:
    summary = summarize(export(Transposed(), MODELS["transposed"][1], tmp_path / "m.pt2"))
    assert [(row.path, row.type, row.params, row.calls) for row in summary.layers] == [
        ("down", "Conv2d", 60, 1), ("same", "Conv2d", 330, 2), ("norm", "BatchNorm2d", 12, 1),
        ("up", "ConvTranspose2d", 291, 1), ("flatten", "flatten", 0, 1), ("line", "Sequential", 0, 1),
        ("line.0", "Conv1d", 20, 1), ("line.1", "ReLU", 0, 1), ("line.2", "ConvTranspose1d", 21, 1),
    ]  # fmt: skip
    assert summary.layers[1].connected_to == (("down",), ("norm",))


def test_tied_frozen_and_buffered_tensors_are_told_apart(tmp_path: Path) -> None:
    model = Tied()
    tensors = torch_export.read(export(model, MODELS["language model"][1], tmp_path / "m.pt2")).constants
    assert {name for name, tensor in tensors.items() if tensor.role == "buffer"} == {"scale"}
    assert {name for name, tensor in tensors.items() if not tensor.trainable} == {"scale", "blocks.0.norm.weight"}
    assert tensors["head.weight"].storage == tensors["embedding.weight"].storage


@NEWER_LAYOUT
@pytest.mark.parametrize("version", ["", "2.8"])
def test_a_program_in_training_mode_has_the_weights_that_it_does_not_use(tmp_path: Path, version: str) -> None:
    """A batch norm counts its batches in place, which is no output of it; the signature leaves the unused layer out."""
    model = nn.ModuleDict({"norm": nn.BatchNorm1d(4), "unused": nn.Linear(4, 2)})
    model.forward = lambda x: model["norm"](x)  # type: ignore[method-assign]
    path = tmp_path / "m.pt2"
    program = torch.export.export(model.train(), (torch.zeros(3, 4),))
    program.graph_signature.input_specs[:] = [
        spec for spec in program.graph_signature.input_specs if "unused" not in (spec.target or "")
    ]
    for node in [node for node in program.graph.nodes if "unused" in node.name]:
        program.graph.erase_node(node)
    torch.export.save(program, path)
    summary = summarize(as_older_torch(path, version) if version else path)
    assert (summary.params, summary.trainable_params, summary.buffers) == (8 + 10, 8 + 10, 9)
    assert [(row.path, row.output_text) for row in summary.layers if row.calls] == [("norm", "[3, 4]")]


def test_constants_of_the_code_are_named(tmp_path: Path) -> None:
    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.tensor([1.0, 2.0])

    summary = summarize(export(Shifted(), (torch.zeros(2, 2),), tmp_path / "m.pt2"))
    assert (summary.params, summary.buffers) == (0, 2)
    assert "buffers have 2 elements of constants that the code of the model makes: lifted_tensor_0" in summary.notes


@NEWER_LAYOUT
def test_torch_is_not_imported_and_four_gigabytes_are_not_read(tmp_path: Path, program: Program) -> None:
    """Reading takes less than 50 MB, most of it for modules of our own."""
    meta = program.config["config"]["weight"]["tensor_meta"]
    meta["sizes"], meta["strides"] = [{"as_int": 1 << 15}] * 2, [{"as_int": 1 << 15}, {"as_int": 1}]
    path = program.write(tmp_path / "m.pt2", weight_0=1 << 32)
    code = (
        "import sys, tracemalloc; from pathlib import Path; from pytest_modelbudget import summarize;"
        "tracemalloc.start(); model = summarize(Path(sys.argv[1])); assert 'torch' not in sys.modules;"
        "print(model.params, tracemalloc.get_traced_memory()[1] < 50 << 20)"
    )
    printed = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    assert printed == f"{(1 << 30) + 3} True\n"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("Symbol('s77', positive=True, integer=True)", "B"),
        ("Mul(Integer(2), Symbol('s77', positive=True, integer=True))", "2*B"),
        ("Add(Symbol('s27', integer=True), Integer(-1))", "T-1"),
        ("Add(Integer(1), Mul(Integer(-1), Symbol('s27')))", "0-T+1"),
        ("FloorDiv(Add(Symbol('s27'), Integer(1)), Integer(2))", "(T+1)//2"),
        ("Mul(Integer(8), Symbol('s77'), FloorDiv(Symbol('s27'), Integer(2)))", "8*B*(T//2)"),
        ("Mul(Integer(3), FloorDiv(Symbol('s27'), Integer(2)))", "3*(T//2)"),
        ("Add(FloorDiv(Symbol('s27'), Integer(2)), Integer(-1))", "T//2-1"),
        ("Mul(Add(Symbol('s77'), Integer(1)), Symbol('s27'))", "(B+1)*T"),
        ("Pow(Symbol('s27'), Integer(2))", "T*T"),
        ("Mod(Symbol('s27'), Integer(4))", "T-4*(T//4)"),
        ("s27", "T"),
        ("2*s77 + 1", "2*B+1"),
        ("u0 + 1", None),
        ("Min(Integer(128), Integer(3))", 3),
        ("Min(Integer(128), Symbol('s27'))", None),
        ("sqrt(Symbol('s27'))", None),
        ("Symbol('u0', integer=True)", None),
        ("FloorDiv(Symbol('s27'), Integer(0))", None),
        ("Add(Symbol('s27')", None),
        ("Add(Symbol('s27'),, Integer(1))", None),
        ("__import__('os').system('touch ran')", None),
        ("Add(" * 5000, None),
        ("Add(" * 100 + "Integer(1)" + ")" * 100, None),
        ("Mul(" + ", ".join(["Symbol('s27')"] * 50) + ")", None),
        ("Integer(" + "9" * 400 + ")", None),
    ],
)  # fmt: skip
def test_expressions_of_sizes_are_said_in_our_words_or_not_at_all(text: str, size: object) -> None:
    assert dimension({"as_expr": {"expr_str": text}}, {"s77": "B", "s27": "T"}) == size


@pytest.mark.parametrize(
    ("target", "type_name"),
    [
        ("torch.ops.aten.conv2d.default", "aten.conv2d"), ("torch.ops.aten.add_.Tensor", "aten.add"),
        ("torch.ops.aten.__and__.Tensor", "aten.__and__"), ("torch.ops.higher_order.cond", "cond"),
        ("torch.ops.mylib.op", "mylib.op"), ("_operator.mul", "_operator.mul"), ("torch.ops", "torch.ops"),
    ],
)  # fmt: skip
def test_operators_are_known_by_the_name_without_overload(target: str, type_name: str) -> None:
    assert type_of(target) == type_name


def test_a_stack_of_modules_says_paths_classes_and_calls() -> None:
    stack = "L__self__,,m.Net;L__self__a@1,a,torch.nn.modules.conv.Conv2d;" + "_empty_nn_module_stack,x,x"
    assert [(module.path, module.type, module.call) for module in modules_of(stack)] == [("a", "Conv2d", 1)]


def test_every_operator_that_the_torch_backend_knows_is_known_here() -> None:
    """All of `aten` and `prims` that cost nothing there are in the list, those that are counted have a rule."""
    free, counted = set[str](), set[str]()
    for full_name in torch._C._dispatch_get_all_op_names():
        space, _, overload = full_name.partition("::")
        base = overload.partition(".")[0]
        packet = getattr(getattr(torch.ops, space), base, None) if space in ("aten", "prims") else None
        if packet is None or base.startswith("_test"):
            continue
        costs = [cost_of(getattr(packet, overload)) for overload in packet.overloads()]
        name = type_of(f"torch.ops.{space}.{base}")
        if any(cost.formula for cost in costs):
            counted.add(name)
        elif any(cost.known for cost in costs):
            free.add(name)
    assert free - ZERO == set()
    rules = rules_of("torch") | rules_of("torch_export")
    assert {name for name in counted - set(rules) if "backward" not in name} == OF_GPU_OR_SPARSE
    assert ZERO & set(rules) == set()


OF_GPU_OR_SPARSE = {
    "aten._efficient_attention_forward", "aten._flash_attention_forward", "aten._sparse_addmm",
    "aten._sparse_mm_reduce_impl", "aten._sparse_sparse_matmul", "aten.hspmm", "aten.sparse_sampled_addmm",
}  # fmt: skip
"""What sparse operands or sequences of several lengths cost is no formula of shapes, so it is named as uncounted."""


class Program:
    """The parts of an exported program, to be changed and written again."""

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as file:
            parts = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
        self.model = json.loads(parts["models/model.json"])
        self.config = json.loads(parts["data/weights/model_weights_config.json"])
        self.parts: dict[str, bytes | int] = {
            name: raw for name, raw in parts.items() if name.startswith("data/weights/weight_")
        }

    @property
    def graph(self) -> Any:
        return self.model["graph_module"]["graph"]

    def write(self, path: Path, **weights: int) -> Path:
        """A file of these parts, with other sizes of `weights`."""
        parts = {
            "models/model.json": json.dumps(self.model).encode(),
            "data/weights/model_weights_config.json": json.dumps(self.config).encode(),
            **self.parts,
            **{f"data/weights/{name}": size for name, size in weights.items()},
        }
        return archive(path, {name: content for name, content in parts.items() if content != -1})


@pytest.fixture(scope="module")
def exported_linear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of one linear layer, whose file is read and never changed."""
    path = tmp_path_factory.mktemp("linear") / "m.pt2"
    return export(nn.Linear(2, 3), (torch.zeros(4, 2),), path, dynamic(B=0))


@pytest.fixture
def program(exported_linear: Path) -> Program:
    """Its parts."""
    return Program(exported_linear)


def _nest(program: Program) -> None:
    graph: Any = {"inputs": [], "outputs": [], "nodes": [], "tensor_values": {}}
    for _ in range(40):
        node = {"target": "torch.ops.higher_order.wrap", "outputs": []}
        inputs = [{"name": "", "arg": {"as_graph": {"name": "g", "graph": graph}}}]
        graph = {**graph, "nodes": [{**node, "inputs": inputs}]}
    program.graph["nodes"] += graph["nodes"]


def _weight(program: Program, **meta: Any) -> None:
    program.config["config"]["weight"]["tensor_meta"] |= meta


def _of(*sizes: int) -> list[dict[str, int]]:
    return [{"as_int": size} for size in sizes]


def _node(program: Program) -> Any:
    return program.graph["nodes"][0]


HOSTILE: dict[str, tuple[Callable[[Program], object], str]] = {
    "weights cut off": (lambda p: p.parts.update({"data/weights/weight_0": b"1234"}), "'weight' in it has 4 bytes, and 24"),
    "no weights": (lambda p: p.parts.update({"data/weights/weight_0": -1}), "'weight' in it has 0 bytes, and 24 were"),
    "weights that are not named": (lambda p: p.config["config"].pop("bias"), "it lacks the weights of 'bias'"),
    "dims of 2^62": (lambda p: _weight(p, sizes=_of(1 << 62, 4), strides=_of(0, 0)), "more elements than any tensor"),
    "a dim of -4": (lambda p: _weight(p, sizes=_of(-4, 2)), "weight in it has the size -4"),
    "a stride of -1": (lambda p: _weight(p, strides=_of(-1, 2)), "weight in it has the size -1"),
    "a dim that is no number": (lambda p: _weight(p, sizes=[{"as_int": "2"}]), "as_int in it is missing or not a whole"),
    "an unknown dtype": (lambda p: _weight(p, dtype=99), "a tensor of another kind, 'weight'"),
    "a sparse layout": (lambda p: _weight(p, layout=1), "a tensor of another kind, 'weight'"),
    "a pickle": (lambda p: p.config["config"]["weight"].update(use_pickle=True), "'weight' as a pickle, which is not run"),
    "another folder": (lambda p: p.config["config"]["weight"].update(path_name="../../models/model.json"), "has 0 bytes"),
    "an input of no shape": (lambda p: p.graph["tensor_values"].pop("input"), "input in it is missing or not an object"),
    "a size of -1": (lambda p: p.graph["tensor_values"]["linear"].update(sizes=_of(-1)), "as_int in it has the size -1"),
    "a cycle": (lambda p: _node(p)["inputs"][0].update(arg={"as_tensor": {"name": "linear"}}), "before it is made"),
    "one value twice": (lambda p: p.graph["nodes"].append(_node(p)), "it makes the value 'linear' twice"),
    "no name of a tensor": (lambda p: _node(p)["inputs"][0].update(arg={"as_tensor": {}}), "name in it is missing"),
    "no target": (lambda p: _node(p).pop("target"), "target in it is missing or not a text"),
    "an empty argument": (lambda p: _node(p)["inputs"][0].update(arg={}), "the argument 'input' in it is empty"),
    "half a character": (lambda p: _node(p).update(name="\ud800"), "its model is no JSON"),
    "graphs in graphs": (_nest, "graphs in graphs 30 deep"),
    "no nodes": (lambda p: p.graph.update(nodes={}), "nodes in it is missing or not a list"),
    "another schema": (lambda p: p.model["schema_version"].update(major=9), "version 9 of its schema, and 8 is read"),
}  # fmt: skip


@NEWER_LAYOUT
@pytest.mark.parametrize(("change", "problem"), HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_program_is_refused_by_what_is_wrong(
    tmp_path: Path, program: Program, change: Callable[[Program], object], problem: str
) -> None:
    change(program)
    with pytest.raises(DamagedFile, match=problem):
        torch_export.read(program.write(tmp_path / "m.pt2"))


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        pytest.param({"data/aotinductor/model/a.so": b""}, "is compiled by AOTInductor", id="compiled"),
        pytest.param({"serialized_exported_program.json": b"{}"}, "schema_version in it is missing", id="no version"),
        pytest.param({"models/a.json": b"{}", "models/b.json": b"{}"}, "holds 2 models, of which one", id="two models"),
        pytest.param({"models/a.json": 129 << 20}, "would take 135,266,304 bytes", id="large"),
        pytest.param({"models/a.json": b'{"a": ' + b"[" * 100_000}, "its model is nested too deeply", id="deep"),
        pytest.param({"models/a.json": b"no"}, "its model is no JSON", id="no JSON"),
        pytest.param({"a": b""}, "a zip archive without an exported program", id="something else"),
    ],
)
def test_other_archives_are_refused_by_what_they_are(
    tmp_path: Path, members: dict[str, bytes | int], problem: str
) -> None:
    with pytest.raises(DamagedFile, match=problem):
        torch_export.read(archive(tmp_path / "m.pt2", members))


@NEWER_LAYOUT
def test_a_name_that_is_a_formula_runs_nothing(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch.export.load` evaluates the expressions of sizes."""
    monkeypatch.chdir(tmp_path)
    expression = "__import__('os').system('touch ran')"
    program.graph["tensor_values"]["linear"]["sizes"][0] = {"as_expr": {"expr_str": expression}}
    program.parts["data/sample_inputs/model.pt"] = b"cposix\nsystem\n(Vtouch ran\ntR."
    summary = summarize(program.write(tmp_path / "m.pt2"))
    assert str(summary.outputs[0]) == "float32[?, 3]"
    assert (summary.flops.value, summary.flops.uncounted) == (0, (("aten.linear", 1),))
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_resnet_has_the_published_numbers_in_every_format(tmp_path: Path) -> None:
    """He et al. 2015: 11.7 M params; 1.81 G multiply-adds. Files of weights cannot tell buffers from params."""
    import torchvision

    model = torchvision.models.resnet18()
    program = summarize(export(model, (torch.zeros(1, 3, 224, 224),), tmp_path / "m.pt2"))
    assert (program.params, program.buffers, program.flops.value) == (11_689_512, 9_620, 3_628_146_688)
    weights = summarize(save(model.state_dict(), tmp_path / "m.pth"))
    assert (weights.params, weights.buffers, weights.flops.value) == (11_699_132, 0, None)
