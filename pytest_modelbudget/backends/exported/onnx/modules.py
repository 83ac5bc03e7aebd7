"""The modules of the source around an operator: what the exporter wrote down, the names of weights and operators."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_modelbudget.backends.exported.graph import Module
from pytest_modelbudget.backends.exported.onnx.model import Graph, Node
from pytest_modelbudget.backends.exported.onnx.naming import type_name

_SCOPES, _CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
_CALL = re.compile(r"(.*)@([0-9]{1,6})")
_WEIGHT = re.compile(r"((?:[A-Za-z_]\w*|\d+)(?:\.\w+)*)\.([A-Za-z]\w*)")
_DEEPEST = 64

_CARRIERS = frozenset(("DequantizeLinear", "Identity", "Cast", "Transpose"))
"""Operators that give a constant in another form."""

WEIGHTED = frozenset((
    "Conv", "ConvTranspose", "Gemm", "ConvInteger", "QLinearConv", "DeformConv", "BatchNormalization",
    "InstanceNormalization", "GroupNormalization", "LayerNormalization", "PRelu", "DequantizeLinear",
    "com.microsoft.FusedConv", "com.microsoft.NhwcFusedConv", "com.microsoft.QGemm", "com.microsoft.MatMulNBits",
    "com.microsoft.SkipLayerNormalization", "MatMul", "MatMulInteger", "QLinearMatMul",
))  # fmt: skip
"""Operators that are the work of the module which has their weight."""


@dataclass(slots=True)
class ModuleFinder:
    """Finds the modules of nodes.

    `classes` are those of module paths, as the metadata of any node says them, else what the only operator there is;
    `carried` are values that are a constant in another form, by their names.
    """

    constants: frozenset[str]
    uses: Mapping[str, int]
    classes: dict[str, str] = field(default_factory=dict)
    carried: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, constants: frozenset[str]) -> ModuleFinder:
        """That of a flat graph."""
        finder = cls(constants, Counter(name for node in all_nodes(graph) for name in node.inputs))
        nodes = list(all_nodes(graph))
        finder._learn_constants(nodes)
        finder._learn_classes(nodes)
        return finder

    def _learn_constants(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            source = node.inputs[0] if node.inputs else ""
            if node.type in _CARRIERS and (source in self.constants or source in self.carried):
                self.carried |= dict.fromkeys(node.outputs, self.carried.get(source, source))

    def _learn_classes(self, nodes: Sequence[Node]) -> None:
        """Those of the source before those that are no more than the type of an operator."""
        for node in nodes:
            for module in _from_metadata(node):
                self.classes.setdefault(module.path, module.type)
        types = defaultdict[str, set[str]](set)
        for node in nodes:
            by_weight = self._weight_path(node) if node.type not in _CARRIERS else ""
            if path := by_weight or next((module.path for module in reversed(_from_name(node.name))), ""):
                types[path].add(node.type)
        holders = {module.path for node in nodes for module in _from_name(node.name)[:-1]}
        for path, met in types.items():
            if len(met) == 1 and path not in holders:
                self.classes.setdefault(path, *met)

    def modules(self, node: Node, functions: Sequence[Module]) -> tuple[Module, ...]:
        """The modules around a node, outermost first.

        Where an exporter fuses operators of two modules, it names one of them: a weight that only this operator has
        says better whose it is. One that several have was merged or shared, and says nothing.
        """
        noted = _from_metadata(node)
        by_weight = self._from_weight(node)
        if by_weight and (not noted or noted[-1].path != by_weight[-1].path):
            return by_weight
        return noted or tuple(functions) or tuple(self._module(module.path) for module in _from_name(node.name))

    def _from_weight(self, node: Node) -> tuple[Module, ...]:
        path = self._weight_path(node)
        parts = path.split(".")
        if not path or len(parts) > _DEEPEST:
            return ()
        outer = [".".join(parts[:count]) for count in range(1, len(parts))]
        known = [self._module(prefix) for prefix in outer if prefix in self.classes]
        return (*known, self._module(path))

    def _weight_path(self, node: Node) -> str:
        """The module whose weight a node has, if no other has it."""
        for name in node.inputs if type_name(node) in WEIGHTED else ():
            constant = self.carried.get(name, name)
            if constant in self.constants and self.uses[constant] == 1 and (match := _WEIGHT.fullmatch(constant)):
                return match[1]
        return ""

    def _module(self, path: str) -> Module:
        return Module(path, self.classes.get(path, ""))


def all_nodes(graph: Graph) -> Iterator[Node]:
    """The nodes of a graph, after each those of its bodies."""
    for node in graph.nodes:
        yield node
        for inner in node.graphs.values():
            yield from all_nodes(inner)


def _from_metadata(node: Node) -> tuple[Module, ...]:
    """What torch's exporter writes: paths and classes from the whole model to the operator, which are no modules."""
    if not node.metadata:
        return ()
    scopes, classes = (_quoted(node.metadata.get(key, "")) for key in (_SCOPES, _CLASSES))
    if len(scopes) != len(classes) or len(scopes) > _DEEPEST or _NO_MODULE in scopes:
        return ()
    modules = {}
    for scope, class_ in zip(scopes[:-1], classes[:-1], strict=True):
        if scope:
            path, call = (match[1], int(match[2])) if (match := _CALL.fullmatch(scope)) else (scope, 0)
            modules[path] = Module(path, class_.rpartition(".")[2], call)
    return tuple(modules.values())


def _quoted(text: str) -> list[str]:
    """The strings of a list that Python wrote."""
    return [match[1] if match[1] is not None else match[2] for match in _QUOTED.finditer(text)]


def _from_name(name: str) -> tuple[Module, ...]:
    """What the older exporter writes as names: `/layer1/layer1.0/conv1/Conv`, the last part the operator.

    A part repeats the name of the container that it lies in where that is one of `nn.Sequential` or `nn.ModuleList`.
    """
    parts = name.split("/")
    if parts[0] or len(parts) > _DEEPEST:
        return ()
    paths: list[str] = []
    last = ""
    for part in filter(None, parts[1:-1]):
        inner = part.removeprefix(f"{last}.") if last else part
        paths.append(f"{paths[-1]}.{inner}" if paths else inner)
        last = part
    return tuple(Module(path) for path in dict.fromkeys(paths))
