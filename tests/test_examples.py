"""The examples, run on a copy as their reader would run them, with the snapshots that are committed beside them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.summary import FLOP_RULES
from tests.documents import REPOSITORY, text_of
from tests.project import WITHOUT_OTHERS

pytest.importorskip("torch")
pytest.importorskip("keras", minversion="3.0")

MODELS = [
    "autoencoder", "chat", "digits-cnn", "residual-net", "sine-lstm", "tagger", "test_encoder", "tiny-gpt", "two-towers",
    "wake-word", "wake-word-int8",
]  # fmt: skip
OPTIONAL = {} if find_spec("flax") else {"tagger": "skipped"}
"""Models whose framework may be missing, and their state where it is."""

Row = tuple[str, str, str, int, str]
"""Path, type, output shape, params, connected to, as a printed table has them."""

# The params of the classic tables are those that Keras itself prints; FLOPs are counted by hand (2 per multiply-add).
TABLES: dict[str, tuple[list[Row], int, int]] = {
    "digits-cnn": (
        [
            ("conv2d", "Conv2D", "[B, 26, 26, 32]", 896, "-"),
            ("max_pooling2d", "MaxPooling2D", "[B, 13, 13, 32]", 0, "conv2d"),
            ("conv2d_1", "Conv2D", "[B, 11, 11, 64]", 18_496, "max_pooling2d"),
            ("max_pooling2d_1", "MaxPooling2D", "[B, 5, 5, 64]", 0, "conv2d_1"),
            ("flatten", "Flatten", "[B, 1600]", 0, "max_pooling2d_1"),
            ("dense", "Dense", "[B, 128]", 204_928, "flatten"),
            ("dense_1", "Dense", "[B, 10]", 1_290, "dense"),
        ],
        225_610,
        2 * (26 * 26 * 32 * 27 + 11 * 11 * 64 * 9 * 32 + 1600 * 128 + 128 * 10),
    ),
    "sine-lstm": (
        [
            ("lstm", "LSTM", "[B, 50, 64]", 16_896, "-"),
            ("lstm_1", "LSTM", "[B, 32]", 12_416, "lstm"),
            ("dense", "Dense", "[B, 1]", 33, "lstm_1"),
        ],
        29_345,
        2 * (50 * 4 * 64 * (1 + 64) + 50 * 4 * 32 * (64 + 32) + 32),
    ),
    "two-towers": (
        [
            ("user", "InputLayer", "[B, 100]", 0, "-"),
            ("item", "InputLayer", "[B, 20]", 0, "-"),
            ("dense", "Dense", "[B, 50]", 5_050, "user"),
            ("dense_1", "Dense", "[B, 50]", 1_050, "item"),
            ("concatenate", "Concatenate", "[B, 100]", 0, "dense, dense_1"),
            ("dense_2", "Dense", "[B, 1]", 101, "concatenate"),
        ],
        6_201,
        2 * (100 * 50 + 20 * 50 + 100 * 1),
    ),
}


@dataclass(frozen=True, slots=True)
class Run:
    """What a run printed, how it ended, and the models of its JSON report by id."""

    text: str
    status: int
    models: Mapping[str, Any]

    def after(self, line: str) -> list[str]:
        """The lines below the first one that is `line`."""
        lines = self.text.splitlines()
        return lines[lines.index(line) + 1 :]


def copy_examples(root: Path) -> Path:
    """A project of its own with a copy of the examples."""
    shutil.copytree(REPOSITORY / "examples", root / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    return root


def edit(file: Path, old: str, new: str) -> int:
    """Replace text that occurs once; return the number of its line."""
    text = file.read_text(encoding="utf-8")
    before, _, after = text.partition(old)
    assert text.count(old) == 1
    file.write_text(f"{before}{new}{after}", encoding="utf-8")
    return before.count("\n") + 1


def run(root: Path, *args: str) -> Run:
    """`pytest --model-budget ...` in a process of its own, on a terminal of 80 columns and not in CI."""
    unwanted = ("CI", "TF_BUILD", "BUILD_NUMBER", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    command = [sys.executable, "-m", "pytest", "--model-budget", "--model-budget-report=json:report.json", *args]
    done = subprocess.run(
        [*command, *WITHOUT_OTHERS, "-p", "no:cacheprovider", "--color=no"],
        cwd=root,
        env={**environment, "COLUMNS": "80", "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=300,
    )
    report = root / "report.json"
    assert report.exists(), done.stdout
    models = {model["id"]: model for model in json.loads(report.read_text(encoding="utf-8"))["models"]}
    return Run("\n".join(map(str.rstrip, done.stdout.splitlines())), done.returncode, models)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of all examples as they are committed."""
    root = copy_examples(tmp_path_factory.mktemp("clean"))
    before = bytes_of(root / "examples")
    done = run(root, "examples", "-v")
    assert bytes_of(root / "examples") == before, "a check wrote into the examples"
    return done


@pytest.mark.slow
def test_all_examples_are_equal_to_their_committed_snapshots(clean: Run) -> None:
    """Every model passes, and no snapshot is out of date in the least; estimates of memory are those of torch's release."""
    assert {id: model["state"] for id, model in clean.models.items()} == {**dict.fromkeys(MODELS, "ok"), **OPTIONAL}, (
        clean.text
    )
    snapshots = {id: model["snapshot"] for id, model in clean.models.items() if id not in OPTIONAL}
    planned = snapshots.pop("tiny-gpt")
    assert planned["stored"] in ("equal", "restated")
    assert not planned.get("note")
    assert {id: snapshot["stored"] for id, snapshot in snapshots.items()} == dict.fromkeys(snapshots, "equal")
    assert clean.status == 0
    assert re.search(rf"=+ {len(MODELS) - len(OPTIONAL)} passed.* in ", clean.text)


@pytest.mark.slow
@pytest.mark.parametrize("model", TABLES)
def test_classic_tables_come_out_exactly_in_the_report(clean: Run, model: str) -> None:
    """Every row, shape, connection and total is the one of the textbook."""
    rows, total, flops = TABLES[model]
    summary = clean.models[model]["summary"]
    assert [report_row(row) for row in summary["layers"]] == rows
    assert summary["params"] == summary["trainable_params"] == total
    assert summary["weight_bytes"] == 4 * total
    assert summary["flops"] == {"rules": FLOP_RULES, "value": flops, "uncounted": {}}


def report_row(row: Mapping[str, Any]) -> Row:
    """A row of the JSON report as a printed table has it."""
    [[output]] = row["outputs"]
    connected = "; ".join(", ".join(call) for call in row["connected_to"] if call) or "-"
    return row["path"], row["type"], output.removeprefix("float32"), row["params"], connected


@pytest.mark.slow
@pytest.mark.parametrize("model", TABLES)
def test_classic_tables_come_out_exactly_on_the_terminal(clean: Run, model: str) -> None:
    """What `-v` prints has the same rows, and the three totals below them."""
    rows, total, _ = TABLES[model]
    lines = clean.after(f"Model: {model} (keras)")
    lines = lines[next(number for number, line in enumerate(lines) if line.startswith("===")) + 1 :]
    assert [printed_row(line) for line in lines[: len(rows)]] == rows
    assert lines[len(rows)].startswith("---")
    assert lines[len(rows) + 1].startswith(f"Total params: {total:,} (")
    assert lines[len(rows) + 2 : len(rows) + 4] == [f"Trainable params: {total:,}", "Non-trainable params: 0"]


def printed_row(line: str) -> Row:
    """A printed line, taken apart at its columns."""
    layer, output, params, connected = re.split(r"  +", line)
    path, kind = layer.removesuffix(")").split(" (")
    return path, kind, output, int(params.replace(",", "")), connected


@pytest.mark.slow
def test_torch_examples_have_the_params_of_a_hand_count(clean: Run) -> None:
    """A frozen stem is not trainable, a tied head counts once, batch norm's averages are buffers."""
    stem, blocks, head = 3 * 64 * 9 + 64, 4 * 2 * (64 * 64 * 9 + 2 * 64), 64 * 10 + 10
    residual = clean.models["residual-net"]["summary"]
    assert residual["params"] == stem + blocks + head
    assert residual["non_trainable_params"] == stem
    assert residual["buffers"] == 4 * 2 * (64 + 64 + 1)
    width = 256
    block = 2 * 2 * width + (3 * width * width + 3 * width) + (width * width + width) + 8 * width * width + 5 * width
    assert clean.models["tiny-gpt"]["summary"]["params"] == (50_257 + 256) * width + 6 * block + 2 * width


@pytest.mark.slow
@pytest.mark.skipif("tagger" in OPTIONAL, reason="flax is not installed")
def test_the_tagger_of_jax_has_rows_and_a_plan_of_a_hand_count(clean: Run) -> None:
    """Four blocks in one stack, two states and a gradient for each param, and no peak where nothing is compiled."""
    summary = clean.models["tagger"]["summary"]
    block = 2 * 64 + (64 * 256 + 256) + (256 * 64 + 64)
    params = 1000 * 64 + 4 * block + 64 * 17 + 17
    [plan] = summary["plans"]
    sizes = {
        role: sum(part["bytes"] for part in plan["parts"] if part["role"] == role)
        for role in ("param", "gradient", "optimizer")
    }
    assert summary["params"] == params
    assert sizes == {"param": 4 * params, "gradient": 4 * params, "optimizer": 8 * params + 4}
    assert plan["peak_bytes"] is None
    assert plan["low_bytes"] < plan["high_bytes"]


@pytest.mark.slow
def test_the_gpt_has_plans_of_a_hand_count(clean: Run) -> None:
    """Weights in their precision, two states for each of them, and activations that grow with the tokens alone."""
    gpt = clean.models["tiny-gpt"]["summary"]
    training, inference = gpt["plans"]

    def held(plan: dict[str, Any], role: str) -> int:
        return sum(part["bytes"] for part in plan["parts"] if part["role"] == role)

    assert held(training, "param") == 4 * gpt["params"]
    assert held(training, "optimizer") == 8 * gpt["params"]
    assert held(inference, "param") == 2 * gpt["params"]
    logits = 8 * 128 * 50_257
    assert training["peak_bytes"] > 12 * gpt["params"] + 2 * 4 * logits  # float32 scores and their gradient
    assert [fit["needs"] < fit["capacity"] for fit in training["fits"]] == [True, True]
    [growth] = gpt["growth"]
    assert (growth["dim"], growth["degree"]) == ("T", 1)
    assert growth["per_unit"] * 128 == gpt["activation_bytes"]


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, int]:
    """A run of three examples after a limit was lowered and two models widened; the line of the limit."""
    root = copy_examples(tmp_path_factory.mktemp("edited"))
    line = edit(root / "examples/modelbudget.yaml", "params: 310k", "params: 298_377")
    edit(root / "examples/test_decorator.py", "nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16)",
         "nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 16)")  # fmt: skip
    edit(root / "examples/classics.py", "layers.Dense(128,", "layers.Dense(160,")
    manifest = "examples/modelbudget.yaml"
    return run(root, f"{manifest}::residual-net", f"{manifest}::digits-cnn", "examples/test_decorator.py"), line


@pytest.mark.slow
def test_a_budget_lowered_by_one_parameter_fails(edited: tuple[Run, int]) -> None:
    """298,378 params against a limit of 298,377: exit 1, both numbers, the distance and the manifest's line."""
    done, line = edited
    assert done.status == 1
    assert done.models["residual-net"]["state"] == "OVER BUDGET"
    below = done.after("residual-net: OVER BUDGET")
    assert below[0] == f"  params: 298,378 > 298,377 (+1, +<0.1%)  [examples/modelbudget.yaml:{line}]"


@pytest.mark.slow
def test_a_widened_layer_is_shown_with_its_rows(edited: tuple[Run, int]) -> None:
    """The layer, the one that reads it, the totals that follow, and how to accept it."""
    done, _ = edited
    assert done.models["autoencoder"]["state"] == "CHANGED"
    below = done.after("autoencoder: CHANGED")
    assert below[: below.index("")] == [
        "  differs from examples/__model_budget__/autoencoder.yaml:",
        "    params 148 -> 181  (+33, +22.30%)",
        "    trainable_params 148 -> 181  (+33, +22.30%)",
        "    weight_bytes 592 -> 724  (+132, +22.30%)",
        "    flops 256 -> 320  (+64, +25.00%)",
        "    ~ 0  widened  68 params [B, 4] -> 85 params [B, 5]  (+17): in*out + out: 16*4 + 4 = 68 -> 16*5 + 5 = 85",
        "    ~ 2  widened  80 params -> 96 params  (+16): in*out + out: 4*16 + 16 = 80 -> 5*16 + 16 = 96; "
        "input from 1 widened 4 -> 5",
        "    ~ 1  1 row follows  output 4 -> 5",
        "    = 0 other rows unchanged",
        'accept:  pytest --model-budget-update "examples/test_decorator.py::autoencoder"',
    ]


@pytest.mark.slow
def test_the_excerpt_of_the_readme_is_what_is_printed(edited: tuple[Run, int]) -> None:
    """Every line of the README's first block is printed, in that order, when its change is made."""
    done, _ = edited
    excerpt = (
        text_of("README.md")
        .partition("```text\n$ pytest --model-budget examples\n")[2]
        .partition("```")[0]
        .splitlines()
    )
    printed = iter(done.text.splitlines())
    missing = [line for line in excerpt if line != "..." and line not in printed]  # `in` goes on from the last hit
    assert excerpt
    assert not missing, done.text
