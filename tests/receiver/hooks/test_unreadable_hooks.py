"""A hook whose row this version cannot read is paused, with the reason; the others receive their events."""

from typing import Any

import httpx
import pytest
from sqlalchemy import text

from kling_callback.protocol.ids import new_id
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import HookConfig
from kling_receiver.hooks.matching import matches
from kling_receiver.hooks.records import UNREADABLE
from kling_receiver.hooks.sync import sync
from kling_receiver.store.database import Database
from kling_receiver.store.reader import TaskDetail
from kling_receiver.store.tables import HOOK
from kling_receiver.tasks import startup
from kling_sandbox import Sandbox
from tests.support.database import Ledger, callback
from tests.support.receiver import Running, Start
from tests.support.web import Visit, host
from tools.harness.submitting import poll_until, post


def damage(database: Database, column: str, value: str) -> None:
    """Change a column of the hook `bad`."""
    with database.write() as connection:
        connection.execute(text(f"UPDATE hook SET {column} = :value WHERE name = 'bad'"), {"value": value})


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("filter", '{"events": [], "families": [], "statuses": [], "tags": [], "models": ["kling-v9"]}'),
        ("filter", '{"events": [], "families": [], "statuses": [], "tags": [1]}'),
        ("filter", "[]"),
        ("secrets", '{"newest": "whsec_x"}'),
        ("secrets", "[[1, 2]]"),
        ("secrets", "no JSON"),
        ("retry_schedule", '["soon"]'),
        ("retry_schedule", "null"),
        ("format", "cloudevents"),
    ],
)
def test_a_hook_that_cannot_be_read_is_shown_as_paused(any_database: Database, column: str, value: str) -> None:
    """A newer filter is not ignored: the hook would receive too much. The hooks file repairs its hooks."""
    ledger = Ledger(any_database)
    for name in ("bad", "good"):
        ledger.put_hook(name)
    damage(any_database, column, value)
    ledger.record(callback())
    ledger.change(startup.repair)
    with any_database.read() as connection:
        hooks = hook_records.hooks(connection)
        assert hook_records.hook(connection, "bad") == hooks[0]
    assert [(row["paused_because"], bool(row["paused_at"])) for row in hooks] == [(UNREADABLE, True), ("", False)]
    config = HookConfig(name="bad", address="https://example.com/", secret=f"whsec_{'a' * 32}")
    ledger.change(lambda tx: sync(tx, "file", [config], also="added"))
    with any_database.read() as connection:
        assert [row["paused_because"] for row in hook_records.hooks(connection)] == [""]


@pytest.mark.parametrize("data", [None, [1], "x", {}, {"status": ["succeed"]}, {"status": "melted"}])
def test_an_event_of_unknown_shape_is_matched_by_its_task(any_database: Database, data: Any) -> None:
    """A newer version may have written it: it must not stop the events behind it."""
    ledger = Ledger(any_database)
    ledger.put_hook("all", statuses=["created"])
    ledger.put_task()
    ledger.change(lambda tx: tx.add_event("t", "task.done", data))
    ledger.change(lambda tx: tx.add_event("t", "task.unheard_of", data))
    [hook], [detail] = ledger.rows(HOOK), [TaskDetail(ledger.task(), [], [])]
    assert [matches(hook, event, detail) for event in ledger.events()] == [True, True]


def test_a_hook_that_cannot_be_read_does_not_stop_the_others(start: Start, gateway: Sandbox) -> None:
    """It is paused when its first event is due. Once it can be read, it is resumed like any other."""
    with host(lambda visit: visit.answer(200)) as web:
        running = start(api_base=gateway.url, private_hook_hosts=("127.0.0.1",))
        for name in ("bad", "good"):
            api(running, "POST", "", json={"name": name, "address": f"{web.url}/{name}"})
        database = running.receiver.store.database
        with database.read() as connection:
            secrets = connection.execute(text("SELECT secrets FROM hook WHERE name = 'bad'")).scalar_one()
        damage(database, "secrets", "no JSON")
        assert post(running, new_id(), {"task_status": "processing"}).status_code == 200
        poll_until(lambda: paths(web.visits, "/good"))
        poll_until(lambda: stored(database) == UNREADABLE)
        assert not paths(web.visits, "/bad")
        assert api(running, "GET", "/bad")["paused_because"] == UNREADABLE
        damage(database, "secrets", secrets)
        api(running, "POST", "/bad/resume")
        poll_until(lambda: paths(web.visits, "/bad"))


def stored(database: Database) -> Any:
    """Why the hook `bad` is paused, as its row says."""
    with database.read() as connection:
        return connection.execute(text("SELECT paused_because FROM hook WHERE name = 'bad'")).scalar_one()


def api(running: Running, method: str, path: str, **request: Any) -> Any:
    """The answer of the API of hooks."""
    answer = httpx.request(method, f"{running.url}/api/hooks{path}", headers=running.headers("admin"), **request)
    answer.raise_for_status()
    return answer.json()


def paths(visits: list[Visit], path: str) -> list[Visit]:
    """The visits to a path."""
    return [visit for visit in visits if visit.path == path]
