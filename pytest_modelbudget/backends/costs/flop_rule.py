"""The decorator that makes a formula of shapes the FLOP rule of operators and layers, of every framework that has them.

    @flop_rule(torch="aten.mm aten.bmm", jax="some_product")
    def product(call: OperatorCall) -> int:
        return 2 * prod(call.outputs[0]) * call.inputs[0][-1]

Names are strings, so that no framework is imported here. Each framework has one adapter, from its own calls to an
`OperatorCall`: `torch/costs/rules.py`, `keras/rules.py`, `jaxpr.py` and `tf_graph.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pytest_modelbudget.backends.costs.formulas import COMPLEX_PRODUCT, Shape


@dataclass(frozen=True, slots=True)
class OperatorCall:
    """One call of an operator or layer, as a formula sees it.

    `inputs` and `outputs` are the shapes of its tensors, in order and those of lists one by one; the kernel of a layer
    stands after its inputs. `argument(name)` is another argument, None where there is none of that name.
    """

    inputs: Sequence[Shape]
    outputs: Sequence[Shape]
    argument: Callable[[str], Any]


Formula = Callable[[OperatorCall], int]
"""From a call to its FLOPs."""


@dataclass(frozen=True, slots=True)
class FlopRule:
    """The FLOPs of one call: multiply-adds, which cost four times as much of complex numbers, or real FLOPs already."""

    formula: Formula
    counts_complex: bool = False

    def flops(self, call: OperatorCall, *, of_complex: bool) -> int:
        """The FLOPs of `call`, whose numbers are complex ones or not."""
        flops = self.formula(call)
        return flops * COMPLEX_PRODUCT if of_complex and not self.counts_complex else flops


RULES: dict[str, dict[str, FlopRule]] = {
    "torch": {}, "keras": {}, "jax": {}, "tensorflow": {}, "onnx": {}, "litert": {}, "torch_export": {},
    "executorch": {},
}  # fmt: skip
"""The rule of each name, by framework or format of exported files; `flop_rules` fills it."""

_Decorated = TypeVar("_Decorated", bound=Callable[..., int])


def flop_rule(
    *,
    torch: str = "",
    keras: str = "",
    jax: str = "",
    tensorflow: str = "",
    onnx: str = "",
    litert: str = "",
    torch_export: str = "",
    executorch: str = "",
    counts_complex: bool = False,
    **layout: Any,
) -> Callable[[_Decorated], _Decorated]:
    """Make a formula the rule of the operators and layers that are named here, with spaces between them.

    Names are those of the dispatcher for torch (`aten.mm`, higher-order ones without a namespace), of classes for Keras
    (`ops.Matmul`, `layers.Dense`), of primitives for jax, and of operators for TensorFlow, ONNX (`Gemm`) and LiteRT
    (`CONV_2D`); `torch_export` are operators of exported graphs that are taken apart before torch's dispatcher has them
    (`aten.linear`), beside those of torch, and `executorch` what it adds to both. `layout` says where these have what
    the formula asks for, and is handed to it; several decorators on one formula are several layouts.
    With `counts_complex` the formula knows itself what complex numbers cost.

    Raises:
        ValueError: one of the names has a rule already.
    """

    by_framework = {
        "torch": torch, "keras": keras, "jax": jax, "tensorflow": tensorflow,
        "onnx": onnx, "litert": litert, "torch_export": torch_export,
        "executorch": executorch,
    }  # fmt: skip

    def declare(formula: _Decorated) -> _Decorated:
        rule = FlopRule(partial(formula, **layout), counts_complex)
        for framework, names in by_framework.items():
            for name in names.split():
                if name in RULES[framework]:
                    raise ValueError(f"{framework} has two FLOP rules for {name!r}")
                RULES[framework][name] = rule
        return formula

    return declare
