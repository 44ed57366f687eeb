"""The geometry of charts: templates/charts.html draws it as SVG.

Heights are in pixels, horizontal places in per cent, so that a chart fits any width while its texts keep their size.
Series differ in their patterns, not in colour alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

HEIGHT = 160
"""Pixels of the area of the bars."""
TOP = 12
"""Pixels above it: half the height of the uppermost label."""
MIN_BAR = 2.0
"""Pixels of the shortest bar: a value above 0 can be seen."""
TICKS = 4
"""Lines above the base line, at most."""
MAX_LABELS = 4
"""Labels below the bars: as many fit 240 pixels."""
GAP = 0.22
"""The part of a column that is left between two bars."""
MAX_BAR_PERCENT = 12.0
"""Of the width: few bars are not as wide as the page."""


@dataclass(frozen=True, slots=True)
class Column:
    """What one bar shows. `values`: one for each series, from the base line up. `mark`: where a short line is drawn.

    `label`: below the bar, where there is room; `title`: in full, with the numbers.
    """

    label: str
    title: str
    values: Sequence[float]
    mark: float | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a bar. `x`, `width`: per cent; `y`, `height`: pixels; `series`: its number, from 0."""

    x: float
    y: float
    width: float
    height: float
    series: int


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, with the area in which its title is shown. `mark`: the y of its line; None without one."""

    title: str
    x: float
    width: float
    boxes: list[Box]
    mark: float | None


@dataclass(frozen=True, slots=True)
class Label:
    """A text at an axis. `place`: per cent below the bars, pixels beside them; `anchor`: start, middle or end."""

    text: str
    place: float
    anchor: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars with their axes. `base`: the y of the base line; `height`: of the whole image."""

    bars: list[Bar]
    ticks: list[Label]
    labels: list[Label]
    base: int
    height: int


def columns_chart(columns: Sequence[Column], *, height: int = HEIGHT, whole: bool = True) -> Chart:
    """Stacked bars. `whole`: values are whole numbers, and so are the labels beside them."""
    largest = max((max(sum(column.values), column.mark or 0) for column in columns), default=0)
    step, count = scale(largest, whole=whole)
    top, base = step * count, TOP + height
    slot = 100 / max(len(columns), 1)
    width = min(slot * (1 - GAP), MAX_BAR_PERCENT)
    bars = []
    for place, column in enumerate(columns):
        x, y, boxes = place * slot + (slot - width) / 2, float(base), []
        for series, value in enumerate(column.values):
            if value > 0:
                size = max(value / top * height, MIN_BAR)
                y -= size
                boxes.append(Box(round(x, 3), round(max(y, 0), 2), round(width, 3), round(size, 2), series))
        mark = None if column.mark is None else round(base - column.mark / top * height, 2)
        bars.append(Bar(column.title, round(place * slot, 3), round(slot, 3), boxes, mark))
    ticks = [Label(short(step * n), round(base - height * n / count, 2), "end") for n in range(count + 1)]
    return Chart(bars, ticks, _labels([column.label for column in columns], slot), base, base + 22)


def _labels(texts: Sequence[str], slot: float) -> list[Label]:
    """The labels below the bars that fit, evenly spaced; "" for a bar that has none."""
    named = [place for place, text in enumerate(texts) if text]
    every = -(-len(named) // MAX_LABELS) or 1
    labels = []
    for place in named[::every]:
        middle = (place + 0.5) * slot
        anchor = "start" if middle < 6 else "end" if middle > 94 else "middle"
        at = place * slot if anchor == "start" else (place + 1) * slot if anchor == "end" else middle
        labels.append(Label(texts[place], round(at, 3), anchor))
    return labels


def scale(largest: float, *, whole: bool = True) -> tuple[float, int]:
    """The step of an axis that reaches at least to this value: 1, 2 or 5 times a power of ten; and how many steps."""
    if not largest > 0 or not math.isfinite(largest):
        return 1.0, 1
    rough = largest / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    if whole:
        step = max(step, 1.0)
    return step, max(math.ceil(largest / step - 1e-9), 1)


def short(value: float) -> str:
    """A number as an axis shows it: `0`, `250`, `1.5k`, `20M`."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{unit}" if value < 1e16 else f"{value:.0e}"
    return f"{value:.3g}"


def percent(value: float, whole: float) -> float:
    """A part of a whole in per cent, from 0 to 100; visible if it is more than nothing."""
    if not value > 0 or not whole > 0:
        return 0.0
    return round(min(max(value / whole * 100, 0.5), 100.0), 2)
