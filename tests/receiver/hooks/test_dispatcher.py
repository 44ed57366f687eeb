"""Dispatch, replay and retry: each event once and in order; a slow or dead hook delays no other."""

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
from tests.support.outgoing import Outgoing, accept, install_scripted, outgoing, refuse
from tests.support.receiver import make_settings

pytestmark = pytest.mark.anyio

MANY = [f"type {n}" for n in range(60)]


class Stages:
    """Opens receivers one after the other on one database."""

    def __init__(self, stack: AsyncExitStack, tmp_path: Path, database_url: str) -> None:
        self._stack, self._tmp_path, self._url = stack, tmp_path, database_url

    async def open(self, *, work: bool = True, **settings: object) -> Outgoing:
        """Start a receiver. `work` False: without its worker."""
        all_settings = make_settings(self._tmp_path, database_url=self._url, **settings)
        return await self._stack.enter_async_context(outgoing(all_settings, work=work))


@pytest.fixture
async def stages(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stages]:
    """Receivers on each kind of database, with the scripted sink installed."""
    monkeypatch.syspath_prepend(install_scripted(tmp_path / "site"))
    async with AsyncExitStack() as stack:
        yield Stages(stack, tmp_path, database_url)


@pytest.fixture
async def stage(stages: Stages) -> Outgoing:
    """A receiver that delivers events."""
    return await stages.open()


class Gate:
    """An answer that waits until the gate is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def __call__(self, message: Message) -> Delivered:
        """Accept once the gate is open."""
        await self.opened.wait()
        return Delivered()


async def test_each_event_is_delivered_once_and_in_order(stage: Outgoing) -> None:
    """However many a commit has; events before the hook was added are not sent."""
    endpoint = stage.endpoint("all")
    await stage.add_events("before")
    await stage.add(endpoint, concurrency=1)
    ids = await stage.add_events(*MANY)
    for type_ in ("more", "and more"):
        ids += await stage.add_events(type_, task="u")
    await stage.until(lambda: len(stage.attempts()) == len(ids))
    assert endpoint.ids == endpoint.accepted == ids
    assert [
        (row["event_id"], row["delivered"], row["response_status"], row["response_body"]) for row in stage.attempts()
    ] == [(each, True, 200, "ok") for each in ids]
    assert stage.jobs("delivery") == {}
    await stage.until(lambda: stage.hook("all")["cursor"] == ids[-1])
    assert stage.jobs("dispatch") == {}


async def test_each_hook_receives_every_event(stage: Outgoing) -> None:
    """A hook that is added later receives later events only."""
    early, late = stage.endpoint("early"), stage.endpoint("late")
    await stage.add(early)
    first = await stage.add_events("one", "two")
    await stage.add(late)
    second = await stage.add_events("three")
    await stage.until(lambda: len(stage.attempts()) == 4)
    assert (sorted(early.ids), late.ids) == (first + second, second)


ALL = ["task.created", "task.succeed", "result.stored", "task.done"]
FILTERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "an event": ({"events": ["result.stored"]}, ["result.stored"]),
    "another event": ({"events": ["task.overdue"]}, []),
    "another family": ({"families": ["videos/effects"]}, []),
    "families": ({"families": ["videos/effects", "images/generations"]}, ALL),
    "a status": ({"statuses": ["succeed"]}, ALL[1:]),
    "an earlier status": ({"statuses": ["created"]}, ["task.created"]),
    "another tag": ({"tags": ["blue"]}, []),
    "tags": ({"tags": ["blue", "red"]}, ALL),
    "all kinds of filters": (
        {"events": ["task.done", "task.created"], "statuses": ["created"], "tags": ["red"]},
        ["task.created"],
    ),
}


async def test_a_hook_receives_the_events_that_its_filter_matches(stage: Outgoing) -> None:
    """Its cursor passes over the rest."""
    endpoints = {kind: stage.endpoint(f"some-{number}") for number, kind in enumerate(FILTERS)}
    unfiltered = stage.endpoint("all")
    await stage.add_events(status="succeed", origin="kling")
    with stage.receiver.store.database.write() as connection:
        connection.exec_driver_sql("INSERT INTO tag (tag, task_id, created_at) VALUES ('red', 't', 0)")
    for kind, (fields, _) in FILTERS.items():
        await stage.add(endpoints[kind], **fields)
    await stage.add(unfiltered)
    await stage.add_events(*ALL[:3])
    await stage.change(lambda tx: tx.add_event("t", "task.done", {"status": "succeed"}))
    await stage.until(lambda: len(unfiltered.accepted) == 4)
    last = max(unfiltered.ids)
    await stage.until(lambda: all(stage.hook(endpoint.name)["cursor"] == last for endpoint in endpoints.values()))
    for kind, (_, expected) in FILTERS.items():
        assert sorted(message.event["type"] for message in endpoints[kind].received) == sorted(expected), kind


async def test_a_killed_run_repeats_no_recorded_attempt(stages: Stages) -> None:
    """Its cursor was not saved but its attempts were; the failed one has its own job."""
    first = await stages.open(work=False)
    endpoint = first.endpoint("hook")
    await first.add(endpoint, concurrency=1)
    ids = await first.add_events(*MANY[:10])
    row = first.hook("hook")
    attempts = [
        DeliveryAttempt(
            row,
            event,
            "t",
            attempted_at=first.now,
            duration_ms=1,
            count=1,
            delivered=event != ids[3],
            retry_in_ms=5000,
        )
        for event in ids[:6]
    ]
    await first.change(lambda tx: deliveries.record_attempts(tx, attempts))
    first.ledger.run_job("dispatch/hook")
    await first.receiver.stop()
    second = await stages.open()
    await second.until(lambda: len(endpoint.accepted) == 4)
    assert endpoint.ids == ids[6:]
    await second.advance(5)
    await second.until(lambda: len(second.attempts()) == 11)
    assert endpoint.ids == [*ids[6:], ids[3]]
    assert second.attempts(event_id=ids[3])[-1]["delivered"]


@pytest.mark.parametrize("concurrency", [1, 8])
async def test_a_hook_that_never_answers_delays_no_other(stage: Outgoing, concurrency: int) -> None:
    """Neither does one that refuses: the third has received every event before the first answers."""
    gate = Gate()
    slow, dead, healthy = stage.endpoint("slow", gate), stage.endpoint("dead", refuse), stage.endpoint("healthy")
    await stage.add(slow, concurrency=concurrency, timeout=300)
    await stage.add(dead, concurrency=concurrency)
    await stage.add(healthy)
    ids: list[int] = []
    for type_ in MANY:
        ids += await stage.add_events(type_)
    await stage.until(lambda: len(healthy.accepted) == len(ids))
    assert (slow.accepted, dead.accepted) == ([], [])
    await stage.until(lambda: len(slow.received) == concurrency)
    gate.opened.set()
    await stage.until(lambda: len(slow.accepted) == len(ids))
    assert sorted(slow.accepted) == ids


async def test_an_attempt_ends_at_the_hooks_time_limit(stage: Outgoing) -> None:
    """The delivery is retried by the hook's schedule."""
    endpoint = stage.endpoint("slow", Gate())
    await stage.add(endpoint, timeout=0.01, retry_schedule=[7])
    [event] = await stage.add_events("one")
    [attempt] = await stage.until(stage.attempts)
    assert (attempt["delivered"], attempt["error"]) == (False, "the hook did not answer within 0.01 s")
    job = stage.jobs("delivery")[f"delivery/{event}/slow"]
    assert stage.now + 3_500 <= job["due_at"] <= stage.now + 7_100


async def test_while_the_circuit_is_open_events_stay_in_the_log(stage: Outgoing) -> None:
    """A few are attempted, then one per probe; after a success all are sent, each once."""
    endpoint = stage.endpoint("hook", refuse)
    await stage.add(endpoint, concurrency=2)
    ids = await stage.add_events(*MANY)
    await stage.until(lambda: any(job["error"] for job in stage.jobs("dispatch").values()))
    attempted = len(endpoint.received)
    assert FAILURE_THRESHOLD <= attempted <= FAILURE_THRESHOLD + 2
    assert stage.jobs("dispatch")["dispatch/hook"]["due_at"] == stage.now + PROBE_DELAYS[0] * 1000
    assert stage.hook("hook")["cursor"] == ids[attempted - 1]
    ids += await stage.add_events("later")
    assert len(endpoint.received) == attempted
    await stage.advance(PROBE_DELAYS[0])
    await stage.until(
        lambda: any(job["due_at"] > stage.now and job["error"] for job in stage.jobs("dispatch").values())
    )
    endpoint.answer = accept
    await stage.advance(PROBE_DELAYS[1])
    await stage.until(lambda: set(ids[attempted + 5 :]) <= set(endpoint.accepted))
    await stage.advance(3600)
    await stage.until(lambda: len(endpoint.accepted) == len(ids))
    assert sorted(endpoint.accepted) == ids
    await stage.until(lambda: stage.hook("hook")["failing_since"] is None and not stage.jobs("delivery"))


async def test_failed_deliveries_are_retried_by_the_hooks_schedule(stage: Outgoing) -> None:
    """Each delay is in the upper half of its step; after the last the delivery is a dead letter."""
    endpoint = stage.endpoint("hook", refuse)
    steps = (10.0, 100.0)
    await stage.add(endpoint, retry_schedule=list(steps))
    [event] = await stage.add_events("one")
    key = f"delivery/{event}/hook"
    for count, step in enumerate(steps, 1):
        await stage.until(lambda count=count: len(stage.attempts()) == count)  # type: ignore[misc]
        wait = stage.jobs("delivery")[key]["due_at"] - stage.now
        assert step * 500 <= wait <= step * 1000 + 1000
        await stage.advance(step + 1)
    await stage.until(lambda: stage.jobs("delivery")[key]["state"] == "dead")
    assert len(endpoint.received) == 3
    assert len({message.id for message in endpoint.received}) == 1
    await stage.change(lambda tx: deliveries.redeliver(tx, event, stage.hook("hook"), "t"))
    endpoint.answer = accept
    await stage.until(lambda: endpoint.accepted == [event] and not stage.jobs("delivery"))


async def test_the_default_schedule(stage: Outgoing) -> None:
    """Eight retries within a day and a half."""
    await stage.add(stage.endpoint("hook"))
    assert (
        stage.hook("hook")["retry_schedule"]
        == list(DEFAULT_SCHEDULE)
        == [5, 30, 120, 900, 3600, 10_800, 28_800, 86_400]
    )


async def test_a_hook_that_fails_too_long_is_paused(stages: Stages, caplog: pytest.LogCaptureFixture) -> None:
    """The log says so; its events are kept, in the log and as jobs, and are sent once it is resumed."""
    stage = await stages.open(hook_pause_seconds=60)
    endpoint = stage.endpoint("hook", refuse)
    await stage.add(endpoint, retry_schedule=[61] * 9, concurrency=1)
    ids = await stage.add_events(*MANY[:10])
    await stage.until(lambda: any(job["error"] for job in stage.jobs("dispatch").values()))
    await stage.advance(61)
    await stage.until(lambda: stage.hook("hook")["paused_at"])
    row = stage.hook("hook")
    assert "every attempt failed for 60 s; the last one: the hook answered 500" in row["paused_because"]
    await stage.until(lambda: "kling-receiver hooks resume hook" in caplog.text)
    ids += await stage.add_events("later")
    await (
        stage.until_settled()
    )  # attempts that had begun before the pause: each is recorded with a time before the advance
    endpoint.answer = accept
    await stage.advance(100_000)
    await stage.until(lambda: all(job["due_at"] == NEVER for job in stage.jobs("delivery", "dispatch").values()))
    assert endpoint.accepted == []
    await stage.receiver.work.sender.close_hook("hook")
    assert await stage.change(lambda tx: hook_records.resume(tx, "hook"))
    await stage.until(lambda: len(endpoint.accepted) == len(ids))
    assert sorted(endpoint.accepted) == ids
    await stage.until(lambda: stage.jobs("delivery") == {})


@pytest.mark.parametrize("seconds", [100, 86_400, 10 * 365 * 86_400])
async def test_a_jump_of_the_clock_pauses_no_hook(stages: Stages, seconds: int) -> None:
    """The time of a jump, or of a suspend, is no time of failing, whether the first attempt after it fails or not."""
    stage = await stages.open(hook_pause_seconds=60)
    endpoint = stage.endpoint("hook", refuse)
    await stage.add(endpoint, retry_schedule=[10] * 9)
    await stage.add_events("one")
    await stage.until(lambda: len(stage.attempts()) == 1 and stage.jobs("delivery"))
    await stage.jump(seconds)
    await stage.until(lambda: len(stage.attempts()) == 2)
    await stage.jump(-seconds)
    await stage.advance(10)
    await stage.until(lambda: len(stage.attempts()) == 3)
    row = stage.hook("hook")
    assert (row["paused_at"], row["failing_since"]) == (None, stage.now - 10_000)
    await stage.jump(-seconds)
    await stage.advance(10)
    await stage.until(lambda: len(stage.attempts()) == 4)
    await stage.advance(10)
    await stage.until(lambda: len(stage.attempts()) == 5)
    assert stage.hook("hook")["failing_since"] == stage.now - 30_000
    await stage.advance(31)
    await stage.until(lambda: stage.hook("hook")["paused_at"])


async def test_the_time_in_which_no_receiver_ran_pauses_no_hook(stages: Stages) -> None:
    """Whatever was done to the clock meanwhile; the time from the first failure to the last attempt counts."""
    first = await stages.open(hook_pause_seconds=60)
    await first.advance(100)
    await first.add(first.endpoint("hook", refuse), retry_schedule=[10] * 9)
    await first.add_events("one")
    for count in (1, 2):
        await first.until(lambda count=count: len(first.attempts()) == count and first.jobs("delivery"))  # type: ignore[misc]
        await first.advance(10)
    await first.until(lambda: len(first.attempts()) == 3)
    await first.receiver.stop()
    second = await stages.open(hook_pause_seconds=60)
    assert second.now < first.now
    assert second.hook("hook")["failing_since"] == second.now - 20_000
    await second.change(hook_records.forget_downtime)
    assert second.hook("hook")["failing_since"] == second.now - 20_000


async def test_a_jump_back_during_an_attempt_does_not_delay_its_retry(stage: Outgoing) -> None:
    """The delay counts from the record of the attempt, not from the time at which it began."""
    gate = Gate()
    endpoint = stage.endpoint("hook", gate)
    await stage.add(endpoint, timeout=0.2, retry_schedule=[10])
    [event] = await stage.add_events("one")
    await stage.until(lambda: endpoint.received)
    await stage.jump(-86_400)
    await stage.until(stage.attempts)
    assert stage.jobs("delivery")[f"delivery/{event}/hook"]["due_at"] <= stage.now + 10_000


async def test_a_hook_that_is_gone_is_paused_and_keeps_its_events(stage: Outgoing) -> None:
    """HTTP 410 may be a mistake."""

    async def gone(message: Message) -> Delivered:
        raise NotDelivered("the hook answered 410", status=410, gone=True)

    endpoint = stage.endpoint("hook", gone)
    await stage.add(endpoint, concurrency=1)
    ids = await stage.add_events("one", "two", "three")
    await stage.until(lambda: stage.hook("hook")["paused_at"] and not stage.jobs("dispatch"))
    assert endpoint.ids == ids[:1]
    await stage.until(lambda: stage.jobs("delivery")[f"delivery/{ids[0]}/hook"]["due_at"] == NEVER)
    ids += await stage.add_events("four")
    endpoint.answer = accept
    await stage.change(lambda tx: hook_records.resume(tx, "hook"))
    await stage.until(lambda: sorted(endpoint.accepted) == ids)


async def test_a_paused_hook_receives_nothing(stage: Outgoing) -> None:
    """Pausing it twice changes nothing; once resumed, it receives unfiltered."""
    endpoint = stage.endpoint("hook")
    await stage.add(endpoint)
    assert await stage.change(lambda tx: hook_records.pause(tx, "hook", "for a test"))
    assert not await stage.change(lambda tx: hook_records.pause(tx, "hook", "again"))
    assert stage.hook("hook")["paused_because"] == "for a test"
    ids = await stage.add_events("one", "two")
    assert stage.jobs("dispatch", "delivery") == {}
    await stage.change(lambda tx: deliveries.redeliver(tx, ids[0], stage.hook("hook"), "t"))
    await stage.until(lambda: [job["due_at"] for job in stage.jobs("delivery").values()] == [NEVER])
    assert await stage.change(lambda tx: hook_records.resume(tx, "hook"))
    assert not await stage.change(lambda tx: hook_records.resume(tx, "unknown"))
    await stage.until(lambda: set(endpoint.accepted) == set(ids) and not stage.jobs("delivery"))


async def test_a_job_that_found_its_hook_paused_is_due_if_it_was_resumed_meanwhile(stages: Stages) -> None:
    """The resume came before the job was settled: the job is not suspended for ever."""
    stage = await stages.open(work=False)
    endpoint = stage.endpoint("hook")
    await stage.add(endpoint)
    await stage.change(lambda tx: hook_records.pause(tx, "hook", "for a test"))
    [event] = await stage.add_events("one")
    await stage.change(lambda tx: deliveries.redeliver(tx, event, stage.hook("hook"), "t"))
    await stage.change(lambda tx: deliveries.replay(tx, [stage.hook("hook")], 0, event))
    await stage.change(lambda tx: hook_records.enqueue_dispatch(tx, stage.hook("hook")))
    claimed = {job.kind: job for job in await stage.change(claim_all)}
    handlers = stage.receiver.work.handlers
    effects = {kind: await handlers[kind](job) for kind, job in claimed.items()}
    await stage.change(lambda tx: hook_records.resume(tx, "hook"))
    for kind, effect in effects.items():
        assert await stage.change(lambda tx, job=claimed[kind], effect=effect: queue.settle(tx, job, effect))  # type: ignore[misc]
    jobs = stage.jobs("delivery", "replay", "dispatch")
    assert {job["kind"]: job["due_at"] for job in jobs.values()} == dict.fromkeys(effects, stage.now)
    assert set(effects) == {"delivery", "replay", "dispatch"}


def claim_all(tx: Transaction) -> list[ClaimedJob]:
    """Claim every job, due or not."""
    tx.connection.exec_driver_sql(f"UPDATE job SET due_at = {tx.now}")
    return queue.claim_due(tx, Capacity(99), claim_id="test", lease_ms=1000)


async def test_concurrency_is_limited(stage: Outgoing) -> None:
    """New and replayed events share the limit."""
    gate = Gate()
    endpoint = stage.endpoint("hook", gate)
    await stage.add(endpoint, concurrency=3, timeout=300)
    await stage.add_events(*MANY[:10])
    await stage.until(lambda: endpoint.active == 3)
    await stage.change(lambda tx: deliveries.replay(tx, [stage.hook("hook")], 0, 1 << 40))
    gate.opened.set()
    await stage.until(lambda: len(endpoint.accepted) == 20)
    assert endpoint.max_active == 3


async def test_the_rate_is_limited(stage: Outgoing) -> None:
    """Eleven attempts at fifty per second take at least ten fiftieths of a second."""
    endpoint = stage.endpoint("hook")
    await stage.add(endpoint, rate_limit=50)
    started = time.monotonic()
    await stage.add_events(*MANY[:11])
    await stage.until(lambda: len(endpoint.accepted) == 11)
    assert time.monotonic() - started >= 10 / 50


async def test_a_sink_that_raises_an_unexpected_error(stage: Outgoing, caplog: pytest.LogCaptureFixture) -> None:
    """The attempt counts as failed, the error is logged, and other hooks are not affected."""

    async def broken(message: Message) -> Delivered:
        raise ZeroDivisionError("a plugin's bug")

    await stage.add(stage.endpoint("broken", broken))
    healthy = stage.endpoint("healthy")
    await stage.add(healthy)
    await stage.add_events("one")
    await stage.until(lambda: len(stage.attempts()) == 2 and healthy.accepted)
    [attempt] = stage.attempts(hook_name="broken")
    assert (attempt["delivered"], attempt["error"]) == (False, "the sink raised ZeroDivisionError")
    assert "hook broken: the sink raised an unexpected error" in caplog.text


async def test_a_sink_that_cannot_be_opened(stage: Outgoing, caplog: pytest.LogCaptureFixture) -> None:
    """The reason is logged once and fails each attempt; other hooks are not affected."""
    broken, healthy = stage.endpoint("broken"), stage.endpoint("healthy")
    await stage.add(broken, retry_schedule=[5, 5])
    await stage.add(healthy)
    broken.open_error = ZeroDivisionError("a plugin's bug")
    await stage.add_events("one")
    await stage.until(lambda: stage.attempts(hook_name="broken") and healthy.accepted)
    await stage.advance(5)
    await stage.until(lambda: len(stage.attempts(hook_name="broken")) == 2)
    reason = "scripted: the sink cannot be opened (ZeroDivisionError: a plugin's bug)."
    assert {attempt["error"] for attempt in stage.attempts(hook_name="broken")} == {reason}
    assert caplog.messages.count(f"hook broken has no usable sink: {reason}") == 1


async def test_a_sink_that_cannot_be_closed(stages: Stages, caplog: pytest.LogCaptureFixture) -> None:
    """An error and a timeout are logged; the other sinks are closed."""
    stage = await stages.open()
    stage.receiver.work.sender._close_timeout = 0.05
    endpoints = [stage.endpoint(name) for name in ("one", "two", "three")]
    for each in endpoints:
        await stage.add(each)
        each.close_error = ZeroDivisionError("a plugin's bug")
    endpoints[2].close_seconds = 1000
    await stage.add_events("one")
    await stage.until(lambda: len(stage.attempts()) == 3)
    await stage.receiver.work.sender.close_hook("one")
    await stage.receiver.stop()
    assert [each.closed for each in endpoints] == [1, 1, 1]
    for name in ("two", "three"):
        assert f"hook {name}: the sink failed to close" in caplog.text


async def test_a_hook_is_removed_while_attempts_run(stage: Outgoing) -> None:
    """They end, nothing more is sent, and no job stays, although they fail."""
    gate = Gate()

    async def fail_late(message: Message) -> Delivered:
        await gate.opened.wait()
        raise NotDelivered("the hook answered 500", status=500)

    endpoint = stage.endpoint("hook", fail_late)
    await stage.add(endpoint, concurrency=2, timeout=300)
    await stage.add_events(*MANY[:6])
    await stage.until(lambda: endpoint.active == 2)
    await stage.change(lambda tx: hook_records.remove(tx, "hook"))
    gate.opened.set()
    await stage.until(lambda: not endpoint.active and not stage.jobs("dispatch", "delivery"))
    assert len(stage.attempts()) == len(endpoint.received)


async def test_a_retry_fails_after_its_hook_was_removed(stage: Outgoing) -> None:
    """It leaves no job."""
    gate = Gate()
    endpoint = stage.endpoint("hook", refuse)
    await stage.add(endpoint, retry_schedule=[5], timeout=300)
    await stage.add_events("one")
    await stage.until(stage.attempts)

    async def fail_late(message: Message) -> Delivered:
        await gate.opened.wait()
        raise NotDelivered("the hook answered 410", status=410, gone=True)

    endpoint.answer = fail_late
    await stage.advance(5)
    await stage.until(lambda: endpoint.active)
    await stage.change(lambda tx: hook_records.remove(tx, "hook"))
    gate.opened.set()
    await stage.until(lambda: len(stage.attempts()) == 2 and not stage.jobs("delivery"))


async def test_a_hook_changes_while_it_is_used(stage: Outgoing) -> None:
    """A new address opens a new sink and closes the old one; new limits apply from the next read."""
    one, two = stage.endpoint("one"), stage.endpoint("two")
    await stage.add(one, name="hook")
    await stage.add_events("first")
    await stage.until(lambda: one.accepted)
    other = {"address": two.address, "concurrency": 1}
    await stage.change(lambda tx: hook_records.update(tx, "hook", other))
    await stage.add_events(*MANY[:5])
    await stage.until(lambda: len(two.accepted) == 5)
    assert (len(one.received), one.closed, two.max_active) == (1, 1, 1)


async def test_a_run_that_ends_writes_its_records_at_once(stage: Outgoing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the next run would wait for the batch of lazy records."""
    monkeypatch.setattr("kling_receiver.hooks.runner.MAX_EVENTS", 2)
    stage.receiver.store.writer._lazy_seconds = 1000
    endpoint = stage.endpoint("hook")
    await stage.add(endpoint)
    ids = []
    for event in MANY[:5]:
        ids += await stage.add_events(event)
        await stage.until(lambda: endpoint.accepted == ids)  # noqa: B023  # at once
    stage.receiver.store.writer.flush_lazy()  # else stopping waits for it


async def test_callbacks_are_committed_before_attempts_start(stage: Outgoing) -> None:
    """Attempts wait for callbacks, but not for ever."""
    endpoint = stage.endpoint("hook")
    await stage.add(endpoint)
    gate = stage.receiver.store.writer.foreground
    with gate.foreground():
        ids = await stage.add_events(*MANY[:3])
        await stage.until(lambda: len(endpoint.accepted) == 3)
    gate._max_wait = 1000
    with gate.foreground():
        ids += await stage.add_events(*MANY[3:5])
        async with asyncio.timeout(20):
            while not gate._idle._waiters:  # noqa: ASYNC110  # no event signals a waiter
                await asyncio.sleep(0)
        assert len(endpoint.received) == 3
    await stage.until(lambda: len(endpoint.accepted) == 5)
    assert sorted(endpoint.accepted) == ids


async def test_resuming_a_failing_hook_retries_at_once(stage: Outgoing) -> None:
    """Its retries were due an hour later."""
    broken = True

    async def answer(message: Message) -> Delivered:
        if broken:
            raise NotDelivered("not yet")
        return Delivered()

    endpoint = stage.endpoint("hook", answer)
    await stage.add(endpoint, retry_schedule=[3600.0])
    ids = await stage.add_events(*MANY[:3])
    await stage.until(lambda: len(stage.jobs("delivery")) == 3)
    broken = False
    assert await stage.change(lambda tx: hook_records.resume(tx, "hook"))
    await stage.until(lambda: len(endpoint.accepted) == 3 and not stage.jobs("delivery"))
    assert sorted(endpoint.accepted) == ids
    assert stage.hook("hook")["failing_since"] is None


async def test_a_replay_sends_events_again(stage: Outgoing) -> None:
    """Also delivered ones, with the same webhook-id, once to each hook, by its filter."""
    endpoint, other = stage.endpoint("hook"), stage.endpoint("other")
    await stage.add(endpoint, events=["task.done"])
    await stage.add(other)
    ids = await stage.add_events("task.created", "task.done")
    more = await stage.add_events("task.done", task="u")
    await stage.until(lambda: len(stage.attempts()) == 5)
    hooks = [stage.hook("hook")]
    await stage.change(lambda tx: deliveries.replay(tx, hooks, 0, more[-1]))
    await stage.until(lambda: len(endpoint.received) == 4)
    await stage.change(lambda tx: deliveries.replay(tx, hooks, 0, more[-1], task_id="u"))
    await stage.until(lambda: len(endpoint.received) == 5)
    assert endpoint.ids == [ids[1], *more, ids[1], *more, *more]
    assert len({message.id for message in endpoint.received}) == 2
    await stage.until(lambda: not stage.jobs("replay"))
    assert len(other.received) == 3


async def test_a_retry_of_a_missing_event_is_done(stage: Outgoing) -> None:
    """Nothing is sent."""
    endpoint = stage.endpoint("hook")
    await stage.add(endpoint)
    await stage.change(lambda tx: deliveries.enqueue_delivery(tx, 99, stage.hook("hook"), "t"))
    await stage.until(lambda: not stage.jobs("delivery"))
    assert endpoint.received == []


async def test_a_hook_of_one_task(stage: Outgoing) -> None:
    """It receives every event of that task, also earlier ones, and nothing else."""
    endpoint = stage.endpoint("task")
    await stage.add_events("task.created", "task.done")
    await stage.add_events("task.created", task="u")
    await stage.change(lambda tx: hook_records.add_for_task(tx, "t", endpoint.address))
    await stage.until(lambda: len(endpoint.accepted) == 2)
    await stage.change(lambda tx: hook_records.add_for_task(tx, "t", endpoint.address))
    await stage.add_events("later", task="u")
    await stage.add_events("later")
    await stage.until(lambda: len(endpoint.accepted) == 3 and not stage.jobs("dispatch"))
    assert [message.event["type"] for message in endpoint.received] == ["task.created", "task.done", "later"]
    assert endpoint.closed == endpoint.opened - 1  # one was opened to validate the address


async def test_a_start_enqueues_missing_dispatches(stages: Stages, caplog: pytest.LogCaptureFixture) -> None:
    """A hook with events behind its cursor lacked its job."""
    first = await stages.open(work=False)
    endpoint = first.endpoint("hook")
    await first.add(endpoint)
    ids = await first.add_events("one")
    with first.receiver.store.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM job")
    await first.receiver.stop()
    second = await stages.open()
    await second.until(lambda: endpoint.accepted == ids)
    assert "hook hook is behind and lacked a job" in caplog.text
