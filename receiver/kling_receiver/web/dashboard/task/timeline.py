"""The timeline of a task: its steps as lanes of spans, on a scale that shortens the time in which nothing happened."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kling_receiver.hooks.delivery_list import Delivery
from kling_receiver.states import FINAL
from kling_receiver.store.rows import EventRow, ResultRow
from kling_receiver.web.dashboard.display import duration_text
from kling_receiver.web.dashboard.task.reading import TaskHistory

MAX_LANES_EACH = 12
"""Files, and hooks, that have lanes of their own; more of them share one lane."""
IDLE_SHARE = 0.35
"""An idle time that is longer than this share of the busy time is drawn shorter, with a mark."""
IDLE_SHOWN = 0.08
"""The length of a shortened idle time, as a share of the busy time."""
OPEN_SHARE = 0.2
"""Room after the last event for what still goes on, as a share of the time before it, at least."""
MIN_OPEN_MS = 1_000
OPEN_GROWTH = 1.1
"""What goes on is drawn up to a power of this, of milliseconds, so that two renderings soon after another are equal."""
MAX_TICKS = 4
STEPS_MS = tuple(
    unit * n
    for unit, numbers in (
        (1, (1, 2, 5, 10, 20, 50, 100, 200, 500)),
        (1_000, (1, 2, 5, 10, 15, 30)),
        (60_000, (1, 2, 5, 10, 15, 30)),
        (3_600_000, (1, 2, 6, 12)),
        (86_400_000, (1, 2, 7, 14, 28, 91, 182, 364)),
    )
    for n in numbers
)
"""Distances of ticks that people read at once."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a lane, in unix ms. `end`: None while it goes on, and equal to `start` for a moment."""

    start: int
    end: int | None
    tone: str = ""
    """`good`, `bad`, `busy`, `wait` or "": as that of badges."""
    text: str = ""

    @property
    def is_moment(self) -> bool:
        """Whether it has no length."""
        return self.end is not None and self.end <= self.start


@dataclass(slots=True)
class Lane:
    """One step of a task. `note`: what its name and times do not say."""

    name: str
    spans: list[Span] = field(default_factory=list)
    note: str = ""
    is_sum: bool = True
    """Whether the lengths of its spans are what the step took."""

    @property
    def start(self) -> int:
        """When the step began (unix ms)."""
        return min(span.start for span in self.spans)

    @property
    def open_since(self) -> int | None:
        """Since when the step goes on (unix ms); None if it has ended."""
        return next((span.start for span in self.spans if span.end is None), None)

    @property
    def took_ms(self) -> int | None:
        """How long the step took; None while it goes on, for moments, and where a sum says nothing."""
        lengths = [span.end - span.start for span in self.spans if span.end is not None and not span.is_moment]
        if not self.is_sum or not lengths or self.open_since is not None:
            return None
        return sum(lengths)


@dataclass(frozen=True, slots=True)
class Bar:
    """A span as it is drawn: percentages of the width."""

    x: float
    width: float
    span: Span


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark of the scale. `x`: a percentage of the width."""

    x: float
    text: str


class Timeline:
    """The lanes of a task, and where their spans are drawn. `now`: unix ms.

    `whole`: the time from the task's creation to its end, in which nothing is idle, whatever the spans are.
    """

    def __init__(self, lanes: Sequence[Lane], now: int, whole: Span | None = None) -> None:
        self.lanes = [lane for lane in lanes if lane.spans]
        spans = [span for lane in self.lanes for span in lane.spans]
        self.start = min((span.start for span in spans), default=0)
        last = max((max(span.start, span.end or 0) for span in spans), default=0)
        self.is_open = any(span.end is None for span in spans)
        room = max(int((last - self.start) * OPEN_SHARE), MIN_OPEN_MS) if self.is_open else 0
        self._end = max(last + room, self.start + 1)
        if self.is_open and now > self._end:
            steps = math.floor(math.log(now - self.start, OPEN_GROWTH))
            self._end = max(self._end, self.start + int(OPEN_GROWTH**steps))
        self._pieces = list(self._to_pieces([*spans, *([whole] if whole else [])]))
        self._shown = sum(shown for _, _, shown in self._pieces)

    def _to_pieces(self, spans: Sequence[Span]) -> Iterator[tuple[int, int, float]]:
        """The time in pieces: start, end, and the length that is shown. Long idle times are shortened."""
        busy = [(self.start, self.start)]
        for start, end in sorted((span.start, self._end if span.end is None else span.end) for span in spans):
            if start > busy[-1][1]:
                busy.append((start, max(start, end)))
            else:
                busy[-1] = (busy[-1][0], max(busy[-1][1], end))
        total = sum(end - start for start, end in busy)
        previous = self.start
        for start, end in busy:
            idle = start - previous
            if idle:
                yield previous, start, IDLE_SHOWN * total if total and idle > IDLE_SHARE * total else idle
            if end > start:
                yield start, end, end - start
            previous = end

    def _x(self, at: int) -> float:
        """The place of a moment: a percentage of the width."""
        shown = 0.0
        for start, end, length in self._pieces:
            if at < end:
                return 100 * (shown + length * max(at - start, 0) / (end - start)) / (self._shown or 1)
            shown += length
        return 100.0 if self._shown else 0.0

    def bars(self, lane: Lane) -> list[Bar]:
        """The spans of a lane as they are drawn."""
        bars = []
        for span in lane.spans:
            x = self._x(span.start)
            bars.append(Bar(round(x, 2), round(self._x(self._end if span.end is None else span.end) - x, 2), span))
        return bars

    def breaks(self) -> list[Bar]:
        """Where an idle time is drawn shorter than it was."""
        return [
            Bar(round(x, 2), round(self._x(end) - x, 2), Span(start, end, text=f"{duration_text(end - start)} idle"))
            for start, end, length in self._pieces
            if length < end - start
            for x in [self._x(start)]
        ]

    def ticks(self) -> list[Tick]:
        """The marks of the scale: times since the start, up to the first idle time that is shortened, and the end."""
        length = self._end - self.start
        breaks = self.breaks()
        if breaks and breaks[0].x < 25:
            return [Tick(0.0, "0"), Tick(100.0, f"+{duration_text(length)}")]
        if breaks:
            length = breaks[0].span.start - self.start
        step = next((step for step in STEPS_MS if length / step <= MAX_TICKS), length // MAX_TICKS + 1)
        times = range(0, length + 1, step)
        ticks = [Tick(round(self._x(self.start + at), 2), _tick_text(at)) for at in times]
        return [*ticks, Tick(100.0, f"+{duration_text(self._end - self.start)}")] if breaks else ticks


def _tick_text(milliseconds: int) -> str:
    if milliseconds == 0:
        return "0"
    if milliseconds % 1000 == 0 and milliseconds < 60_000:
        return f"{milliseconds // 1000} s"
    return duration_text(milliseconds)


def timeline_of(history: TaskHistory, now: int) -> Timeline:
    """The timeline of a task, from its events, its files and the attempts of its deliveries. `now`: unix ms."""
    walk = _Walk(history)
    for event in history.events:
        walk.add(event)
    walk.finish()
    lanes = [walk.created, walk.queue, walk.create, walk.accepted, walk.generating, walk.overdue, walk.callbacks]
    files = _files(history, walk.succeeded_at)
    whole = Span(walk.created.start, walk.first_done_at) if walk.first_done_at else None
    return Timeline([*lanes, walk.questions, *files, walk.done, *_hooks(history.deliveries)], now, whole)


class _Walk:
    """The lanes of Kling's part, built by reading the events in order."""

    def __init__(self, history: TaskHistory) -> None:
        self._history, self._task = history, history.task
        self.created = Lane("Created")
        self.queue = Lane("Waiting for a slot")
        self.create = Lane("Create call")
        self.accepted = Lane("Accepted by Kling")
        self.generating = Lane("Generating")
        self.overdue = Lane("Deadline passed")
        self.callbacks = Lane("Callbacks")
        self.questions = Lane("Question to Kling")
        self.done = Lane("Done")
        self.first_done_at: int | None = None
        """When the task was done; a later one is that of files that were fetched again."""
        self.succeeded_at: list[int] = []
        """When the task succeeded, oldest first (unix ms)."""
        self._step: tuple[Lane, int, str] | None = None
        self._asked_at: int | None = None
        self._hinted_at: int | None = None

    def add(self, event: EventRow) -> None:
        """Read the next event."""
        at, type_, data = event["created_at"], event["type"], event["data"] if isinstance(event["data"], dict) else {}
        match type_:
            case "task.created":
                self._end_step(at)
                by = data.get("by", "")
                self.created.note = {"client": "by a client", "callback": "by a callback"}.get(by, f"by an {by}")
                self.created.spans.append(Span(at, at, text=self.created.note))
                self._begin(self.create if by == "client" else self.accepted, at, "wait")
            case "task.queued":
                self._begin(self.queue, at, "wait")
            case "task.submitted":
                self._begin(self.accepted, at, "wait")
            case "task.processing":
                self._begin(self.generating, at, "busy")
            case "task.succeed" | "task.failed":
                self._answered(at, "good" if type_ == "task.succeed" else "bad", data)
                if type_ == "task.succeed":
                    self.succeeded_at.append(at)
            case "callback.received":
                self._called_back(at, data)
            case "callback.ignored":
                self._ignored(at, data)
            case "task.overdue":
                self.overdue.spans.append(Span(at, at, "wait", "no final callback until the deadline"))
                self._asked_at = self._asked_at or at
            case "task.done":
                self.first_done_at = self.first_done_at or at
                self.done.spans = [Span(at, at, "good" if data.get("status") == "succeed" else "bad")]

    def finish(self) -> None:
        """After the last event: what goes on."""
        if not self.created.spans:  # its first events are gone
            self.created.spans.append(Span(self._task["created_at"], self._task["created_at"]))
        if self._task["status"] not in FINAL:
            self._end_step(None)
        if self._asked_at is not None and any(job["kind"] in ("ask", "overdue") for job in self._history.jobs):
            self.questions.spans.append(Span(self._asked_at, None, "busy"))
        count = self._task["callback_count"]
        if count:
            self.callbacks.note = f"{count} received" if count > 1 else "1 received"

    def _begin(self, lane: Lane, at: int, tone: str) -> None:
        self._end_step(at)
        self._step = lane, at, tone

    def _end_step(self, at: int | None) -> None:
        if self._step:
            lane, start, tone = self._step
            if at is None or at > start:
                lane.spans.append(Span(start, at, tone))
        self._step = None

    def _called_back(self, at: int, data: dict[str, Any]) -> None:
        status, signed = data.get("status"), data.get("signed")
        text = str(status or "unreadable") + (", signed by Kling" if signed else "")
        tone = {"succeed": "good", "failed": "bad"}.get(str(status), "")
        self.callbacks.spans.append(Span(at, at, tone, text))
        if (status in FINAL or status is None) and not signed:  # a hint: Kling is asked
            self._asked_at = self._asked_at or at
            if status in FINAL:
                self._hinted_at = self._hinted_at or at

    def _answered(self, at: int, tone: str, data: dict[str, Any]) -> None:
        self._end_step(min(self._hinted_at or at, at))  # Kling had finished when it called back
        if self._asked_at is not None and data.get("by") != "local":
            self.questions.spans.append(Span(self._asked_at, at, tone))
        self._asked_at = self._hinted_at = None

    def _ignored(self, at: int, data: dict[str, Any]) -> None:
        if self._asked_at is not None and str(data.get("reason", "")).startswith("Kling says"):
            self.questions.spans.append(Span(self._asked_at, at, "bad", str(data["reason"])))
            self._asked_at = self._hinted_at = None


def _files(history: TaskHistory, succeeded_at: Sequence[int]) -> list[Lane]:
    """The downloads. One begins with the success before it; when a repeated one began is not on record."""
    lanes: dict[int, Lane] = {}
    results = history.detail.results
    for result in results:
        lanes[result["position"]] = Lane(_file_name(result, len(results)))
    for event in history.events:
        data, at = event["data"], event["created_at"]
        if event["type"] not in ("result.stored", "result.failed") or not isinstance(data, dict):
            continue
        lane = lanes.get(data.get("index", -1))
        if lane is None:
            continue
        start = max((each for each in succeeded_at if each <= at), default=at) if not lane.spans else at
        stored = event["type"] == "result.stored"
        lane.spans.append(Span(start, at, "good" if stored else "bad", "stored" if stored else "failed"))
        lane.note = "stored" if stored else "failed"
    for result in results:
        if result["status"] == "pending" and succeeded_at:
            lane = lanes[result["position"]]
            lane.spans.append(Span(max([succeeded_at[-1], *(span.end or 0 for span in lane.spans)]), None, "busy"))
            lane.note = ""
    found = [lane for lane in lanes.values() if lane.spans]
    return found if len(found) <= MAX_LANES_EACH else [_merged(f"Download of {len(found)} files", found)]


def _file_name(result: ResultRow, count: int) -> str:
    return "Download" if count == 1 else f"Download of file {result['position'] + 1}"


def _hooks(deliveries: Sequence[Delivery]) -> list[Lane]:
    """The attempts of the deliveries to each hook."""
    lanes: dict[str, Lane] = {}
    delivered: dict[str, int] = {}
    for delivery in reversed(deliveries):
        lane = lanes.setdefault(delivery.hook_name, Lane(f"Hook {delivery.hook_name}", is_sum=False))
        delivered.setdefault(delivery.hook_name, 0)
        delivered[delivery.hook_name] += any(attempt["delivered"] for attempt in delivery.attempts)
        for attempt in delivery.attempts:
            start, good = attempt["attempted_at"], attempt["delivered"]
            text = f"{delivery.event['type']} {'delivered' if good else 'failed'}"
            lane.spans.append(Span(start, start + attempt["duration_ms"], "good" if good else "bad", text))
    for name, lane in lanes.items():
        count = sum(delivery.hook_name == name for delivery in deliveries)
        lane.note = f"{delivered[name]} of {count} delivered"
    found = [lane for lane in lanes.values() if lane.spans]
    return found if len(found) <= MAX_LANES_EACH else [_merged(f"{len(found)} hooks", found)]


def _merged(name: str, lanes: Sequence[Lane]) -> Lane:
    spans = sorted((span for lane in lanes for span in lane.spans), key=lambda span: span.start)
    return Lane(name, spans, is_sum=False)
