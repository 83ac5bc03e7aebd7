"""Which Python files of a project may define models, told without importing any."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pytest_modelbudget import backends
from pytest_modelbudget.cli.walk import files
from pytest_modelbudget.loading import Unreadable, read_bytes

_LIBRARIES = ("tensorflow", "tf_keras", "torchvision", "timm", "transformers", "lightning", "pytorch_lightning")

_TESTS = frozenset(("tests", "test", "testing"))
_NOT_MODELS = frozenset(("conftest.py", "setup.py", "noxfile.py", "__main__.py"))
_RUNS = frozenset(("fit", "fit_generator", "train", "main", "run", "backward"))
"""Methods that no module calls while it is imported unless it is a script."""


@dataclass(frozen=True, slots=True)
class Source:
    """One Python file: `module` is the name it is imported by, `parts` the names that its classes build inside."""

    path: str
    module: str
    parts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that is not registered, and why."""

    what: str
    why: str


def scan(root: Path, paths: Iterable[Path]) -> tuple[list[Source], list[LeftOut]]:
    """The files at or below `paths` that may define models, by names from `root`, and those that cannot be imported."""
    trees: dict[str, tuple[Source, ast.Module]] = {}
    left: list[LeftOut] = []
    for path in sorted(set(_python(root, paths))):
        shown = path.relative_to(root).as_posix()
        try:
            tree = ast.parse(read_bytes(path))
        except (OSError, Unreadable) as error:
            left.append(LeftOut(shown, str(error)))
            continue
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            left.append(LeftOut(shown, f"not Python ({error})"))
            continue
        module = _module(root, path)
        trees[module] = Source(shown, module, frozenset(_parts(tree))), tree
    about = _about_models({name: set(_imports(name, tree)) for name, (_, tree) in trees.items()})
    found = []
    for name in about:
        source, tree = trees[name]
        if not any(isinstance(node, (ast.ClassDef, ast.FunctionDef)) for node in tree.body):
            continue
        if wrong := _not_importable(source, tree):
            left.append(LeftOut(source.path, wrong))
        else:
            found.append(source)
    return found, left


def libraries() -> frozenset[str]:
    """Modules whose import shows that a file may be about models."""
    return frozenset((*backends.BACKENDS, *_LIBRARIES))


def _python(root: Path, paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        for file in files(path) if path.is_dir() else (path,):
            if file.suffix == ".py" and not _is_test(file.relative_to(root)):
                yield file


def _is_test(path: Path) -> bool:
    name = path.name
    if name in _NOT_MODELS or name.startswith("test_") or name.endswith("_test.py"):
        return True
    return any(part in _TESTS for part in path.parts[:-1])


def _module(root: Path, path: Path) -> str:
    """`pkg.nets` for `pkg/nets.py`, and for `src/pkg/nets.py` where `pkg` is installed."""
    parts = path.relative_to(root).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts
    if parts[0] == "src" and len(parts) > 1 and _is_installed(parts[1]):
        parts = parts[1:]
    return ".".join(parts)


def _is_installed(name: str) -> bool:
    try:
        return name.isidentifier() and find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _parts(tree: ast.Module) -> Iterator[str]:
    """What classes call inside: `Block` of `self.block = Block(3)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for inner in ast.walk(node):
                match inner:
                    case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                        yield name


def _imports(module: str, tree: ast.Module) -> Iterator[str]:
    """Every module that it may import, in functions too, and the packages above each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            head = ".".join((*above, *([node.module] if node.module else [])))
            names = [head, *(f"{head}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            pieces = name.split(".")
            yield from (".".join(pieces[:end]) for end in range(1, len(pieces) + 1))


def _about_models(imports: dict[str, set[str]]) -> list[str]:
    """The modules that import a framework, or one of the project's own that does."""
    known = libraries()
    about = {name for name, used in imports.items() if used & known}
    while more := {name for name, used in imports.items() if name not in about and used & about}:
        about |= more
    return sorted(about)


def _not_importable(source: Source, tree: ast.Module) -> str:
    """Why a file is not imported; empty when it is."""
    if not all(part.isidentifier() for part in source.module.split(".")):
        return "its path is not a module name: rename it to import it"
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in tree.body:
        if what := _acts(node, own):
            return f"runs when it is imported (line {node.lineno}: {what}): put that under if __name__ == '__main__'"
    return ""


def _acts(node: ast.stmt, own: set[str]) -> str:
    """What a statement does that only a script does; empty for definitions, settings and constants."""
    if isinstance(node, (ast.For, ast.While)):
        return "a loop"
    if isinstance(node, (ast.Expr, ast.Assign)) and isinstance(node.value, ast.Call):
        called = node.value.func
        if isinstance(node, ast.Expr) and isinstance(called, ast.Name) and called.id in own:
            return f"{called.id}()"
        if isinstance(called, ast.Attribute) and called.attr in _RUNS:
            return f"{ast.unparse(called)}()"
    return ""
