"""What an operator costs: a formula, zero by rule, or not known.

A multiply-add counts 2, one of complex numbers 8. The rules of `flop_rules` come first (for the commonest operators,
they are faster), then the formulas of `torch.utils.flop_counter`: attention on GPUs (the full square, also with a
causal mask) and what a user registered with torch. Zero by rule: everything elementwise, and the operators of
`free/torch.py`, with their variants and what differentiates them. An operator that is in neither is reported by name
and makes the sum a lower bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from pytest_modelbudget.backends.costs.flop_rule import FlopRule, OperatorCall
from pytest_modelbudget.backends.costs.flop_rules import rules_of
from pytest_modelbudget.backends.costs.formulas import COMPLEX_PRODUCT, Shape
from pytest_modelbudget.backends.costs.free.torch import FULL_NAMES, PRIMS, ZERO
from pytest_modelbudget.backends.torch.compat import OpOverload
from pytest_modelbudget.backends.torch.costs.complex_convolutions import ComplexConvolutions
from pytest_modelbudget.backends.torch.costs.sparse_products import SPARSE_PRODUCTS

Formula = Callable[..., int]
"""From the arguments of an operator and `out_val`, what it gave, to FLOPs; as in `torch.utils.flop_counter`."""

_RULES = rules_of("torch")
_CONVOLUTIONS = ("aten.convolution", "aten.convolution_overrideable")


def _formula_of(func: Any, name: str) -> Formula | None:
    """The rule of an operator, told shapes; of sparse operands the elements that they store decide."""
    if name == "out_dtype":
        return _out_dtype
    rule, of_sparse = _RULES.get(name), SPARSE_PRODUCTS.get(name)
    if rule is None:
        return of_sparse and (lambda *args, **_: of_sparse(*args))
    of_shapes = _of_shapes(func, rule)
    if of_sparse is None:
        return of_shapes
    return lambda *args, **kwargs: of_sparse(*args) if any(map(_is_sparse, args)) else of_shapes(*args, **kwargs)


def _of_shapes(func: Any, rule: FlopRule) -> Formula:
    """A rule as a formula of torch: it gets the shapes of tensors, and other arguments by their names in the schema."""
    names = tuple(argument.name for argument in func._schema.arguments) if isinstance(func, OpOverload) else ()

    def formula(*args: Any, out_val: Any, **kwargs: Any) -> int:
        arguments = dict(zip(names, args, strict=False), **kwargs)
        return rule.formula(OperatorCall([*_shapes(args)], [*_shapes((out_val,))], arguments.get))

    return formula


def _shapes(values: Iterable[Any]) -> Iterator[Shape]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield tuple(value.shape)
        elif isinstance(value, (list, tuple)):
            yield from _shapes(value)


def _is_sparse(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout != torch.strided


def _out_dtype(operator: Any, dtype: Any, *args: Any, out_val: Any, **kwargs: Any) -> int:
    """An operator whose result is of another dtype costs what it costs."""
    formula = cost_of(operator).formula
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out_val))


@dataclass(frozen=True, slots=True)
class Cost:
    """How one operator is counted: `formula` with its arguments, else zero when `known`.

    `products` are multiply-adds, which count four times as much when they are of complex numbers.
    """

    name: str
    formula: Formula | None
    known: bool
    products: bool = True

    def flops_of(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, convolutions: ComplexConvolutions
    ) -> int:
        """FLOPs of one call; 0 for an operator without a formula. `convolutions` follows those of a pass."""
        if self.formula is None:
            return 0
        flops = int(self.formula(*args, **kwargs, out_val=out))
        if self.products and _is_complex(out):
            return flops * COMPLEX_PRODUCT
        return flops * 2 if self.name in _CONVOLUTIONS and convolutions.stands_for_two(*args[:2]) else flops


def _is_complex(out: Any) -> bool:
    """Whether an operator made complex numbers, as a product does that reads some."""
    first = out[0] if isinstance(out, (tuple, list)) and out else out
    return isinstance(first, torch.Tensor) and first.is_complex()


def cost_of(func: Any) -> Cost:
    """How `func`, an operator as the dispatcher knows it, is counted."""
    packet = getattr(func, "_overloadpacket", func)
    name = _name(func)
    functional = name.rstrip("_") if not name.endswith("__") else name
    if (formula := _formula_of(func, functional)) is not None:
        return Cost(name, formula, True, products=functional not in _RULES or not _RULES[functional].counts_complex)
    if packet in flop_registry:  # a formula of the user's own says itself what complex numbers cost
        return Cost(name, flop_registry[packet], True, products=name.startswith("aten."))
    registered = getattr(torch.ops.aten, functional.removeprefix("aten."), None) if functional != name else None
    if registered is not None and registered in flop_registry:  # `addmm_` costs what `addmm` does
        return Cost(name, flop_registry[registered], True)
    return Cost(name, None, _is_free(func, functional))


def _name(func: Any) -> str:
    if isinstance(func, OpOverload):
        return f"{func.namespace}.{func._schema.name.split('::')[1]}"
    return str(getattr(func, "name", lambda: func)())


def _is_free(func: Any, functional: str) -> bool:
    space, _, base = functional.partition(".")
    if space in ("prim", "profiler") or functional in FULL_NAMES:
        return True
    if space not in ("aten", "prims"):
        return False
    return (
        (space == "prims" and base in PRIMS)
        or _is_tagged_free(func)
        or any(name in ZERO or any(map(_is_tagged_free, _overloads(name))) for name in _variants(base))
    )


_VARIANT = re.compile(r"^_foreach_|_backward(_data|_elemt|_reduce|_jvp|_impl)?$|_copy$|_functional$")
"""What the name of an operator has more than that of the one it is a variant of, or differentiates."""


def _variants(base: str) -> Iterator[str]:
    """`base`, and what it is a variant of: `nll_loss` and `nll_loss_forward` for `nll_loss_backward`."""
    functional = _VARIANT.sub("", base).rstrip("_")
    yield from (base, functional, f"{functional}_forward")


def _overloads(base: str) -> list[Any]:
    """The functional operators of an in-place one (`abs` of `abs_`), which are those that torch tags."""
    packet = getattr(torch.ops.aten, base, None)
    return [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []


def _is_tagged_free(func: Any) -> bool:
    if not isinstance(func, OpOverload):
        return False
    free = {torch.Tag.pointwise, *([torch.Tag.reduction] if hasattr(torch.Tag, "reduction") else [])}
    return bool(free & set(func.tags)) or bool(getattr(func, "is_view", False))
