"""The law of a model's cache in the tokens of a request, read from its passes at a few sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_modelbudget.backends.torch.serving.passes import ServedModel, ServingPass
from pytest_modelbudget.backends.torch.trace.arguments import ModelCall
from pytest_modelbudget.backends.torch.training.caches import (
    CachePlace,
    given_arguments,
    held_tensors,
    places,
    refusal,
    result_text,
)
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import BATCH as BATCH_SYMBOL
from pytest_modelbudget.planner.serving import BATCH, SMALL, Sighting, TensorLaw, laws_of

FARTHER = 8
"""How many times as many tokens are looked at as a request has, to see windows that are larger."""

MOST_OPERATORS = 10_000
"""Operators of a pass that is still run: a model that goes token by token makes more of them for each."""


_CHUNKED = 4096
"""Tokens of a pass that is still run of a model that goes through its tokens in chunks: each chunk makes more."""

_SEVERAL_CHUNKS = 1024
"""Tokens of a pass that tells whether it does."""


@dataclass(frozen=True, slots=True)
class CacheLaws:
    """The `laws` of the tensors of a cache, its small `sighting`, the symbol of its tokens.

    `seen` is the largest number of tokens that was looked at; `by_token`: the model goes token by token; `by_chunk`: it
    goes chunk by chunk, and fewer were looked at than a request has.
    """

    laws: tuple[TensorLaw, ...]
    sighting: Sighting
    symbol: str
    seen: int
    by_token: bool = False
    by_chunk: bool = False


def read_laws(model: ServedModel, sizes: Mapping[str, int], tokens: int | None, *, farther: bool) -> CacheLaws:
    """The laws of the cache of `model`, whose requests have so many tokens (None: those of `sizes`).

    With `farther` more tokens are looked at than these.

    Raises:
        ModelBudgetError: the model returns no cache, or one that follows no law, or its inputs have no tokens.
    """
    symbols = [symbol for symbol in sizes if symbol != BATCH_SYMBOL]
    if BATCH_SYMBOL not in sizes or not symbols:
        candidates, returned = _candidates(model, sizes)
        if not candidates:  # no name of a dimension would help
            raise refusal(model.name, candidates, returned)
        raise ModelBudgetError(
            f"{model.name}: serving is for models that go on from a cache, token by token: name the dimensions of "
            'requests and of tokens in the inputs, as in "int64[B, T]"'
        )
    symbol, place = _place(model, sizes, symbols)
    tokens = tokens or sizes[symbol]

    def see(batch: int, length: int) -> tuple[Sighting, int]:
        return _sighting(model, {**sizes, BATCH_SYMBOL: batch, symbol: length}, place)

    (first, operators), (second, more_operators) = (see(BATCH, length) for length in SMALL)
    each = max(0, more_operators - operators)
    most = min(FARTHER * tokens, SMALL[1] + MOST_OPERATORS // each) if each else FARTHER * tokens
    by_chunk = not each and tokens > _CHUNKED and see(1, _SEVERAL_CHUNKS)[1] > more_operators
    most = _CHUNKED if by_chunk else most
    large = [(nearest := min(tokens, most), see(1, nearest)[0])]
    if farther and most > tokens and (beyond := _unless_it_fails(lambda: see(1, most)[0])) is not None:
        large.append((most, beyond))
    return CacheLaws(laws_of((first, second), *large), first, symbol, large[-1][0], bool(each), by_chunk)


def _sighting(model: ServedModel, sizes: Mapping[str, int], place: CachePlace) -> tuple[Sighting, int]:
    return model.look(sizes, lambda _, __, out: held_tensors(place.of(out)))


def _candidates(model: ServedModel, sizes: Mapping[str, int]) -> tuple[list[CachePlace], str]:
    """Where a pass may have returned a cache, and what it returned, in words."""

    def look(_: ServingPass, call: ModelCall, out: Any) -> tuple[list[CachePlace], str]:
        arguments = given_arguments(model.runnable.model, call.args, call.kwargs)
        return places(model.runnable.model, out, arguments), result_text(out)

    return model.look(sizes, look)[0]


def _place(model: ServedModel, sizes: Mapping[str, int], symbols: list[str]) -> tuple[str, CachePlace]:
    """The symbol of the tokens, and where the cache is; what is not clear is tried by a step of one token."""
    alone = len(symbols) == 1
    small = {**sizes, BATCH_SYMBOL: 1, **({symbols[0]: SMALL[0]} if alone else {})}
    candidates, returned = _candidates(model, small)
    if alone and len(candidates) == 1 and candidates[0].argument == candidates[0].field:
        return symbols[0], candidates[0]
    grown = [(symbol, place) for symbol in symbols for place in candidates if _grows(model, sizes, symbol, place)]
    if len(grown) == 1:
        return grown[0]
    raise refusal(model.name, candidates, returned)


def _grows(model: ServedModel, sizes: Mapping[str, int], symbol: str, place: CachePlace) -> bool:
    """Whether a cache that is taken back with one more token is that of a pass which is one token longer."""
    shorter, longer = ({**sizes, BATCH_SYMBOL: BATCH, symbol: length} for length in SMALL)

    def step(serving_pass: ServingPass, _: ModelCall, out: Any) -> tuple[Sighting, Sighting]:
        before = held_tensors(place.of(out))
        out = serving_pass.again({symbol: 1}, **{place.argument: place.of(out)})
        return before, held_tensors(place.of(out))

    whole = _unless_it_fails(lambda: _sighting(model, longer, place)[0])
    stepped = None if whole is None else _unless_it_fails(lambda: model.look(shorter, step)[0])
    if stepped is None:
        return False
    before, after = stepped
    return after == whole and (before != after or _is_state(model, sizes, symbol, place, after))


def _is_state(model: ServedModel, sizes: Mapping[str, int], symbol: str, place: CachePlace, after: Sighting) -> bool:
    """Whether what no token adds to is a state of each request: another request adds to it."""
    larger = {**sizes, BATCH_SYMBOL: BATCH + 1, symbol: SMALL[1]}
    more = _unless_it_fails(lambda: _sighting(model, larger, place)[0])
    return more is not None and any(a.elements != b.elements for a, b in zip(after, more, strict=True))


def _unless_it_fails(attempt: Callable[[], Any]) -> Any:
    """What an attempt gives, None where the model does not run so."""
    try:
        return attempt()
    except ModelBudgetError:
        return None
