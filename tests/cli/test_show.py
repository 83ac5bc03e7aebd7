"""`modelbudget show` and `why`: what a word stands for, and what is printed."""

from __future__ import annotations

import csv
import json

import pytest

from pytest_modelbudget.summary import Layer, Summary, Weight
from pytest_modelbudget.summary.show import records
from tests.cli.conftest import Command
from tests.hostile import INVISIBLE, NAMES
from tests.project import SMALL

LINE = "dense (Dense)  [B, 64]         2,048  0"


def test_a_model_of_the_manifest(modelbudget: Command) -> None:
    """By its id, with its inputs from there."""
    modelbudget.project.manifest(SMALL)
    done = modelbudget("show", "small")
    assert done.code == 0
    assert done.err == ""
    assert LINE in done.out
    assert "Total params: 2,048 (8.000 KiB)" in done.out


def test_arguments_are_written_as_in_a_manifest(modelbudget: Command) -> None:
    """With the calls in them: 32 * (2 * 8) params."""
    modelbudget.write("config.py", "def doubled(width):\n    return 2 * width\n")
    words = '[{call: "config:doubled", kwargs: {width: 8}}]'
    done = modelbudget("show", "zoo:of_width", "--args", words, "--inputs", "float32[B, 32]")
    assert "Total params: 512 " in done.out
    wrong = modelbudget("show", "zoo:of_width", "--args", "[{call: config.doubled}]", "--inputs", "float32[B, 32]")
    assert (wrong.code, wrong.out) == (2, "")
    assert "args.0.call: 'config.doubled' is not a reference: write module:callable" in wrong.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["zoo:small"], "2,048", id="a function"),
        pytest.param(["zoo:of_width", "--args", "[10]"], "320", id="with an argument"),
        pytest.param(["zoo:of_width", "--kwargs", "{width: 10}"], "320", id="with a named argument"),
        pytest.param(["more:built"], "96", id="a model that is there"),
        pytest.param(["more:Net"], "64", id="a class"),
        pytest.param(["more:decorated"], "160", id="a decorated function"),
    ],
)
def test_a_reference(modelbudget: Command, words: list[str], expected: str) -> None:
    """`module:name` needs no manifest; 32 * 64, 32 * 10, 32 * 3, 32 * 2 and 32 * 5 params."""
    modelbudget.write(
        "more.py",
        """
        from fakenet import Model
        from pytest_modelbudget import model

        built = Model(dense=(32, 3))

        class Net(Model):
            def __init__(self):
                super().__init__(dense=(32, 2))

        @model()
        def decorated():
            return Model(dense=(32, 5))
        """,
    )
    done = modelbudget("show", *words, "--inputs", "float32[B, 32]")
    assert done.code == 0, done.err
    assert f"Total params: {expected} " in done.out


def test_a_decorated_function_brings_its_inputs(modelbudget: Command) -> None:
    """Nothing has to be said twice, and what is said on the command line counts."""
    modelbudget.write(
        "more.py",
        """
        from fakenet import Model
        from pytest_modelbudget import model

        @model(inputs="float32[B, 32]", batch=3)
        def decorated():
            return Model(dense=(32, 5))
        """,
    )
    assert "FLOPs, forward at B=3: 960 FLOPs" in modelbudget("show", "more:decorated").out
    assert "FLOPs, forward at B=7: 2.240 kFLOPs" in modelbudget("show", "more:decorated", "--batch", "7").out


def test_a_snapshot_file_shows_without_its_code(modelbudget: Command) -> None:
    """In the work tree, and as it was committed."""
    modelbudget.project.manifest(SMALL)
    assert modelbudget("update").code == 0
    modelbudget.commit()
    (modelbudget.project.path / "zoo.py").unlink()
    path = "__model_budget__/small.yaml"
    for word in (path, f"HEAD:{path}", f"main:./{path}"):
        done = modelbudget("show", word)
        assert (done.code, done.err) == (0, "")
        assert LINE in done.out


def test_json_is_read_again(modelbudget: Command) -> None:
    """What `--json` prints is the summary, and a model itself."""
    modelbudget.project.manifest(SMALL)
    done = modelbudget("show", "small", "--json")
    assert Summary.from_dict(json.loads(done.out)).params == 2_048
    modelbudget.write("small.json", done.out)
    assert modelbudget("show", "small.json").out == modelbudget("show", "small").out


def test_what_a_builder_prints_is_kept_apart(modelbudget: Command) -> None:
    """So that JSON stays JSON; output of child processes and C code too."""
    modelbudget.write(
        "more.py",
        """
        import os
        from fakenet import Model

        def loud():
            print("noise")
            os.system("echo more noise")
            return Model(dense=(32, 64))
        """,
    )
    done = modelbudget("show", "more:loud", "--inputs", "float32[B, 32]", "--json")
    assert json.loads(done.out)["params"] == 2_048
    assert done.err == ""


def test_a_builder_that_fails_shows_the_users_own_lines(modelbudget: Command) -> None:
    """And what it printed before, harmless."""
    modelbudget.write(
        "more.py",
        """
        def broken():
            print("::error::owned")
            raise RuntimeError("no such thing")
        """,
    )
    done = modelbudget("show", "more:broken")
    assert (done.code, done.out) == (2, "")
    assert "more.py:3: in broken" in done.err
    assert "E   RuntimeError: no such thing" in done.err
    assert "it printed:" in done.err
    assert "owned" in done.err
    assert "::error::owned" not in done.err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        pytest.param("smal", "did you mean 'small'", id="near an id"),
        pytest.param("zoo:smal", "zoo has no 'smal'", id="no such name"),
        pytest.param("zo:small", "there is no module 'zo'", id="no such module"),
        pytest.param("modelbudget.yaml", "is a manifest: name one of its models", id="a manifest"),
        pytest.param("zoo.py", "zoo.py is no model", id="a Python file"),
        pytest.param("./saved", "saved is a folder without saved_model.pb: the path of a model is", id="a folder"),
        pytest.param("saved", "'saved' is no file, no id of the manifest", id="a folder without a slash"),
        pytest.param("list.json", "is not a model as modelbudget show --json prints it", id="other JSON"),
        pytest.param("damaged.json", "not JSON", id="damaged JSON"),
        pytest.param("other.yaml", "other.yaml:", id="other YAML"),
        pytest.param("wrong", "unknown key 'bild'", id="a mistake in the manifest"),
        pytest.param("zoo:small", "does not know its inputs", id="no inputs"),
    ],
)
def test_what_cannot_be_shown(modelbudget: Command, word: str, said: str) -> None:
    """Code 2 and one clear message."""
    modelbudget.project.manifest(f"{SMALL}\n      wrong: {{bild: x}}\n")
    modelbudget.write("list.json", "[1, 2]")
    modelbudget.write("saved/notes.txt", "no model")
    modelbudget.write("damaged.json", "{")
    modelbudget.write("other.yaml", "a: 1")
    done = modelbudget("show", word)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("option", ["--args", "--kwargs", "--dims"])
def test_an_option_of_the_wrong_shape(modelbudget: Command, option: str) -> None:
    """Named, with an example."""
    done = modelbudget("show", "zoo:small", option, "text")
    assert done.code == 2
    assert f"{option}: 'text': write e.g." in done.err


def test_why_ranks_layers_with_their_arithmetic(modelbudget: Command) -> None:
    """32 * 64 = 2,048 of 2,688 params are 76.2%; 64 * 10 are the rest."""
    done = modelbudget("why", "zoo:two_layers", "--inputs", "float32[B, 32]")
    assert done.code == 0
    where = done.out.partition("Where the 2,688 params are:\n")[2].splitlines()
    assert [line.split() for line in where] == [
        ["76.2%", "2,048", "body", "(Dense):", "in*out:", "32*64", "=", "2,048"],
        ["23.8%", "640", "head", "(Dense):", "in*out:", "64*10", "=", "640"],
    ]


def test_why_tells_repeated_blocks_as_one(modelbudget: Command) -> None:
    """32 blocks of 4 * 8, 8 * 4 and 4 * 4 params beside a stem of 32 * 4: 1,024, 1,024, 512 and 128 of 2,688."""
    modelbudget.write(
        "more.py",
        """
        from fakenet import Model

        def blocks():
            block = {"up": (4, 8), "down": (8, 4), "mix": (4, 4)}
            layers = {f"h.{n}.{name}": sizes for n in range(32) for name, sizes in block.items()}
            return Model({"stem": (32, 4), **layers})
        """,
    )
    done = modelbudget("why", "more:blocks", "--inputs", "float32[B, 32]", "--top", "2")
    assert done.code == 0, done.err
    assert done.out.partition("Where the 2,688 params are:\n")[2].splitlines() == [
        "   38.1%            1,024  h.0-31.up (Dense), 32 x 32: in*out: 4*8 = 32",
        "   38.1%            1,024  h.0-31.down (Dense), 32 x 32: in*out: 8*4 = 32",
        "   23.8%              640  in 33 other layers",
    ]
    lines = modelbudget("why", "more:blocks", "h.0-31.up", "--inputs", "float32[B, 32]").out.splitlines()
    assert lines[:2] == ["h.0-31.up: 32 layers alike, 1,024 params together; the first of them:", "h.0.up (Dense)"]


def test_why_counts_what_it_does_not_name(modelbudget: Command) -> None:
    """With `--top 1` the second layer is only counted."""
    done = modelbudget("why", "zoo:two_layers", "--inputs", "float32[B, 32]", "--top", "1")
    assert done.out.splitlines()[-1].split() == ["23.8%", "640", "in", "1", "other", "layer"]


def test_why_of_one_layer(modelbudget: Command) -> None:
    """Everything that is known of it: 64 * 10 params, of 4 bytes, twice as many FLOPs at batch 1."""
    done = modelbudget("why", "zoo:two_layers", "head", "--inputs", "float32[B, 32]")
    assert done.code == 0
    assert done.out.splitlines() == [
        "head (Dense)",
        "  output: [B, 10]",
        "  connected to: body",
        "  params: 640 (23.8%)",
        "  why: in*out: 64*10 = 640",
        "  weights: 2.500 KiB",
        "  FLOPs: 1.280 kFLOPs (23.8%)",
        "  activations for backward: ?",
    ]


def test_why_takes_globs_and_names_what_is_near(modelbudget: Command) -> None:
    """A glob gives each layer that matches; a path that is not there gives the nearest."""
    words = ("zoo:two_layers", "--inputs", "float32[B, 32]")
    assert [line for line in modelbudget("why", words[0], "*d*", *words[1:]).out.splitlines() if line[:1] > " "] == [
        "body (Dense)", "head (Dense)",
    ]  # fmt: skip
    done = modelbudget("why", words[0], "heda", *words[1:])
    assert done.code == 2
    assert "has no layer 'heda'; near it are head" in done.err


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_hostile_names_are_harmless(modelbudget: Command, name: str) -> None:
    """In tables, reasons, changes and errors."""
    import re

    modelbudget.write(
        "more.py", f"from fakenet import Model\ndef net(width): return Model({{{name!r}: (32, width)}})\n"
    )
    call = ("--inputs", "float32[B, 32]", "--kwargs", "{width: 64}")
    modelbudget.write("a.json", modelbudget("show", "more:net", *call, "--json").out)
    modelbudget.write("b.json", modelbudget("show", "more:net", *call[:3], "{width: 65}", "--json").out)
    for words in (["show", "a.json", "--why"], ["why", "a.json"], ["why", "a.json", "*"], ["diff", "a.json", "b.json"],
                  ["why", "a.json", "no"]):  # fmt: skip
        done = modelbudget(*words)
        assert not re.search(INVISIBLE, done.out + done.err), words
        assert not re.search(r"^\s*(::|##\[)\w.*owned", done.out + done.err, re.MULTILINE), words


def test_the_rows_as_csv(modelbudget: Command) -> None:
    """A line for each, which any reader of CSV takes; what is not known is empty, and a sum over a column is a total."""
    modelbudget.project.manifest(SMALL)
    rows = list(csv.DictReader(modelbudget("show", "small", "--csv").out.splitlines()))
    assert [(row["path"], row["type"], row["params"], row["activation_bytes"]) for row in rows] == [
        ("dense", "Dense", "2048", ""),
    ]  # fmt: skip


def test_no_cell_is_taken_for_a_formula() -> None:
    """A layer's name is the model's, and a spreadsheet would run it."""
    layer = Layer("=cmd|' /C calc'!A0", "Dense", weights=(Weight("w", (2,)),))
    assert records.csv_text(Summary("net", "torch", (layer,))).splitlines()[1].startswith("'=cmd")


def test_the_rows_as_a_data_frame() -> None:
    """With the columns of the CSV; numbers keep every digit, and those that are not known are missing."""
    pandas = pytest.importorskip("pandas")
    layers = (Layer("a", "Dense", flops=2**60 + 1), Layer("b", "Add"))
    frame = Summary("net", "torch", layers).to_dataframe()
    assert list(frame.columns) == list(records.COLUMNS)
    assert frame["flops"].tolist() == [2**60 + 1, pandas.NA]
    assert frame["params"].sum() == 0
