"""The overview, at `/dashboard/overview`: exact numbers of a time range from the database, and what waits now.

All visitors share what was read and rendered in the last seconds.
"""

import functools
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.routing import Route

from kling_receiver.jobs.kinds import Kind
from kling_receiver.metrics import Metrics
from kling_receiver.parts import Clock
from kling_receiver.policy import SlotLimits
from kling_receiver.statistics.numbers import Numbers, read_numbers
from kling_receiver.statistics.overview import DAY_MS, FinishedTasks, OutcomeRow
from kling_receiver.statistics.queues import JobCounts, SlotUse
from kling_receiver.store.reader import Reader
from kling_receiver.store.transaction import HOUR_MS
from kling_receiver.web.dashboard.charts import Chart, Column, columns_chart, percent
from kling_receiver.web.dashboard.display import duration_text
from kling_receiver.web.dashboard.pages import HEADERS, NavLink, Pages, Visit, urls_from
from kling_receiver.web.errors import ApiError
from kling_receiver.web.shared import Shared

PATH = "dashboard/overview"
URL = urls_from(f"/{PATH}")
KEPT_SECONDS = 5.0
"""Seconds for which the numbers are shown to others, too."""
MAX_BARS = 12
"""Families and tags with a bar; the table has all of them."""
MAX_UNITS = 6
"""Units and currencies with a chart; the table has all of them."""
COST_HEIGHT = 90
"""Pixels of a chart of costs."""


@dataclass(frozen=True, slots=True)
class Range:
    """A time range that ends now. `step_ms`: of one bar; `steps`: how many there are, the last of which has begun."""

    name: str
    title: str
    step_ms: int
    steps: int
    align_ms: int
    """The first bar begins at a multiple of it."""

    def since(self, now: int) -> int:
        """Its begin, in unix ms."""
        span = self.step_ms * self.steps
        return (now // self.align_ms + 1) * self.align_ms - span


RANGES = {
    each.name: each
    for each in (
        Range("24h", "24 hours", HOUR_MS, 24, HOUR_MS),
        Range("7d", "7 days", 6 * HOUR_MS, 28, DAY_MS),
        Range("30d", "30 days", DAY_MS, 30, DAY_MS),
    )
}
STEP_TITLES = {HOUR_MS: "hour", 6 * HOUR_MS: "6 hours", DAY_MS: "day"}
KIND_TITLES: Mapping[str, str] = {
    Kind.ASK: "Ask Kling about a task",
    Kind.DOWNLOAD: "Download a file",
    Kind.CREATE: "Send a create to Kling",
    Kind.OVERDUE: "Check a task at its deadline",
    Kind.SWEEP: "Check an open task after the start",
    Kind.REMOVE: "Remove the files of a removed task",
    Kind.DISPATCH: "Send new events to a hook",
    Kind.REPLAY: "Send past events to a hook",
    Kind.DELIVERY: "Retry a delivery to a hook",
}
REFUSALS: Mapping[str, str] = {
    "unavailable": "the database did not answer",
    "error": "an internal error",
    "unknown_task": "signed by Kling, but of no task here",
}
"""What is said of outcomes of callbacks, besides the codes of their errors."""


class OverviewPage:
    """The overview. `limits`: of KLING_CONCURRENCY; `clock`: unix seconds."""

    def __init__(
        self, pages: Pages, *, reader: Reader, metrics: Metrics, limits: SlotLimits, clock: Clock = time.time
    ) -> None:
        self._pages, self._reader, self._metrics, self._limits, self._clock = pages, reader, metrics, limits, clock
        self._shown = {name: Shared(functools.partial(self._render, name), KEPT_SECONDS) for name in RANGES}
        pages.links.append(NavLink("Overview", PATH, "o"))

    def routes(self) -> list[Route]:
        """The routes of this module."""
        page = self._pages.page
        return [
            Route(f"/{PATH}", page("read", self._show, query=("range",)), methods=["GET"]),
            Route("/dashboard/live/overview", page("read", self._refresh, query=("range", "state")), methods=["GET"]),
        ]

    async def _show(self, visit: Visit) -> Response:
        chosen = _range(visit)
        html, _ = await self._shown[chosen.name].get()
        ranges = list(RANGES.values())
        return self._pages.render(visit, "overview.html", title="Overview", numbers=html, ranges=ranges, chosen=chosen)

    async def _refresh(self, visit: Visit) -> Response:
        """The numbers again; 204 if they are those that the page has."""
        html, state = await self._shown[_range(visit).name].get()
        if visit.request.query_params.get("state") == state:
            return Response(status_code=204, headers=HEADERS)
        return Response(html, headers=HEADERS, media_type="text/html")

    async def _render(self, name: str) -> tuple[str, str]:
        """The numbers as HTML, and a digest of them."""
        now, chosen = int(self._clock() * 1000), RANGES[name]
        since, limits = chosen.since(now), self._limits
        numbers = await self._reader.read(
            lambda connection: read_numbers(connection, since, now + 1, chosen.step_ms, limits)
        )
        return await run_in_threadpool(self._to_html, chosen, numbers, since, now)

    def _to_html(self, chosen: Range, numbers: Numbers, since: int, now: int) -> tuple[str, str]:
        html = self._pages.fragment("overview_numbers.html", url=URL, **self._context(chosen, numbers, since, now))
        state = hashlib.sha256(html.encode()).hexdigest()[:16]
        refresh = URL("dashboard/live/overview", range=chosen.name, state=state)
        return self._pages.fragment("overview_frame.html", numbers=html, refresh=refresh), state

    def _context(self, chosen: Range, numbers: Numbers, since: int, now: int) -> dict[str, Any]:
        steps, finished = numbers["outcomes"], numbers["finished"]
        return {
            "chosen": chosen,
            "step": STEP_TITLES[chosen.step_ms],
            "totals": {name: sum(row[name] for row in steps) for name in ("created", "succeeded", "failed")},
            "steps": [(_step_title(chosen, row["start"]), row) for row in steps],
            "outcomes": outcomes_chart(steps, chosen, since),
            "durations": duration_bars(finished),
            "callbacks": numbers["callbacks"],
            "refused": _refused(self._metrics.callbacks_by_outcome()),
            "refused_since": int(self._metrics.started_at * 1000),
            "slots": slot_bars(numbers["slots"]),
            "jobs": _jobs(numbers["jobs"], now),
            "costs": cost_charts(finished, since, now),
            "cost_rows": cost_rows(finished),
            "tags": tag_bars(finished),
            "is_partial": since % DAY_MS != 0,
            "complete_since": finished["since"] if finished["since"] > since else None,
            "since_text": f"{day_text(since)}, {_at(since):%H:%M}",
        }


def _range(visit: Visit) -> Range:
    name = visit.request.query_params.get("range") or "24h"
    if name not in RANGES:
        hint = f"Choose one of {', '.join(RANGES)}."
        raise ApiError(422, "bad_query", "There is no such time range.", hint)
    return RANGES[name]


def _refused(by_outcome: Mapping[str, int]) -> list[tuple[str, int]]:
    """Callbacks that were not accepted, by reason, the most frequent first."""
    found = [(REFUSALS.get(name, name), number) for name, number in by_outcome.items() if name != "accepted" and number]
    return sorted(found, key=lambda each: (-each[1], each[0]))


def _at(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def day_text(milliseconds: int) -> str:
    """A day: `Nov 5`."""
    at = _at(milliseconds)
    return f"{at:%b} {at.day}"


def _step_title(chosen: Range, start: int) -> str:
    if chosen.step_ms == DAY_MS:
        return day_text(start)
    return f"{day_text(start)}, {_at(start):%H:%M}"


def outcomes_chart(steps: Sequence[OutcomeRow], chosen: Range, since: int) -> Chart:
    """Tasks that ended in each step as bars, and those that were created as marks. Steps to come are empty."""
    columns = [
        Column(
            _label(chosen, row["start"]),
            f"{_step_title(chosen, row['start'])}: {row['succeeded']:,} succeeded, {row['failed']:,} failed, "
            f"{row['created']:,} created",
            (row["succeeded"], row["failed"]),
            row["created"] or None,
        )
        for row in steps
    ]
    to_come = range(len(steps), chosen.steps)
    columns += [Column(_label(chosen, since + place * chosen.step_ms), "", (0, 0)) for place in to_come]
    return columns_chart(columns)


def _label(chosen: Range, start: int) -> str:
    """What is written below a bar: the hours of a day, or the day at its midnight."""
    if chosen.step_ms == HOUR_MS:
        return f"{_at(start):%H:%M}" if start // HOUR_MS % 6 == 0 else ""
    return day_text(start) if start % DAY_MS == 0 else ""


@dataclass(frozen=True, slots=True)
class RangeBar:
    """A horizontal bar with its texts. `parts`: from and to in per cent, and the series."""

    name: str
    text: str
    parts: list[tuple[float, float, int]]


def duration_bars(finished: FinishedTasks) -> dict[str, Any]:
    """Of each family, the bar to half of its durations, and from there to 95 of 100; slowest first."""
    rows = sorted(finished["durations"], key=lambda row: (-row["p95_ms"], row["family"]))
    largest = max((row["p95_ms"] for row in rows), default=0)
    bars = []
    for row in rows[:MAX_BARS]:
        half, most = percent(row["p50_ms"], largest), percent(row["p95_ms"], largest)
        text = f"p50 {duration_text(row['p50_ms'])} · p95 {duration_text(row['p95_ms'])}"
        bars.append(RangeBar(row["family"], text, [(0.0, half, 0), (half, most, 2)]))
    table = [
        (row["family"], f"{row['count']:,}", duration_text(row["p50_ms"]), duration_text(row["p95_ms"])) for row in rows
    ]
    return {"bars": bars, "table": table}


def slot_bars(use: SlotUse) -> dict[str, Any]:
    """The slots that are held: of the account, and of each model that has a limit or holds one."""
    limit = use["total"] if use["ceiling"] is None else min(use["ceiling"], use["total"] or use["ceiling"])
    bars = [_slot_bar("All models", use["held"], limit)]
    models = sorted({*use["by_model"], *use["held_by_model"]})
    bars += [
        _slot_bar(model or "(no model)", use["held_by_model"].get(model, 0), use["by_model"].get(model))
        for model in models[:MAX_BARS]
    ]
    return {**use, "bars": bars}


def _slot_bar(name: str, held: int, limit: int | None) -> RangeBar:
    text = f"{held:,} held, no limit" if limit is None else f"{held:,} of {limit:,} held"
    return RangeBar(name, text, [] if limit is None else [(0.0, percent(held, max(limit, 1)), 0)])


def _jobs(counts: JobCounts, now: int) -> dict[str, Any]:
    rows = [{**row, "title": KIND_TITLES.get(row["kind"], row["kind"])} for row in counts["kinds"]]
    due = [row["next_due_at"] for row in counts["kinds"] if row["next_due_at"] is not None]
    oldest = min(due, default=None)
    return {
        "rows": rows,
        "waiting": sum(row["waiting"] for row in counts["kinds"]),
        "running": sum(row["running"] for row in counts["kinds"]),
        "dead": sum(row["dead"] for row in counts["kinds"]),
        "oldest": oldest,
        "now": now,
        "is_complete": counts["is_complete"],
    }


def cost_charts(finished: FinishedTasks, since: int, now: int) -> list[dict[str, Any]]:
    """A chart of the costs of each day for each unit, the first MAX_UNITS by name."""
    days = {row["day"]: row["amounts"] for row in finished["costs"]}
    charts = []
    for unit in sorted({unit for amounts in days.values() for unit in amounts})[:MAX_UNITS]:
        columns, total = [], Decimal()
        for day in range(since // DAY_MS * DAY_MS, now + 1, DAY_MS):
            amount = Decimal(days.get(day, {}).get(unit, "0"))
            total += amount
            columns.append(
                Column(day_text(day), f"{day_text(day)}: {number_text(amount)} {unit}", (max(float(amount), 0.0),))
            )
        chart = columns_chart(columns, height=COST_HEIGHT, whole=False)
        charts.append({"unit": unit, "total": number_text(total), "chart": chart})
    return charts


def cost_rows(finished: FinishedTasks) -> list[tuple[str, str, str]]:
    """The costs of each day: the day, its tasks with a cost, the amounts."""
    return [(day_text(row["day"]), f"{row['tasks']:,}", amounts_text(row["amounts"])) for row in finished["costs"]]


def tag_bars(finished: FinishedTasks) -> dict[str, Any]:
    """What the tasks of each tag cost, as a bar for each unit; the tags of the most tasks first."""
    rows = finished["costs_by_tag"]
    largest: dict[str, Decimal] = {}
    for row in rows:
        for unit, amount in row["amounts"].items():
            largest[unit] = max(largest.get(unit, Decimal()), Decimal(amount))
    bars = [
        (
            row["tag"],
            [
                RangeBar(
                    unit,
                    f"{number_text(Decimal(amount))} {unit}",
                    [(0.0, percent(float(amount), float(largest[unit])), 0)],
                )
                for unit, amount in row["amounts"].items()
            ],
        )
        for row in rows[:MAX_BARS]
    ]
    table = [(row["tag"], f"{row['tasks']:,}", amounts_text(row["amounts"])) for row in rows]
    return {"bars": bars, "table": table}


def number_text(amount: Decimal) -> str:
    """An exact amount: `1,234.5`."""
    return f"{amount.normalize():,f}"


def amounts_text(amounts: Mapping[str, str]) -> str:
    """Amounts with their units: `12 image units, 3.5 video units`."""
    return ", ".join(f"{number_text(Decimal(amount))} {unit}" for unit, amount in amounts.items())
