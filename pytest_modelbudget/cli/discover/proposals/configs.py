"""An argument that is a configuration: an object with the defaults of a class, a command line or a settings file."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pytest_modelbudget import backends
from pytest_modelbudget.cli.discover.proposals.names import function_of, function_tree, hints_of, known_names
from pytest_modelbudget.cli.discover.proposals.sizes import UnknownSize, usual_size
from pytest_modelbudget.cli.discover.source.values import as_call

_ARGUMENT = re.compile(r"(\w+_)?(config|configs|cfg|conf|args|opts?|options|hparams|hps?|params|dims|settings|spec)")
_CLASS = re.compile(
    r"\w*(Config|Configs|Configuration|Cfg|Conf|Args|Arguments|Options|Opts|HParams|Params|Dims|Dimensions|Settings)"
)
_DEFAULTS = re.compile(r"(get_)?default_?(config|cfg|args|params|options)|get_(config|cfg)")
_MOST_CLASSES = 4
_NAMESPACE = "argparse:Namespace"


@dataclass(frozen=True, slots=True)
class ArgumentValue:
    """A value for an argument, where it is from, and the names in it that are guesses."""

    value: Any
    origin: str
    guessed: tuple[str, ...] = ()


def config_values(
    build: Callable[..., Any], parameter: inspect.Parameter, evidence: Mapping[str, Any]
) -> Iterator[ArgumentValue]:
    """Configurations that an argument may be, the likeliest first; none where it does not look like one."""
    function = function_of(build)
    annotation = hints_of(function).get(parameter.name)
    if isinstance(annotation, type) and _is_config_class(annotation):
        yield from _instances(annotation)
        return
    if not _ARGUMENT.fullmatch(parameter.name.lower()):
        return
    attributes, keys = _read_names(function_tree(build), parameter.name)
    yield from _own_defaults(build)
    for config in _classes_near(build, attributes)[:_MOST_CLASSES]:
        yield from _instances(config)
    yield from _collected(attributes, keys, evidence, parameter.name)
    everywhere = _read_names(function_tree(sys.modules[build.__module__]), parameter.name)  # its parts are given it too
    yield from _guessed(everywhere[0] if attributes else everywhere[1], as_attributes=bool(attributes))


def _is_config_class(annotation: Any) -> bool:
    if not isinstance(annotation, type) or annotation.__module__ in ("builtins", "typing", "pathlib"):
        return False
    return not any(backend.is_class(annotation) for backend in backends.loaded()) and not _is_tensor(annotation)


def _is_tensor(kind: type) -> bool:
    return hasattr(kind, "dtype") and hasattr(kind, "shape")


def _instances(config: type) -> Iterator[ArgumentValue]:
    """A configuration by one of the names that its class knows, or with its defaults and guesses for the rest."""
    reference = f"{config.__module__}:{config.__qualname__}"
    if getattr(sys.modules.get(config.__module__), config.__qualname__, None) is not config:
        return
    required = required_parameters(config)
    if required:
        for name, method in inspect.getmembers(config, inspect.ismethod):
            first = next(iter(required_parameters(method)), "")
            if name.startswith("from_") and first and (names := known_names(method, first)):
                yield ArgumentValue(as_call(f"{reference}.{name}", [names[0]], {}), f"{config.__name__}.{name}")
    annotations = (
        {field.name: field.type for field in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else {}
    )
    try:
        kwargs = {name: usual_size(name, annotations.get(name, inspect.Parameter.empty)) for name in required}
    except UnknownSize:
        return
    origin = f"{config.__name__}, sizes guessed from their names" if required else f"defaults of {config.__name__}"
    yield ArgumentValue(as_call(reference, [], kwargs), origin, tuple(required))


def required_parameters(build: Callable[..., Any]) -> tuple[str, ...]:
    """The arguments that something cannot be called without."""
    try:
        parameters = inspect.signature(build).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    )


def _own_defaults(build: Callable[..., Any]) -> Iterator[ArgumentValue]:
    """What a method of the builder's class gives that is called like its defaults: `Net.get_default_config()`."""
    for name, value in list(vars(build).items()) if isinstance(build, type) else ():
        is_default = _DEFAULTS.fullmatch(name) and isinstance(value, (staticmethod, classmethod))
        if is_default and not required_parameters(getattr(build, name)):
            reference = f"{build.__module__}:{build.__qualname__}.{name}"
            yield ArgumentValue(as_call(reference, [], {}), f"{build.__name__}.{name}")


def _read_names(tree: ast.AST, parameter: str) -> tuple[frozenset[str], frozenset[str]]:
    """What code reads of an argument, as attributes and as keys."""
    attributes, keys, called = set(), set(), set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=owner, attr=name, ctx=ast.Load()) if _is_named(owner, parameter):
                attributes.add(name)
            case ast.Subscript(value=owner, slice=ast.Constant(value=str(name))) if _is_named(owner, parameter):
                keys.add(name)
            case ast.Call(func=ast.Attribute(attr=name)):
                called.add(name)
    return frozenset(attributes - called), frozenset(keys)


def _is_named(node: ast.expr, name: str) -> bool:
    match node:
        case ast.Name(id=own) | ast.Attribute(value=ast.Name(id="self"), attr=own):
            return own == name
    return False


def _classes_near(build: Callable[..., Any], attributes: frozenset[str]) -> list[type]:
    """Classes of configurations that the builder's module knows, or the project: those that have what is read first."""
    module = sys.modules.get(build.__module__)
    others = [other for other in _project_modules() if other is not module] if attributes else []
    modules = [module, *others] if module else []
    classes = [
        value
        for near in modules
        for value in list(vars(near).values())
        if isinstance(value, type) and _CLASS.fullmatch(value.__name__) and _is_config_class(value)
    ]
    missing = {config: len(attributes - _names_of(config)) for config in classes}
    fitting = [config for config in dict.fromkeys(classes) if not attributes or missing[config] < len(attributes)]
    return sorted(fitting, key=lambda config: (missing[config], not _share_a_name(config, build)))


def _names_of(config: type) -> frozenset[str]:
    parameters = required_parameters(config)
    try:
        parameters = tuple(inspect.signature(config).parameters)
    except (TypeError, ValueError):
        pass
    return frozenset((*parameters, *dir(config)))


def _share_a_name(config: type, build: Callable[..., Any]) -> bool:
    name = getattr(build, "__name__", "")
    return bool(name) and config.__name__.lower().startswith(name.lower())


def _project_modules() -> list[ModuleType]:
    root = Path.cwd()
    files = [(module, getattr(module, "__file__", None)) for module in list(sys.modules.values())]
    return [
        module
        for module, file in files
        if isinstance(file, str) and Path(file).is_relative_to(root) and "site-packages" not in file
    ]


def _collected(
    attributes: frozenset[str], keys: frozenset[str], evidence: Mapping[str, Any], parameter: str
) -> Iterator[ArgumentValue]:
    """An object, or a mapping, of the values that a command line or a settings file has for what is read."""
    wanted = attributes or keys
    sources: Sequence[Mapping[str, Any]] = (*evidence["parsers"], *evidence["settings"])
    for source in sources:
        if wanted and len(wanted & source["values"].keys()) > len(wanted) / 2:
            values = {name: source["values"][name] for name in _read_anywhere(parameter, source)}
            yield ArgumentValue(
                as_call(_NAMESPACE, [], values) if attributes else values, f"defaults of {source['where']}"
            )


def _guessed(names: frozenset[str], *, as_attributes: bool) -> Iterator[ArgumentValue]:
    """The usual size of each, and None for the others; nothing where less than half are told by their names."""
    guesses: dict[str, Any] = dict.fromkeys(sorted(names))
    for name in guesses:
        with suppress(UnknownSize):
            guesses[name] = usual_size(name)
    known = [name for name, size in guesses.items() if size is not None]
    if len(known) * 2 > len(guesses):
        value = as_call(_NAMESPACE, [], guesses) if as_attributes else guesses
        yield ArgumentValue(value, "sizes guessed from their names", tuple(known))


def _read_anywhere(parameter: str, source: Mapping[str, Any]) -> list[str]:
    """The names that the project's modules read of something called like the argument; not where they are declared."""
    declared = (Path.cwd() / source["where"].partition(":")[0]).resolve()
    pattern = re.compile(rf"\b{re.escape(parameter)}(?:\.(\w+)|\[[\"'](\w+)[\"']\])")
    read: set[str] = set()
    for module in _project_modules():
        if Path(str(module.__file__)).resolve() == declared:
            continue
        try:
            text = Path(str(module.__file__)).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        read |= {attribute or key for attribute, key in pattern.findall(text)}
    return [name for name in source["values"] if name in read]
