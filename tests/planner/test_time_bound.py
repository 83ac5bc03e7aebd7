"""Least times: rooflines worked out by hand, and rates against datasheets."""

from __future__ import annotations

import pytest

from pytest_modelbudget.planner.devices import device_names
from pytest_modelbudget.planner.time_bound import kept_on_chip, speed_of, time_bounds
from pytest_modelbudget.planner.traffic import Operand, Traffic, Work
from pytest_modelbudget.summary import BoundPart

TERA = 10**12
A100 = "A100 80GB"
ON_CHIP = 40 * 2**20 + 108 * 768 * 2**10


def test_each_operator_takes_the_longer_of_its_times() -> None:
    """108 units, 1410 MHz and 2048 FLOPs make 311.9 TFLOPS; 2039 GB/s; the chip may hold some of what is read."""
    work = [
        Work("mm", "a", "forward", 1, 2 * TERA, TERA, "bfloat16", read=10**9),
        Work("mm", "b", "forward", 1, 1000, 1000, "bfloat16", read=20 * 10**9),
    ]
    [bound] = time_bounds(work, [A100])
    compute, memory = TERA * TERA // 311_869_440_000_000, 20 * 10**9 * TERA // 2_039_000_000_000
    assert bound.parts == (BoundPart("b", "memory", memory), BoundPart("a", "compute", compute))
    assert bound.picoseconds == compute + memory - ON_CHIP * TERA // 2_039_000_000_000


def test_what_has_room_on_the_chip_moves_nothing() -> None:
    """What a product hands on counts beyond the chip's memory alone, and it never makes less than the FLOPs take."""
    small = Work("mm", "a", "forward", 1, TERA, TERA, "bfloat16", handed_in=ON_CHIP, handed_on=ON_CHIP)
    large = Work("mm", "a", "forward", 1, 0, 0, "", handed_in=ON_CHIP + 2_039_000_000)
    times = [bound.picoseconds for work in (small, large) for bound in time_bounds([work], [A100])]
    read = Work("mm", "b", "forward", 1, 0, 0, "", read=ON_CHIP)
    [bound] = time_bounds([small, read], [A100])
    assert bound.parts == (BoundPart("a", "compute", times[0] or 0),)
    assert bound.picoseconds == times[0]
    assert times == [TERA * TERA // 311_869_440_000_000, TERA // 1000]
    assert (
        kept_on_chip([Work("mm", "", "forward", 1, read=7), Work("mm", "", "backward", 2, read=99, written=5)], 10)
        == 22
    )


@pytest.mark.parametrize(
    ("device", "dtype", "words"),
    [
        (A100, "float64", "how fast A100 80GB multiplies float64 is not known"),
        ("V100", "float8", "how fast V100 multiplies float8 is not known"),
    ],
    ids=["float64", "float8-before-ada"],
)
def test_what_is_not_known_is_no_bound(device: str, dtype: str, words: str) -> None:
    """A dtype without a rate gives a reason and no time; a size without a name has no speed at all."""
    [bound] = time_bounds([Work("mm", "", "forward", 1, 10, 10, dtype)], ["24 GiB", device])
    assert bound.picoseconds is None
    assert words in bound.reason


def test_a_little_work_of_an_unknown_rate_takes_no_time() -> None:
    """A product of a few float64 or integers beside a model leaves its bound as it is."""
    work = [
        Work("mm", "", "forward", 1, TERA, TERA, "bfloat16"),
        *(Work("mm", "", "forward", 1, 1000, 1000, dtype) for dtype in ("float64", "")),
    ]
    bounds = [list(time_bounds(items, [A100])) for items in (work, work[:1])]
    assert bounds[0] == bounds[1]


@pytest.mark.parametrize(
    ("device", "dtype", "published", "bandwidth"),
    [
        ("A100 80GB", "bfloat16", 312, 2.039), ("A100 40GB", "float32", 156, 1.555),
        ("T4", "float16", 65, 0.32), ("P100", "float16", 21.2, 0.732),
        ("A40", "bfloat16", 149.7, 0.696), ("L40S", "float8", 733, 0.864), ("MI300X", "bfloat16", 1307.4, 5.3),
        ("MI250X", "float16", 191.5, 1.6384),
    ],
)  # fmt: skip
def test_rates_are_those_of_datasheets(device: str, dtype: str, published: float, bandwidth: float) -> None:
    """Units, clock and FLOPs in one clock make what the vendor prints, within its rounding."""
    speed = speed_of(device)
    assert speed is not None
    assert speed.flops[dtype] / TERA == pytest.approx(published, rel=0.02)
    assert speed.bandwidth / TERA == pytest.approx(bandwidth, rel=0.01)


def test_cards_that_clock_higher_than_their_datasheet_are_bounded_by_the_higher_clock() -> None:
    """A rate at the clock of the datasheet would be no bound for a card that runs faster."""
    published = {"H100": 989.4, "RTX 4090": 330.3, "RTX 3090": 142.0, "B200": 2250.0, "V100": 125.0}
    for device, tera in published.items():
        speed = speed_of(device)
        assert speed is not None
        assert 1.0 < speed.flops["float16"] / TERA / tera < 1.3


def test_every_device_has_a_speed() -> None:
    """A device that plans know has its rates."""
    assert [name for name in device_names() if speed_of(name) is None] == []
    assert speed_of("rtx 3090 (context 350 MiB)") == speed_of("RTX 3090 24GB")


def test_a_view_of_what_was_there_moves_its_own_bytes() -> None:
    """Two slices of one weight are read apart, and no more than the whole of it."""
    traffic = Traffic()
    for size in (40, 40, 40):
        traffic.product(Work("mm", "", "forward", 0), [Operand(0, size, 100)], [Operand(1, 8, 8)])
    assert [item.read for item in traffic.finished()] == [40, 40, 20]


def test_sums_of_products_are_read_as_one() -> None:
    """A sum of two results takes no more than its own bytes from them."""
    traffic = Traffic()
    for storage in (1, 2):
        traffic.product(Work("mm", "", "forward", 0), [Operand(0, 10, 10)], [Operand(storage, 50, 50)])
    traffic.fused("forward", [Operand(1, 50, 50), Operand(2, 50, 50)], [Operand(3, 50, 50)])
    traffic.product(Work("mm", "", "forward", 0), [Operand(3, 50, 50)], [Operand(4, 50, 50)])
    work = traffic.finished()
    assert [item.handed_in for item in work] == [0, 0, 50]
    assert [item.handed_on for item in work] == [0, 50, 0]
