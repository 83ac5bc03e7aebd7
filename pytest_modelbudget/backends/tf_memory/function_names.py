"""The names that operators have where TensorFlow makes a function of a traced graph.

TensorFlow's optimizer of graphs walks through tables of names, so the order in which it leaves the operators depends
on them (`NodeNameMapping` and `GraphToFunctionDefHelper` in `graph_to_functiondef.cc` of TensorFlow 2.21).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

_NO_LETTERS = "unknown"


@dataclass(frozen=True, slots=True)
class FunctionNames:
    """What operators are called in the function, where it is another name, and what gives its results back."""

    of_nodes: dict[str, str]
    of_results: list[str]


@dataclass(slots=True)
class _UniqueNames:
    """Names that are in use, each with the number that the next one like it gets."""

    used: dict[str, int] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        if name not in self.used:
            self.used[name] = 0
            return name
        while True:
            candidate = f"{name}_{self.used[name]}"
            self.used[name] += 1
            if candidate not in self.used:
                self.used[candidate] = 0
                return candidate


def names_in_function(graph: Any) -> FunctionNames:
    """What TensorFlow calls the operators of `graph`: results get theirs first, then inputs, then all else."""
    names = _UniqueNames()
    results = [f"{names.unique(normalized(tensor.op.name))}_RetVal" for tensor in graph.outputs]
    inputs = {tensor.op.name: names.unique(normalized(tensor.op.name)) for tensor in graph.inputs}
    body = {op.name: names.unique(op.name) for op in graph.get_operations() if op.name not in inputs}
    changed = {before: name for before, name in {**inputs, **body}.items() if before != name}
    return FunctionNames(changed, results)


def normalized(name: str) -> str:
    """A name as arguments and results of functions have it: small letters, digits and underscores."""
    plain = re.sub(r"[^a-z0-9]", "_", name.lower())
    first_letter = re.search(r"[a-z]", plain)
    return plain[first_letter.start() :] if first_letter else _NO_LETTERS
