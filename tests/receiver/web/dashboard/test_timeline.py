"""The timeline of a task: which steps it has, how long they took, and where they are drawn."""

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_receiver.hooks.delivery_list import Delivery
from kling_receiver.store.reader import TaskDetail
from kling_receiver.store.rows import AttemptRow, EventRow, ResultRow
from kling_receiver.web.dashboard.task.reading import TaskHistory
from kling_receiver.web.dashboard.task.timeline import Lane, Span, Timeline, timeline_of
from tests.support.database import NOW

FINAL = {"succeed", "failed"}
CREATED = (0, "task.created", {"by": "client"})


def history(*steps: tuple[Any, ...], results: tuple[str, ...] = (), jobs: tuple[str, ...] = (), **task: Any) -> Any:
    """The history of a task. `steps`: milliseconds after NOW, type and data; `results`: the status of each file."""
    events = [
        EventRow(id=n + 1, log_id="log", task_id="t", type=step[1], created_at=NOW + step[0], data=(*step, None)[2])
        for n, step in enumerate(steps)
    ]
    status = next((e["type"][5:] for e in events[::-1] if e["type"][5:] in FINAL), "processing")
    row: Any = {"id": "t", "status": status, "created_at": NOW, "callback_count": 0, **task}
    files: Any = [{"position": n, "status": each, "source_url": "u"} for n, each in enumerate(results)]
    queue: Any = [{"kind": kind} for kind in jobs]
    return TaskHistory(TaskDetail(row, list[ResultRow](files), []), events, [], queue, [])


def steps_of(timeline: Timeline) -> dict[str, tuple[int, int | None]]:
    """When each step began, after NOW, and what it took."""
    return {lane.name: (lane.start - NOW, lane.took_ms) for lane in timeline.lanes}


def final(status: str, *, signed: bool = False) -> dict[str, Any]:
    """The data of a callback."""
    return {"status": status, "signed": signed, "size": 9}


def test_each_step_of_a_usual_task_has_its_time() -> None:
    """Kling had finished when it called back: what follows is the question."""
    timeline = timeline_of(
        history(
            CREATED,
            (0, "task.queued"),
            (2_000, "task.submitted", {"by": "kling"}),
            (3_000, "callback.received", final("processing")),
            (3_000, "task.processing", {"by": "callback"}),
            (30_000, "callback.received", final("succeed")),
            (30_400, "task.succeed", {"by": "kling"}),
            (31_000, "result.stored", {"index": 0}),
            (32_000, "result.failed", {"index": 1}),
            (32_000, "task.done", {"status": "succeed"}),
            results=("stored", "failed"),
            callback_count=2,
        ),
        NOW + 60_000,
    )
    assert steps_of(timeline) == {
        "Created": (0, None),
        "Waiting for a slot": (0, 2_000),
        "Accepted by Kling": (2_000, 1_000),
        "Generating": (3_000, 27_000),
        "Callbacks": (3_000, None),
        "Question to Kling": (30_000, 400),
        "Download of file 1": (30_400, 600),
        "Download of file 2": (30_400, 1_600),
        "Done": (32_000, None),
    }
    assert not timeline.is_open
    assert [tick.text for tick in timeline.ticks()] == ["0", "10 s", "20 s", "30 s"]
    assert next(lane.note for lane in timeline.lanes if lane.name == "Callbacks") == "2 received"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(5, "callback.received", final("succeed", signed=True)), (5, "task.succeed", {"by": "kling"})], None),
        ([(5, "task.overdue"), (9, "task.failed", {"by": "kling"})], (5, 4)),
        ([(5, "task.overdue"), (9, "task.failed", {"by": "local"})], None),
        ([(5, "callback.received", final("succeed")), (6, "callback.ignored", {"reason": "late"})], None),
        (
            [(5, "callback.received", final("succeed")), (8, "callback.ignored", {"reason": "Kling says processing"})],
            (5, 3),
        ),
        ([(5, "callback.received", {"status": None}), (7, "task.failed", {"by": "kling"})], (5, 2)),
    ],
)
def test_a_question_lasts_from_its_cause_to_its_answer(steps: list[Any], expected: tuple[int, int] | None) -> None:
    """A signed callback needs none; that of a deadline whose answer is ours has no answer."""
    assert steps_of(timeline_of(history(CREATED, *steps), NOW + 10)).get("Question to Kling") == expected


def test_an_attempt_after_a_refused_create_begins_again() -> None:
    """Both creates are on record, in one lane."""
    again = (9_000, "task.created", {"by": "client"})
    refused = (1_000, "task.failed", {"by": "local"})
    timeline = timeline_of(history(CREATED, refused, again, (9_500, "task.submitted", {}), status="submitted"), NOW)
    lane = next(lane for lane in timeline.lanes if lane.name == "Create call")
    assert [(span.start - NOW, span.end) for span in lane.spans] == [(0, NOW + 1_000), (9_000, NOW + 9_500)]
    assert lane.took_ms == 1_500


def test_what_goes_on_has_no_end_and_equal_renderings() -> None:
    """Two renderings soon after another are the same, so that a page is told nothing; the scale follows the time."""
    open_one = history(CREATED, (1_000, "task.processing", {}), (2_000, "callback.received", final("succeed")))
    asked = TaskHistory(open_one.detail, open_one.events, [], history(jobs=("ask",)).jobs, [])
    soon, later, much_later = (timeline_of(asked, NOW + at) for at in (100_050, 100_090, 200_000))
    assert soon.is_open
    assert {lane.name for lane in soon.lanes if lane.open_since} == {"Generating", "Question to Kling"}
    assert all(lane.took_ms is None for lane in soon.lanes if lane.open_since)
    assert [soon.bars(lane) for lane in soon.lanes] == [later.bars(lane) for lane in later.lanes]
    assert soon.ticks() == later.ticks() != much_later.ticks()
    without = timeline_of(open_one, NOW + 100_000)
    assert {lane.name for lane in without.lanes if lane.open_since} == {"Generating"}, "nothing asks"


def test_a_long_idle_time_is_drawn_shorter_and_said() -> None:
    """A delivery that is retried a day later must not press the rest into one pixel."""
    done = history(CREATED, (10_000, "task.failed", {"by": "kling"}), (10_000, "task.done", {"status": "failed"}))
    day = 86_400_000
    attempts = [_attempt(10_000, False), _attempt(day, True)]
    delivery = Delivery(done.events[0], "app", None, attempts)
    timeline = timeline_of(TaskHistory(done.detail, done.events, [], [], [delivery]), NOW)
    (idle,) = timeline.breaks()
    assert idle.span.text == "23 h 59 min idle"
    assert 5 < idle.width < 10
    create = next(lane for lane in timeline.lanes if lane.name == "Create call")
    assert timeline.bars(create)[0].width > 50
    hook = next(lane for lane in timeline.lanes if lane.name == "Hook app")
    assert (hook.note, hook.took_ms) == ("1 of 1 delivered", None)
    assert timeline.ticks()[-1].text == "+1 d"


def test_the_time_until_the_task_is_done_is_never_shortened() -> None:
    """Also of an adopted task, whose only lengths are those of its deliveries."""
    adopted = history(
        (0, "task.created", {"by": "operator"}),
        (0, "task.succeed", {"by": "kling"}),
        (5_000, "result.failed", {"index": 0}),
        (5_000, "task.done", {"status": "succeed"}),
        results=("failed",),
    )
    delivery = Delivery(adopted.events[0], "app", None, [_attempt(5_500, True)])
    timeline = timeline_of(TaskHistory(adopted.detail, adopted.events, [], [], [delivery]), NOW)
    assert timeline.breaks() == []
    download, hook = (timeline.bars(lane)[0] for lane in timeline.lanes if lane.name in ("Download", "Hook app"))
    assert download.width > 80
    assert hook.width < 3


def _attempt(at: int, delivered: bool) -> AttemptRow:
    row = {"attempted_at": NOW + at, "duration_ms": 100, "delivered": delivered, "hook_name": "app", "event_id": 1}
    return cast(AttemptRow, row)


def test_many_files_share_a_lane() -> None:
    """A page of lanes would show nothing else."""
    stored = [(10 + n, "result.stored", {"index": n}) for n in range(20)]
    full = history(CREATED, (9, "task.succeed", {"by": "kling"}), *stored, results=("stored",) * 20)
    assert "Download of 20 files" in steps_of(timeline_of(full, NOW))


def test_a_history_without_events_has_its_beginning() -> None:
    """Its events may have been removed."""
    timeline = timeline_of(history(status="succeed"), NOW)
    assert [lane.name for lane in timeline.lanes] == ["Created"]
    assert timeline.bars(timeline.lanes[0])[0].x == 0


TIMES = st.integers(NOW - 10**12, NOW + 10**12)


@given(st.lists(st.tuples(TIMES, st.none() | st.integers(0, 10**10)), min_size=1, max_size=8), TIMES)
def test_every_bar_is_inside_and_in_order(spans: list[tuple[int, int | None]], now: int) -> None:
    """Whatever the clock says: also times that run backwards."""
    lane = Lane("x", [Span(start, None if length is None else start + length) for start, length in spans])
    timeline = Timeline([lane], now)
    bars = timeline.bars(lane)
    assert all(0 <= bar.x <= 100 and bar.width >= 0 and bar.x + bar.width <= 100.02 for bar in bars)
    in_time = sorted(bars, key=lambda bar: bar.span.start)
    assert [bar.x for bar in in_time] == sorted(bar.x for bar in bars)
    assert 1 <= len(timeline.ticks()) <= 6
