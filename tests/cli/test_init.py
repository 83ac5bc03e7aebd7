"""`modelbudget init`: names and limits that it writes, and the manifest."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from textwrap import dedent

import pytest

from pytest_modelbudget import units
from pytest_modelbudget.cli.discover.manifest import by_id, rounded_above
from pytest_modelbudget.cli.discover.trial.outcomes import BuildableModel
from pytest_modelbudget.config import load
from tests.cli.conftest import Command, Done
from tests.project import Project

USE_FAKENET = "from pytest_modelbudget import backends\nbackends.BACKENDS['fakenet'] = 'fakenet'\n"


@pytest.mark.parametrize(
    ("value", "kind", "room", "written"),
    [
        pytest.param(225_610, "count", "10%", "250k", id="thousands"),  # 248,171
        pytest.param(25_557_032, "count", "10%", "29M", id="millions"),  # 28,112,735.2
        pytest.param(1_000_000, "count", "10%", "1.1M", id="one digit behind the point"),
        pytest.param(618, "count", "10%", "680", id="hundreds"),  # 679.8
        pytest.param(7, "count", "10%", "8", id="units"),  # 7.7
        pytest.param(9_999, "count", "0%", "10k", id="no room"),
        pytest.param(2_472, "bytes", "10%", "2.8 kB", id="bytes"),  # 2,719.2
        pytest.param(885_056, "flops", "50%", "1.4 MFLOPs", id="FLOPs"),  # 1,327,584
    ],
)
def test_limits_are_readable(value: int, kind: units.Kind, room: str, written: str) -> None:
    """Two digits, rounded up."""
    assert rounded_above(value, kind, units.parse(room, "share")) == written


@pytest.mark.parametrize(
    ("references", "ids"),
    [
        pytest.param(["nets:tiny_cnn", "nets:LeNet5"], ["tiny-cnn", "le-net5"], id="words"),
        pytest.param(["nets:HTTPNet", "nets:SimpleViT"], ["http-net", "simple-vit"], id="capitals"),
        pytest.param(["pkg.gpt:build", "pkg.bert:create_model"], ["gpt", "bert"], id="names that say nothing"),
        pytest.param(["a:net1", "b:net1"], ["a.net1", "b.net1"], id="two of one name"),
        pytest.param(["a:NetTwo", "a:net_two"], ["a.net-two", "a:net_two"], id="two of one name in one module"),
        pytest.param(["a:sources"], ["a.sources"], id="a name that the plugin has taken"),
    ],
)
def test_ids_are_short(references: list[str], ids: list[str]) -> None:
    """And each is another."""
    found = [BuildableModel(reference, False, "torch", 1, 4, 2, reference) for reference in references]
    assert list(by_id(found)) == ids


def test_no_model_is_lost_for_its_id() -> None:
    """Names of a table may read alike."""
    names = ("x_y", "x-y", "x.y")
    found = [BuildableModel("a:get", False, "torch", 1, 4, 2, name, variant=name) for name in names]
    assert [model.variant for model in by_id(found).values()] == list(names)


@pytest.mark.parametrize("kind", ["count", "bytes", "flops"])
def test_limits_leave_the_room_and_hardly_more(kind: units.Kind) -> None:
    """Read back, each is at least what was asked for, and at most a tenth (or one) more, over many sizes."""
    for value in [3**power + shift for power in range(1, 36) for shift in (0, 1, 2)]:
        for percent in (0, 5, 10):
            wanted = value * Fraction(100 + percent, 100)
            limit = units.parse(rounded_above(value, kind, Fraction(percent, 100)), kind)
            assert wanted <= limit <= max(wanted * Fraction(11, 10), wanted + 1)


def init(project: Project, *words: str) -> Done:
    """`modelbudget init` in a process, in which the fake framework is known and knows its inputs."""
    fakenet = project.path / "fakenet.py"
    text = fakenet.read_text(encoding="utf-8")
    known = 'inputs = inputs or __import__("pytest_modelbudget.inputs").inputs.parse("float32[B, 32]")\n    '
    if known not in text:
        fakenet.write_text(text.replace("    if inputs is None:", f"    {known}if inputs is None:"), encoding="utf-8")
    site = project.outside / "sitecustomize.py"
    site.write_text(USE_FAKENET, encoding="utf-8")
    paths = os.pathsep.join((str(site.parent), os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[2])))
    done = subprocess.run(
        [sys.executable, "-m", "pytest_modelbudget.cli", "init", *words],
        cwd=project.path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def test_from_a_project_to_a_manifest(project: Project) -> None:
    """Every file is looked into, whatever another one does; the manifest is right and green at once."""
    project.write("fakenet.py", (project.path / "fakenet.py").read_text(encoding="utf-8"))
    project.write(
        "pkg/nets.py",
        "from fakenet import Model\nclass TinyNet(Model):\n    def __init__(self):\n        super().__init__(dense=(32, 8))\n",
    )
    project.write("a_dies.py", "import fakenet, os\ndef f(): pass\nos._exit(3)\n")
    project.write("b_leaves.py", "import fakenet, sys\ndef f(): pass\nsys.exit('bye')\n")
    project.write("c_breaks.py", "import fakenet\ndef f(): pass\nimport nothing_like_it\n")
    project.write("c_breaks_too.py", "import fakenet\ndef f(): pass\nimport nothing_like_it\n")
    project.write(
        "fetches.py",
        "from fakenet import Model\nfrom urllib.request import urlopen\n"
        "def fetched() -> Model: return urlopen('http://192.0.2.1/weights')\n",
    )
    project.write(
        "d_builder_dies.py",
        "from fakenet import Model\nimport os\ndef dies() -> Model: os._exit(0)\ndef lives(): return Model(dense=(32, 7))\n",
    )
    project.write("e_hangs.py", "from fakenet import Model\nimport time\ndef hangs() -> Model: time.sleep(600)\n")
    project.write("f_raises.py", "from fakenet import Model\ndef raises() -> Model: raise ValueError('no\\x1b[2J')\n")
    project.write(
        "g_prints.py",
        "from fakenet import Model\nprint('::error::owned')\ndef loud():\n    print('x' * 10_000)\n    return Model(dense=(32, 9))\n",
    )
    project.write(
        "h_same.py", "from zoo import small\ndef same(): return small()\ndef delete():\n    open('deleted', 'w')\n"
    )
    done = init(project, "--timeout", "3")
    assert done.code == 0, done.err
    assert not (project.path / "deleted").exists()
    head, _, left = done.out.partition("left out:\n")
    head, _, comments = head.partition("as comments, to be filled in:\n")
    assert [line.split() for line in head.splitlines()] == [
        ["wrote", "modelbudget.yaml", "with", "5", "models:"],
        ["lives", "224", "params", "d_builder_dies:lives"],
        ["loud", "288", "params", "g_prints:loud"],
        ["same", "2,048", "params", "h_same:same"],
        ["tiny-net", "256", "params", "pkg.nets:TinyNet"],
        ["two-layers", "2,688", "params", "zoo:two_layers"],
    ]
    assert left.splitlines() == [
        "  ended the process (exit code 3): a_dies.py",
        "  cannot be imported: SystemExit: bye: b_leaves.py",
        "  2 x cannot be imported: ModuleNotFoundError: No module named 'nothing_like_it': c_breaks.py, c_breaks_too.py",
        "  the same model as another one: zoo:small",
        "next: modelbudget update",
    ]
    assert comments.splitlines() == [
        "  ended the process (exit code 0): d_builder_dies:dies",
        "  took longer than 3 s: e_hangs:hangs",
        "  cannot be built: ValueError: no\\x1b[2J: f_raises:raises",
        "  cannot be built: wants to fetch something, and init uses no network: fetches:fetched",
        "  needs arguments that nothing is known of: zoo:of_width",
    ]
    assert "fetches:fetched: building" in done.err
    written = (project.path / "modelbudget.yaml").read_text(encoding="utf-8")
    assert "# took longer than 3 s\n#  hangs:\n#    build: e_hangs:hangs\n" in written
    loaded = load(project.path / "modelbudget.yaml", file="modelbudget.yaml")
    assert loaded.mistakes == ()
    limits = {entry.id: {one.metric: one.limit for one in entry.parsed_budgets} for entry in loaded.entries}
    assert limits["same"] == {"params": 2_300, "weight_bytes": 9_100, "flops": 4_600}  # 2,252.8  9,011.2  4,505.6


def test_a_manifest_that_is_there_is_kept(project: Project, modelbudget: Command) -> None:
    """Also one of another name; `--force` writes over it. With no time left one model that runs is enough."""
    project.manifest("models: {}\n")
    for words in ((), ("--file", "modelbudget.yml")):
        done = modelbudget("init", *words)
        assert (done.code, done.out) == (2, "")
        assert "modelbudget.yaml is there already" in done.err
    assert (project.path / "modelbudget.yaml").read_text(encoding="utf-8") == "models: {}\n"
    done = init(project, "--force", "--headroom", "0%", "--total", "0")
    assert done.code == 0
    assert "params: 2.1k" in (project.path / "modelbudget.yaml").read_text(encoding="utf-8")
    assert "  2 x not tried: 0 s were over (--total SECONDS gives it more): zoo:of_width, zoo:two_layers\n" in done.out


def test_nothing_found_writes_nothing(project: Project) -> None:
    """Code 2, and what was left out."""
    project.write("zoo.py", "from fakenet import Model\nthere = Model(dense=(1, 2))\ndef f(): pass\n")
    done = init(project)
    assert (done.code, done.out) == (2, "")
    assert "no model was found that can be registered; nothing is written" in done.err
    assert "a model that is there already: write a function that returns it: zoo:there" in done.err
    assert not (project.path / "modelbudget.yaml").exists()


@pytest.mark.slow
def test_a_class_of_a_file_that_is_not_imported_is_a_comment(project: Project) -> None:
    """With the error; the manifest is right, and empty."""
    project.write("zoo.py", "import nothing_like_it\nfrom torch import nn\nclass Net(nn.Module): ...\n")
    done = init(project)
    assert done.code == 0, done.err
    text = (project.path / "modelbudget.yaml").read_text(encoding="utf-8")
    assert "models: {}\n" in text
    assert (
        "# cannot be imported: ModuleNotFoundError: No module named 'nothing_like_it'\n#  zoo:\n#    build: zoo:Net"
        in text
    )
    assert load(project.path / "modelbudget.yaml", file="modelbudget.yaml").mistakes == ()


def test_an_interrupt_keeps_what_was_found(project: Project) -> None:
    """And says where it came."""
    project.write("zoo.py", "from fakenet import Model\ndef small(): return Model(dense=(32, 8))\n")
    project.write("zzz.py", "from fakenet import Model\ndef stops() -> Model: raise KeyboardInterrupt\n")
    done = init(project)
    assert done.code == 0, done.err
    assert "zoo:small" in done.out
    assert "interrupted, and nothing after it was tried: zzz:stops" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["gone"], "there is no gone", id="no such folder"),
        pytest.param([".."], "is not below this folder", id="a folder above"),
        pytest.param(["--headroom", "10"], "95%", id="no unit"),
        pytest.param(["--file", "x.toml"], "a manifest is a .yaml file", id="another format"),
    ],
)
def test_wrong_words(modelbudget: Command, words: list[str], said: str) -> None:
    """Code 2, before anything is imported."""
    done = modelbudget("init", *words)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


@pytest.mark.slow
def test_only_where_it_is_told_to_look(project: Project) -> None:
    """A folder or a file."""
    project.write("pkg/nets.py", "from fakenet import Model\ndef net(): return Model(dense=(32, 8))\n")
    done = init(project, "pkg")
    assert done.code == 0, done.err
    text = (project.path / "modelbudget.yaml").read_text(encoding="utf-8")
    assert "build: pkg.nets:net" in text
    assert "zoo:" not in text


@pytest.mark.slow
def test_torch_and_keras(tmp_path: Path) -> None:
    """Real models: guessed inputs run, Keras models know theirs, and the manifest is green after an update.

    Counted by hand: Conv2d 3*3*3*16 + 16 = 448 with Linear 16*10 + 10 = 170; LeNet 156 + 2,416 + 4,010 = 6,582 (its
    Linear fits images of 28); Dense 20*32 + 32 + 33 = 705; resnet18 as published, 11,689,512; Linear 4*4 + 4 = 20; Conv2D
    3*3*3*4 + 4 = 112 with Dense 4*3 + 3 = 15; a matrix of 4*3 = 12.
    """
    (tmp_path / "torch_nets.py").write_text(
        dedent(
            """
            from torch import nn

            def tiny() -> nn.Module:
                return nn.Sequential(
                    nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
                )

            class LeNet(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.first = nn.Conv2d(1, 6, 5, padding=2)
                    self.second = nn.Conv2d(6, 16, 5)
                    self.last = nn.Linear(400, 10)
                    self.pool = nn.MaxPool2d(2)

                def forward(self, x):
                    return self.last(self.pool(self.second(self.pool(self.first(x)))).flatten(1))

            class Twice(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.layer = nn.Linear(4, 4)

                def forward(self, left, right):
                    return self.layer(left) - self.layer(right)

            class Distance(nn.Module):
                def forward(self, left, right):
                    return left - right

            def resnet():
                import torchvision
                return torchvision.models.resnet18()
            """
        )
    )
    (tmp_path / "keras_nets.py").write_text(
        dedent(
            """
            import keras

            def mlp():
                model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(32), keras.layers.Dense(1)])
                model.compile()
                return model

            def unbuilt():
                return keras.Sequential([keras.layers.Conv2D(4, 3), keras.layers.Dense(3)])
            """
        )
    )

    (tmp_path / "tf_nets.py").write_text(
        dedent(
            """
            import tensorflow as tf
            import tf_keras

            class Legacy(tf_keras.Model):
                def __init__(self):
                    super().__init__()
                    self.widen = tf_keras.layers.Conv2D(4, 3)

                def call(self, x):
                    return self.widen(x)

            class Matrix(tf.Module):
                def __init__(self):
                    super().__init__()
                    self.kernel = tf.Variable(tf.zeros((4, 3)))

                def __call__(self, x):
                    return x @ self.kernel
            """
        )
    )

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join((str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")))
        return subprocess.run(
            [sys.executable, "-m", "pytest_modelbudget.cli", *words],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = command("init")
    assert done.returncode == 0, done.stderr
    found = {line.split()[0]: (line.split()[1], line.partition("guessed: ")[2]) for line in
             done.stdout.partition("left out:")[0].splitlines()[1:]}  # fmt: skip
    assert found == {
        "mlp": ("705", ""),
        "le-net": ("6,582", "float32[B, 1, 28, 28]"),
        "resnet": ("11,689,512", "float32[B, 3, 224, 224]"),
        "tiny": ("618", "float32[B, 3, 224, 224]"),
        "twice": ("20", '{left: "float32[B, 4]", right: "float32[B, 4]"}'),
        "unbuilt": ("127", "float32[B, 224, 224, 3]"),
        "legacy": ("112", "float32[B, 224, 224, 3]"),
        "matrix": ("12", "float32[B, 4]"),
    }
    assert "has no weights: torch_nets:Distance" in done.stdout
    assert command("check").returncode == 1
    updated = command("update")
    assert updated.returncode == 0, updated.stdout + updated.stderr
    assert command("check").returncode == 0
    assert "Total params: 6,582" in command("show", "le-net").stdout
    assert "mlp" in command("why", "mlp").stdout
    changed = command("diff", "torch_nets:LeNet", "le-net", "--inputs", "float32[B, 1, 28, 28]")
    assert (changed.returncode, changed.stdout) == (0, "torch_nets:LeNet -> le-net: nothing differs\n")
