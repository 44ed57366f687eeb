"""The geometry of charts: nothing, one value, very different and very large values."""

import math
from itertools import pairwise

import pytest

from kling_receiver.web.dashboard.charts import (
    HEIGHT,
    MAX_LABELS,
    MIN_BAR,
    TOP,
    Column,
    columns_chart,
    percent,
    scale,
    short,
)


def columns(*values: tuple[float, ...]) -> list[Column]:
    """Columns with these values, each with its number as label."""
    return [Column(str(place), f"number {place}", value) for place, value in enumerate(values)]


def test_no_column() -> None:
    """Axes alone."""
    chart = columns_chart([])
    assert chart.bars == []
    assert chart.labels == []
    assert [tick.text for tick in chart.ticks] == ["0", "1"]


def test_only_zeros() -> None:
    """No bar, but each column has its title."""
    chart = columns_chart(columns((0, 0), (0, 0)))
    assert [(bar.title, bar.boxes) for bar in chart.bars] == [("number 0", []), ("number 1", [])]


def test_one_value() -> None:
    """It reaches the uppermost line, and is not as wide as the page."""
    (bar,) = columns_chart(columns((4,))).bars
    (box,) = bar.boxes
    assert (box.y, box.height) == (TOP, HEIGHT)
    assert box.width < 20
    assert box.x + box.width / 2 == pytest.approx(50)


def test_values_are_stacked_in_proportion() -> None:
    """From the base line up, in the order of the series; the mark is at its value."""
    chart = columns_chart([Column("", "", (30, 10), 20), Column("", "", (0, 5))])
    assert [tick.text for tick in chart.ticks] == ["0", "10", "20", "30", "40"]
    first, second = (bar.boxes for bar in chart.bars)
    assert [(box.series, box.y, box.height) for box in first] == [(0, TOP + HEIGHT / 4, HEIGHT * 3 / 4), (1, TOP, 40)]
    assert [(box.series, box.y, box.height) for box in second] == [(1, TOP + HEIGHT - 20, 20)]
    assert chart.bars[0].mark == TOP + HEIGHT / 2
    assert chart.bars[1].mark is None


@pytest.mark.parametrize("largest", [1, 7, 10**6, 10**12, 10**18, 1e300])
def test_huge_values(largest: float) -> None:
    """Nothing leaves the image, and the smallest bar beside them can be seen."""
    chart = columns_chart(columns((largest, 0), (1, 0), (0, largest)))
    boxes = [box for bar in chart.bars for box in bar.boxes]
    assert all(box.y >= 0 and box.y + box.height <= chart.base + 0.01 for box in boxes)
    assert all(box.height >= MIN_BAR and 0 <= box.x <= box.x + box.width <= 100 for box in boxes)
    assert all(len(tick.text) <= 6 for tick in chart.ticks), chart.ticks


@pytest.mark.parametrize("count", [1, 2, 24, 28, 30, 1000])
def test_labels_do_not_overlap(count: int) -> None:
    """At most five, inside the image, at equal distances."""
    labels = columns_chart(columns(*[(1.0,)] * count)).labels
    assert 1 <= len(labels) <= MAX_LABELS
    assert all(0 <= label.place <= 100 for label in labels)
    distances = [later.place - earlier.place for earlier, later in pairwise(labels)]
    assert all(distance > 15 for distance in distances)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("largest", [0, 0.001, 0.3, 1, 2, 3, 4, 5, 9, 10, 11, 99, 100, 101, 12345.678, 10**15])
def test_a_scale_has_round_steps_and_reaches_the_value(largest: float, whole: bool) -> None:
    """1, 2 or 5 times a power of ten, in whole numbers for things that are counted; five steps at most."""
    step, count = scale(largest, whole=whole)
    assert 1 <= count <= 5
    assert step * count >= largest * (1 - 1e-9)
    digits = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(digits - round_one) for round_one in (1, 2, 5)) < 1e-6
    assert not whole or step >= 1
    assert (step, count) == (1, 1) or step * (count - 1) < largest or step == 1


@pytest.mark.parametrize("value", [math.inf, math.nan, -5])
def test_no_value_that_cannot_be_drawn(value: float) -> None:
    """The axis is that of nothing."""
    assert scale(value) == (1.0, 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (250, "250"),
        (1000, "1k"),
        (1500, "1.5k"),
        (20_000_000, "20M"),
        (3e9, "3G"),
        (1e18, "1e+18"),
    ],
)
def test_short_numbers(value: float, text: str) -> None:
    """Of the axis."""
    assert short(value) == text


def test_parts_of_a_whole() -> None:
    """Within the bar, and visible."""
    assert [percent(*each) for each in ((0, 5), (5, 0), (1, 4), (9, 4), (1, 10**9), (-1, 4))] == [0, 0, 25, 100, 0.5, 0]
