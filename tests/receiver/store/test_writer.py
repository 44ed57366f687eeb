"""Group commit: which changes share a transaction, and what a failing one affects."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from kling_callback.protocol.reports import Report
from kling_receiver.store.database import Database
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.tables import TASK
from kling_receiver.store.transaction import UNKNOWN_RESULT, CommitResult, Transaction
from kling_receiver.store.writer import MAX_BATCH, MAX_PENDING, MAX_PENDING_BYTES, Writer
from kling_receiver.tasks.ingest import Callback, ingest
from tests.support.database import FAMILY, NOW, Ledger, callback, statements

pytestmark = pytest.mark.anyio

Change = Callable[[Transaction], Any]


@asynccontextmanager
async def writing(database: Database, **given: Any) -> AsyncIterator[Writer]:
    """A writer that runs; closed at the end."""
    writer = Writer(database, clock=lambda: NOW / 1000, **given)
    writer.start()
    try:
        yield writer
    finally:
        await writer.close()


class Gate:
    """A change that blocks the writer's thread until it is opened, so that later changes share a batch."""

    def __init__(self, writer: Writer) -> None:
        self._entered, self._open = threading.Event(), threading.Event()
        self._task = asyncio.ensure_future(writer.run(self._hold))

    def _hold(self, tx: Transaction) -> None:
        self._entered.set()
        assert self._open.wait(20)

    async def closed(self) -> None:
        """Wait until the writer is blocked."""
        assert await asyncio.to_thread(self._entered.wait, 20)

    async def open(self) -> None:
        """Let the writer continue."""
        self._open.set()
        await self._task


async def together(writer: Writer, *changes: Change | Callback) -> list[Any]:
    """The results and errors of changes that share one batch."""
    gate = Gate(writer)
    await gate.closed()
    waiting = [
        asyncio.ensure_future(take_in(writer, each) if isinstance(each, Callback) else writer.run(each))
        for each in changes
    ]
    await asyncio.sleep(0)  # one turn of the loop: all of them are in the queue
    await gate.open()
    return await asyncio.gather(*waiting, return_exceptions=True)


async def take_in(writer: Writer, callback: Callback) -> None:
    """Ingest a callback as the callback route does."""
    await writer.run_batched(ingest, callback, size=len(callback.body))


def add(task: str) -> Change:
    """A change that makes a task, and names it."""

    def change(tx: Transaction) -> str:
        tx.add_tasks([{"id": task, "family": FAMILY}])
        return task

    return change


def ids(database: Database) -> list[str]:
    """The tasks there are."""
    return [task["id"] for task in Ledger(database).rows(TASK)]


@asynccontextmanager
async def counting_commits(database: Database) -> AsyncIterator[list[int]]:
    """The commits of the writer's connection."""
    seen: list[int] = []

    def note(connection: Any) -> None:
        seen.append(1)

    event.listen(database._writer, "commit", note)
    yield seen
    event.remove(database._writer, "commit", note)


async def test_a_change_returns_what_it_returned(database: Database) -> None:
    """After its commit, made at the writer's time."""
    async with writing(database) as writer:
        assert await writer.run(lambda tx: tx.now) == NOW
        assert await writer.run(add("t")) == "t"
        assert ids(database) == ["t"]


async def test_a_single_change_is_committed_at_once(database: Database) -> None:
    """One change, one commit."""
    async with writing(database) as writer, counting_commits(database) as commits:
        for n in range(3):
            await take_in(writer, callback(f"t{n}"))
        assert len(commits) == 3


async def test_changes_that_arrive_during_a_commit_share_the_next_one(database: Database) -> None:
    """Callbacks and other changes, of the same task and of others."""
    async with writing(database) as writer, counting_commits(database) as commits:
        answers = await together(
            writer, callback("t"), add("u"), callback("t", "submitted"), callback("v", "succeed"), add("w")
        )
        assert answers == [None, "u", None, None, "w"]
        assert len(commits) == 2
    assert ids(database) == ["t", "u", "v", "w"]
    assert Ledger(database).task()["callback_count"] == 2


async def test_a_batch_has_a_maximum_size(database: Database) -> None:
    """The rest is committed in the next batch."""
    async with writing(database) as writer, counting_commits(database) as commits:
        await together(writer, *[lambda tx: None] * (MAX_BATCH + 1))
        assert len(commits) == 3


async def test_order_is_kept(database: Database) -> None:
    """Changes are made in the order in which they came, and so are callbacks, within a batch and between."""
    order: list[int] = []
    numbered = [(lambda tx, n=n: order.append(n)) for n in range(MAX_BATCH + 50)]
    async with writing(database) as writer:
        await together(writer, *numbered)
        await together(writer, *(callback(n=n) for n in range(20)))
    assert order == list(range(MAX_BATCH + 50))
    bodies = [event["body"] for event in Ledger(database).events() if event["type"] == "callback.received"]
    assert bodies == [callback(n=n).body for n in range(20)]


def poison(tx: Transaction) -> None:
    """A change that fails after it changed something."""
    tx.add_tasks([{"id": "poisoned", "family": FAMILY}])
    raise ZeroDivisionError("poison")


def break_rule(tx: Transaction) -> None:
    """A change that the database refuses."""
    tx.add_tasks([{"id": "impossible", "family": FAMILY, "status": "cancelled"}])


@pytest.mark.parametrize("bad", [poison, break_rule])
async def test_a_failing_change_affects_only_itself(database: Database, bad: Change) -> None:
    """The other changes of its batch are committed, and their callers get the results."""
    async with writing(database) as writer:
        answers = await together(writer, callback("t"), bad, add("u"), callback("t", "submitted"))
        assert (answers[0], answers[2], answers[3]) == (None, "u", None)
        assert type(answers[1]).__name__ == ("ZeroDivisionError" if bad is poison else "IntegrityError")
    assert ids(database) == ["t", "u"]
    assert Ledger(database).task()["callback_count"] == 2


async def test_a_failing_callback_affects_only_itself(database: Database) -> None:
    """Even if it fails when the rows are written."""
    bad = Callback("bad", FAMILY, "digest", b"", 0, Report("processing", cost=object()), signed=True)
    async with writing(database) as writer:
        answers = await together(writer, callback("t"), bad, callback("u"))
        assert (answers[0], answers[2]) == (None, None)
        assert isinstance(answers[1], Exception)
        assert not isinstance(answers[1], Unavailable)
    assert ids(database) == ["t", "u"]


async def test_a_failing_change_raises_its_own_error(database: Database) -> None:
    """The writer goes on."""
    async with writing(database) as writer:
        with pytest.raises(ZeroDivisionError):
            await writer.run(poison)
        assert await writer.run(add("t")) == "t"
    assert ids(database) == ["t"]


async def test_an_outage_fails_every_pending_change(tmp_path: Path) -> None:
    """No refused change is committed; after the outage, writing works again."""
    url = f"sqlite:///{tmp_path / 'kling.db'}"
    database = Database(url)
    database.migrate()
    blocker = Database(f"{url}?timeout=0.05")
    async with writing(blocker) as writer:
        _impatient(blocker)
        with database.write():
            answers = await together_locked(writer, callback("t"), add("u"))
        assert [type(answer) for answer in answers] == [Unavailable, Unavailable]
        assert str(answers[0]) == "The database cannot be used: database is locked."
        assert ids(database) == []
        await take_in(writer, callback("t"))
    assert ids(database) == ["t"]
    blocker.close()
    database.close()


def _impatient(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("PRAGMA busy_timeout = 20"))


async def together_locked(writer: Writer, *changes: Change | Callback) -> list[Any]:
    """The same while nobody can write."""
    waiting = [take_in(writer, each) if isinstance(each, Callback) else writer.run(each) for each in changes]
    return list(await asyncio.gather(*waiting, return_exceptions=True))


async def test_an_outage_wakes_every_waiter(tmp_path: Path) -> None:
    """The commit may have succeeded although its answer was lost."""
    database = Database(f"sqlite:///{tmp_path / 'kling.db'}")
    database.migrate()
    _impatient(database)
    blocker = Database(str(database.url))
    heard: list[CommitResult] = []
    async with writing(database, on_commit=heard.append) as writer:
        with blocker.write(), pytest.raises(Unavailable):
            await writer.run(add("t"))
        await writer.run(lambda tx: None)
    assert heard[0] == UNKNOWN_RESULT
    blocker.close()
    database.close()


async def test_a_database_that_hangs_is_an_outage(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit without an answer times out."""
    monkeypatch.setattr("kling_receiver.store.writer.COMMIT_TIMEOUT_SECONDS", 0.05)
    async with writing(database) as writer:
        hanging = threading.Event()
        with pytest.raises(Unavailable, match="does not answer"):
            await writer.run(lambda tx: hanging.wait(20))
        hanging.set()


async def test_the_foreground_gate_is_closed_while_a_change_is_in_flight(database: Database) -> None:
    """From its submission until its result; lazy changes do not close the gate."""
    async with writing(database, lazy_seconds=0.05) as writer:
        hanging, calm = threading.Event(), writer.foreground
        urgent = asyncio.ensure_future(writer.run(lambda tx: hanging.wait(20)))
        await asyncio.sleep(0)
        assert not calm._idle.is_set()
        hanging.set()
        assert await urgent
        assert calm._idle.is_set()
        gathering = asyncio.ensure_future(writer.run_batched(lambda tx, items: None, 1, lazy=True))
        await asyncio.sleep(0)
        assert calm._idle.is_set()
        await gathering


async def test_the_probe_writes(database: Database) -> None:
    """An empty transaction would prove nothing; the probe's write changes no row."""
    async with writing(database) as writer:
        with statements(database) as seen:
            await writer.probe()
    assert any("user_version =" in each or "UPDATE alembic_version" in each for each in seen)


async def test_a_damaged_database_is_an_outage(tmp_path: Path) -> None:
    """No change can be made durable in it."""
    path = tmp_path / "kling.db"
    first = Database(f"sqlite:///{path}")
    first.migrate()
    first.close()
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (path.stat().st_size - 4096))
    database = Database(f"sqlite:///{path}")
    async with writing(database) as writer:
        with pytest.raises(Unavailable, match="malformed"):
            await take_in(writer, callback())
    database.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("early", [True, False])
async def test_a_lost_connection_is_an_outage(database: Database, early: bool) -> None:
    """Lost while rows are inserted, or at the commit: the change is refused, the next one has a new connection."""

    def cut(tx: Transaction) -> None:
        own = tx.connection.execute(text("SELECT pg_backend_pid()")).scalar()
        with database.read() as other:
            other.execute(text("SELECT pg_terminate_backend(:own, 20000)"), {"own": own})
        if early:
            tx.add_tasks([{"id": "t", "family": FAMILY}])

    async with writing(database) as writer:
        with pytest.raises(Unavailable, match=r"^The database cannot be used\.$"):
            await writer.run(cut)
        await writer.run(add("u"))
    assert ids(database) == ["u"]


async def test_a_full_queue_refuses_changes(database: Database) -> None:
    """So that memory is bounded, and callers can retry; pending changes are committed."""
    count = 0

    def change(tx: Transaction) -> None:
        nonlocal count
        count += 1

    async with writing(database) as writer:
        gate = Gate(writer)
        await gate.closed()
        waiting = [asyncio.ensure_future(writer.run(change)) for _ in range(MAX_PENDING)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="Too many changes are pending"):
            await writer.run(change)
        await gate.open()
        await asyncio.gather(*waiting)
    assert count == MAX_PENDING


async def test_close_commits_the_pending_changes(database: Database) -> None:
    """Every caller gets a result."""
    writer = Writer(database)
    writer.start()
    gate = Gate(writer)
    await gate.closed()
    waiting = [asyncio.ensure_future(writer.run(add(f"t{n}"))) for n in range(5)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(writer.close())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="not running"):
        await writer.run(add("late"))
    await gate.open()
    await closing
    assert await asyncio.gather(*waiting) == [f"t{n}" for n in range(5)]
    assert len(ids(database)) == 5


async def test_a_stopped_writer_refuses_changes(database: Database) -> None:
    """Before its start and after its end; it may be closed twice, or without a start."""
    writer = Writer(database)
    with pytest.raises(Unavailable, match="not running"):
        await take_in(writer, callback())
    await writer.close()
    writer.start()
    await writer.close()
    await writer.close()
    with pytest.raises(Unavailable, match="not running"):
        await writer.run(add("t"))


async def test_a_cancelled_caller_affects_only_itself(database: Database) -> None:
    """Its change is committed, and the other callers of the batch get their results."""
    async with writing(database) as writer:
        gate = Gate(writer)
        await gate.closed()
        gone, stays = (asyncio.ensure_future(writer.run(add(task))) for task in "tu")
        await asyncio.sleep(0)
        gone.cancel()
        await gate.open()
        assert await stays == "u"
        assert gone.cancelled()
    assert ids(database) == ["t", "u"]


async def test_on_commit_is_called_once_after_each_commit(database: Database) -> None:
    """In the event loop, when readers can see the change; not after a failed commit."""
    told: list[tuple[CommitResult, int, threading.Thread]] = []

    def on_commit(committed: CommitResult) -> None:
        told.append((committed, len(ids(database)), threading.current_thread()))

    async with writing(database, on_commit=on_commit) as writer:
        await take_in(writer, callback())
        with pytest.raises(ZeroDivisionError):
            await writer.run(poison)
    happened = dict.fromkeys(("task.created", "callback.received", "task.processing"), 1)
    assert told == [(CommitResult(frozenset({"t"}), NOW + 180_000, happened), 1, threading.current_thread())]


async def test_many_changes_at_once_are_all_committed(database: Database) -> None:
    """Hundreds of callbacks and changes of a few tasks, each with a result, in few commits."""
    async with writing(database) as writer, counting_commits(database) as commits:
        callbacks = [callback(f"t{n % 7}", n=n) for n in range(400)]
        counts = [writer.run(lambda tx: _count(tx)) for _ in range(100)]
        await asyncio.gather(*(take_in(writer, each) for each in callbacks), *counts)
        assert len(commits) < 100
    tasks = {task["id"]: task for task in Ledger(database).rows(TASK)}
    assert sum(tasks[f"t{n}"]["callback_count"] for n in range(7)) == 400
    assert tasks["counter"]["callback_count"] == 100


def _count(tx: Transaction) -> None:
    task = tx.task("counter")
    if task is None:
        tx.add_tasks([{"id": "counter", "family": FAMILY, "callback_count": 1}])
    else:
        tx.update_task(task, callback_count=task["callback_count"] + 1)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_two_writers_of_the_same_tasks_do_not_deadlock(database: Database, database_url: str) -> None:
    """With batches in opposite orders, all are committed."""
    other = Database(database_url)
    names = [f"t{n}" for n in range(12)]
    Ledger(database).record(*(callback(name) for name in names))
    async with writing(database) as one, writing(other) as two:
        here = [take_in(one, callback(name, n=n)) for n in range(15) for name in names]
        there = [take_in(two, callback(name, n=n + 50)) for n in range(15) for name in reversed(names)]
        async with asyncio.timeout(60):
            await asyncio.gather(*here, *there)
    other.close()
    assert {task["callback_count"] for task in Ledger(database).rows(TASK)} == {31}


async def test_pending_changes_have_a_maximum_size(database: Database) -> None:
    """More bytes are refused; a change without a body is not; a commit frees its bytes."""
    async with writing(database) as writer:
        gate = Gate(writer)
        await gate.closed()
        first = asyncio.ensure_future(writer.run(add("t"), size=MAX_PENDING_BYTES))
        await asyncio.sleep(0)
        for refused in (take_in(writer, callback("u")), writer.run(add("u"), size=1)):
            with pytest.raises(Unavailable, match="Too many changes are pending"):
                await refused
        second = asyncio.ensure_future(writer.run(add("v")))
        await asyncio.sleep(0)
        await gate.open()
        assert (await first, await second) == ("t", "v")
        await take_in(writer, callback("u"))
        assert sorted(ids(database)) == ["t", "u", "v"]


def made(tx: Transaction, tasks: list[str]) -> None:
    """Tasks made together; how many there were stands in each one's model."""
    tx.add_tasks([{"id": task, "family": FAMILY, "model": str(len(tasks))} for task in tasks])


async def test_lazy_changes_share_a_commit(database: Database) -> None:
    """Without other changes: one call and one commit for all that were collected."""
    async with writing(database) as writer, counting_commits(database) as commits:
        await asyncio.gather(*(writer.run_batched(made, f"t{n}", lazy=True) for n in range(5)))
        assert len(commits) == 1
        assert {task["model"] for task in Ledger(database).rows(TASK)} == {"5"}
        await writer.run_batched(made, "later", lazy=True)
        assert len(commits) == 2


def level(tx: Transaction) -> Any:
    """How a SQLite commit goes to the disk: 2 at once, 1 with the next that does."""
    return tx.connection.execute(text("PRAGMA synchronous")).scalar()


async def test_a_commit_is_durable_if_one_of_its_changes_must_be(tmp_path: Path) -> None:
    """A change that need not be durable shares that commit."""
    database = Database(f"sqlite:///{tmp_path / 'own.db'}")
    database.migrate()
    async with writing(database) as writer:
        assert await writer.run(level, durable=False) == 1
        gate = Gate(writer)
        await gate.closed()
        asked = asyncio.gather(writer.run(level, durable=False), writer.run(add("u")))
        await asyncio.sleep(0)
        await gate.open()
        assert tuple(await asked) == (2, "u")
    database.close()


async def test_lazy_changes_delay_no_other_change(database: Database) -> None:
    """Another change is committed first; closing the writer commits the lazy ones."""
    async with writing(database, lazy_seconds=1000.0) as writer:
        waiting = [asyncio.ensure_future(writer.run_batched(made, task, lazy=True)) for task in "tv"]
        await asyncio.sleep(0)
        await writer.run(add("u"))
        assert ids(database) == ["u"]
    await asyncio.gather(*waiting)
    assert ids(database) == ["t", "u", "v"]


async def test_a_jump_of_the_clock_is_told_in_the_next_transaction(database: Database) -> None:
    """Once, before its changes, and again if the transaction fails."""
    now, steady = 1_000.0, 5.0
    told: list[tuple[int, int]] = []
    writer = Writer(
        database,
        clock=lambda: now,
        monotonic=lambda: steady,
        on_clock_jump=lambda tx, jump_ms: told.append((tx.now, jump_ms)),
    )

    def fail(tx: Transaction) -> None:
        raise ValueError("a bug")

    writer.start()
    try:
        now, steady = 1_100.0, 105.5  # inaccuracy
        await writer.run(lambda tx: None)
        assert told == []
        for jump in (3_600, -86_400 * 3_000):
            now += jump
            with pytest.raises(ValueError, match="a bug"):
                await writer.run(fail)
            await writer.run(lambda tx: told.append((0, 0)))
            await writer.run(lambda tx: None)
            assert [round(each[1] / 1000) - jump in (0, -1) for each in told] == [True, True, False]
            assert told.pop() == (0, 0)
            told.clear()
    finally:
        await writer.close()
