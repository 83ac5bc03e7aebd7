"""What `modelbudget init` reads in files: values, calls with what models are called with, options, settings."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.cli.discover.source.calls import WrittenCall
from pytest_modelbudget.cli.discover.source.evidence import gather
from pytest_modelbudget.cli.discover.source.values import Scope, Unreadable, value_of

SCOPE = Scope(
    "pkg.nets",
    {"nn": "torch:nn", "torch": "torch", "Config": "pkg.config:Config"},
    frozenset(("Net",)),
    {"WIDTH": [(1, ast.parse("8", mode="eval").body)]},
    frozenset(("width",)),
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("-3", -3, id="a number"),
        pytest.param("4 * 16 // 2", 32, id="arithmetic"),
        pytest.param("[1, (2, 3)]", [1, {"call": "builtins:tuple", "args": [[2, 3]]}], id="a tuple is a call"),
        pytest.param("{'a': None}", {"a": None}, id="a mapping"),
        pytest.param("{'call': 'ring'}", {"literal": {"call": "ring"}}, id="a mapping that looks like a call"),
        pytest.param("dict(a=True)", {"a": True}, id="a mapping by names"),
        pytest.param("WIDTH", 8, id="a variable"),
        pytest.param("torch.float32", {"ref": "torch:float32"}, id="what a module has"),
        pytest.param("nn.GELU", {"ref": "torch:nn.GELU"}, id="what a member has"),
        pytest.param("Net", {"ref": "pkg.nets:Net"}, id="a class of the file"),
        pytest.param("Config(depth=2)", {"call": "pkg.config:Config", "kwargs": {"depth": 2}}, id="a call"),
    ],
)
def test_values_are_read_as_a_manifest_has_them(text: str, value: object) -> None:
    """Calls and names among them are written out."""
    tree = ast.parse(f"\n{text}").body[0]
    assert isinstance(tree, ast.Expr)
    assert value_of(tree.value, SCOPE) == value


@pytest.mark.parametrize(
    "text", ["width", "unknown", "Net(**options)", "[x for x in y]", "1 / 0", "b'x'", "9 ** 9 ** 9", "1e999"]
)
def test_other_expressions_are_not_read(text: str) -> None:
    """Nothing is made up, and nothing large is computed."""
    tree = ast.parse(f"\n{text}").body[0]
    assert isinstance(tree, ast.Expr)
    with pytest.raises(Unreadable):
        value_of(tree.value, SCOPE)


def calls_of(tmp_path: Path, name: str, files: dict[str, str]) -> list[WrittenCall]:
    """The calls of a name in a project of these files."""
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    return gather(tmp_path).calls.get(name, [])


CODE = "import torch\nfrom nets import Net\n\nnet = Net(3, depth = 2)\nimg = torch.randn(4, 3, 8, 8)\nnet(img)\n"


@pytest.mark.parametrize(
    ("path", "text", "line"),
    [
        pytest.param("README.md", f"```bash\npip install nets\n```\n\n```python\n{CODE}```\n", 9, id="a README"),
        pytest.param("docs/use.rst", "Use\n\n.. code-block:: python\n\n    " + CODE.replace("\n", "\n    ") + "\n", 8, id="a manual"),
        pytest.param("tests/test_nets.py", "def test_net():\n    " + CODE.replace("\n", "\n    "), 5, id="a test"),
        pytest.param("demo.py", CODE, 4, id="a script"),
        pytest.param(
            "nets.py", 'class Net:\n    """A net.\n\n    ```\n    ' + CODE.replace("\n", "\n    ") + '```\n    """\n', 8, id="a docstring"
        ),
    ],
)  # fmt: skip
def test_a_call_is_read_where_somebody_wrote_it(tmp_path: Path, path: str, text: str, line: int) -> None:
    """With the line, and what the model is called with: the batch by its name, and as it is."""
    [call] = calls_of(tmp_path, "Net", {path: text})
    assert (call.target, call.args, call.kwargs, call.complete) == ("nets:Net", [3], {"depth": 2}, True)
    assert call.inputs == ("float32[B, 3, 8, 8]", "float32[4, 3, 8, 8]")
    assert call.where == f"{path}:{line}"


@pytest.mark.parametrize(
    ("use", "inputs"),
    [
        pytest.param("net(torch.zeros((2, 5), dtype=torch.long))", "int64[B, 5]", id="a dtype"),
        pytest.param("net(torch.randint(0, 9, (2, 5)).cuda())", "int64[B, 5]", id="ids, moved"),
        pytest.param(
            "net(torch.ones(2, 5).bool(), scale=2)", {"args": ["bool[B, 5]"], "kwargs": {"scale": 2}}, id="both"
        ),
        pytest.param("net({'a': torch.rand(2, 1)})", [{"a": "float32[B, 1]"}], id="a mapping"),
        pytest.param("net(torch.rand(2, 3), torch.rand(7, 3))", ["float32[B, 3]", "float32[7, 3]"], id="two"),
        pytest.param("net(load())", None, id="something else"),
    ],
)
def test_what_a_model_is_called_with(tmp_path: Path, use: str, inputs: Any) -> None:
    """Tensors by shape and dtype; nothing where one of them is not seen."""
    [call] = calls_of(tmp_path, "Net", {"demo.py": f"import torch\nfrom nets import Net\nnet = Net()\n{use}\n"})
    assert (call.inputs[0] if call.inputs else None) == inputs


def test_a_model_inside_a_model(tmp_path: Path) -> None:
    """A variable that is a model is the call that made it."""
    text = "from nets import Net, Wrap\nnet = Net(dim=4)\nwrapped = Wrap(net, ratio=0.5)\n"
    [call] = calls_of(tmp_path, "Wrap", {"demo.py": text})
    assert call.args == [{"call": "nets:Net", "kwargs": {"dim": 4}}]


def test_defaults_of_a_command_line(tmp_path: Path) -> None:
    """By the name that the program has them under, flags as they are when they are not given."""
    options = "p.add_argument('--hidden-dim', default=2 * 8)\np.add_argument('--masks', action='store_true')\np.add_argument('file')\n"
    (tmp_path / "main.py").write_text(f"import argparse\np = argparse.ArgumentParser()\n{options}", encoding="utf-8")
    [defaults] = gather(tmp_path).parsers
    assert (defaults.where, defaults.values) == ("main.py:3", {"hidden_dim": 16, "masks": False})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("model.yaml", "dim: 4\nnet:\n  _target_: pkg.nets.Net\n  dim: ${dim}\n  inner: {_target_: pkg.nets.Part}\n", id="Hydra"),
        pytest.param(
            "run.yaml", "net:\n  class_path: pkg.nets.Net\n  init_args: {dim: 4, inner: {class_path: pkg.nets.Part}}\n", id="Lightning"
        ),
        pytest.param("run.json", '{"target": "pkg.nets.Net", "params": {"dim": 4, "inner": {"target": "pkg.nets.Part"}}}', id="JSON"),
    ],
)  # fmt: skip
def test_settings_that_name_what_they_build(tmp_path: Path, name: str, text: str) -> None:
    """In each of the usual ways, with what is inside."""
    [call] = calls_of(tmp_path, "Net", {name: text})
    assert call.target == "pkg.nets:Net"
    assert call.kwargs == {"dim": 4, "inner": {"call": "pkg.nets:Part"}}


def test_settings_that_are_the_arguments(tmp_path: Path) -> None:
    """A mapping that has all that a builder needs, wherever it stands."""
    (tmp_path / "config.yaml").write_text("model: {dim: 4, depth: 2}\nlr: 0.1\n", encoding="utf-8")
    [settings] = gather(tmp_path).of("Net", ("dim", "depth"))["settings"]
    assert settings == {"where": "config.yaml", "values": {"dim": 4, "depth": 2}}
    assert gather(tmp_path).of("Net", ("dim", "heads"))["settings"] == []
