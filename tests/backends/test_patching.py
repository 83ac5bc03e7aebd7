"""Whatever is patched is as before, in whichever order that is left; and nothing is patched in another way."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import pytest_modelbudget
from pytest_modelbudget.backends.patching import SharedChange, all_patched, exchanged, patch_all, patched

ROOT = Path(pytest_modelbudget.__file__).parent


class Base:
    """Has a name that others inherit."""

    name = "inherited"


@pytest.mark.parametrize("first", [0, 1])
def test_patches_of_one_name_are_left_in_any_order(first: int) -> None:
    """The one that is left over holds, and at the end the name is inherited again."""
    owner = type("Owner", (Base,), {})
    patches = [patched(owner, "name", "below"), patched(owner, "name", "above")]
    for patch in patches:
        patch.__enter__()
    assert owner.name == "above"
    patches[first].__exit__()
    assert owner.name == ("above", "below")[first]
    patches[1 - first].__exit__()
    assert (owner.name, "name" in vars(owner)) == ("inherited", False)


def test_a_patch_that_serves_all_threads_keeps_one_that_is_below_it() -> None:
    """Also when that one is left first."""
    owner = SimpleNamespace(name="own")
    shared = SharedChange(lambda: patch_all([(owner, "name", "shared")]))
    with shared.inside():
        with patched(owner, "name", "above"):
            assert owner.name == "above"
        assert owner.name == "shared"
    assert owner.name == "own"


def test_none_of_several_stays_patched_when_one_cannot_be() -> None:
    """A built-in type takes no attributes."""
    owner = SimpleNamespace(name="own")
    for many in (lambda: patch_all([(owner, "name", "new"), (int, "name", "new")]), lambda: _enter(owner)):
        with pytest.raises(TypeError):
            many()
        assert owner.name == "own"


def _enter(owner: object) -> None:
    with all_patched([(owner, "name", "new"), (int, "name", "new")]):
        pass


def test_what_is_exchanged_is_old_again_in_modules_that_were_imported_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is called the same and is something else stays."""
    before, other, late = (ModuleType(f"exchanging.{name}") for name in ("before", "other", "late"))
    vars(before)["device"], vars(other)["device"] = "old", "another"
    for module in (before, other):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    with exchanged("exchanging", {"device": "old"}, {"device": "new"}):
        vars(late)["device"] = vars(before)["device"]
        monkeypatch.setitem(sys.modules, late.__name__, late)
    assert [vars(module)["device"] for module in (before, other, late)] == ["old", "another", "old"]


SET_OTHERWISE = {
    "sys.stdout": "who prints has the stream anew each time",
    "sys.stderr": "who prints has the stream anew each time",
    "sys.stdin": "a worker's own",
    "sys.path": "a list that is searched, not a function",
    "torch.utils.deterministic.fill_uninitialized_memory": "a property of its module, and a setting",
    "torch._GLOBAL_DEVICE_CONTEXT.device_context": "a setting",
    "setattr in backends/jax/flax_nnx.py": "modules of a copy are marked",
    "setattr in backends/keras/private.py": "the state of Keras is put back",
    "setattr in backends/keras/private_torch.py": "a variable is marked",
    "setattr in backends/keras_content/__init__.py": "a model is marked",
    "setattr in backends/patching.py": "here",
    "setattr in backends/torch/distributed/fake_world.py": "what torch sets itself is put back",
    "setattr in backends/torch/model/meta_tensors.py": "marks are copied with their tensor",
    "setattr in backends/torch/serving/mixers.py": "layers of a model of the plan's own are cut",
    "setattr in backends/torch/training/adapters.py": "pairs of a model of the plan's own are taken off",
    "setattr in backends/torch/training/float8.py": "layers of a model of the plan's own are put back",
    "setattr in backends/torch/model/settings.py": "the state of torch is put back",
    "setattr in system/streams.py": "a process without streams",
}
"""What is set on the modules and classes of others and is no patch, and why not."""


def test_nobody_patches_in_another_way() -> None:
    """An attribute of something that is imported, or got by `setattr`, is set by `patched` alone."""
    found = {name for path in ROOT.rglob("*.py") for name in _set_on_others(path)}
    assert found == set(SET_OTHERWISE)


def _set_on_others(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):  # `layer = keras.layers.Layer`
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and _root(node.value) in imported:
            imported |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del) and _root(node) in imported:
            yield ast.unparse(node)
        if isinstance(node, ast.Name) and node.id in ("setattr", "delattr"):
            yield f"setattr in {path.relative_to(ROOT).as_posix()}"


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
