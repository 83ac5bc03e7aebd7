"""What a builder is called with: plain values, and among them calls and names that a manifest writes as mappings.

`{call: "module:Config", args: [...], kwargs: {...}}` is what that call returns, `{ref: "module:name"}` what that name
stands for, and `{literal: {...}}` the mapping itself, for one that would be read as one of these. They stand anywhere
in lists and mappings, and inside each other. Any other value is handed on as it is.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

from pytest_modelbudget.errors import ModelBudgetError, Place, did_you_mean

Keys = tuple[str | int, ...]

REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""`module:name`, the name with dots where it is an attribute of another."""

_CALL_KEYS = ("call", "args", "kwargs")
_LITERAL_HINT = "; a mapping that is no call is written {literal: {...}}"


@dataclass(frozen=True, slots=True)
class Reference:
    """What `module:name` stands for; `where` are the keys it was written under, and `called` says that it will be."""

    name: str
    where: str
    place: Place | None = None
    called: bool = False


@dataclass(frozen=True, slots=True)
class ArgCall:
    """What `target` returns for these arguments."""

    target: Reference
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LiteralArgument:
    """A value that is handed on as it is, whatever it looks like."""

    value: Any


def mistakes(value: object, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """What is wrong with a value as it was written at `keys`: the keys of each mistake, and what to write."""
    match _written_as(value):
        case "call":
            yield from _mistakes_of_call(value, keys)
        case "ref":
            yield from _mistakes_of_name(value, "ref", keys)
        case "literal":
            return
        case _:
            yield from mistakes_inside(value, keys)


def mistakes_inside(value: object, keys: Keys) -> Iterator[tuple[Keys, str]]:
    """The same for all items of a list or mapping, which is itself handed on."""
    for key, item in _items(value):
        yield from mistakes(item, (*keys, key))


def _mistakes_of_call(value: Any, keys: Keys) -> Iterator[tuple[Keys, str]]:
    yield from _mistakes_of_name(value, "call", keys)
    for name in value:
        if name not in _CALL_KEYS:
            hint = did_you_mean(name, _CALL_KEYS)
            message = f"{_dotted(keys)}: unknown key {name!r}{hint}; a call has {', '.join(_CALL_KEYS)}{_LITERAL_HINT}"
            yield (*keys, name), message
    for name, kind, example in (("args", list, "a list"), ("kwargs", dict, "a mapping of names to values")):
        if not isinstance(items := value.get(name, kind()), (list, tuple) if kind is list else kind):
            yield (*keys, name), f"{_dotted((*keys, name))}: write {example}, not {items!r}"
        else:
            yield from mistakes_inside(items, (*keys, name))


def _mistakes_of_name(value: Any, name: str, keys: Keys) -> Iterator[tuple[Keys, str]]:
    text = value[name]
    if _is_reference(text):
        return
    expected = "module:callable" if name == "call" else "module:name"
    module, _, last = str(text).rpartition(".")
    suggestion = f"{module}:{last}"
    hint = f", did you mean {suggestion!r}" if isinstance(text, str) and _is_reference(suggestion) else ""
    yield (*keys, name), f"{_dotted((*keys, name))}: {text!r} is not a reference: write {expected}{hint}{_LITERAL_HINT}"


def _written_as(value: object) -> str | None:
    """What a value is written as: `call`, `ref`, `literal`, or None for one that is handed on."""
    if type(value) is not dict:
        return None
    if "call" in value and (set(value) <= set(_CALL_KEYS) or _is_reference(value["call"])):
        return "call"
    return next((name for name in ("ref", "literal") if set(value) == {name}), None)


def _is_reference(value: object) -> bool:
    return isinstance(value, str) and REFERENCE.fullmatch(value) is not None


def _items(value: object) -> Iterator[tuple[str | int, Any]]:
    if type(value) is dict:
        yield from value.items()
    elif type(value) in (list, tuple):
        yield from enumerate(value)  # type: ignore[arg-type]


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))


def read(value: Any, keys: Keys, place: Callable[[Keys], Place | None]) -> Any:
    """A list or mapping of arguments with each call and name in it as a `ArgCall` and `Reference`; read again it stays.

    `keys` is where it was written, and `place` says in which line that is.

    Raises:
        ModelBudgetError: the first of its `mistakes`.
    """
    for mistake_keys, message in mistakes_inside(value, keys):
        location = place(mistake_keys)
        raise ModelBudgetError(f"{f'{location}: ' if location else ''}{message}")
    return _read_inside(value, keys, place)


def _read(value: Any, keys: Keys, place: Callable[[Keys], Place | None]) -> Any:
    match _written_as(value):
        case "call":
            inner_keys = (*keys, "call")
            target = Reference(value["call"], _dotted(inner_keys), place(inner_keys), called=True)
            args = _read_inside(tuple(value.get("args", ())), (*keys, "args"), place)
            return ArgCall(target, args, _read_inside(value.get("kwargs", {}), (*keys, "kwargs"), place))
        case "ref":
            inner_keys = (*keys, "ref")
            return Reference(value["ref"], _dotted(inner_keys), place(inner_keys))
        case "literal":
            return LiteralArgument(value["literal"])
        case _:
            return _read_inside(value, keys, place)


def _read_inside(value: Any, keys: Keys, place: Callable[[Keys], Place | None]) -> Any:
    return _map_items(value, lambda key, item: _read(item, (*keys, key), place))


def _map_items(value: Any, change: Callable[[str | int, Any], Any]) -> Any:
    """A list, tuple or mapping with its items changed; the same object where none was."""
    changed = {key: change(key, item) for key, item in _items(value)}
    if all(changed[key] is item for key, item in _items(value)):
        return value
    return changed if type(value) is dict else type(value)(changed.values())


def bind_arguments(
    build: Callable[..., object], args: tuple[Any, ...], kwargs: Mapping[str, Any], find: Callable[[Reference], Any]
) -> Callable[..., object]:
    """A builder that is called with these arguments as they were read, and makes the calls in them when it is called.

    What they name is imported here and now, by `find`: code of a module that is imported while a model is built without
    memory would be run without memory too. Each call is made once whenever the builder is called.

    Raises:
        ModelBudgetError: a name that is not there, or a call of what cannot be called like this.
    """
    targets = {reference: find(reference) for value in (args, dict(kwargs)) for reference in _references(value)}
    if not targets and not any(_has_literal(value) for value in (args, dict(kwargs))):
        return build

    @wraps(build, updated=())
    def call(*args: Any, **kwargs: Any) -> object:
        return build(*_evaluate(args, targets), **_evaluate(kwargs, targets))

    return call


def _references(value: Any) -> Iterator[Reference]:
    match value:
        case Reference():
            yield value
        case ArgCall(target, args, kwargs):
            yield target
            yield from _references(args)
            yield from _references(kwargs)
        case _:
            for _, item in _items(value):
                yield from _references(item)


def _has_literal(value: Any) -> bool:
    return isinstance(value, LiteralArgument) or any(_has_literal(item) for _, item in _items(value))


def _evaluate(value: Any, targets: Mapping[Reference, Any]) -> Any:
    match value:
        case LiteralArgument(plain):
            return plain
        case Reference():
            return targets[value]
        case ArgCall(target, args, kwargs):
            return _call_target(target, targets[target], _evaluate(args, targets), _evaluate(kwargs, targets))
        case _:
            return _map_items(value, lambda _, item: _evaluate(item, targets))


def _call_target(target: Reference, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    location = f"{f'{target.place}: ' if target.place else ''}{target.where}"
    check_call(function, args, kwargs, f"{location}: {target.name}")
    try:
        return function(*args, **kwargs)
    except Exception as error:
        vars(error).setdefault("__notes__", []).append(f"{target.name} is called at {location}")
        raise


def check_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> None:
    """Nothing, when `function` takes these arguments.

    Raises:
        ModelBudgetError: it does not, with what is wrong; `name` is what it is called in the message.
    """
    try:
        signature = _signature(function)
    except (TypeError, ValueError):  # some callables of C have none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as mistake:
        raise ModelBudgetError(
            f"{name} cannot be called like this: {mistake}; its arguments are given as args or kwargs"
        ) from None


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """What `function` takes. Of a method that wraps a bound method, `inspect` would leave out an argument too many."""
    method = inspect.unwrap(function, stop=inspect.ismethod)
    twice = inspect.ismethod(method) and inspect.ismethod(inspect.unwrap(method.__func__, stop=inspect.ismethod))
    return inspect.signature(method, follow_wrapped=False) if twice else inspect.signature(function)
