"""The cache of requests as a law in their tokens: read from passes, kept in blocks, fitted into a device."""

from __future__ import annotations

import pytest

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Serving
from pytest_modelbudget.planner.serving import (
    HeldTensor,
    TensorLaw,
    cache_of,
    laws_of,
    most_tokens,
    pooled_tokens,
    stored_as,
)
from pytest_modelbudget.summary import CacheGroup

KEYS = TensorLaw(per_token=100, constant=0)
WINDOW = TensorLaw(per_token=100, constant=0, held=31)
STATE = TensorLaw(per_token=0, constant=5_000)


def _seen(*elements: int) -> list[tuple[HeldTensor, ...]]:
    return [(HeldTensor(number, 2),) for number in elements]


@pytest.mark.parametrize(
    ("small", "large", "law"),
    [
        pytest.param((40, 60), {100: 1_000}, TensorLaw(20, 0), id="every-token"),
        pytest.param((44, 64), {100: 1_002}, TensorLaw(20, 4), id="every-token-and-a-state"),
        pytest.param((40, 60), {100: 310}, TensorLaw(20, 0, 31), id="window"),
        pytest.param((40, 60), {100: 1_000, 800: 5_000}, TensorLaw(20, 0, 500), id="window-beyond-the-tokens"),
        pytest.param((40, 40), {100: 20}, TensorLaw(0, 40), id="state"),
        pytest.param((7, 7), {100: 7}, TensorLaw(0, 14, shared=True), id="shared-by-all-requests"),
        pytest.param((2, 3), {100: 100}, TensorLaw(2, 0, shared=True), id="shared-positions"),
    ],
)
def test_law_of_a_tensor(small: tuple[int, int], large: dict[int, int], law: TensorLaw) -> None:
    """Two passes of two requests and one of a single request tell what a token adds, and where that ends."""
    first, second = _seen(*small)

    assert laws_of((first, second), *zip(large, _seen(*large.values()), strict=True)) == (law,)


@pytest.mark.parametrize(
    ("small", "large"),
    [
        pytest.param((40, 60), {100: 1_500}, id="more-than-a-line"),
        pytest.param((40, 40), {100: 500}, id="in-steps"),
        pytest.param((40, 60), {100: 315}, id="part-of-a-token"),
        pytest.param((40, 60), {100: 310, 800: 400}, id="two-windows"),
    ],
)
def test_no_law(small: tuple[int, int], large: dict[int, int]) -> None:
    """What lies on no line that a window may end has no law, and is not guessed."""
    first, second = _seen(*small)

    with pytest.raises(ModelBudgetError, match="follows no law"):
        laws_of((first, second), *zip(large, _seen(*large.values()), strict=True))


@pytest.mark.parametrize(
    ("law", "tokens", "bytes_of_request"),
    [
        pytest.param(KEYS, 32, 3_200, id="whole-blocks"),
        pytest.param(KEYS, 33, 4_800, id="one-token-in-the-third-block"),
        pytest.param(WINDOW, 20, 3_200, id="shorter-than-the-window"),
        pytest.param(WINDOW, 1_000, 4_800, id="window-over-parts-of-two-blocks"),
        pytest.param(STATE, 1_000, 5_000, id="state-has-no-blocks"),
    ],
)
def test_blocks(law: TensorLaw, tokens: int, bytes_of_request: int) -> None:
    """A request takes whole blocks of 16 tokens, a window of 31 tokens at most three."""
    assert law.bytes(tokens, 16) == bytes_of_request


def test_cache_of_all_requests() -> None:
    """The cache adds up over requests and kinds of tensors, and says how much of its blocks holds nothing."""
    shared = TensorLaw(0, 7, shared=True)
    cache = cache_of((KEYS, KEYS, WINDOW, STATE, shared), Serving(requests=10, block=16), 40)

    assert cache.bytes == 10 * (2 * 4_800 + 4_800 + 5_000) + 7
    assert cache.bytes_per_token == 300
    assert cache.waste_bytes == 10 * (2 * 800 + 1_700)
    assert cache.groups == (
        CacheGroup(2, 200, 9_600),
        CacheGroup(1, 100, 4_800, window=31),
        CacheGroup(1, 0, 5_000),
        CacheGroup(1, 0, 0, shared_bytes=7),
    )


def test_contiguous_cache_has_no_waste() -> None:
    """Without pages a request takes what its tokens take."""
    cache = cache_of((KEYS, WINDOW), Serving(engine="contiguous", requests=2), 40)

    assert (cache.bytes, cache.waste_bytes) == (2 * (4_000 + 3_100), 0)


def test_cache_without_tokens() -> None:
    """What a token adds to states alone is not known, and not zero."""
    assert cache_of((STATE,), Serving(), 40).bytes_per_token is None


def test_cache_in_another_precision() -> None:
    """What is kept of tokens is stored in fewer bytes; states stay as the model makes them."""
    tensors = (HeldTensor(40, 2), HeldTensor(40, 2))

    assert stored_as((KEYS, STATE), tensors, 1) == (TensorLaw(50, 0), STATE)


def test_what_fits() -> None:
    """The most tokens are whole blocks of what is free; a pool of tokens is told where all requests are alike."""
    assert most_tokens((KEYS, STATE), 2 * (5_000 + 4_800), 2, 16, most=1_000) == 48
    assert most_tokens((KEYS,), 1_000, 1, 16, most=1_000) == 0
    assert most_tokens((WINDOW,), 100_000, 1, 16, most=1_000) == 1_000
    assert pooled_tokens((KEYS, KEYS), 10_000, 16) == 48
    assert pooled_tokens((KEYS, STATE), 10_000, 16) is None
