"""The models of `third_party.py`: small ones, of each kind that people bring, as their libraries build them."""

from __future__ import annotations

from collections.abc import Iterator

from third_party_models import graphs, images, others, scenes, sounds, words
from third_party_models.entry import Entry

__all__ = ["Entry", "entries"]


def entries() -> Iterator[Entry]:
    """All of them, library by library."""
    for library in (
        graphs.graphs, words.adapters, images.diffusion, sounds.speech, images.segmentation, images.pairs, images.medical,
        words.quantised, words.language, words.experts, scenes.vision, scenes.detectors, sounds.series, others.tables,
        others.others,
    ):  # fmt: skip
        yield from library()
