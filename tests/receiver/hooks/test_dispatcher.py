"""Events on their way to hooks: each once and in order, and nobody waits for a hook that is slow or dead."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from kling_receiver.hooks import deliveries
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import DEFAULT_SCHEDULE
from kling_receiver.hooks.deliveries import DeliveryAttempt
from kling_receiver.hooks.limiter import FAILURE_THRESHOLD, PROBE_DELAYS
from kling_receiver.jobs import queue
from kling_receiver.jobs.queue import NEVER, Capacity, ClaimedJob
from kling_receiver.sinks import Delivered, Message, NotDelivered
from kling_receiver.store.transaction import Transaction
from tests.support.outgoing import PATIENCE, SCHEME, Outgoing, install, outgoing, refusing, taking
from tests.support.receiver import make_settings

pytestmark = pytest.mark.anyio

MANY = [f"type {n}" for n in range(60)]


class Ways:
    """Receivers one after the other on one database."""

    def __init__(self, stack: AsyncExitStack, tmp_path: Path, database_url: str) -> None:
        self._stack, self._tmp_path, self._url = stack, tmp_path, database_url

    async def open(self, *, begin: bool = True, **given: object) -> Outgoing:
        """One that works, unless `begin` is False."""
        settings = make_settings(self._tmp_path, database_url=self._url, **given)
        return await self._stack.enter_async_context(outgoing(settings, begin=begin))


@pytest.fixture
async def ways(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ways]:
    """The way out on each kind of database, with a kind of sink of the tests' own."""
    monkeypatch.syspath_prepend(install(tmp_path / "site", SCHEME, "tests.outgoing:open_scripted"))
    async with AsyncExitStack() as stack:
        yield Ways(stack, tmp_path, database_url)


@pytest.fixture
async def way(ways: Ways) -> Outgoing:
    """A receiver that works."""
    return await ways.open()


class Held:
    """Answers when it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, message: Message) -> Delivered:
        """One answer."""
        await self.go.wait()
        return Delivered()


async def test_each_event_comes_once_and_in_order(way: Outgoing) -> None:
    """However they were committed; what happened before the hook was added is not its."""
    there = way.endpoint("all")
    await way.happen("before")
    await way.add(there, concurrency=1)
    ids = await way.happen(*MANY)
    for type_ in ("more", "and more"):
        ids += await way.happen(type_, task="u")
    await way.until(lambda: len(way.attempts()) == len(ids))
    assert there.ids == there.taken == ids
    assert [
        (row["event_id"], row["delivered"], row["response_status"], row["response_body"]) for row in way.attempts()
    ] == [(each, True, 200, "ok") for each in ids]
    assert way.jobs("delivery") == {}
    await way.until(lambda: way.hook("all")["cursor"] == ids[-1])
    assert way.jobs("dispatch") == {}


async def test_several_hooks_each_hear_all(way: Outgoing) -> None:
    """Each for itself; a hook that is added later hears what comes later."""
    early, late = way.endpoint("early"), way.endpoint("late")
    await way.add(early)
    first = await way.happen("one", "two")
    await way.add(late)
    second = await way.happen("three")
    await way.until(lambda: len(way.attempts()) == 4)
    assert (sorted(early.ids), late.ids) == (first + second, second)


ALL = ["task.created", "task.succeed", "result.stored", "task.done"]
FILTERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "an event": ({"events": ["result.stored"]}, ["result.stored"]),
    "no event that there is": ({"events": ["task.overdue"]}, []),
    "another family": ({"families": ["videos/effects"]}, []),
    "families": ({"families": ["videos/effects", "images/generations"]}, ALL),
    "a status": ({"statuses": ["succeed"]}, ALL[1:]),
    "a status that passed": ({"statuses": ["created"]}, ["task.created"]),
    "another tag": ({"tags": ["blue"]}, []),
    "tags": ({"tags": ["blue", "red"]}, ALL),
    "all together": (
        {"events": ["task.done", "task.created"], "statuses": ["created"], "tags": ["red"]},
        ["task.created"],
    ),
}


@pytest.mark.parametrize("kind", FILTERS)
async def test_a_hook_hears_what_it_wants(way: Outgoing, kind: str) -> None:
    """And its cursor passes over the rest."""
    given, wanted = FILTERS[kind]
    there, everything = way.endpoint("some"), way.endpoint("all")
    await way.happen(status="succeed", origin="kling")
    with way.receiver.database.write() as connection:
        connection.exec_driver_sql("INSERT INTO tag (tag, task_id) VALUES ('red', 't')")
    await way.add(there, **given)
    await way.add(everything)
    await way.happen(*ALL[:3])
    await way.change(lambda tx: tx.add_event("t", "task.done", {"status": "succeed"}))
    await way.until(lambda: len(everything.taken) == 4)
    await way.receiver.worker.close(PATIENCE)
    assert sorted(message.event["type"] for message in there.came) == sorted(wanted)
    assert way.hook("some")["cursor"] == max(everything.ids)


async def test_a_killed_run_repeats_nothing_that_is_on_record(ways: Ways) -> None:
    """Its cursor was not kept; the attempts were, and what failed among them is owed by its own job."""
    first = await ways.open(begin=False)
    there = first.endpoint("hook")
    await first.add(there, concurrency=1)
    ids = await first.happen(*MANY[:10])
    row = first.hook("hook")
    made = [
        DeliveryAttempt(
            row,
            event,
            "t",
            attempted_at=first.now,
            duration_ms=1,
            count=1,
            delivered=event != ids[3],
            retry_at=first.now + 5000,
        )
        for event in ids[:6]
    ]
    await first.change(lambda tx: deliveries.record_attempts(tx, made))
    first.ledger.run_job("dispatch/hook")
    await first.receiver.stop()
    second = await ways.open()
    await second.until(lambda: len(there.taken) == 4)
    assert there.ids == ids[6:]
    await second.pass_(5)
    await second.until(lambda: len(second.attempts()) == 11)
    assert there.ids == [*ids[6:], ids[3]]
    assert second.attempts(event=ids[3])[-1]["delivered"]


@pytest.mark.parametrize("concurrency", [1, 8])
async def test_an_endless_hook_delays_no_other(way: Outgoing, concurrency: int) -> None:
    """Nor does one that refuses: the third has heard all while the first has answered nothing yet."""
    held = Held()
    slow, dead, well = way.endpoint("slow", held), way.endpoint("dead", refusing), way.endpoint("well")
    await way.add(slow, concurrency=concurrency, timeout=300)
    await way.add(dead, concurrency=concurrency)
    await way.add(well)
    ids: list[int] = []
    for type_ in MANY:
        ids += await way.happen(type_)
    await way.until(lambda: len(well.taken) == len(ids))
    assert (slow.taken, dead.taken) == ([], [])
    await way.until(lambda: len(slow.came) == concurrency)
    held.go.set()
    await way.until(lambda: len(slow.taken) == len(ids))
    assert sorted(slow.taken) == ids


async def test_a_hook_that_never_answers_is_cut_off(way: Outgoing) -> None:
    """By its own time limit; the event is tried again by its schedule."""
    there = way.endpoint("slow", Held())
    await way.add(there, timeout=0.01, schedule=[7])
    [event] = await way.happen("one")
    [attempt] = await way.until(way.attempts)
    assert (attempt["delivered"], attempt["error"]) == (False, "it did not answer within 0.01 s")
    job = way.jobs("delivery")[f"delivery/{event}/slow"]
    assert way.now + 3_500 <= job["due_at"] <= way.now + 7_100


async def test_a_dead_hook_keeps_its_events_in_the_log_and_recovers(way: Outgoing) -> None:
    """A few are tried, then one a probe; once one is taken, all go, each once."""
    there = way.endpoint("hook", refusing)
    await way.add(there, concurrency=2)
    ids = await way.happen(*MANY)
    await way.until(lambda: any(job["error"] for job in way.jobs("dispatch").values()))
    tried = len(there.came)
    assert FAILURE_THRESHOLD <= tried <= FAILURE_THRESHOLD + 2
    assert way.jobs("dispatch")["dispatch/hook"]["due_at"] == way.now + PROBE_DELAYS[0] * 1000
    assert way.hook("hook")["cursor"] == ids[tried - 1]
    ids += await way.happen("later")
    assert len(there.came) == tried
    await way.pass_(PROBE_DELAYS[0])
    await way.until(lambda: any(job["due_at"] > way.now and job["error"] for job in way.jobs("dispatch").values()))
    there.answer = taking
    await way.pass_(PROBE_DELAYS[1])
    await way.until(lambda: set(ids[tried + 5 :]) <= set(there.taken))
    await way.pass_(3600)
    await way.until(lambda: len(there.taken) == len(ids))
    assert sorted(there.taken) == ids
    await way.until(lambda: way.hook("hook")["failing_since"] is None and not way.jobs("delivery"))


async def test_what_was_not_taken_is_tried_by_the_hooks_own_schedule(way: Outgoing) -> None:
    """Each step from its upper half; after the last the event is dead, and kept."""
    there = way.endpoint("hook", refusing)
    steps = (10.0, 100.0)
    await way.add(there, schedule=list(steps))
    [event] = await way.happen("one")
    key = f"delivery/{event}/hook"
    for count, step in enumerate(steps, 1):
        await way.until(lambda count=count: len(way.attempts()) == count)  # type: ignore[misc]
        wait = way.jobs("delivery")[key]["due_at"] - way.now
        assert step * 500 <= wait <= step * 1000 + 1000
        await way.pass_(step + 1)
    await way.until(lambda: way.jobs("delivery")[key]["state"] == "dead")
    assert len(there.came) == 3
    assert len({message.id for message in there.came}) == 1
    await way.change(lambda tx: deliveries.redeliver(tx, event, way.hook("hook"), "t"))
    there.answer = taking
    await way.until(lambda: there.taken == [event] and not way.jobs("delivery"))


async def test_the_usual_schedule(way: Outgoing) -> None:
    """Eight more attempts within a day and a half."""
    await way.add(way.endpoint("hook"))
    assert (
        way.hook("hook")["retry_schedule"] == list(DEFAULT_SCHEDULE) == [5, 30, 120, 900, 3600, 10_800, 28_800, 86_400]
    )


async def test_a_hook_that_fails_too_long_is_paused(ways: Ways, caplog: pytest.LogCaptureFixture) -> None:
    """Loudly; it keeps its events, those in the log and those that were tried, and goes on when it is told."""
    way = await ways.open(hook_pause_seconds=60)
    there = way.endpoint("hook", refusing)
    await way.add(there, schedule=[61] * 9, concurrency=1)
    ids = await way.happen(*MANY[:10])
    await way.until(lambda: any(job["error"] for job in way.jobs("dispatch").values()))
    await way.pass_(61)
    await way.until(lambda: way.hook("hook")["paused_at"])
    row = way.hook("hook")
    assert "every attempt failed for 60 s; the last one: it answered 500" in row["paused_because"]
    await way.until(lambda: "kling-receiver hooks resume hook" in caplog.text)
    ids += await way.happen("later")
    there.answer = taking
    await way.until(lambda: not there.under_way)
    await way.pass_(100_000)
    await way.until(lambda: all(job["due_at"] == NEVER for job in way.jobs("hook", "dispatch").values()))
    assert there.taken == []
    await way.receiver.sender.close_hook("hook")
    assert await way.change(lambda tx: hook_records.resume(tx, "hook"))
    await way.until(lambda: len(there.taken) == len(ids))
    assert sorted(there.taken) == ids
    await way.until(lambda: way.jobs("delivery") == {})


async def test_a_hook_that_is_gone_is_paused_and_keeps_the_event(way: Outgoing) -> None:
    """410: it wants nothing any more; perhaps it was a mistake."""

    async def gone(message: Message) -> Delivered:
        raise NotDelivered("it answered 410", status=410, gone=True)

    there = way.endpoint("hook", gone)
    await way.add(there, concurrency=1)
    ids = await way.happen("one", "two", "three")
    await way.until(lambda: way.hook("hook")["paused_at"] and not way.jobs("dispatch"))
    assert there.ids == ids[:1]
    await way.until(lambda: way.jobs("delivery")[f"delivery/{ids[0]}/hook"]["due_at"] == NEVER)
    ids += await way.happen("four")
    there.answer = taking
    await way.change(lambda tx: hook_records.resume(tx, "hook"))
    await way.until(lambda: sorted(there.taken) == ids)


async def test_a_paused_hook_is_sent_nothing(way: Outgoing) -> None:
    """Pausing twice changes nothing; what was paused goes on."""
    there = way.endpoint("hook")
    await way.add(there)
    assert await way.change(lambda tx: hook_records.pause(tx, "hook", "for a test"))
    assert not await way.change(lambda tx: hook_records.pause(tx, "hook", "again"))
    assert way.hook("hook")["paused_because"] == "for a test"
    ids = await way.happen("one", "two")
    assert way.jobs("dispatch", "hook") == {}
    await way.change(lambda tx: deliveries.redeliver(tx, ids[0], way.hook("hook"), "t"))
    await way.until(lambda: [job["due_at"] for job in way.jobs("delivery").values()] == [NEVER])
    assert await way.change(lambda tx: hook_records.resume(tx, "hook"))
    assert not await way.change(lambda tx: hook_records.resume(tx, "nobody"))
    await way.until(lambda: set(there.taken) == set(ids) and not way.jobs("delivery"))


async def test_who_looked_while_it_was_paused_does_not_forget_it(ways: Ways) -> None:
    """A job that found the hook paused is settled after it was resumed: it is due, not put off for ever."""
    way = await ways.open(begin=False)
    there = way.endpoint("hook")
    await way.add(there)
    await way.change(lambda tx: hook_records.pause(tx, "hook", "for a test"))
    [event] = await way.happen("one")
    await way.change(lambda tx: deliveries.redeliver(tx, event, way.hook("hook"), "t"))
    await way.change(lambda tx: deliveries.replay(tx, [way.hook("hook")], 0, event))
    await way.change(lambda tx: hook_records.enqueue_dispatch(tx, way.hook("hook")))
    claimed = {job.kind: job for job in await way.change(claim_all)}
    handlers = way.receiver._handlers(lambda: way.now / 1000)
    verdicts = {kind: await handlers[kind](job) for kind, job in claimed.items()}
    await way.change(lambda tx: hook_records.resume(tx, "hook"))
    for kind, decide in verdicts.items():
        assert await way.change(lambda tx, job=claimed[kind], decide=decide: queue.settle(tx, job, decide))  # type: ignore[misc]
    jobs = way.jobs("hook", "replay", "dispatch")
    assert {job["kind"]: job["due_at"] for job in jobs.values()} == dict.fromkeys(verdicts, way.now)
    assert set(verdicts) == {"hook", "replay", "dispatch"}


def claim_all(tx: Transaction) -> list[ClaimedJob]:
    """Everything that is owed, due or not."""
    tx.connection.exec_driver_sql(f"UPDATE job SET due_at = {tx.now}")
    return queue.claim_due(tx, Capacity(99), claim_id="test", lease_ms=1000)


async def test_no_more_at_once_than_the_hook_allows(way: Outgoing) -> None:
    """Of new events and of repeated ones together."""
    held = Held()
    there = way.endpoint("hook", held)
    await way.add(there, concurrency=3, timeout=300)
    await way.happen(*MANY[:10])
    await way.until(lambda: there.under_way == 3)
    await way.change(lambda tx: deliveries.replay(tx, [way.hook("hook")], 0, 1 << 40))
    held.go.set()
    await way.until(lambda: len(there.taken) == 20)
    assert there.most == 3


async def test_no_more_a_second_than_the_hook_allows(way: Outgoing) -> None:
    """Eleven at fifty a second take no less than ten fiftieths of one."""
    there = way.endpoint("hook")
    await way.add(there, rate=50)
    began = time.monotonic()
    await way.happen(*MANY[:11])
    await way.until(lambda: len(there.taken) == 11)
    assert time.monotonic() - began >= 10 / 50


async def test_a_sink_that_raises(way: Outgoing, caplog: pytest.LogCaptureFixture) -> None:
    """Counts as an attempt that failed, is logged, and harms no other."""

    async def broken(message: Message) -> Delivered:
        raise ZeroDivisionError("of somebody else's making")

    await way.add(way.endpoint("broken", broken))
    well = way.endpoint("well")
    await way.add(well)
    await way.happen("one")
    await way.until(lambda: len(way.attempts()) == 2 and well.taken)
    [attempt] = way.attempts(hook="broken")
    assert (attempt["delivered"], attempt["error"]) == (False, "its sink failed: ZeroDivisionError")
    assert "hook broken failed in an unforeseen way" in caplog.text


async def test_a_sink_that_cannot_be_made(way: Outgoing, caplog: pytest.LogCaptureFixture) -> None:
    """Is told once and fails each attempt, whatever it raises; no other hook is harmed."""
    broken, well = way.endpoint("broken"), way.endpoint("well")
    await way.add(broken, schedule=[5, 5])
    await way.add(well)
    broken.opens = ZeroDivisionError("of somebody else's making")
    await way.happen("one")
    await way.until(lambda: way.attempts(hook="broken") and well.taken)
    await way.pass_(5)
    await way.until(lambda: len(way.attempts(hook="broken")) == 2)
    why = "scripted: its sink cannot be made (ZeroDivisionError: of somebody else's making)."
    assert {attempt["error"] for attempt in way.attempts(hook="broken")} == {why}
    assert caplog.messages.count(f"hook broken cannot be used: {why}") == 1


async def test_a_sink_that_cannot_be_closed(
    ways: Ways, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is told, whether it fails or hangs, and all else is closed."""
    monkeypatch.setattr("kling_receiver.hooks.sender.LETTING_GO", 0.05)
    way = await ways.open()
    there = [way.endpoint(name) for name in ("one", "two", "three")]
    for each in there:
        await way.add(each)
        each.closes = ZeroDivisionError("of somebody else's making")
    there[2].hangs = 1000
    await way.happen("one")
    await way.until(lambda: len(way.attempts()) == 3)
    await way.receiver.sender.close_hook("one")
    await way.receiver.stop()
    assert [each.closed for each in there] == [1, 1, 1]
    for name in ("two", "three"):
        assert f"hook {name}: its sink failed when it was closed" in caplog.text


async def test_a_hook_is_removed_while_it_is_sent_to(way: Outgoing) -> None:
    """What is under way ends; nothing more is sent, and nothing stays owed, whether that fails or not."""
    held = Held()

    async def fail_late(message: Message) -> Delivered:
        await held.go.wait()
        raise NotDelivered("it answered 500", status=500)

    there = way.endpoint("hook", fail_late)
    await way.add(there, concurrency=2, timeout=300)
    await way.happen(*MANY[:6])
    await way.until(lambda: there.under_way == 2)
    await way.change(lambda tx: hook_records.remove(tx, "hook"))
    held.go.set()
    await way.until(lambda: not there.under_way and not way.jobs("dispatch", "hook"))
    assert len(way.attempts()) == len(there.came)


async def test_a_delivery_fails_after_its_hook_was_removed(way: Outgoing) -> None:
    """A retry that was under way leaves nothing behind either."""
    held = Held()
    there = way.endpoint("hook", refusing)
    await way.add(there, schedule=[5], timeout=300)
    await way.happen("one")
    await way.until(way.attempts)

    async def fail_late(message: Message) -> Delivered:
        await held.go.wait()
        raise NotDelivered("it answered 410", status=410, gone=True)

    there.answer = fail_late
    await way.pass_(5)
    await way.until(lambda: there.under_way)
    await way.change(lambda tx: hook_records.remove(tx, "hook"))
    held.go.set()
    await way.until(lambda: len(way.attempts()) == 2 and not way.jobs("delivery"))


async def test_a_hook_changes_while_it_is_used(way: Outgoing) -> None:
    """Another address is another sink, the old one is closed; other limits count from the next look."""
    one, two = way.endpoint("one"), way.endpoint("two")
    await way.add(one, name="hook")
    await way.happen("first")
    await way.until(lambda: one.taken)
    other = {"address": two.address, "concurrency": 1}
    await way.change(lambda tx: hook_records.update(tx, "hook", other))
    await way.happen(*MANY[:5])
    await way.until(lambda: len(two.taken) == 5)
    assert (len(one.came), one.closed, two.most) == (1, 1, 1)


async def test_a_run_that_ends_keeps_the_next_one_waiting_for_no_record(
    way: Outgoing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What gathers, so that few callbacks wait for it, is written when a run is over."""
    monkeypatch.setattr("kling_receiver.hooks.runner.MOST_EVENTS", 2)
    way.receiver.writer._lazy_seconds = 1000
    there = way.endpoint("hook")
    await way.add(there)
    ids = []
    for event in MANY[:5]:
        ids += await way.happen(event)
        await way.until(lambda: there.taken == ids)  # noqa: B023  # at once


async def test_callbacks_go_first_and_hold_nobody_up(way: Outgoing) -> None:
    """What is to be sent waits for them, and is sent amid callbacks without end."""
    there = way.endpoint("hook")
    await way.add(there)
    calm = way.receiver.writer.foreground
    with calm.foreground():
        ids = await way.happen(*MANY[:3])
        await way.until(lambda: len(there.taken) == 3)
    calm._max_wait = 1000
    with calm.foreground():
        ids += await way.happen(*MANY[3:5])
        async with asyncio.timeout(20):
            while not calm._idle._waiters:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0)
        assert len(there.came) == 3
    await way.until(lambda: len(there.taken) == 5)
    assert sorted(there.taken) == ids


async def test_a_hook_that_was_mended_need_not_be_waited_for(way: Outgoing) -> None:
    """What failed waits for an hour; told to go on, it is sent at once."""
    broken = True

    async def answer(message: Message) -> Delivered:
        if broken:
            raise NotDelivered("not yet")
        return Delivered()

    there = way.endpoint("hook", answer)
    await way.add(there, schedule=[3600.0])
    ids = await way.happen(*MANY[:3])
    await way.until(lambda: len(way.jobs("delivery")) == 3)
    broken = False
    assert await way.change(lambda tx: hook_records.resume(tx, "hook"))
    await way.until(lambda: len(there.taken) == 3 and not way.jobs("delivery"))
    assert sorted(there.taken) == ids
    assert way.hook("hook")["failing_since"] is None


async def test_what_is_sent_again(way: Outgoing) -> None:
    """What was delivered too, with the same id; the hooks' filters hold, and each hook hears it once."""
    there, other = way.endpoint("hook"), way.endpoint("other")
    await way.add(there, events=["task.done"])
    await way.add(other)
    ids = await way.happen("task.created", "task.done")
    more = await way.happen("task.done", task="u")
    await way.until(lambda: len(way.attempts()) == 5)
    hooks = [way.hook("hook")]
    await way.change(lambda tx: deliveries.replay(tx, hooks, 0, more[-1]))
    await way.until(lambda: len(there.came) == 4)
    await way.change(lambda tx: deliveries.replay(tx, hooks, 0, more[-1], task_id="u"))
    await way.until(lambda: len(there.came) == 5)
    assert there.ids == [ids[1], *more, ids[1], *more, *more]
    assert len({message.id for message in there.came}) == 2
    await way.until(lambda: not way.jobs("replay"))
    assert len(other.came) == 3


async def test_an_event_that_is_no_more_is_not_owed(way: Outgoing) -> None:
    """There is nothing to tell."""
    there = way.endpoint("hook")
    await way.add(there)
    await way.change(lambda tx: deliveries.enqueue_delivery(tx, 99, way.hook("hook"), "t"))
    await way.until(lambda: not way.jobs("delivery"))
    assert there.came == []


async def test_a_hook_of_one_task(way: Outgoing) -> None:
    """Hears all of that task from its beginning, also when it was named late, and nothing else."""
    there = way.endpoint("task")
    await way.happen("task.created", "task.done")
    await way.happen("task.created", task="u")
    await way.change(lambda tx: hook_records.add_for_task(tx, "t", there.address))
    await way.until(lambda: len(there.taken) == 2)
    await way.change(lambda tx: hook_records.add_for_task(tx, "t", there.address))
    await way.happen("later", task="u")
    await way.happen("later")
    await way.until(lambda: len(there.taken) == 3 and not way.jobs("dispatch-task"))
    assert [message.event["type"] for message in there.came] == ["task.created", "task.done", "later"]
    assert there.closed == there.opened - 1  # which was to see whether it can be served


async def test_a_restart_owes_what_nobody_owes(ways: Ways, caplog: pytest.LogCaptureFixture) -> None:
    """A hook that is behind without a job is found at the start."""
    first = await ways.open(begin=False)
    there = first.endpoint("hook")
    await first.add(there)
    ids = await first.happen("one")
    with first.receiver.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM job")
    await first.receiver.stop()
    second = await ways.open()
    await second.until(lambda: there.taken == ids)
    assert "hook hook was behind" in caplog.text
