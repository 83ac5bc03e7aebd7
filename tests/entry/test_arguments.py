"""Calls and names among the arguments of a builder: how they are read, and when they are made."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any

import pytest

from pytest_modelbudget import ModelBudgetError, ModelEntry
from pytest_modelbudget.entry.arguments import LiteralArgument, bind_arguments, check_call, mistakes_inside, read

WIDTH = 64


@dataclass
class Config:
    """What a class takes."""

    width: int
    rope: object = None


def doubled(value: int) -> int:
    return 2 * value


NAMES = {"nets:Config": Config, "nets:doubled": doubled, "nets:WIDTH": WIDTH, "builtins:dict": dict}


def made(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a builder is called with when this is written."""
    entry = ModelEntry("net", lambda *args, **kwargs: (args, kwargs), args=args, kwargs=kwargs)
    assert callable(entry.build)
    build = bind_arguments(entry.build, entry.args, entry.kwargs, lambda reference: NAMES[reference.name])
    return build(*entry.args, **entry.kwargs)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        pytest.param({"call": "nets:Config", "args": [3]}, Config(3), id="with args"),
        pytest.param({"call": "nets:Config", "kwargs": {"width": 3}}, Config(3), id="with kwargs"),
        pytest.param({"call": "builtins:dict"}, {}, id="with nothing"),
        pytest.param({"ref": "nets:WIDTH"}, 64, id="a name"),
        pytest.param({"ref": "nets:doubled"}, doubled, id="the name of a function"),
        pytest.param([1, [{"call": "nets:doubled", "args": [4]}]], [1, [8]], id="in lists"),
        pytest.param((1, {"call": "nets:doubled", "args": (4,)}), (1, 8), id="in a tuple"),
        pytest.param({"a": {"b": {"call": "nets:doubled", "args": [4]}}}, {"a": {"b": 8}}, id="in mappings"),
        pytest.param(
            {"call": "nets:Config", "args": [{"call": "nets:doubled", "args": [{"ref": "nets:WIDTH"}]}]},
            Config(128),
            id="in each other",
        ),
        pytest.param(
            {"call": "nets:Config", "kwargs": {"width": 1, "rope": [{"call": "nets:Config", "args": [2]}]}},
            Config(1, [Config(2)]),
            id="in lists of each other",
        ),
        pytest.param({"literal": {"call": "nets:Config"}}, {"call": "nets:Config"}, id="the mapping itself"),
        pytest.param({"literal": {"ref": 1}}, {"ref": 1}, id="a mapping like a name"),
        pytest.param({"literal": {"literal": 1}}, {"literal": 1}, id="a mapping like the mapping itself"),
        pytest.param({"call": 3, "mode": "x"}, {"call": 3, "mode": "x"}, id="other keys beside call"),
        pytest.param({"ref": 3, "mode": "x"}, {"ref": 3, "mode": "x"}, id="other keys beside ref"),
        pytest.param("nets:Config", "nets:Config", id="text"),
    ],
)
def test_what_is_written_becomes_a_value(written: object, value: object) -> None:
    """As a positional and as a named argument; the entry is read again when it is replaced, with the same outcome."""
    assert made(written, other=written) == ((value,), {"other": value})


def test_the_builders_own_arguments_may_be_called_like_that() -> None:
    """`call`, `ref` and `args` as names of what a builder takes are names and nothing else."""
    assert made(call="nets:Config", args=[1]) == ((), {"call": "nets:Config", "args": [1]})
    assert made(ref=1) == ((), {"ref": 1})
    assert made({"call": "builtins:dict", "kwargs": {"ref": 1}}) == (({"ref": 1},), {})


def test_other_values_are_handed_on_as_they_are() -> None:
    """The very objects: lists and mappings without a call in them, and containers of classes of their own."""
    special = OrderedDict(call="nets:Config")
    plain = [{"deep": [1]}]
    (first, second), _ = made(special, plain)
    assert first is special
    assert second is plain


def test_calls_are_made_once_for_each_model() -> None:
    """Not when the entry is read or the names are looked up, and once more when the builder is called again."""
    calls: list[int] = []
    entry = ModelEntry("net", lambda config: config, args=({"call": "nets:Config", "args": [1]},))
    assert callable(entry.build)
    build = bind_arguments(entry.build, entry.args, entry.kwargs, lambda _: calls.append)
    assert calls == []
    build(*entry.args)
    build(*entry.args)
    assert calls == [1, 1]


def test_a_builder_without_calls_stays_itself() -> None:
    """Nothing is put around it."""
    assert bind_arguments(doubled, (1, [2]), {"a": {"b": 3}}, NAMES.__getitem__) is doubled


@pytest.mark.parametrize(
    ("written", "keys", "words"),
    [
        pytest.param(
            {"call": "GPT2Config"},
            "a.call",
            "a.call: 'GPT2Config' is not a reference: write module:callable",
            id="form",
        ),
        pytest.param(
            {"call": "transformers.GPT2Config"}, "a.call", "did you mean 'transformers:GPT2Config'", id="dots"
        ),
        pytest.param(
            {"call": 3, "args": []}, "a.call", "a mapping that is no call is written {literal: {...}}", id="no call"
        ),
        pytest.param(
            {"call": "x:y", "kwarg": {}}, "a.kwarg", "unknown key 'kwarg', did you mean 'kwargs'", id="a typo"
        ),
        pytest.param({"call": "x:y", "args": {}}, "a.args", "a.args: write a list, not {}", id="args"),
        pytest.param({"call": "x:y", "args": None}, "a.args", "a.args: write a list, not None", id="args null"),
        pytest.param({"call": "x:y", "kwargs": [1]}, "a.kwargs", "write a mapping of names to values", id="kwargs"),
        pytest.param({"ref": 3}, "a.ref", "a.ref: 3 is not a reference: write module:name", id="ref"),
        pytest.param([0, {"b": {"ref": "x"}}], "a.1.b.ref", "'x' is not a reference", id="below"),
        pytest.param(
            {"call": "x:y", "kwargs": {"c": {"call": "z"}}}, "a.kwargs.c.call", "'z' is not a reference", id="inside"
        ),
    ],
)
def test_mistakes_say_where_and_what_to_write(written: object, keys: str, words: str) -> None:
    """The keys of the mistake, and the cure; an entry raises it."""
    [(where, message)] = mistakes_inside({"a": written}, ())
    assert ".".join(map(str, where)) == keys
    assert words in message
    with pytest.raises(ModelBudgetError) as caught:
        ModelEntry("net", "nets:net", kwargs={"a": written})
    assert words in str(caught.value)


def test_all_mistakes_are_told() -> None:
    """Each with its own keys."""
    written = [{"call": 1}, {"ref": 2}, {"call": "x:y", "argz": [], "kwargs": {"a": {"ref": 3}}}]
    assert [keys for keys, _ in mistakes_inside(written, ())] == [
        (0, "call"), (1, "ref"), (2, "argz"), (2, "kwargs", "a", "ref"),
    ]  # fmt: skip


def test_reading_is_done_once() -> None:
    """What was read stays as it is, so that an entry can be replaced; a literal is not opened."""
    written = ({"call": "x:y"}, {"literal": {"call": "x:y"}})
    once = read(written, ("args",), lambda _: None)
    assert read(once, ("args",), lambda _: None) is once


class Zoo:
    """Whose method a class below takes over, as families of models do."""

    @classmethod
    def net(cls, config: object) -> object:
        return config


class Small(Zoo):
    """Its `net` wraps a method that is bound already."""

    net = classmethod(update_wrapper(lambda cls, config: (cls, config), Zoo.net))


@pytest.mark.parametrize("name", ["itself", "filled"])
def test_a_method_that_wraps_a_bound_one_takes_all_its_arguments(name: str) -> None:
    """One config is what it takes; two are refused."""
    build = Small.net
    if name == "filled":
        build = bind_arguments(build, (LiteralArgument(1),), {}, NAMES.get)
    check_call(build, (Config(1),), {}, "net")
    with pytest.raises(ModelBudgetError, match="too many positional arguments"):
        check_call(build, (1, 2), {}, "net")
