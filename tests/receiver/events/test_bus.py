"""Event streams: every event once, in order, from the cursor on, until the task is done."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain

import pytest
from starlette.concurrency import run_in_threadpool

from kling_receiver.events.bus import HOOKS, EventBus, work_of
from kling_receiver.store import reader
from kling_receiver.store.database import Database
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import EventRow
from tests.support.database import Ledger, callback, statements

pytestmark = pytest.mark.anyio

PATIENCE = 20


class Follower:
    """Somebody who follows a task, or all tasks."""

    def __init__(self, bus: EventBus, task: str | None, after: int = 0) -> None:
        self._stream = bus.follow(task, after)

    async def next(self) -> list[str]:
        """The types in the next batch."""
        return [row["type"] for row in await self.rows()]

    async def rows(self) -> list[EventRow]:
        """The next batch."""
        async with asyncio.timeout(PATIENCE):
            return await anext(self._stream)

    async def ended(self) -> bool:
        """Whether the stream ends here."""
        try:
            await self.rows()
        except StopAsyncIteration:
            return True
        return False


class Scene:
    """A database, a bus of it, and commits that it is told of."""

    def __init__(self, database: Database, *, heartbeat: float = PATIENCE) -> None:
        self.ledger, self.bus = Ledger(database), EventBus(Reader(database), heartbeat=heartbeat)

    def notify(self) -> None:
        """What the writer does after a commit."""
        self.bus.notify(self.ledger.committed.task_ids)

    def receive(self, task: str, status: str = "processing", **record: object) -> None:
        """A callback comes."""
        self.ledger.record(callback(task, status, **record))
        self.notify()


@asynccontextmanager
async def following(scene: Scene, task: str | None, after: int = 0) -> AsyncIterator[Follower]:
    """A follower, gone at the end."""
    follower = Follower(scene.bus, task, after)
    try:
        yield follower
    finally:
        await follower._stream.aclose()  # type: ignore[attr-defined]  # it is a generator
    assert scene.bus._waiters == {}


FIRST = ["task.created", "callback.received", "task.processing"]


async def test_past_events_come_before_new_ones(any_database: Database) -> None:
    """None is missing, none comes twice."""
    scene = Scene(any_database)
    scene.receive("t")
    async with following(scene, "t") as follower:
        assert await follower.next() == FIRST
        coming = asyncio.ensure_future(follower.next())
        await _waiting(scene)
        scene.receive("t", "submitted")
        assert await coming == ["callback.received", "callback.ignored"]


async def _waiting(scene: Scene) -> None:
    """Until there is a follower, and every follower sleeps: each has read all that there is."""
    async with asyncio.timeout(PATIENCE):
        while not (scene.bus._waiters and all(map(_asleep, chain(*scene.bus._waiters.values())))):
            await run_in_threadpool(int)


def _asleep(event: asyncio.Event) -> bool:
    return bool(event._waiters) and not event.is_set()


async def test_a_stream_ends_with_its_task(any_database: Database) -> None:
    """After `task.done` was sent; also for who comes later, and from any place."""
    scene = Scene(any_database)
    scene.receive("t", "failed", signed=True)
    for after, count in ((0, 4), (2, 2), (99, 0)):
        async with following(scene, "t", after) as follower:
            if count:
                assert len(await follower.next()) == count
            assert await follower.ended()


async def test_the_end_may_come_while_one_reads(any_database: Database) -> None:
    """What was committed after the look at the task is sent before the stream ends."""
    scene = Scene(any_database)
    scene.receive("t")
    async with following(scene, "t") as follower:
        await follower.next()
        scene.receive("t", "failed", signed=True)
        assert (await follower.next())[-1] == "task.done"
        assert await follower.ended()


async def test_a_task_that_does_not_exist_has_no_events(any_database: Database) -> None:
    """Nor a stream that hangs."""
    async with following(Scene(any_database), "nobody") as follower:
        assert await follower.ended()


async def test_the_stream_of_all_has_no_end(any_database: Database) -> None:
    """It goes on over tasks that are done."""
    scene = Scene(any_database)
    scene.receive("t", "failed", signed=True)
    async with following(scene, None) as follower:
        assert len(await follower.next()) == 4
        coming = asyncio.ensure_future(follower.next())
        await _waiting(scene)
        scene.receive("u")
        assert await coming == FIRST


async def test_only_the_streams_of_changed_tasks_wake(any_database: Database) -> None:
    """A commit for other tasks causes no query for this one."""
    scene = Scene(any_database)
    scene.receive("t")
    async with following(scene, "t") as follower:
        await follower.next()
        coming = asyncio.ensure_future(follower.next())
        await _waiting(scene)
        scene.ledger.record(callback("u"))
        with statements(any_database) as seen:
            scene.notify()
            await _waiting(scene)
            assert seen == []
        scene.receive("t", "submitted")
        await coming


async def test_work_on_a_task_wakes_those_who_asked_for_it() -> None:
    """A job or a delivery adds no event: the streams of events stay asleep."""
    bus = EventBus(None)  # type: ignore[arg-type]  # nothing is read
    with bus.subscribe("t") as events, bus.subscribe("t", work_of("t")) as page, bus.subscribe(None) as all_tasks:
        bus.notify(frozenset(), {"t", "u"})
        assert page.is_set()
        assert not events.is_set()
        assert not all_tasks.is_set()
        page.clear()
        bus.notify({"t"}, {"u"})
        assert page.is_set()
        assert events.is_set()
        assert all_tasks.is_set()


async def test_every_stream_receives_the_events(any_database: Database) -> None:
    """Of one task as well as of all."""
    scene = Scene(any_database)
    scene.receive("t")
    followers = [Follower(scene.bus, task) for task in ("t", "t", None)]
    for follower in followers:
        assert await follower.next() == FIRST
    coming = [asyncio.ensure_future(follower.next()) for follower in followers]
    await _waiting(scene)
    scene.receive("t", "submitted")
    assert await asyncio.gather(*coming) == [["callback.received", "callback.ignored"]] * 3
    for follower in followers:
        await follower._stream.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_a_stream_resumes_at_its_cursor(any_database: Database) -> None:
    """By the id of the last event."""
    scene = Scene(any_database)
    scene.receive("t")
    async with following(scene, "t") as follower:
        rows = await follower.rows()
    async with following(scene, "t", rows[0]["id"]) as follower:
        assert await follower.next() == FIRST[1:]


async def test_many_events_come_in_batches(any_database: Database) -> None:
    """All of them, in order."""
    scene = Scene(any_database)
    scene.receive("t")
    scene.ledger.log(*(f"type {n}" for n in range(reader.EVENTS_AT_ONCE)))
    async with following(scene, "t") as follower:
        first, second = await follower.next(), await follower.next()
    assert len(first) == reader.EVENTS_AT_ONCE
    assert [*first, *second] == scene.ledger.types()


async def test_a_silent_stream_sends_heartbeats(any_database: Database) -> None:
    """Empty batches; events come all the same."""
    scene = Scene(any_database, heartbeat=0.01)
    scene.receive("t")
    async with following(scene, "t") as follower:
        assert await follower.next() == FIRST
        assert await follower.next() == []
        assert await follower.next() == []
        scene.receive("t", "submitted")
        assert await follower.next() == ["callback.received", "callback.ignored"]


async def test_no_wake_is_lost(any_database: Database) -> None:
    """A commit between reading and falling asleep, at any turn of the loop, is heard of."""
    scene = Scene(any_database)
    scene.receive("t")
    for turns in range(25):
        async with following(scene, "t", scene.ledger.events()[-1]["id"]) as follower:
            coming = asyncio.ensure_future(follower.next())
            for _ in range(turns):
                await asyncio.sleep(0)
            scene.ledger.log(f"turn {turns}")
            scene.notify()
            assert await coming == [f"turn {turns}"]


async def test_closing_ends_every_stream(any_database: Database) -> None:
    """Those that sleep, those of all tasks, and those that come too late."""
    scene = Scene(any_database)
    scene.receive("t")
    followers = [Follower(scene.bus, task) for task in ("t", None)]
    for follower in followers:
        await follower.next()
    endings = [asyncio.ensure_future(follower.ended()) for follower in followers]
    await _waiting(scene)
    scene.bus.close()
    assert await asyncio.gather(*endings) == [True, True]
    assert await Follower(scene.bus, "t").ended()
    assert scene.bus._waiters == {}


async def test_an_unknown_commit_wakes_every_stream(any_database: Database) -> None:
    """Any task may have new events."""
    scene = Scene(any_database)
    scene.ledger.record(callback("t"))
    one, every = Follower(scene.bus, "t"), Follower(scene.bus, None)
    for each in (one, every):
        await each.next()
    waiting = [asyncio.ensure_future(each.next()) for each in (one, every)]
    await asyncio.sleep(0.05)
    scene.ledger.record(callback("t", "succeed"))
    scene.bus.notify(None)
    assert await asyncio.gather(*waiting) == [["callback.received"]] * 2


async def test_the_bus_has_a_maximum_of_streams(any_database: Database) -> None:
    """When one ends, there is room for another."""
    scene = Scene(any_database)
    scene.receive("t")
    bus = EventBus(Reader(any_database), max_streams=2)
    one, other = bus.follow("t", 0), bus.follow(None, 0)
    await anext(one)
    assert not bus.is_full
    await anext(other)
    assert bus.is_full
    await one.aclose()
    assert not bus.is_full
    await other.aclose()


async def test_changes_of_hooks_wake_only_what_waits_for_them(any_database: Database) -> None:
    """Each attempt at a delivery is one: no stream of events may read the log for it. The end wakes all."""
    bus = Scene(any_database).bus
    with bus.subscribe(None) as events, bus.subscribe(None, HOOKS) as both, bus.subscribe("t") as task:
        bus.notify_hooks()
        assert (events.is_set(), both.is_set(), task.is_set()) == (False, True, False)
        both.clear()
        bus.notify({"t"})
        assert (events.is_set(), both.is_set(), task.is_set()) == (True, True, True)
        both.clear()
        bus.close()
        assert both.is_set()
