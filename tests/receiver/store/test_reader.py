"""Reads: which rows, in which order."""

import asyncio
import itertools
import threading
from dataclasses import replace
from math import ceil
from pathlib import Path

import pytest
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from kling_receiver.events import log as event_log
from kling_receiver.store import reader as store_reader
from kling_receiver.store.database import Database
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.reader import (
    BATCH_BYTES,
    EVENTS_AT_ONCE,
    FIND_BY_OTHER_ID,
    PAGE_BYTES,
    Reader,
    TaskDetail,
)
from kling_receiver.store.task_list import TaskFilter
from kling_receiver.tasks import transitions
from tests.support.database import FAMILY, FILE, NOW, Ledger, callback

pytestmark = pytest.mark.anyio


@pytest.fixture
def ledger(database: Database) -> Ledger:
    """A ledger with one task that has two files and two tags."""
    ledger = Ledger(database)
    ledger.register(outcome="created", kling_id="k1", tags=("red", "blue"))
    ledger.record(callback(status="succeed", files=[FILE, f"{FILE}2"], signed=True))
    return ledger


@pytest.fixture
def reader(database: Database) -> Reader:
    """A reader of the same database."""
    return Reader(database)


async def test_queries_run_in_another_thread() -> None:
    """Not in the event loop's."""
    assert await run_in_threadpool(threading.get_ident) != threading.get_ident()


async def test_a_task_is_found_by_its_ids(ledger: Ledger, reader: Reader) -> None:
    """By ours and by Kling's; or not at all."""
    row = await reader.task("t")
    assert row is not None
    assert (row["id"], row["kling_id"], row["status"]) == ("t", "k1", "succeed")
    assert await reader.task("k1") is None
    assert (await reader.find_by_kling_id("k1"), await reader.find_by_kling_id("t")) == ("t", None)


async def test_results_are_found_in_order(ledger: Ledger, reader: Reader) -> None:
    """All of a task, or its n-th."""
    assert [result["position"] for result in await reader.results("t")] == [0, 1]
    assert await reader.results("nobody") == []
    second = await reader.result("t", 1)
    assert second is not None
    assert second["source_url"] == f"{FILE}2"
    assert await reader.result("t", 2) is None


async def test_a_full_task_has_its_results_and_tags(ledger: Ledger, reader: Reader) -> None:
    """Each its own; what does not exist is left out."""
    ledger.register("u", tags=("green",))
    found = await reader.details(["u", "nobody", "t"])
    assert sorted(found) == ["t", "u"]
    assert (found["t"].tags, [result["position"] for result in found["t"].results]) == (["blue", "red"], [0, 1])
    assert (found["u"].tags, found["u"].results) == (["green"], [])
    assert await reader.details([]) == {}


async def test_events_are_found_in_order(ledger: Ledger, reader: Reader) -> None:
    """Above an id, of one task or of all, without their bodies."""
    ledger.record(callback("u"))
    of_all = await reader.events(0)
    assert [event["id"] for event in of_all] == sorted(event["id"] for event in of_all)
    assert len(of_all) == len(ledger.events("t")) + len(ledger.events("u"))
    assert {event["task_id"] for event in await reader.events(0, "t")} == {"t"}
    middle = of_all[2]["id"]
    assert (await reader.events(middle))[0]["id"] > middle
    assert await reader.events(of_all[-1]["id"]) == []
    assert set(of_all[0]) == {"id", "log_id", "task_id", "type", "created_at", "data"}


async def test_events_come_in_batches(ledger: Ledger, reader: Reader) -> None:
    """However many there are."""
    ledger.log(*["x"] * (EVENTS_AT_ONCE + 1))
    assert len(await reader.events(0)) == EVENTS_AT_ONCE


async def test_one_event_is_found_by_its_id(ledger: Ledger, reader: Reader) -> None:
    """None where there is none."""
    last = (await reader.read(event_log.newest)).event_id
    event = await reader.event(last)
    assert event is not None
    assert event["type"] == "task.succeed"
    assert await reader.event(last + 1) is None


@pytest.fixture
def many(database: Database) -> Ledger:
    """Six tasks, two of each moment, of several kinds."""
    ledger = Ledger(database)
    for n in range(6):
        ledger.now = NOW + n // 2
        ledger.register(f"t{n}", family=FAMILY if n % 2 else "videos/effects", tags=("even",) if n % 2 == 0 else ())
    ledger.change(lambda tx: transitions.fail_locally(tx, tx.require_task("t3"), "late"))
    return ledger


def name(full: TaskDetail) -> bytes:
    """What is shown of a task."""
    return str(full.row["id"]).encode()


async def listed(reader: Reader, wanted: TaskFilter) -> list[str]:
    """The ids of a page; the last one says whether there are more."""
    page = await reader.render_page(wanted, name)
    return [each.decode() for each in page.items] + ["..."] * bool(page.last)


async def test_a_list_says_since_when_each_task_has_its_status(many: Ledger, reader: Reader) -> None:
    """By the event of that status: what else changes a task does not count."""
    many.now = NOW + 50
    many.record(callback("t2", "submitted", family="videos/effects"))
    many.now = NOW + 90
    many.record(callback("t2", "submitted", family="videos/effects"))
    since: dict[str, int] = {}

    def note(detail: TaskDetail, at: int) -> bytes:
        since[detail.row["id"]] = at
        return name(detail)

    page = await reader.render_list(TaskFilter(limit=4), note)
    assert [each.decode() for each in page.items] == ["t5", "t4", "t3", "t2"] == list(since)
    assert since["t2"] == NOW + 50
    assert since["t5"] == NOW + 2
    assert page.last is not None
    nothing = await reader.render_list(TaskFilter(tag="none"), note)
    assert (nothing.items, nothing.last) == ([], None)


async def test_the_newest_task_stands_first(many: Ledger, reader: Reader) -> None:
    """Those of one moment by their ids; a page says whether there are more."""
    everything = ["t5", "t4", "t3", "t2", "t1", "t0"]
    assert await listed(reader, TaskFilter()) == await listed(reader, TaskFilter(limit=6)) == everything
    assert await listed(reader, TaskFilter(limit=2)) == ["t5", "t4", "..."]


FILTERED = [
    (TaskFilter(status="failed"), ["t3"]),
    (TaskFilter(family="videos/effects"), ["t4", "t2", "t0"]),
    (TaskFilter(tag="even", limit=2), ["t4", "t2", "..."]),
    (TaskFilter(tag="even", family=FAMILY), []),
    (TaskFilter(status="created", family=FAMILY), ["t5", "t1"]),
    (TaskFilter(tag="nothing"), []),
    (TaskFilter(before=(NOW + 1, "t3")), ["t2", "t1", "t0"]),
    (TaskFilter(before=(NOW + 1, "t2"), status="created", family="videos/effects"), ["t0"]),
    (TaskFilter(before=(NOW, "t0")), []),
]


async def test_a_list_can_be_filtered(many: Ledger, reader: Reader) -> None:
    """By status, family and tag, and from the end of the last page."""
    assert [(wanted, await listed(reader, wanted)) for wanted, _ in FILTERED] == FILTERED


LENGTHS = [(limit, size) for limit in (1, 2, 4, 6) for size in (1, PAGE_BYTES // 2, PAGE_BYTES + 1)]


async def test_pages_hold_every_task_once(many: Ledger, reader: Reader) -> None:
    """Whatever their length, in tasks or in bytes."""
    for limit, size in LENGTHS:
        seen, before, pages = [], None, 0
        while pages == 0 or before:
            wanted = TaskFilter(limit=limit, before=before)
            page = await reader.render_page(wanted, lambda full, size=size: name(full).ljust(size))  # type: ignore[misc]
            seen += [each.decode().strip() for each in page.items]
            before, pages = page.last, pages + 1
        assert seen == ["t5", "t4", "t3", "t2", "t1", "t0"], (limit, size)
        assert pages == ceil(6 / min(limit, {1: 6, PAGE_BYTES // 2: 3, PAGE_BYTES + 1: 1}[size])), (limit, size)


@pytest.mark.parametrize(
    "wanted",
    [
        TaskFilter(family=FAMILY),
        TaskFilter(family=FAMILY, status="created"),
        TaskFilter(family="videos/effects", tag="even"),
        TaskFilter(tag="even"),
        TaskFilter(tag="even", status="failed"),
        TaskFilter(model="m3"),
        TaskFilter(model="nothing"),
    ],
)
async def test_a_search_ends_at_its_bound_and_goes_on(
    many: Ledger, reader: Reader, monkeypatch: pytest.MonkeyPatch, wanted: TaskFilter
) -> None:
    """A page may be short or empty; all pages have every task once."""
    many.change(lambda tx: tx.update_task(tx.require_task("t3"), model="m3"))
    (expected,) = {tuple(await listed(reader, replace(wanted, limit=50)))}
    for scanned, limit in itertools.product((1, 2, 3, 6, 7), (1, 2, 50)):
        monkeypatch.setattr("kling_receiver.store.task_list.MAX_EXAMINED", scanned)
        seen, pages, before = [], 0, None
        while pages == 0 or before:
            page = await reader.render_page(replace(wanted, before=before, limit=limit), name)
            seen += [each.decode() for each in page.items]
            before, pages = page.last, pages + 1
            assert pages < 20, (scanned, limit)
        assert seen == list(expected), (scanned, limit)


async def test_a_task_is_found_by_its_other_ids(ledger: Ledger, reader: Reader) -> None:
    """By Kling's and by the caller's, through their indexes; all tasks that have it, up to a limit."""
    ledger.put_task("u", kling_id="k2", external_task_id="order-42")
    ledger.put_task("v", kling_id="k2", external_task_id="order-42")
    assert await reader.find_by_other_id("k1") == ["t"]
    assert await reader.find_by_other_id("k2") == await reader.find_by_other_id("order-42") == ["u", "v"]
    assert await reader.find_by_other_id("t") == []
    for number in range(9):
        ledger.put_task(f"w{number}", external_task_id="many")
    assert len(await reader.find_by_other_id("many")) == 5
    if ledger.database.is_sqlite:
        with ledger.database.read() as connection:
            sql = f"EXPLAIN QUERY PLAN {FIND_BY_OTHER_ID._sqlite}"
            plan = " ".join(row.detail for row in connection.exec_driver_sql(sql, {"other_id": "x", "limit": 5}))
        assert "task_kling_id" in plan
        assert "task_external_id" in plan


async def test_a_callback_cannot_take_another_task_s_id(ledger: Ledger, reader: Reader) -> None:
    """What one says about the caller's id counts only if Kling has no such id, and no such task is confirmed."""
    ledger.put_task("confirmed", kling_id="k3", external_task_id="order-42")
    for number, external_id in enumerate(["k1", "order-42", "order-43"]):
        ledger.put_task(f"claim-{number}", external_task_id=external_id)
    assert await reader.find_by_other_id("k1") == ["t"]
    assert await reader.find_by_other_id("order-42") == ["confirmed"]
    assert await reader.find_by_other_id("order-43") == ["claim-2"]


@pytest.mark.parametrize(("size", "count"), [(1, 8), (BATCH_BYTES // 3, 4), (BATCH_BYTES + 1, 1)])
async def test_a_batch_ends_where_it_is_large(many: Ledger, reader: Reader, size: int, count: int) -> None:
    """With one event at least; the others come in the next."""
    events = await reader.events(0)
    shown = await reader.render_events(events, lambda event, full: name(full).ljust(size))
    assert [each.decode().strip() for each in shown] == [each["task_id"] for each in events[:count]]
    assert len(events) == 8


async def test_close_waits_for_running_queries(database: Database) -> None:
    """Also for one whose caller was cancelled: its connection is returned before the database is closed."""
    reader = Reader(database)
    begun, go = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        begun.set()
        go.wait(20)

    asked = asyncio.create_task(reader.read(slow))
    await asyncio.to_thread(begun.wait, 20)
    asked.cancel()
    closing = asyncio.create_task(reader.close())
    await asyncio.gather(asked, return_exceptions=True)
    assert database._readers.pool.checkedout() == 1  # type: ignore[attr-defined]
    assert not closing.done()
    go.set()
    await closing
    assert database._readers.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_a_database_that_cannot_be_read_is_an_outage(tmp_path: Path) -> None:
    """Whoever asks is told to come again."""
    path = tmp_path / "kling.db"
    path.write_bytes(b"no database" * 1000)
    database = Database(f"sqlite:///{path}")
    with pytest.raises(Unavailable, match="The database cannot be used"):
        await Reader(database).task("t")
    database.close()


async def test_a_query_that_hangs_is_an_outage(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller gets an answer; its thread ends when the database does."""
    released = threading.Event()
    monkeypatch.setattr(store_reader, "READ_TIMEOUT_SECONDS", 0.05)
    with pytest.raises(Unavailable, match="does not answer"):
        await reader.read(lambda connection: released.wait(60))
    released.set()
    await reader.close()
