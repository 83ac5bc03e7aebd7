"""State dicts and checkpoints of torch: their tensors without running a pickle, and which files are refused."""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget import summarize
from pytest_modelbudget.backends.exported import pickles, state_dict
from pytest_modelbudget.backends.exported.graph import ExportedModel
from pytest_modelbudget.backends.model_files import DamagedFile
from pytest_modelbudget.summary.metrics import METRICS
from tests.backends.exported.make_archives import archive
from tests.backends.exported.make_torch import Tied, save

BOTH = pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])


def elements(model: ExportedModel) -> int:
    """The elements of all tensors, each storage once."""
    return sum(prod(shape) for shape in {tensor.storage: tensor.shape for tensor in model.constants.values()}.values())


@BOTH
def test_a_state_dict_has_the_tensors_that_torch_has(tmp_path: Path, old: bool) -> None:
    model = Tied()
    own = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in model.state_dict().items()}
    exported = state_dict.read(save(model.state_dict(), tmp_path / "m.pth", old=old))
    assert {name: (each.shape, f"torch.{each.dtype}") for name, each in exported.constants.items()} == own
    assert elements(exported) == sum(weight.numel() for weight in (*model.parameters(), *model.buffers()))
    assert exported.file_bytes == (tmp_path / "m.pth").stat().st_size
    assert exported.operators is None


@pytest.mark.parametrize(
    "dtype",
    ["float64", "float16", "bfloat16", "float8_e4m3fn", "uint16", "int64", "bool", "complex64", "float8_e8m0fnu"],
)
def test_each_dtype_is_read(tmp_path: Path, dtype: str) -> None:
    if not hasattr(torch, dtype):
        pytest.skip("a dtype of a later torch")
    tensor = torch.zeros(3, 2).to(getattr(torch, dtype))
    constant = state_dict.read(save({"w": tensor}, tmp_path / "m.pth")).constants["w"]
    assert (constant.dtype, constant.shape, constant.stored_bytes) == (dtype, (3, 2), None)
    assert constant.trainable is (tensor.is_floating_point() or tensor.is_complex())


@BOTH
def test_of_a_checkpoint_the_model_is_read_and_the_rest_is_named(tmp_path: Path, old: bool) -> None:
    model = nn.Linear(3, 2).state_dict()
    optimizer = {"state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(2, 3)}}, "param_groups": [{"lr": 0.1}]}
    content = {"epoch": 3, "model": model, "optimizer": optimizer, "args": argparse.Namespace(lr=1)}
    exported = state_dict.read(save(content, tmp_path / "m.pth", old=old))
    assert elements(exported) == 8
    assert exported.notes[1:] == ("the model is what the checkpoint has as model; not counted: epoch, optimizer, args",)


WEIGHTS = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
MOMENTS = {"state": {0: {"exp_avg": torch.zeros(2, 3)}}}
BESIDE: dict[str, tuple[dict[str, Any], int, tuple[str, ...]]] = {
    "a loss as a tensor": (
        {"epoch": 5, "model_state_dict": WEIGHTS, "loss": torch.tensor(0.4), "optimizer_state_dict": MOMENTS},
        8,
        ("the model is what the checkpoint has as model_state_dict; not counted: loss, epoch, optimizer_state_dict",),
    ),
    "counters and a random state": (
        {"rng_state": torch.zeros(9, dtype=torch.uint8), "step": torch.tensor(1), "model": WEIGHTS},
        8,
        ("the model is what the checkpoint has as model; not counted: rng_state, step",),
    ),
    "a known key in a known key": (
        {"model": {"state_dict": WEIGHTS, "iteration": torch.tensor(3)}},
        8,
        ("the model is what the checkpoint has as model.state_dict; not counted: iteration",),
    ),
    "a key of one's own": (
        {"encoder": WEIGHTS, "optim": MOMENTS, "callbacks": {"best": torch.tensor(0.1)}},
        8,
        ("the model is what the checkpoint has as encoder; not counted: optim, callbacks",),
    ),
    "parameters that are called so": ({"model": torch.zeros(4), "params": torch.zeros(3)}, 7, ()),
    "an extra state": (
        {**WEIGHTS, "fp8._extra_state": {"amax": torch.zeros(9)}},
        8,
        ("not counted: fp8._extra_state",),
    ),
}


@BOTH
@pytest.mark.parametrize(("content", "count", "notes"), BESIDE.values(), ids=BESIDE)
def test_tensors_beside_the_model_are_named_and_not_counted(
    tmp_path: Path, old: bool, content: dict[str, Any], count: int, notes: tuple[str, ...]
) -> None:
    exported = state_dict.read(save(content, tmp_path / "m.pth", old=old))
    assert (elements(exported), exported.notes[1:]) == (count, notes)


AMBIGUOUS: dict[str, tuple[dict[Any, Any], str]] = {
    "a tensor beside parts": ({"policy": WEIGHTS, "log_std": torch.zeros(3)}, "'log_std', 'policy'"),
    "a part one level deeper": (
        {"callbacks": {"best": torch.tensor(0.1)}, "encoder": {"a": WEIGHTS}},
        "'callbacks', 'encoder.a'",
    ),
    "an optimizer alone": ({"optimizer": {"exp_avg": torch.zeros(5)}, "epoch": 1}, "'optimizer'"),
    "an optimizer's own state": ({**MOMENTS, "param_groups": []}, "'state.0'"),
    "a tensor beside an optimizer without any": ({"step": torch.tensor(1), "optimizer": {"state": {}}}, "'step'"),
    "tensors in a list": ({"w": torch.zeros(2), "parts": [torch.zeros(3)]}, "'w', 'parts'"),
    "two models in one": ({"model": {"encoder": WEIGHTS, "decoder": WEIGHTS}}, "'model.encoder', 'model.decoder'"),
    "a model and averages of another": ({"generator": WEIGHTS, "ema": WEIGHTS}, "'generator', 'ema'"),
    "tensors by numbers": ({0: torch.zeros(2), "w": torch.zeros(3)}, "'w'"),
}


@pytest.mark.parametrize(("content", "names"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_a_checkpoint_that_does_not_say_what_is_the_model_is_refused(
    tmp_path: Path, content: dict[Any, Any], names: str
) -> None:
    with pytest.raises(DamagedFile) as refusal:
        state_dict.read(save(content, tmp_path / "m.pth"))
    problem = f"does not say which part is the model (with tensors: {names}): save the model's state_dict alone"
    assert str(refusal.value) == problem


def test_parts_in_themselves_and_shared_by_many_are_looked_through_once(tmp_path: Path) -> None:
    """Looked through for each key, the shared list alone would take minutes."""
    shared: list[Any] = [None] * 30_000
    content: dict[str, Any] = {f"k{number}": [shared] for number in range(30_000)}
    content["model"] = content
    with pytest.raises(DamagedFile, match=r"with tensors: none"):
        state_dict.read(archive(tmp_path / "m.pth", {"data.pkl": written(content)}))


def test_a_shard_alone_is_marked(tmp_path: Path) -> None:
    exported = state_dict.read(save(WEIGHTS, tmp_path / "pytorch_model-00001-of-00003.bin"))
    assert exported.unseen == ("another of its 3 shards",)
    assert exported.notes[-1] == "this is shard 1 of 3: name the index (pytorch_model.bin.index.json) to check all"


def test_shards_that_an_index_names_are_one_model(tmp_path: Path) -> None:
    """Storages have the same keys in each file, and are others."""
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for name, content in zip(names, ({"a": torch.zeros(2, 2)}, {"b": torch.zeros(2, 2)}), strict=True):
        content["tied"] = next(iter(content.values()))
        save(content, tmp_path / name)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"b": names[1], "a": names[0], "tied": names[1]}}))
    summary = summarize(index)
    assert (summary.framework, summary.params, METRICS["params"].get(summary)) == ("state dict", 8, 8)
    exported = state_dict.read(index)
    assert list(exported.constants) == ["a", "b", "tied"]
    assert exported.constants["b"].storage == exported.constants["tied"].storage
    assert exported.file_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert "1 tensors are not counted, since the index does not have them: tied" in exported.notes
    (tmp_path / names[1]).write_bytes(b"PK\3\4")
    with pytest.raises(DamagedFile, match=f"names {names[1]}, which is damaged: the end of its zip archive"):
        state_dict.read(index)


def test_views_of_one_storage_are_the_same_where_they_are_equal(tmp_path: Path) -> None:
    whole = torch.zeros(4, 6)
    content = {"a": whole, "b": whole, "half": whole[:2], "other": whole[2:], "turned": whole.T}
    tensors = state_dict.read(save(content, tmp_path / "m.pth")).constants
    assert tensors["a"].storage == tensors["b"].storage
    assert len({tensor.storage for tensor in tensors.values()}) == 4


def test_a_tensor_with_attributes_is_one_too(tmp_path: Path) -> None:
    whole = torch.zeros(4, 6)
    whole.note = "mine"  # type: ignore[attr-defined]
    assert elements(state_dict.read(save({"w": whole}, tmp_path / "m.pth"))) == 24


def test_a_view_that_was_saved_with_more_than_itself_is_named(tmp_path: Path) -> None:
    exported = state_dict.read(save({"w": torch.zeros(10, 4)[:2]}, tmp_path / "m.pth"))
    assert elements(exported) == 8
    assert any(note.startswith("128 bytes are in no tensor of the model") for note in exported.notes)


def test_a_tensor_that_repeats_its_elements_takes_what_is_stored(tmp_path: Path) -> None:
    constant = state_dict.read(save({"w": torch.zeros(1).expand(1 << 40)}, tmp_path / "m.pth")).constants["w"]
    assert (constant.shape, constant.stored_bytes) == ((1 << 40,), 4)


def test_weights_of_four_gigabytes_are_not_read(tmp_path: Path) -> None:
    """The pickle of a small tensor with another size stands for one that torch would take minutes to write."""
    path = archive(tmp_path / "m.pth", {"data.pkl": pickled(1 << 30, (1 << 15, 1 << 15)), "data/0": 1 << 32})
    tracemalloc.start()
    exported = state_dict.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (elements(exported), exported.file_bytes) == (1 << 30, path.stat().st_size)
    assert peak < 1 << 20


class _Reduced:
    """Pickles as the call of a name, which is imported nowhere."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class _Pickler(pickle.Pickler):
    """Writes storages as torch does, beside the pickle."""

    def persistent_id(self, value: object) -> object:
        return value.content if isinstance(value, _Beside) else None


class _Beside:
    def __init__(self, *content: object) -> None:
        self.content = content


def written(content: object) -> bytes:
    """The pickle of something, in protocol 2 as torch has it."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue()


def tensor(storage: object, offset: object = 0, sizes: object = (2,), strides: object = (1,)) -> _Reduced:
    """A tensor as a pickle rebuilds it."""
    return _Reduced(torch._utils._rebuild_tensor_v2, storage, offset, sizes, strides, False, OrderedDict())


def pickled(count: object = 2, sizes: object = (2,), strides: object = None, offset: object = 0) -> bytes:
    """A state dict of one tensor in a storage of `count` elements."""
    storage = _Beside("storage", torch.FloatStorage, "0", "cpu", count)
    steps = strides if strides is not None else tuple(prod(sizes[axis + 1 :]) for axis in range(len(sizes)))  # type: ignore
    return written({"w": tensor(storage, offset, sizes, steps)})


SIZES: dict[str, tuple[bytes, int, str]] = {
    "storage cut off": (pickled(), 4, "'w' in it has 4 bytes, and 8 were declared"),
    "storage too long": (pickled(), 12, "'w' in it has 12 bytes, and 8 were declared"),
    "behind its storage": (pickled(2, (3,)), 8, "ends after 12 of 8 bytes"),
    "an offset behind it": (pickled(2, (2,), offset=1), 8, "ends after 12 of 8 bytes"),
    "dims of 2^62": (pickled(2, (1 << 62, 4), (0, 0)), 8, "more elements than any tensor"),
    "a dim of -4": (pickled(2, (-4,)), 8, "has the size -4"),
    "a stride of -1": (pickled(2, (2,), (-1,)), 8, "has the size -1"),
    "more strides than dims": (pickled(2, (2,), (1, 1)), 8, "has no shape"),
    "a text for a number": (pickled("2"), 8, "storage 0 in it is missing or not a whole number"),
    "a storage of 2^70": (pickled(1 << 70), 8, "storage 0 in it has the size 1,180,591,620,717,411,303,424"),
}


@pytest.mark.parametrize(("content", "stored", "problem"), SIZES.values(), ids=SIZES)
def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, content: bytes, stored: int, problem: str) -> None:
    with pytest.raises(DamagedFile, match=problem):
        state_dict.read(archive(tmp_path / "m.pth", {"data.pkl": content, "data/0": stored}))


PICKLES: dict[str, tuple[bytes, str]] = {
    "a command": (written(_Reduced(os.system, "touch ran")), r"needs posix.system, and of a pickle nothing is run"),
    "a function of builtins": (written(_Reduced(eval, "1")), r"needs __builtin__.eval"),
    "an attribute of what is known": (b"\x80\x04\x8c\x0ctorch._utils\x8c\x03sys\x93.", r"needs torch._utils.sys"),
    "a module": (written(nn.Linear(2, 2)), r"needs torch.nn.modules.linear.Linear.*torch.save\(model.state_dict\(\), path\)"),
    "cut off": (pickled()[:40], "its pickle breaks off at byte"),
    "an unknown step": (b"\x80\x02\xff.", "its pickle breaks off at byte"),
    "a place of 2^32 in its memory": (b"\x80\x02]r\xff\xff\xff\xff.", "holds no mapping of tensors"),
    "a text of 2^60": (b"\x80\x04\x8d" + (1 << 60).to_bytes(8, "little") + b"x.", "its pickle breaks off at byte"),
    "a list in itself": (b"\x80\x02]q\x00h\x00a.", "holds no mapping of tensors"),
    "calls in calls": (
        b"\x80\x04)" + b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00q\x010"
        + b"h\x00h\x00N\x87" + b"q\x02h\x00h\x00h\x02\x87" * 1500 + b"h\x00q\x050q\x060h\x05h\x06R.",
        "its pickle breaks off",
    ),
    "nothing": (b"", "its pickle breaks off at byte 0"),
    "a pop too many": (b"\x80\x020.", "its pickle breaks off"),
    "a call of a text": (b"\x80\x02U\x01a)R.", "its pickle breaks off"),
    "steps without end": (b"\x80\x02" + b"N0" * 10_000 + b".", "its pickle has more than 9,000 steps"),
    "sparse tensors": (written(_Reduced(torch._utils._rebuild_sparse_tensor, 1, 2)), "holds sparse tensors"),
    "two models": (written({"a": 1, "g": {"w": tensor(_Beside("storage", torch.FloatStorage, "0", "cpu", 2))},
                            "d": {"w": tensor(_Beside("storage", torch.FloatStorage, "0", "cpu", 2))}}),
                   "which part is the model .with tensors: 'g', 'd'"),
    "no tensors": (written({"epoch": 3}), "which part is the model .with tensors: none"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "problem"), PICKLES.values(), ids=PICKLES)
def test_a_pickle_that_is_no_state_dict_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pickles, "_MOST_STEPS", 9000)
    with pytest.raises(DamagedFile, match=problem):
        state_dict.read(archive(tmp_path / "m.pth", {"data.pkl": content}))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"\x80\x02N.", "is a pickle, but none of torch.save", id="some pickle"),
        pytest.param(b"hello", "is no file of torch.save", id="text"),
        pytest.param(b"storages/" + b"\0" * 600, "is an archive of torch before 0.2", id="tar"),
        pytest.param(b"PK\3\4" + b"\0" * 100, "the end of its zip archive is missing", id="half a zip"),
    ],
)
def test_what_is_no_archive_is_refused_by_what_it_is(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "m.pth"
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=problem):
        state_dict.read(path)


def test_an_old_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = save({"w": torch.zeros(100)}, tmp_path / "m.pth", old=True)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFile, match=r"it ends after [0-9]* of at least [0-9]* bytes"):
        state_dict.read(path)


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        pytest.param({"data.pkl": b"", "constants.pkl": b"", "code/m.py": b""}, "is TorchScript", id="TorchScript"),
        pytest.param({"a": b""}, "no file of torch.save", id="another archive"),
        pytest.param({"data.pkl": 65 << 20}, "would take 68,157,440 bytes", id="a large pickle"),
        pytest.param({"data.pkl": pickled()}, "it lacks the weights of 'w'", id="no weights"),
    ],
)
def test_other_archives_are_refused_by_what_they_are(
    tmp_path: Path, members: dict[str, bytes | int], problem: str
) -> None:
    with pytest.raises(DamagedFile, match=problem):
        state_dict.read(archive(tmp_path / "m.pth", members))


def test_parts_that_overlap_are_refused(tmp_path: Path) -> None:
    """Many members may name the same bytes, and then be more than the file holds."""
    path = tmp_path / "m.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", pickled())
        file.writestr("m/data/0", bytes(1000))
        for number in range(1, 20):
            again = copy.copy(file.filelist[-1])
            again.filename = f"m/data/{number}"
            file.filelist.append(again)
    with pytest.raises(DamagedFile, match=r"its parts have 20,[0-9]{3} bytes, and the file has [0-9],[0-9]{3}"):
        state_dict.read(path)
