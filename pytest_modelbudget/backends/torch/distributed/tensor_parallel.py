"""Tensor parallelism of the usual transformer layers, by their names.

A Hugging Face model whose class knows a plan (`tp_plan`, from its config's `base_model_tp_plan`) is cut by that, as far
as its styles are those of plain layers. Any other: the layers into attention and into the feed-forward part by columns,
those out of them by rows, a table of tokens by rows, the last layer by columns with its result gathered. Parameters
without a rule stay whole on every rank. Whether attention can be cut so is up to the model's code, which must find the
number of heads from the width it gets (`view(batch, tokens, -1, head_size)`).
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from pytest_modelbudget.backends.torch.model.modules import all_modules
from pytest_modelbudget.errors import ModelBudgetError

Style = Literal["colwise", "rowwise", "table", "head"]

_BY_NAME: Mapping[str, Style] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "wq", "wk", "wv"), "colwise"),
    **dict.fromkeys(("self.query", "self.key", "self.value"), "colwise"),
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3", "fc1", "intermediate.dense", "wi", "wi_0", "wi_1"), "colwise"),
    **dict.fromkeys(("o_proj", "out_proj", "wo", "down_proj", "w2", "fc2", "output.dense"), "rowwise"),
    **dict.fromkeys(("embed_tokens", "tok_embeddings", "word_embeddings", "wte"), "table"),
    **dict.fromkeys(("lm_head", "embed_out"), "head"),
}
_HUGGING_FACE: Mapping[str, Style] = {
    "colwise": "colwise",
    "rowwise": "rowwise",
    "embedding_rowwise": "table",
    "colwise_gather_output": "head",
    "colwise_rep": "head",
}
PLAIN_STYLES: frozenset[Style] = frozenset({"colwise", "rowwise"})
"""Styles of layers inside of the blocks."""


def parallelize(model: nn.Module, mesh: Any, name: str) -> None:
    """Cut the layers of `model` over `mesh`, which has one dimension; tied parameters stay tied.

    Raises:
        ModelBudgetError: no layer has a rule, or the model's own plan has a style that is not of plain layers.
    """
    declared = declared_styles(model, name)
    plan = styles_by_name(model) if declared is None else declared
    if not any(style in PLAIN_STYLES for style in plan.values()):
        raise ModelBudgetError(
            f"{name}: training.sharding: no layer has a rule for tensor parallelism (q_proj, up_proj, ... are looked "
            "for, and the plan of a Hugging Face model): cut it yourself with sharding: module:callable"
        )
    cut_layers(model, mesh, plan, name)


def cut_layers(model: nn.Module, mesh: Any, plan: Mapping[str, Style], name: str) -> None:
    """Cut the layers of `model` whose paths `plan` has over `mesh`; tied parameters stay tied.

    Raises:
        ModelBudgetError: one of them has layers inside it.
    """
    from torch.distributed.tensor.parallel import parallelize_module

    layers = dict(model.named_modules())
    if adapted := next((path for path in plan if any(layers[path].children())), None):
        raise ModelBudgetError(
            f"{name}: training.sharding: {adapted} has layers inside it (LoRA?), which tensor parallelism cannot cut: "
            "use fsdp, or cut it yourself with sharding: module:callable"
        )
    tied_groups = _tied_parameters(model)
    parallelize_module(model, mesh, {path: _parallel_style(style) for path, style in plan.items()})
    for tied_places in tied_groups:
        _tie_again(tied_places)


def _parallel_style(style: Style) -> Any:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    if style == "table":
        return RowwiseParallel(input_layouts=Replicate())
    if style == "head":
        return ColwiseParallel(output_layouts=Replicate())
    return ColwiseParallel() if style == "colwise" else RowwiseParallel()


def declared_styles(model: nn.Module, name: str) -> dict[str, Style] | None:
    """The styles of the plain layers that the model's own plan names, by path; None where it has no plan.

    Raises:
        ModelBudgetError: it has a style that is not of plain layers.
    """
    declared = getattr(model, "tp_plan", None) or getattr(model, "_tp_plan", None)
    return _of_hugging_face(declared, _layers(model), name) if isinstance(declared, Mapping) and declared else None


def styles_by_name(model: nn.Module, more: Mapping[str, Style] | None = None) -> dict[str, Style]:
    """The styles of plain layers by the ends of their paths, of which a caller may know `more`."""
    names = {**_BY_NAME, **(more or {})}
    styles = {path: _style_by_name(path, layer, names) for path, layer in _layers(model).items()}
    return {path: style for path, style in styles.items() if style is not None}


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Embedding))}


def _of_hugging_face(declared: Mapping[str, str], layers: Mapping[str, nn.Module], name: str) -> dict[str, Style]:
    plan: dict[str, Style] = {}
    for pattern, style in declared.items():
        paths = [path for path in layers if fnmatchcase(path, pattern)]
        if paths and style not in _HUGGING_FACE:
            raise ModelBudgetError(
                f"{name}: training.sharding: the model's plan of tensor parallelism cuts {pattern} by {style!r}, which "
                "is not planned: cut it yourself with sharding: module:callable"
            )
        plan.update(dict.fromkeys(paths, _HUGGING_FACE.get(style, "colwise")))
    return plan


def _style_by_name(path: str, layer: nn.Module, names: Mapping[str, Style]) -> Style | None:
    style = next((style for end, style in names.items() if path == end or path.endswith(f".{end}")), None)
    return style if isinstance(layer, nn.Embedding) == (style == "table") else None


def _tied_parameters(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in all_modules(model):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, name))
    return [group for group in places.values() if len(group) > 1]


def _tie_again(places: list[tuple[nn.Module, str]]) -> None:
    """Cut alike, they are one again; torch makes each anew."""
    (module, name), *others = places
    shared: Any = module._parameters[name]
    for other, other_name in others:
        if getattr(other._parameters[other_name], "placements", None) == getattr(shared, "placements", None):
            other._parameters[other_name] = shared
