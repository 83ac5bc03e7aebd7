"""What a serving engine keeps of its requests: the law of a cache in their tokens, whole blocks of it, what fits.

The law is read from passes of the model at a few sizes (`laws_of`), never from what its configuration says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner.recipe import Serving
from pytest_modelbudget.summary import CacheGroup, ServingCache

SMALL = (2, 3)
"""Tokens of the two passes that tell what one more token adds."""

BATCH = 2
"""Requests of these two passes; the larger ones are of a single request."""


@dataclass(frozen=True, slots=True)
class HeldTensor:
    """One tensor that a cache holds after a pass: its elements, and the bytes of each; `floats`: whether these are."""

    elements: int
    item_bytes: int
    floats: bool = True


Sighting = Sequence[HeldTensor]
"""The tensors of a cache after one pass, in an order that is the same for each pass."""


@dataclass(frozen=True, slots=True)
class TensorLaw:
    """How many bytes one tensor of a cache takes for a request of some tokens.

    `per_token` bytes of each token, of which at most `held` are kept at once (None: all), and `constant` bytes. One
    that is `shared` is there once, whatever the requests.
    """

    per_token: int
    constant: int
    held: int | None = None
    shared: bool = False

    @property
    def kind(self) -> tuple[int, int | None, bool]:
        """What tensors of one group have in common; see `CacheGroup`."""
        return bool(self.per_token), self.held, self.shared

    def blocks(self, tokens: int, block: int) -> int:
        """Blocks of a request; a window that moves on begins and ends inside of one: `ceil(held / block) + 1`."""
        whole = -(-tokens // block)
        if self.held is None:
            return whole
        return min(whole, -(-self.held // block) + (block > 1))

    def bytes(self, tokens: int, block: int) -> int:
        """Bytes of a request of so many tokens, in whole blocks of `block` tokens each."""
        return self.constant + self.per_token * self.blocks(tokens, block) * block


def laws_of(small: tuple[Sighting, Sighting], *large: tuple[int, Sighting]) -> tuple[TensorLaw, ...]:
    """The law of each tensor of a cache.

    `small` is the cache after a pass of `BATCH` requests of each of the `SMALL` numbers of tokens, `large` the cache
    of one request of so many tokens.

    Raises:
        ModelBudgetError: a tensor follows no such law, or a pass made others than another.
    """
    if len({len(sighting) for sighting in (*small, *(sighting for _, sighting in large))}) != 1:
        raise ModelBudgetError("the cache holds other tensors after a pass of more tokens")
    each = zip(small[0], small[1], *(sighting for _, sighting in large), strict=True)
    sizes = [tokens for tokens, _ in large]
    return tuple(_law(tensors[0], tensors[1], list(zip(sizes, tensors[2:], strict=True))) for tensors in each)


def _law(first: HeldTensor, second: HeldTensor, large: list[tuple[int, HeldTensor]]) -> TensorLaw:
    growth = second.elements - first.elements
    shared = _is_shared(first.elements, growth, large)
    requests = 1 if shared else BATCH
    per_token, constant = growth / requests, (first.elements - SMALL[0] * growth) / requests
    held = None
    for tokens, tensor in large:
        gap = constant + per_token * tokens - tensor.elements
        kept = tokens - gap / per_token if per_token else tokens
        if gap < 0 or (gap and not per_token) or kept != int(kept) or (held is not None and kept != held):
            raise ModelBudgetError(
                f"a tensor of the cache follows no law: {first.elements:,} elements for {BATCH} requests of {SMALL[0]} "
                f"tokens, {second.elements:,} of {SMALL[1]}, {tensor.elements:,} for one request of {tokens:,}"
            )
        held = int(kept) if gap else None
    size = first.item_bytes
    return TensorLaw(int(per_token * size), int(constant * size), held, shared)


def _is_shared(elements: int, growth: int, large: list[tuple[int, HeldTensor]]) -> bool:
    """Whether a tensor is as large for one request as for `BATCH` of them."""
    tokens, tensor = large[0]
    return tensor.elements == elements + growth * (tokens - SMALL[0])


def stored_as(laws: Iterable[TensorLaw], tensors: Sighting, item_bytes: int) -> tuple[TensorLaw, ...]:
    """The laws of a cache whose floats of tokens take `item_bytes` each; states that no token adds to stay."""
    return tuple(
        replace(law, per_token=law.per_token // tensor.item_bytes * item_bytes)
        if tensor.floats and law.per_token
        else law
        for law, tensor in zip(laws, tensors, strict=True)
    )


def request_bytes(laws: Iterable[TensorLaw], tokens: int, block: int) -> int:
    """Bytes that one request of so many tokens takes."""
    return sum(law.bytes(tokens, block) for law in laws if not law.shared)


def block_of(recipe: Serving) -> int:
    """Tokens of a block; a cache that is not paged has blocks of one token."""
    return recipe.block if recipe.engine == "paged" else 1


def cache_of(laws: Sequence[TensorLaw], recipe: Serving, tokens: int) -> ServingCache:
    """What all requests of `recipe`, of so many tokens each, take."""
    block = block_of(recipe)
    shared = sum(law.bytes(tokens, 1) for law in laws if law.shared)
    exact, paged = request_bytes(laws, tokens, 1), request_bytes(laws, tokens, block)
    per_token = sum(law.per_token for law in laws if not law.shared)
    return ServingCache(
        bytes=shared + recipe.requests * paged,
        bytes_per_token=per_token or None,
        waste_bytes=recipe.requests * (paged - exact),
        groups=tuple(_groups(laws, tokens, block)),
    )


def _groups(laws: Sequence[TensorLaw], tokens: int, block: int) -> Iterator[CacheGroup]:
    """Tensors of one kind each: those that keep every token, those of each window, states, what is shared."""
    for kind in dict.fromkeys(law.kind for law in laws):
        alike = [law for law in laws if law.kind == kind]
        yield CacheGroup(
            tensors=len(alike),
            bytes_per_token=sum(law.per_token for law in alike),
            bytes_per_request=0 if alike[0].shared else request_bytes(alike, tokens, block),
            window=alike[0].held,
            shared_bytes=sum(law.bytes(tokens, 1) for law in alike) if alike[0].shared else 0,
        )


def most_tokens(laws: Sequence[TensorLaw], free: int, requests: int, block: int, *, most: int) -> int:
    """The most tokens, up to `most`, that each of so many requests can have in `free` bytes; 0 when not even one."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = requests * request_bytes(laws, middle, block) <= free
        low, high = (middle, high) if fits else (low, middle)
    return low


def pooled_tokens(laws: Sequence[TensorLaw], free: int, block: int) -> int | None:
    """Tokens of all requests together that fit in `free` bytes; None where it depends on how many requests there are.

    It is the number that engines print for caches in which every tensor keeps every token.
    """
    own = [law for law in laws if not law.shared]
    if not own or any(law.held is not None or law.constant or not law.per_token for law in own):
        return None
    return max(free, 0) // (block * sum(law.per_token for law in own)) * block
