"""The names in the FLOP rules are those that the installed frameworks have, and each has one rule."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from importlib import import_module

import pytest

from pytest_modelbudget.backends.costs.flop_rule import flop_rule
from pytest_modelbudget.backends.costs.flop_rules import rules_of

NEWER_THAN_INSTALLED = {"aten._scaled_addmm"}
"""Operators of torch 2.15."""


def torch_has(name: str) -> bool:
    """Operators are there once the library is imported that registers them."""
    torch = import_module("torch")
    space, _, base = name.rpartition(".")
    if space not in ("", "aten", "prims", "quantized"):
        import_module(REGISTERED_BY.get(space, space))
    return hasattr(getattr(torch.ops, space or "higher_order"), base)


REGISTERED_BY = {"torch_nn": "torch.nn.modules.linear_cross_entropy", "torchao": "torchao.quantization"}


def keras_has(name: str) -> bool:
    keras = import_module("keras")
    kind, _, base = name.partition(".")
    return hasattr(keras.layers, base) if kind == "layers" else base in subclasses(keras.Operation)


@cache
def subclasses(base: type) -> frozenset[str]:
    return frozenset({base.__name__}).union(*map(subclasses, base.__subclasses__()))


def jax_has(name: str) -> bool:
    return name in jax_primitives()


@cache
def jax_primitives() -> frozenset[str]:
    for module in ("cudnn.fused_attention_stablehlo", "cudnn.scaled_matmul_stablehlo"):
        import_module(f"jax._src.{module}")
    kind = import_module("jax.extend.core").Primitive
    gc.unfreeze()  # what other tests froze is not among the objects
    return frozenset(thing.name for thing in gc.get_objects() if issubclass(type(thing), kind))


def tensorflow_has(name: str) -> bool:
    return import_module("tensorflow.python.framework.op_def_registry").get(name) is not None


@pytest.mark.parametrize(
    ("framework", "release", "has"),
    [
        pytest.param("torch", "2.14", torch_has, id="torch"),
        pytest.param("keras", "3.15", keras_has, id="keras"),
        pytest.param("jax", "0.10", jax_has, id="jax"),
        pytest.param("tensorflow", "2.21", tensorflow_has, id="tensorflow"),
    ],
)
def test_every_name_is_one_of_the_framework(framework: str, release: str, has: Callable[[str], bool]) -> None:
    """A name that is written wrong, or that no release has any more, counts nothing: older ones lack some names."""
    pytest.importorskip(framework, minversion=release)
    names = rules_of(framework)
    assert len(names) >= 8
    assert [name for name in names if name not in NEWER_THAN_INSTALLED and not has(name)] == []


def test_a_name_has_one_rule() -> None:
    """A second rule for an operator is a mistake of whoever writes it, not a choice by the order of imports."""
    with pytest.raises(ValueError, match=r"torch has two FLOP rules for 'aten.mm'"):
        flop_rule(torch="aten.mm")(lambda call: 0)
