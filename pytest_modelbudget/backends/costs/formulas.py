"""Formulas that are the same in every framework; a multiply-add counts 2, one of complex numbers 8."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil, log2, prod

Shape = tuple[int, ...]

COMPLEX_FFT, REAL_FFT = 5, 2.5
"""Shares of `N log2 N` that a transform of N complex or real points costs, in real FLOPs."""

COMPLEX_PRODUCT = 4
"""How many multiply-adds of real numbers one of complex numbers is: four products and four sums.

A real operand beside a complex one is made complex first, by all frameworks that take the two, and counts alike.
"""


def fft(points: int, transforms: int, share: float) -> int:
    """`share * N log2 N` for each transform of N points: 5 for complex ones, half of it for real ones."""
    return ceil(share * transforms * points * log2(points)) if points > 1 else 0


def einsum(subscripts: str, shapes: Sequence[Shape], path: Sequence[int] = ()) -> int:
    """Operands are multiplied from left to right; a pair that shares a summed index is a matrix product.

    `path` names pair after pair of what there is by its place, as torch does: `[1, 2, 0, 1]` multiplies the last two of
    three first, whose product goes to the end. The cost of a pair is `2 * product of the sizes of its indices`, after
    indices that only one operand has were summed.
    """
    terms, output = _terms(subscripts, [len(shape) for shape in shapes])
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for index, size in zip(term, shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    total = 0
    step = 0
    while len(terms) > 1:
        pair = sorted((path[step], path[step + 1])) if path else [0, 1]
        step += 2
        left, right = (terms[index] for index in pair)
        remaining = [term for index, term in enumerate(terms) if index not in pair]
        needed = set(output).union(*remaining)
        kept_indices = {index for index in {*left, *right} if index in needed}
        summed = {index for index in left if index in right and index not in needed}
        if summed:
            total += 2 * prod(sizes[index] for index in kept_indices | summed)
        product = "".join(sorted(kept_indices))
        terms = [*remaining, product] if path else [product, *remaining]
    return total


def _terms(subscripts: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The indices of each operand and of the result, `...` spelled out from the right with capital Greek letters."""
    text = subscripts.replace(" ", "")
    left, arrow, output = text.partition("->")
    terms = left.split(",")
    free = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    widest = max((count for term, count in zip(terms, free, strict=True) if "..." in term), default=0)
    names = "".join(chr(0x391 + position) for position in range(widest))
    spelled = [
        term.replace("...", names[widest - count :] if count else "") for term, count in zip(terms, free, strict=True)
    ]
    if not arrow:
        counts = Counter("".join(terms).replace(".", ""))
        output = "..." + "".join(sorted(index for index, count in counts.items() if count == 1))
    return spelled, output.replace("...", names)
