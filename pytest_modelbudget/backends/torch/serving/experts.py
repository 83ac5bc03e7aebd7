"""Weights of experts on several ranks: each has its part of the width of every expert, as engines cut them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

_CUT_DIM = {"packed_colwise": -2, "colwise": -2, "rowwise": -1}
"""By which dimension a stack of matrices is cut, by the styles of transformers: those into an expert by their rows (the
gate's and the other one's are packed in them), those out of it by their columns."""

_TRANSPOSED = {"gate_up_proj": -1, "gate_up_proj_bias": -1, "down_proj": -2}
"""The same of stacks whose matrices stand the other way (gpt-oss): tokens are multiplied by them as they are."""


def cut_experts(model: nn.Module, ranks: int) -> tuple[nn.Parameter, ...]:
    """Cut the stacked experts of `model`, a copy on meta, over so many `ranks`; returns the parts that are left.

    They are those that the plan of tensor parallelism of a model of transformers names in its styles of both ways, in
    one module and with a width that the ranks divide, and those of gpt-oss; all others stay whole. vLLM (`FusedMoE`)
    and SGLang cut them alike where experts are not dealt out.
    """
    declared = getattr(model, "tp_plan", None) or getattr(model, "_tp_plan", None)
    plan = declared if isinstance(declared, Mapping) else {}
    stacks = [list(_stacks(path, module, plan)) for path, module in model.named_modules()]
    stacks += [list(_transposed(module)) for module in model.modules()]
    complete = [stack for stack in stacks if {matrix.dim for matrix in stack} == {-1, -2}]
    return tuple(
        matrix.cut(ranks) for stack in complete if not any(matrix.width % ranks for matrix in stack) for matrix in stack
    )


@dataclass(frozen=True, slots=True)
class _Stack:
    """One weight of the experts of `module`, cut by its dimension `dim`."""

    module: nn.Module
    name: str
    whole: nn.Parameter
    dim: int

    @property
    def width(self) -> int:
        return int(self.whole.shape[self.dim])

    def cut(self, ranks: int) -> nn.Parameter:
        shape = list(self.whole.shape)
        shape[self.dim] //= ranks
        part = torch.empty(shape, dtype=self.whole.dtype, device=self.whole.device)
        self.module._parameters[self.name] = parameter = nn.Parameter(part, self.whole.requires_grad)
        return parameter


def _stacks(path: str, module: nn.Module, declared: Mapping[str, str]) -> Iterator[_Stack]:
    """The stacked weights that `module` itself has and the plan names."""
    for name, weight in module._parameters.items():
        if weight is not None and weight.dim() == 3:
            for pattern, style in declared.items():
                if style in _CUT_DIM and fnmatchcase(f"{path}.{name}", pattern):
                    yield _Stack(module, name, weight, _CUT_DIM[style])


def _transposed(module: nn.Module) -> Iterator[_Stack]:
    """The stacked weights of experts as gpt-oss has them."""
    if all(isinstance(module._parameters.get(name), nn.Parameter) for name in _TRANSPOSED):
        for name, dim in _TRANSPOSED.items():
            yield _Stack(module, name, module._parameters[name], dim)
