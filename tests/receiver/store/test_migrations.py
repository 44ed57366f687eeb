"""From the tables of one version to those of the next: rows keep their content, and jobs are completed."""

import json
import time
from collections import Counter
from contextlib import closing

import httpx
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from kling_receiver.hooks import deliveries
from kling_receiver.hooks import records as hook_records
from kling_receiver.jobs.queue import NEVER
from kling_receiver.store.database import Database
from kling_receiver.store.rows import JobRow
from kling_receiver.store.tables import JOB, METADATA, RESULT, TASK
from kling_sandbox import Sandbox
from tests.receiver.results.test_download import made, picture
from tests.support.database import NOW, Ledger
from tests.support.old_databases import SECRET, STATES, OldDatabase, dump, in_order
from tests.support.receiver import Start
from tests.support.web import Host, Visit, host
from tools.harness.submitting import poll_until

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0010")
SERVED_REVISIONS = ("0001", "0003", "0010")
"""Without hooks, the first with hooks, the newest. From each of `REVISIONS` the rows become the same: see below."""


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_row_keeps_its_content(bare_database_url: str, revision: str) -> None:
    """Under the new names; jobs have the pool and the delay of their kind, and the schema is that of the models."""
    old = OldDatabase(revision, NOW)
    old.fill(bare_database_url)
    database = Database(bare_database_url)
    with database.read() as connection:
        assert dump(connection) == in_order(old.old)
    database.migrate()
    with database.read() as connection:
        assert dump(connection) == in_order(old.new)
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    database.migrate()
    with database.read() as connection:
        assert dump(connection) == in_order(old.new)
    database.close()


def test_the_events_of_each_hour_are_counted(bare_database_url: str) -> None:
    """Those that were there before, by their types, and the repeats of callbacks."""
    old = OldDatabase("0007", NOW)
    old.fill(bare_database_url)
    database = Database(bare_database_url)
    database.migrate()
    expected: Counter[tuple[int, str]] = Counter()
    for row in old.new["event"]:
        hour = row["created_at"] // 3_600_000
        expected[hour, row["type"]] += 1
        expected[hour, "callback.repeated"] += row["repeat_count"]
    with database.read() as connection:
        found = connection.execute(text("SELECT hour, name, total FROM hourly_count")).all()
    assert {(hour, name): total for hour, name, total in found} == {key: n for key, n in expected.items() if n}
    assert any(total and name == "callback.repeated" for (_, name), total in expected.items())
    database.close()


def test_new_rows_have_new_ids(bare_database_url: str) -> None:
    """Also those of the table that was renamed."""
    old = OldDatabase("0003", NOW)
    old.fill(bare_database_url)
    database = Database(bare_database_url)
    database.migrate()
    attempt = dict(old.new["delivery_attempt"][-1])
    del attempt["id"]
    with database.write() as connection:
        connection.execute(METADATA.tables["delivery_attempt"].insert(), attempt)
        ids = connection.execute(text("SELECT id FROM delivery_attempt ORDER BY id")).scalars().all()
    assert len(ids) == len(set(ids)) == len(old.new["delivery_attempt"]) + 1
    database.close()


OPEN_TASKS = [
    *("ask-ready", "ask-running"),
    *(f"{kind}-{state}" for kind in ("overdue", "sweep") for state in STATES),
]


@pytest.mark.parametrize("revision", SERVED_REVISIONS)
def test_a_running_receiver_completes_the_jobs(
    start: Start, gateway: Sandbox, bare_database_url: str, revision: str
) -> None:
    """Those that were ready or running: each task is done, each file stored, each event delivered to each hook."""
    kling_ids = {task: made(gateway) for task in OPEN_TASKS}
    for kling_id in kling_ids.values():
        gateway.wait_for(lambda kling_id=kling_id: gateway.tasks[kling_id].finished_at)  # type: ignore[misc]

    def respond(visit: Visit) -> None:
        if visit.method == "GET":
            visit.answer(200, picture(), Content_Type="image/png")
        else:
            visit.answer(204)

    with host(respond) as web, closing(Database(bare_database_url)) as database:
        now = int(time.time() * 1000)
        old = OldDatabase(revision, now, kling_ids, files=f"{web.url}/files", hooks=f"{web.url}/hooks")
        old.fill(bare_database_url)
        hook = {} if old.has_hooks else {"hook_url": f"{web.url}/hooks/default"}
        settings = {"api_base": gateway.url, "database_url": bare_database_url, "hook_secret": SECRET, **hook}
        running = start(**settings)
        ledger = Ledger(database)
        poll_until(lambda: set(unfinished(ledger)) <= {"delivery/1/hook-paused"})
        running.stop()
        assert_done(ledger)
        assert_delivered(ledger, old, web)


def assert_delivered(ledger: Ledger, old: OldDatabase, web: Host) -> None:
    """Each event came to each hook; dead letters and suspended deliveries did not."""
    received: dict[str, set[int]] = {}
    for visit in web.visits:
        if visit.method == "POST":
            received.setdefault(visit.path, set()).add(json.loads(visit.body)["id"])
    jobs = ledger.jobs()
    dead = {key: job["error"] for key, job in jobs.items() if job["state"] == "dead"}
    if not old.has_hooks:
        assert dead == dict.fromkeys(("ask/ask-dead", "download/download-dead/1", "delivery/3/default"), "a reason")
        assert {1, 2} <= received["/hooks/default"]
        assert 3 not in received["/hooks/default"]
        return
    names = {name: f"task:overdue-{name.removeprefix('hook-')}" for name in map("hook-{}".format, STATES)}
    first = {task["id"]: 2 * number + 1 for number, task in enumerate(old.old["task"])}
    assert dead == dict.fromkeys(
        (
            *("ask/ask-dead", "download/download-dead/1"),
            *("replay/hook-dead/0/4/", "delivery/1/hook-dead"),
            *("replay/task:overdue-dead/0/4/overdue-dead", f"delivery/{first['overdue-dead']}/task:overdue-dead"),
        ),
        "a reason",
    )
    last = max(event["id"] for event in ledger.rows(METADATA.tables["event"]))
    behind = set(range(old.last_event - 1, last + 1))
    for name in names:
        replayed = set() if name == "hook-dead" else {1, 2, 3, 4}
        assert received[f"/hooks/{name}"] == behind | replayed
    for name in names.values():
        task = name.removeprefix("task:")
        assert received[f"/hooks/task/{task}"] == {event["id"] for event in ledger.events(task)}
    suspended = jobs["delivery/1/hook-paused"]
    assert (suspended["state"], suspended["due_at"], suspended["delay_ms"]) == ("ready", NEVER, NEVER)
    assert "/hooks/hook-paused" not in received


def unfinished(ledger: Ledger) -> dict[str, JobRow]:
    """The jobs that are ready or running."""
    return {key: job for key, job in ledger.jobs().items() if job["state"] != "dead"}


def assert_done(ledger: Ledger) -> None:
    """Every task succeeded, and every file that was pending is stored."""
    tasks = {task["id"]: (task["status"], task["origin"], task["done"]) for task in ledger.rows(TASK)}
    expected = dict.fromkeys(tasks, ("succeed", "kling", True))
    assert tasks == expected | {"ask-dead": ("succeed", "callback", True)}
    files = {(file["task_id"], file["position"]): file["status"] for file in ledger.rows(RESULT)}
    lost = {("ask-dead", 0): "failed", ("download-dead", 1): "failed"}
    assert files == dict.fromkeys(files, "stored") | lost


def test_dead_letters_and_suspended_deliveries_can_be_sent_after_the_migration(
    start: Start, gateway: Sandbox, bare_database_url: str
) -> None:
    """By an operator: a dead letter is retried, a paused hook is resumed."""
    with host(lambda visit: visit.answer(204)) as web:
        old = OldDatabase("0003", int(time.time() * 1000), hooks=f"{web.url}/hooks")
        old.fill(bare_database_url)
        database = Database(bare_database_url)
        database.migrate()
        ledger = Ledger(database)
        with database.write() as connection:
            connection.execute(JOB.delete().where(JOB.c.hook_name.is_(None)))  # nothing is asked here
        assert ledger.change(lambda tx: deliveries.retry_dead(tx, "hook-dead")) == 3
        assert ledger.change(lambda tx: hook_records.resume(tx, "hook-paused"))
        database.close()
        running = start(api_base=gateway.url, database_url=bare_database_url)
        for path in ("hook-dead", "hook-paused"):
            address = f"/hooks/{path}"
            poll_until(lambda address=address: 1 in sent(web.visits, address))  # type: ignore[misc]
        answer = httpx.get(f"{running.url}/api/deliveries?hook=hook-paused", headers=running.headers("admin"))
        assert answer.status_code == 200


def sent(visits: list[Visit], path: str) -> set[int]:
    """The ids of the events that came to a path."""
    return {json.loads(visit.body)["id"] for visit in list(visits) if visit.path == path}
