"""`/readyz`: a receiver is ready only if a callback would be made durable and processed."""

import asyncio
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Connection, create_engine, make_url
from sqlalchemy import text as sql

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import CallbackSigner
from kling_receiver import app
from kling_receiver.app import Receiver, create_app
from kling_receiver.jobs import queue
from kling_receiver.readiness import Readiness, SharedCheck
from kling_receiver.store.database import Database
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import startup
from kling_sandbox import Sandbox
from tests.support.api import error_of
from tests.support.receiver import SECRET, Running, Start, make_settings
from tools.harness.submitting import IMAGES, metric, poll_until, post


def test_a_receiver_that_lost_its_storage_is_not_ready(running: Running) -> None:
    """It tries to write there, reports why it is not ready, stays alive, and is ready once the folder is restored."""
    shutil.rmtree(running.settings.results)
    running.settings.results.write_text("in the way")
    response = httpx.get(f"{running.url}/readyz")
    assert error_of(response) == (503, "not_ready")
    assert "The folder for result files cannot be written" in response.json()["error"]["message"]
    assert httpx.get(f"{running.url}/healthz").status_code == 200
    running.settings.results.unlink()
    response = httpx.get(f"{running.url}/readyz")
    assert "Mount its volume again, or restart the receiver" in response.json()["error"]["message"]
    (running.settings.results / ".parts").mkdir(parents=True)
    assert httpx.get(f"{running.url}/readyz").status_code == 200


def test_a_receiver_that_cannot_write_its_database_is_not_ready(running: Running) -> None:
    """The check commits a write."""
    with running.receiver.store.database.write() as connection:
        connection.execute(sql("PRAGMA busy_timeout = 20"))
    blocker = Database(running.settings.database)
    with blocker.write():
        assert error_of(httpx.get(f"{running.url}/readyz")) == (503, "not_ready")
    blocker.close()
    # The check after the start may have met the lock, too; it is repeated after some seconds.
    poll_until(lambda: httpx.get(f"{running.url}/readyz").status_code == 200)


@pytest.mark.anyio
async def test_a_receiver_that_has_not_started_is_not_ready(tmp_path: Path) -> None:
    """Until its writer runs, callbacks are answered 503."""
    receiver = Receiver(make_settings(tmp_path))
    receiver.prepare()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(receiver))) as http:
        assert error_of(await http.get("http://receiver/readyz")) == (503, "not_ready")
        address = CallbackSigner([SECRET]).url(receiver.settings.receiver_url, new_id(), IMAGES)
        assert error_of(await http.post(address, json={})) == (503, "unavailable")
    receiver.store.database.close()


# --- the writes of a callback --------------------------------------------------------------------------------


def not_ready(running: Running) -> str:
    """Why the receiver is not ready."""
    response = httpx.get(f"{running.url}/readyz", timeout=30)
    assert error_of(response) == (503, "not_ready")
    message: str = response.json()["error"]["message"]
    return message


def is_ready(running: Running) -> bool:
    """Whether the receiver is ready."""
    return httpx.get(f"{running.url}/readyz", timeout=30).status_code == 200


def refused_then_accepted(running: Running, connection: Connection, fault: str, repair: str, reason: str) -> None:
    """During a fault neither the receiver is ready nor a callback accepted; both recover without a restart."""
    connection.execute(sql(fault))
    assert f"{reason}, see the receiver's log" in not_ready(running)  # its words may hold values and names
    refused = post(running, new_id(), {"task_status": "processing"})
    assert error_of(refused) == (503, "unavailable")
    assert f"{reason}, see the receiver's log" in refused.json()["error"]["message"]
    assert int(refused.headers["Retry-After"]) > 0
    connection.execute(sql(repair))
    poll_until(lambda: is_ready(running))  # the worker may have met the fault, and waits before it tries again
    assert post(running, new_id(), {"task_status": "processing"}).status_code == 200


@pytest.fixture
def sqlite_rights(running: Running) -> Iterator[Connection]:
    """Another connection to the database of a receiver on SQLite, which commits each statement."""
    engine = create_engine(running.settings.database, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.mark.parametrize("table", ["task", "event", "job"])
def test_a_receiver_whose_database_refuses_a_row_is_not_ready(
    running: Running, sqlite_rights: Connection, table: str
) -> None:
    """As a failing CHECK does. The callback is answered 503 and counted."""
    fault = f"CREATE TRIGGER fault BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'no more of {table}'); END"
    refused_then_accepted(running, sqlite_rights, fault, "DROP TRIGGER fault", "SQLITE_CONSTRAINT_TRIGGER")
    assert metric(running, 'kling_callbacks_total{outcome="error"}') == 1


LATER = ["UPDATE ON task", "UPDATE ON event", "UPDATE ON job", "DELETE ON job", "INSERT ON result", "UPDATE ON result"]


@pytest.mark.parametrize("write", [*LATER, "INSERT ON delivery_attempt"])
def test_a_receiver_that_could_not_process_a_callback_is_not_ready(
    running: Running, sqlite_rights: Connection, write: str
) -> None:
    """A callback would be stored, and its task never end."""
    sqlite_rights.execute(sql(f"CREATE TRIGGER fault BEFORE {write} BEGIN SELECT RAISE(ABORT, 'no {write}'); END"))
    reason = not_ready(running)
    assert ("SQLITE_CONSTRAINT_TRIGGER" in reason, write in reason) == (True, False)
    sqlite_rights.execute(sql("DROP TRIGGER fault"))
    assert is_ready(running)


def test_a_receiver_with_a_damaged_page_is_not_ready(running: Running, sqlite_rights: Connection) -> None:
    """A page of the event log; nothing else of the database is harmed."""
    assert post(running, new_id(), {"task_status": "processing"}).status_code == 200
    sqlite_rights.execute(sql("PRAGMA wal_checkpoint(TRUNCATE)"))
    page = sqlite_rights.scalar(sql("SELECT rootpage FROM sqlite_schema WHERE name = 'event'"))
    size = sqlite_rights.scalar(sql("PRAGMA page_size"))
    with Path(running.settings.database.removeprefix("sqlite:///")).open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    sqlite_rights.execute(sql("PRAGMA user_version = 1"))  # so that the writer reads its pages again
    assert "malformed" in not_ready(running)
    refused = post(running, new_id(), {"task_status": "processing"})
    assert error_of(refused) == (503, "unavailable")
    assert refused.headers["Retry-After"]


@pytest.fixture
def limited(start: Start, gateway: Sandbox, database_url: str) -> Iterator[tuple[Running, Connection]]:
    """A receiver whose role has only the rights that it needs, and a connection that may change them."""
    engine, role = create_engine(database_url, isolation_level="AUTOCOMMIT"), f"limited_{os.getpid()}"
    with engine.connect() as connection:
        connection.execute(sql(f"CREATE ROLE {role} LOGIN"))
        for kind in ("TABLES", "SEQUENCES"):
            connection.execute(sql(f"GRANT ALL ON ALL {kind} IN SCHEMA public TO {role}"))
        url = make_url(database_url).set(username=role).render_as_string(hide_password=False)
        running = start(api_base=gateway.url, database_url=url)
        yield running, connection
        running.stop()
        connection.execute(sql(f"DROP OWNED BY {role}"))
        connection.execute(sql(f"DROP ROLE {role}"))
    engine.dispose()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("fault", "repair", "reason"),
    [
        ("REVOKE INSERT ON event FROM {role}", "GRANT INSERT ON event TO {role}", "InsufficientPrivilege"),
        ("REVOKE INSERT ON task FROM {role}", "GRANT INSERT ON task TO {role}", "InsufficientPrivilege"),
        ("REVOKE ALL ON job FROM {role}", "GRANT ALL ON job TO {role}", "InsufficientPrivilege"),
        (
            "ALTER TABLE event ADD CONSTRAINT fault CHECK (type <> 'callback.received') NOT VALID",
            "ALTER TABLE event DROP CONSTRAINT fault",
            "CheckViolation",
        ),
        (
            "REVOKE ALL ON SEQUENCE event_id_seq FROM {role}",
            "GRANT ALL ON SEQUENCE event_id_seq TO {role}",
            "InsufficientPrivilege",
        ),
    ],
)
def test_a_receiver_without_a_right_is_not_ready(
    limited: tuple[Running, Connection], fault: str, repair: str, reason: str
) -> None:
    """Neither with a constraint that a callback's rows do not meet."""
    running, connection = limited
    role = make_url(running.settings.database).username
    refused_then_accepted(running, connection, fault.format(role=role), repair.format(role=role), reason)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_receiver_with_few_rights_is_ready(limited: tuple[Running, Connection]) -> None:
    """Those that a callback needs."""
    running, connection = limited
    role = make_url(running.settings.database).username
    connection.execute(sql(f"REVOKE SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA public FROM {role}"))
    connection.execute(sql(f"REVOKE TRUNCATE, REFERENCES, TRIGGER ON ALL TABLES IN SCHEMA public FROM {role}"))
    assert is_ready(running)
    assert post(running, new_id(), {"task_status": "processing"}).status_code == 200


# --- the worker ------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_receiver_whose_worker_cannot_start_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callbacks would be stored and never processed. It becomes ready when the worker starts."""

    def fail(tx: Transaction) -> None:
        raise ZeroDivisionError

    receiver = Receiver(make_settings(tmp_path))
    receiver.prepare()
    monkeypatch.setattr(app, "OUTAGE_RETRY_SECONDS", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(startup, "repair", fail)
        await receiver.start()
        while await receiver.ready() is None:  # noqa: ASYNC110  # until the first attempt has failed
            await asyncio.sleep(0.01)
        assert await receiver.ready() == "The worker cannot start: ZeroDivisionError, see the receiver's log."
    while await receiver.ready():  # noqa: ASYNC110  # until the next one
        await asyncio.sleep(0.01)
    await receiver.stop()


def test_a_receiver_whose_worker_has_ended_is_not_ready(running: Running) -> None:
    """Whatever ended it."""
    poll_until(lambda: running.receiver.work.worker.started)
    loop = running.receiver.work.worker._loop
    assert loop
    loop.get_loop().call_soon_threadsafe(loop.cancel)
    poll_until(lambda: not is_ready(running))
    assert "The worker has ended. Restart the receiver." in not_ready(running)


def test_a_receiver_whose_worker_can_claim_no_job_is_not_ready(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a claim succeeds."""

    def fail(*args: object, **more: object) -> None:
        raise ZeroDivisionError

    worker = running.receiver.work.worker
    monkeypatch.setattr(worker, "_outage_seconds", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(queue, "claim_due", fail)
        assert post(running, new_id(), {"task_status": "processing"}).status_code == 200
        poll_until(lambda: not is_ready(running))
        assert "Jobs cannot be claimed: ZeroDivisionError" in not_ready(running)
    poll_until(lambda: is_ready(running))


def test_whoever_asks_all_the_time_costs_few_commits() -> None:
    """The route is public: checks have a pause between them, and those who ask meanwhile share the next one."""
    began: list[float] = []

    async def check() -> None:
        began.append(asyncio.get_running_loop().time())

    async def ask_all_the_time(shared: SharedCheck) -> int:
        asked = 0
        while len(began) < 4:
            assert await shared.problem() is None
            asked += 1
        return asked

    async def main() -> list[int]:
        started = asyncio.get_running_loop().time()
        shared = SharedCheck(check, "late", 60, pause=0.05)
        asked = await asyncio.gather(*(ask_all_the_time(shared) for _ in range(8)))
        # From the first question: a busy machine may be late, and is never early.
        assert all(began[number] - started >= number * 0.05 - 0.001 for number in range(4))
        return asked

    assert asyncio.run(main()) == [4] * 8


def test_a_check_begins_after_the_last_one_has_ended() -> None:
    """Whoever asks after the end gets a new check, never an old result."""
    results = iter(["broken", None])

    async def check() -> str | None:
        return next(results)

    async def main() -> list[str | None]:
        shared = SharedCheck(check, "late", 60, pause=0.01)
        return [await shared.problem(), await shared.problem()]

    assert asyncio.run(main()) == ["broken", None]


# --- what hangs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["folder", "database"])
def test_a_check_that_hangs_has_a_time_limit(running: Running, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not started again meanwhile, and it does not delay the end. `tests/deep/test_hung.py` has real ones."""
    receiver, released, calls = running.receiver, threading.Event(), []

    def hang(*args: object) -> None:
        calls.append(args)
        released.wait(60)

    receiver._readiness = Readiness(receiver.store.writer, receiver.store.storage, lambda: None, seconds=0.2)
    target: object = receiver.store.storage if part == "folder" else receiver.store.database
    with monkeypatch.context() as patch:
        patch.setattr(target, "probe", hang)
        for _ in range(3):
            assert "did not answer within 0.2 s" in not_ready(running)
        assert len(calls) == 1
        assert httpx.get(f"{running.url}/healthz").status_code == 200
        if part == "folder":
            assert post(running, new_id(), {"task_status": "processing"}).status_code == 200
            running.stop()
        released.set()
    if part == "database":
        poll_until(lambda: is_ready(running))
