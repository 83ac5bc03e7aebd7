"""Planned runs in words, as rows and as a curve."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_modelbudget.summary import BoundPart, Growth, Plan, Point, TimeBound
from pytest_modelbudget.summary.show import plans, table
from tests.builders import towers, training


def test_lines() -> None:
    """Peak, place and parts; what would help, most first and only what does; devices; the largest sizes; notes."""
    assert list(plans.lines(training())) == [
        "training (batch 32, adamw, bf16-mixed): peak 40.00 MiB in backward of dense_2; activations 26.00 MiB, "
        "optimizer 8.000 MiB, weights 4.000 MiB, gradients 2.000 MiB; reserved 44.00 MiB",
        "  checkpointing: blocks would save 18.00 MiB",
        "  fits 80 MiB (needs 45.00 MiB of 80.00 MiB); does not fit 40 MiB (needs 45.00 MiB of 40.00 MiB); not known "
        "whether it fits abacus",
        "  largest B on 80 MiB: 57",
        "  not even T=1 fits 40 MiB",
        "  the context of the device is not part of it",
    ]


def test_least_times_of_a_layer() -> None:
    """Shares that add up, by what bounds them, with what is inside; a layer whose name only begins alike has its own.

    The chip holds what the memory would bring, so that the whole takes less than its parts, one by one.
    """
    parts = (
        BoundPart("block.up", "compute", 6 * 10**9), BoundPart("blocks", "compute", 10**9),
        BoundPart("block", "memory", 3 * 10**9),
    )  # fmt: skip
    summary = replace(towers(), plans=(Plan("training", "sgd", 7, time_bounds=(TimeBound("T4", 7 * 10**9, parts),)),))
    shares = {path: list(plans.layer_times(summary, path)) for path in ("block", "blocks", "head")}
    assert shares == {
        "block": [("training on T4", "60.0% bound by compute and 30.0% bound by memory, of at least 7.000 ms")],
        "blocks": [("training on T4", "10.0% bound by compute, of at least 7.000 ms")],
        "head": [],
    }


@pytest.mark.parametrize(
    ("flops", "moved", "shown"),
    [
        (34, 100, "0.34"),
        (25, 10, "2.5"),
        (99, 10, "9.9"),
        (12, 10_000, "0.0012"),
        (0, 10, "0"),
        (123_456, 10, "12,346"),
    ],
)
def test_few_flops_for_a_byte_are_not_rounded_away(flops: int, moved: int, shown: str) -> None:
    """Two digits below ten, whole numbers above."""
    [line] = plans.time_texts(Plan("training", "sgd", 7, flops=flops, bytes_moved=moved))
    assert line.endswith(f", {shown} FLOPs for each byte")


def test_least_times() -> None:
    """What a run computes and moves, and the least time on each device, as a bound, with what it is bound by."""
    parts = (BoundPart("head", "compute", 9 * 10**9), BoundPart("", "memory", 3 * 10**9))
    bounds = (TimeBound("A100 80GB", 11 * 10**9, parts), TimeBound("24 GB", None, reason="no speed"))
    plan = Plan("training", "sgd", 7, flops=8192, bytes_moved=2048, time_bounds=bounds)
    assert list(plans.lines(plan))[1:] == [
        "  computes 8.192 kFLOPs; its products read and write 2.000 KiB, 4.0 FLOPs for each byte",
        f"  takes at least 11.00 ms on A100 80GB (a bound, no estimate: {plans.ABOVE_BOUND}): "
        "75.0% bound by compute, most in head; 25.0% bound by memory",
        "  least time on 24 GB: ? (no speed)",
    ]
    assert next(plans.time_texts(replace(plan, flops_at_least=True))) == (
        "  computes at least 8.192 kFLOPs; its products read and write 2.000 KiB"
    )


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        pytest.param(Plan("inference", "fp32", None, notes=("not planned: KeyError: 'x'", "more")), [
            "inference (fp32): peak ? (not planned: KeyError: 'x')", "  more",
        ], id="not known"),
        pytest.param(Plan("inference", "fp32", None), ["inference (fp32): peak ?"], id="not known, no reason"),
        pytest.param(replace(Plan("training", "sgd", None, notes=("no",)), parts=training().parts[3:]), [
            "training (sgd): peak ? (no); known are weights 4.000 MiB, gradients 2.000 MiB",
        ], id="known in part"),
        pytest.param(Plan("inference", "fp32", 7, low_bytes=5, high_bytes=9), ["inference (fp32): peak 7 B (5 B to 9 B)"], id="range"),
        pytest.param(Plan("inference", "fp32", 7, low_bytes=7, high_bytes=7), ["inference (fp32): peak 7 B"], id="no range"),
        pytest.param(Plan("training", "sgd", 7, phase="optimizer"), ["training (sgd): peak 7 B in the step of the optimizer"], id="optimizer"),
        pytest.param(Plan("training", "sgd", 7, path="head"), ["training (sgd): peak 7 B in head"], id="no phase"),
        pytest.param(Plan("training", "sgd", 7, ranks=8, communication_bytes=2048), [
            "training (sgd), one of 8 ranks: peak 7 B; sends 2.000 KiB a step",
        ], id="sharded"),
    ],
)  # fmt: skip
def test_other_lines(plan: Plan, expected: list[str]) -> None:
    """What is not known is a question mark with its reason, and never 0."""
    assert str(plan).splitlines() == expected


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        pytest.param(
            Growth("T", "activation_bytes", 8, ((8, 8_192), (16, 16_384), (32, 32_768)), 1, 1.0, 1_024, 0.0),
            "activation_bytes in T: linear (1.000 KiB for each; 8.000 KiB at 8, 16.00 KiB at 16, 32.00 KiB at 32)", id="linear",
        ),
        pytest.param(
            Growth("B", "flops", 2, ((2, 4_000), (4, 16_000), (8, 64_000)), 2, 2.0, None, 1.0),
            "flops in B: quadratic (4.000 kFLOPs at 2, 16.00 kFLOPs at 4, 64.00 kFLOPs at 8)", id="quadratic",
        ),
        pytest.param(Growth("T", "flops", 8, reason="no such position"), "flops in T: ? (no such position)", id="not known"),
    ],
)  # fmt: skip
def test_growth_lines(growth: Growth, expected: str) -> None:
    """The law, and the numbers that show it."""
    assert plans.growth_text(growth) == expected


def test_the_table_of_a_model_has_them() -> None:
    """Under its totals, in `print(summary)` and where a failing model is shown."""
    lines = table.summary_text(replace(towers(), plans=(training(),))).splitlines()
    assert next(plans.lines(training())) in lines
    assert lines.index("  checkpointing: blocks would save 18.00 MiB") > lines.index("Total params: 6,201 (24.22 KiB)")


def test_the_curve() -> None:
    """Five points in a drawing of 720 x 200: the peak is the third, 40 of 48 MiB high; 12 MiB are held all the time."""
    curve = plans.memory_curve(training())
    assert curve is not None
    assert curve.peak == (360.0, round(200 - 200 / 1.2, 1))
    assert curve.line.split()[0] == f"72.0,{round(200 - 200 * 13 / 48, 1)}"
    assert curve.held == 200 - 200 * 12 / 48
    assert [(band.phase, band.left, band.width) for band in curve.bands] == [
        ("forward", 0, 288), ("backward", 288, 288), ("optimizer", 576, 144),
    ]  # fmt: skip
    assert [size for _, size in curve.levels] == ["16.00 MiB", "32.00 MiB"]


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([7], id="one point"),
        pytest.param([0, 0], id="nothing is alive"),
        pytest.param([*range(5_000), 9_999, *range(5_000)], id="long, the peak kept"),
    ],
)
def test_any_timeline_can_be_drawn(sizes: list[int]) -> None:
    """Within the drawing, in a few hundred points, with its highest."""
    plan = replace(training(max(sizes)), timeline=tuple(Point("forward", "a", size) for size in sizes), parts=())
    curve = plans.memory_curve(plan)
    assert curve is not None
    points = [tuple(map(float, point.split(","))) for point in curve.line.split()]
    assert len(points) <= 300
    assert all(0 <= x <= 720 and 0 <= y <= 200 for x, y in points)
    assert min(y for _, y in points) == curve.peak[1]
    assert len(curve.levels) <= 5


def test_there_is_no_curve_without_a_timeline() -> None:
    """A sum has none."""
    assert plans.memory_curve(replace(training(), timeline=())) is None


def test_many_parts_are_folded() -> None:
    """Twelve rows and one for the rest, which add up."""
    part = training().parts[0]
    rows = list(
        plans.peak_parts(
            replace(training(), parts=tuple(replace(part, path=f"layers.{i}", bytes=i + 1) for i in range(40)))
        )
    )
    assert len(rows) == 13
    assert rows[0] == ("activations", "layers.39", 40)
    assert rows[-1] == ("28 more", "", sum(range(1, 29)))
