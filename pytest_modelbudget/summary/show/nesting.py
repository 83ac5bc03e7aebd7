"""Which row stands in which, and what rows hold with everything inside them."""

from __future__ import annotations

from pytest_modelbudget.summary.model import Layer


def parent_rows(layers: tuple[Layer, ...]) -> list[int]:
    """For each row the index of the innermost container that it stands in, -1 for none."""
    parents: list[int] = []
    open_containers: list[int] = []
    for index, layer in enumerate(layers):
        while open_containers and not layer.path.startswith(
            (f"{layers[open_containers[-1]].path}.", f"{layers[open_containers[-1]].path}/")
        ):
            open_containers.pop()
        parents.append(open_containers[-1] if open_containers else -1)
        if layer.container:
            open_containers.append(index)
    return parents


def subtotals(values: list[int | None] | list[int], parents: list[int]) -> list[int | None]:
    """Each value with those of all rows inside; None as soon as one is."""
    sums: list[int | None] = list(values)
    for index in range(len(sums) - 1, -1, -1):  # rows come after the one they stand in
        parent, value = parents[index], sums[index]
        if parent >= 0:
            upper = sums[parent]
            sums[parent] = None if upper is None or value is None else upper + value
    return sums
