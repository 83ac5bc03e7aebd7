"""Which files and names of a project `modelbudget init` takes for builders of models, and which it leaves out."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_modelbudget.cli.discover.proposals.builders import candidates
from pytest_modelbudget.cli.discover.source.scan import scan
from tests.cli.conftest import Command

BUILDERS = '''
    import os
    from typing import TYPE_CHECKING

    import fakenet
    from fakenet import Model

    if TYPE_CHECKING:
        from nowhere import Unknown

    class Net(Model):
        def __init__(self):
            super().__init__(dense=(32, 64))

    class Block(Model):
        def __init__(self, width=3):
            super().__init__(dense=(3, width))

    class Nested(Model):
        def __init__(self):
            self.block = Block()

    class Sized(Model):
        def __init__(self, width):
            super().__init__(dense=(32, width))

    def annotated() -> Model: return make("any")
    def unknown() -> "Unknown": return Net()
    def direct(): return Net()
    def by_module(): return fakenet.Model(dense=(1, 1))
    def chained(): return Net().eval()
    def through(): return direct()
    def one_of(wide=False): return Net() if wide else Block()
    def variable():
        model = Net()
        model.name = "x"
        return model
    def typed():
        model: Model = Net()
        return model
    def in_branch(kind="a"):
        if kind == "a":
            return Net()
        raise ValueError(kind)
    def in_with():
        with open(os.devnull):
            return Net()
    def needs(width): return Net()
    def width_1(): return fakenet.Model(dense=(1, 8))
    def width_2():
        """Another."""
        return fakenet.Model(dense=(2, 8))
    WIDTHS = {"narrow": 4, "wide": 64}
    def named(name): return Net() if name in WIDTHS else Block()
    def only_named(*, width): return Net()

    def make(kind): return {"a": Net}[kind]()
    def number(): return 3
    def text() -> str: return "x"
    def nothing(): Net()
    def dangerous(): os.remove("precious")
    def itself(): return itself()
    def inner():
        def build():
            return Net()
        return build
    async def later(): return Net()
    def many(): yield Net()
    def _private(): return Net()

    there = Net()
'''
FOUND = {
    "Net", "Block", "Nested", "Sized", "annotated", "unknown", "direct", "by_module", "chained", "through", "one_of",
    "variable", "typed", "width_1", "width_2", "in_branch", "in_with", "named", "needs", "only_named", "there",
}  # fmt: skip
LACKS = {
    "Block": "a part of other models",
    "there": "a model that is there already: write a function that returns it",
}
VARIANTS = [{"name": "narrow"}, {"name": "wide"}]


@pytest.fixture
def nets(modelbudget: Command) -> Iterator[object]:
    """The builders above as an imported module; none of them was called."""
    path = modelbudget.project.write("nets.py", BUILDERS)
    specification = importlib.util.spec_from_file_location("nets", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(modelbudget.project.path))
    specification.loader.exec_module(module)
    yield module
    sys.path.remove(str(modelbudget.project.path))


def test_what_plainly_builds_a_model_is_found_without_a_call(nets: object) -> None:
    """By annotation, by what is returned, by what that returns; nothing else is."""
    (source,), _ = scan(Path.cwd(), [Path.cwd() / "nets.py"])
    found = {one.name: one for one in candidates(nets, source.parts)}  # type: ignore[arg-type]
    assert set(found) == FOUND
    assert {name: one.lacks for name, one in found.items() if one.lacks} == LACKS
    assert {name: one.needs for name, one in found.items() if one.needs} == {
        "Sized": ("width",), "needs": ("width",), "only_named": ("width",), "named": ("name",)
    }  # fmt: skip
    assert list(found["named"].variants) == VARIANTS


def test_only_files_about_models_are_read(modelbudget: Command) -> None:
    """Those that import a framework, or a file that does; no tests, no environments, no hidden folders."""
    net = "from fakenet import Model\ndef net(): return Model(dense=(1, 1))\n"
    for name in ("pkg/nets.py", "tests/nets.py", "test_nets.py", "conftest.py", ".hidden/nets.py", "env/nets.py",
                 "node_modules/nets.py", "pkg/deep/__init__.py"):  # fmt: skip
        modelbudget.write(name, net)
    modelbudget.write("env/pyvenv.cfg", "")
    modelbudget.write("pkg/builders.py", "from .nets import net\ndef other(): return net()\n")
    modelbudget.write(
        "pkg/deep/more.py", "from ..builders import other\nfrom . import net\ndef third(): return net()\n"
    )
    modelbudget.write("tools.py", "import os\ndef clean(): os.remove('x')\n")
    modelbudget.write("constants.py", "import fakenet\nWIDTH = 3\n")
    (modelbudget.project.path / "zoo.py").unlink()
    found, left = scan(Path.cwd(), [Path.cwd()])
    assert [one.module for one in found] == ["pkg.builders", "pkg.deep", "pkg.deep.more", "pkg.nets"]
    assert left == []


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        pytest.param("a.py", "def f(:", "not Python", id="not Python"),
        pytest.param("my-nets.py", "import fakenet\ndef f(): pass", "its path is not a module name", id="a name"),
        pytest.param("a.py", "import fakenet\ndef f(): pass\nfor i in (1,):\n  f()", "(line 3: a loop)", id="a loop"),
        pytest.param("a.py", "import fakenet\ndef f(): pass\nf()", "(line 3: f())", id="a call of its own"),
        pytest.param("a.py", "import fakenet\ndef f(): pass\nm = f\nm.fit(3)", "(line 4: m.fit())", id="training"),
        pytest.param("a.py", "import fakenet\ndef f(): pass\nh = f().fit(3)", "(line 3: f().fit())", id="its result"),
    ],
)
def test_files_that_are_not_imported(modelbudget: Command, name: str, text: str, why: str) -> None:
    """A script would run; each is told with its reason."""
    (modelbudget.project.path / "zoo.py").unlink()
    (modelbudget.project.path / "fakenet.py").unlink()
    modelbudget.write(name, text)
    found, left = scan(Path.cwd(), [Path.cwd()])
    assert found == []
    [one] = left
    assert one.what == name
    assert why in one.why


def test_what_only_a_script_does_may_stand_under_its_guard(modelbudget: Command) -> None:
    """And settings are no reason to leave a file out."""
    modelbudget.write(
        "zoo.py",
        """
        import sys
        import fakenet
        sys.path.append("x")
        def f(): return fakenet.Model(dense=(1, 1))
        if __name__ == "__main__":
            f()
            for i in range(3):
                print(i)
        """,
    )
    found, left = scan(Path.cwd(), [Path.cwd() / "zoo.py"])
    assert ([one.module for one in found], left) == (["zoo"], [])


def test_of_functions_that_are_alike_a_few_are_tried(nets: object) -> None:
    """The same code but for literals; all of them when their file is named."""
    names = {"one_of": "", "only_named": "", "by_module": ""}
    lacking = {one.name: one.lacks for one in candidates(nets, frozenset(), alike=1)}  # type: ignore[arg-type]
    assert {name: lacking[name] for name in names} == names
    assert lacking["width_2"] == "like nets:by_module; name its file to have all of them"
    assert not any(one.lacks for one in candidates(nets, frozenset(), alike=None) if one.name == "width_2")  # type: ignore[arg-type]
