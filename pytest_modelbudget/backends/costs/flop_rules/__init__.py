"""The FLOP rules: each formula of shapes once, with the names of all operators and layers that cost it.

A multiply-add counts 2, one of complex numbers 8. What has no rule here is free by name (`free/`), or makes the sum a
lower bound. Of torch there are beside these the formulas of `torch.utils.flop_counter`, and those of sparse operands.
"""

from __future__ import annotations

from pytest_modelbudget.backends.costs.flop_rule import RULES, FlopRule
from pytest_modelbudget.backends.costs.flop_rules import convolutions, products, sequences, solvers, transforms

__all__ = ["convolutions", "products", "rules_of", "sequences", "solvers", "transforms"]


def rules_of(framework: str) -> dict[str, FlopRule]:
    """The rules of `framework` by the names of its operators and layers."""
    return RULES[framework]
