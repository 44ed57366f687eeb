"""From one version's tables to the next: what was owed before is owed afterwards."""

import base64
import json
from pathlib import Path

import alembic.command
import alembic.config
import pytest
from sqlalchemy import text

from kling_receiver.store.database import Database
from tests.support.database import NOW
from tests.support.outgoing import outgoing
from tests.support.receiver import make_settings
from tests.support.web import host

SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
TASK = """
    INSERT INTO task (id, family, model, request, outcome, attempt, status, status_msg, hint_msg, hints, cost,
        done, callbacks, kept, kept_bytes, created_at, updated_at)
    VALUES ('t', 'images/generations', '', 'null', 'none', '', 'created', '', '', 0, 'null',
        false, 0, 0, 0, 1, 1)
"""
EVENT = "INSERT INTO event (task, type, at, data, repeats) VALUES ('t', :type, :at, 'null', 0)"
JOB = """
    INSERT INTO job (key, kind, task, lane, data, state, attempts, due_at, claim, leased_until, error,
        created_at)
    VALUES (:key, 'hook', 't', 'hook', 'null', :state, 1, 1, :claim, :until, '', 1)
"""


def migrate_to(database: Database, revision: str) -> None:
    """The tables as a version had them, in place of those that there are."""
    with database.write() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")
        config = alembic.config.Config()
        config.set_main_option("script_location", "kling_receiver.store:migrations")
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, revision)


@pytest.mark.anyio
async def test_deliveries_of_the_one_hook_go_to_default(tmp_path: Path, database_url: str) -> None:
    """Those that waited, ran or were put off go out; what was given up stays so. None of them is sent twice."""
    old = Database(database_url)
    migrate_to(old, "0002")
    with old.write() as connection:
        connection.execute(text(TASK))
        connection.execute(text(EVENT), [{"type": f"type {n}", "at": NOW + n} for n in range(4)])
        for n, state in enumerate(("ready", "running", "dead"), 1):
            claim = "c" if state == "running" else None
            given = {"key": f"delivery/{n}", "state": state, "claim": claim, "until": claim and 5}
            connection.execute(text(JOB), given)
    old.close()
    with host(lambda visit: visit.answer(204)) as there:
        settings = make_settings(tmp_path, database_url=database_url, hook_url=there.url, hook_secret=SECRET)
        async with outgoing(settings) as way:
            await way.until(lambda: len(way.attempts(taken=True)) == 2 and len(way.jobs("hook")) == 1)
            [dead] = way.jobs("hook").values()
            [new] = await way.add_events("new")
            await way.until(lambda: len(way.attempts(taken=True)) == 3)
            assert (dead["unique_key"], dead["concurrency_key"], dead["state"]) == (
                "delivery/3/default",
                "hook default",
                "dead",
            )
            assert dead["args"] == {"hook": "default", "event": 3}
    assert sorted(json.loads(visit.body)["id"] for visit in there.visits) == [1, 2, new]
