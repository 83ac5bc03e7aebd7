"""What an engine's sampler takes: copies of the logits of all requests whose next tokens it draws at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

from torch import nn

from pytest_modelbudget.backends.torch.serving.passes import ServedModel
from pytest_modelbudget.backends.torch.training.caches import tensors_inside
from pytest_modelbudget.errors import ModelBudgetError

_SORTED = 4 + 4 + 8 + 2 * 8 + 4
"""Bytes that torch's sort of many rows holds at its peak for each logit: the logit in float32, sorted, and its place;
the pairs of place and row that it sorts by, coming and going; the sorted keys (`segmented_sort_pairs_by_full_sort`)."""


@dataclass(frozen=True, slots=True)
class Logits:
    """The last dimension of a model's logits, the bytes of one, and those of a token's row that its head reads."""

    vocabulary: int
    item_bytes: int
    row_bytes: int

    def sampler_bytes(self, requests: int, tokens: int) -> int:
        """Bytes of a sampler that draws for so many requests, after a pass of so many tokens, whose rows are kept.

        The sampler is that of vLLM in torch, which sorts all logits for top-k and top-p. Of fewer than 128 requests
        torch sorts in other steps: this is more than they need.
        """
        in_half = self.item_bytes if self.item_bytes < 4 else 0  # float32 is not copied
        return requests * self.vocabulary * (_SORTED + in_half) + tokens * self.row_bytes


def logits_of(model: ServedModel, sizes: Mapping[str, int]) -> Logits:
    """The logits of `model`, from one small pass of these `sizes`.

    Raises:
        ModelBudgetError: it returns none: a tensor named `logits`, or as its first result.
    """
    logits, _ = model.look(sizes, lambda _, __, out: _shape_and_bytes(out))
    if logits is None:
        raise ModelBudgetError(
            f"{model.name}: serving.sampler is of a model that returns logits (under that name, or first): leave it out"
        )
    vocabulary, item_bytes = logits
    width = next(_widths(model.runnable.model, vocabulary), 0)
    return Logits(vocabulary, item_bytes, width * item_bytes)


def _shape_and_bytes(out: Any) -> tuple[int, int] | None:
    has_names = isinstance(out, Mapping) or is_dataclass(out) or hasattr(out, "_asdict")
    named = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
    tensor = next(tensors_inside(named if has_names else out), None)
    if tensor is None or not tensor.is_floating_point() or tensor.dim() < 2:
        return None
    return tensor.shape[-1], tensor.element_size()


def _widths(model: nn.Module, vocabulary: int) -> Iterator[int]:
    """The width of the rows that become logits, by the layer that makes them, or the table that it shares."""
    for module in reversed(list(model.modules())):
        if isinstance(module, nn.Linear) and module.out_features == vocabulary:
            yield module.in_features
        if isinstance(module, nn.Embedding) and module.num_embeddings == vocabulary:
            yield module.embedding_dim
