"""Which Python files of a project may define models, told without importing any."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pytest_modelbudget import backends
from pytest_modelbudget.cli.discover.source.snippets import parsed
from pytest_modelbudget.cli.discover.trial.outcomes import LeftOut
from pytest_modelbudget.cli.walk import project_files
from pytest_modelbudget.loading import UnreadableFile, read_bytes

_LIBRARIES = ("tensorflow", "tf_keras", "torchvision", "timm", "transformers", "lightning", "pytorch_lightning")

_MODEL_CLASSES = ("Module", "Model", "Sequential", "LightningModule", "PreTrainedModel")
_TEST_FOLDERS = frozenset(("tests", "test", "testing"))
_NOT_MODEL_FILES = frozenset(("conftest.py", "setup.py", "noxfile.py", "__main__.py"))
_SCRIPT_METHODS = frozenset(("fit", "fit_generator", "train", "main", "run", "backward"))
"""Methods that no module calls while it is imported unless it is a script."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One Python file: `module` is the name it is imported by, `parts` the names that its classes build inside.

    `model_classes` are its classes that look like models, for a file that cannot be imported.
    """

    path: str
    module: str
    parts: frozenset[str] = frozenset()
    model_classes: tuple[str, ...] = ()


def scan(root: Path, paths: Iterable[Path]) -> tuple[list[SourceFile], list[LeftOut]]:
    """The files at or below `paths` that may define models, by names from `root`, and those that cannot be imported."""
    trees: dict[str, tuple[SourceFile, ast.Module]] = {}
    left_out: list[LeftOut] = []
    for path in sorted(set(_python_files(root, paths))):
        relative_path = path.relative_to(root).as_posix()
        try:
            tree = parsed(read_bytes(path))
        except (OSError, UnreadableFile) as error:
            left_out.append(LeftOut(relative_path, str(error)))
            continue
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            left_out.append(LeftOut(relative_path, f"not Python ({error})"))
            continue
        module = module_name(root, path)
        parts = frozenset(_called_in_classes(tree))
        trees[module] = SourceFile(relative_path, module, parts, tuple(_model_classes(tree))), tree
    module_names = _modules_about_models(
        {name: set(_imported_modules(name, tree)) for name, (_, tree) in trees.items()}
    )
    sources = []
    for name in module_names:
        source, tree = trees[name]
        if not any(isinstance(node, (ast.ClassDef, ast.FunctionDef)) for node in tree.body):
            continue
        if reason := _why_not_importable(source, tree):
            left_out.append(LeftOut(source.path, reason))
        else:
            sources.append(source)
    return sources, left_out


def libraries() -> frozenset[str]:
    """Modules whose import shows that a file may be about models."""
    return frozenset((*backends.BACKENDS, *_LIBRARIES))


def _python_files(root: Path, paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        for file in project_files(path) if path.is_dir() else (path,):
            if file.suffix == ".py" and not is_test(file.relative_to(root)):
                yield file


def is_test(path: Path) -> bool:
    name = path.name
    if name in _NOT_MODEL_FILES or name.startswith("test_") or name.endswith("_test.py"):
        return True
    return any(part in _TEST_FOLDERS for part in path.parts[:-1])


def module_name(root: Path, path: Path) -> str:
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


def _called_in_classes(tree: ast.Module) -> Iterator[str]:
    """What classes call inside: `Block` of `self.block = Block(3)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for inner in ast.walk(node):
                match inner:
                    case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name != node.name:
                        yield name


def _model_classes(tree: ast.Module) -> Iterator[str]:
    """Classes that are derived from what is called like a class of models, or from one of these."""
    names = set(_MODEL_CLASSES)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(_last_name(base) in names for base in node.bases):
            names.add(node.name)
            yield node.name


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _imported_modules(module: str, tree: ast.Module) -> Iterator[str]:
    """Every module that it may import, in functions too, and the packages above each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            head = ".".join((*parents, *([node.module] if node.module else [])))
            names = [head, *(f"{head}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _modules_about_models(imports: dict[str, set[str]]) -> list[str]:
    """The modules that import a framework, or one of the project's own that does."""
    frameworks = libraries()
    modules = {name for name, imported in imports.items() if imported & frameworks}
    while importers := {name for name, imported in imports.items() if name not in modules and imported & modules}:
        modules |= importers
    return sorted(modules)


def _why_not_importable(source: SourceFile, tree: ast.Module) -> str:
    """Why a file is not imported; empty when it is."""
    if not all(part.isidentifier() for part in source.module.split(".")):
        return "its path is not a module name: rename it to import it"
    function_names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for node in tree.body:
        if action := _side_effect(node, function_names):
            return f"runs when it is imported (line {node.lineno}: {action}): put that under if __name__ == '__main__'"
    return ""


def _side_effect(node: ast.stmt, function_names: set[str]) -> str:
    """What a statement does that only a script does; empty for definitions, settings and constants."""
    if isinstance(node, (ast.For, ast.While)):
        return "a loop"
    if isinstance(node, (ast.Expr, ast.Assign)) and isinstance(node.value, ast.Call):
        called = node.value.func
        if isinstance(node, ast.Expr) and isinstance(called, ast.Name) and called.id in function_names:
            return f"{called.id}()"
        if isinstance(called, ast.Attribute) and called.attr in _SCRIPT_METHODS:
            return f"{ast.unparse(called)}()"
    return ""
