"""The identity of the event log, and positions in it."""

import dataclasses
from typing import Any

import pytest
from sqlalchemy import text

from kling_callback.protocol.events import LogPosition, position_of
from kling_receiver.events import log as event_log
from kling_receiver.sinks import Message, to_cloudevent
from kling_receiver.store.database import Database
from tests.support.database import NOW, Ledger


def test_each_database_has_a_log_of_its_own(bare_database_url: str, database: Database) -> None:
    """Its ids are made with the tables, and stay."""
    bare = Database(bare_database_url)
    bare.migrate()
    states = []
    for each in (bare, database, bare):
        each.migrate()
        with each.read() as connection:
            states.append(event_log.read(connection))
    assert states[0] == states[2]
    ids = [value for state in states[:2] for value in (state.database_id, state.log_id)]
    assert len(set(ids)) == 4
    assert all(len(value) == 16 for value in ids)
    bare.close()


def test_a_log_is_renewed(database: Database) -> None:
    """Its id is another, the database's is not, and the events stay."""
    Ledger(database).log("a", "b")
    with database.write() as connection:
        before = event_log.read(connection)
        new = event_log.renew(connection)
        after = event_log.read(connection)
    assert before.log_id != new == after.log_id == after.newest.log_id
    assert dataclasses.replace(after.newest, log_id=before.log_id) == before.newest
    assert after.database_id == before.database_id
    assert Ledger(database).events()[0]["type"] == "a"


def test_where_a_cursor_is(database: Database) -> None:
    """In this log, in another one, or of an event that this log has no more."""
    with database.read() as connection:
        log_id = event_log.newest(connection).log_id
    Ledger(database).log("a", "b")
    places = {
        (log_id, 0, None): "known",
        (log_id, 1, None): "known",
        (log_id, 2, NOW): "known",
        (log_id, 2, NOW + 1): "lost",
        (log_id, 3, None): "lost",
        (log_id, 3, NOW): "lost",
        ("other", 1, None): "other_log",
        ("other", 3, NOW): "other_log",
    }
    with database.read() as connection:
        assert {place: event_log.locate(connection, LogPosition(*place)) for place in places} == places
        assert event_log.newest(connection) == LogPosition(log_id, 2, NOW)


def test_a_cursor_whose_event_was_removed_is_known(database: Database) -> None:
    """There is nothing to compare its time with."""
    Ledger(database).log("a", "b")
    with database.write() as connection:
        connection.execute(text("DELETE FROM event WHERE id = 1"))
        log_id = event_log.newest(connection).log_id
        assert event_log.locate(connection, LogPosition(log_id, 1, NOW)) == "known"


@pytest.mark.parametrize(
    "cursor", [LogPosition("8c1f", 17, NOW), LogPosition("8c1f", 0), LogPosition("a" * 32, 10**18 - 1)]
)
def test_a_position_as_text(cursor: LogPosition) -> None:
    """Text and back."""
    assert LogPosition.parse(str(cursor)) == cursor


@pytest.mark.parametrize("at", [NOW, 1, 1_795_678_801_761, 1_799_999_999_999, 4_102_444_799_999])
def test_the_position_of_an_event_is_that_of_its_json(at: int) -> None:
    """The client computes from the time as text what the receiver has as a number."""
    from kling_receiver.events.payloads import iso

    assert position_of("8c1f", 17, iso(at)) == LogPosition("8c1f", 17, at)


def test_events_of_two_logs_are_two_cloud_events() -> None:
    """Also those of two receivers in one stream, and of one log that went back unnoticed."""
    event = {"id": 17, "log_id": "one", "type": "task.done", "at": "2026-11-21T10:00:00.000Z", "data": None}
    others: list[dict[str, Any]] = [{}, {"log_id": "two"}, {"at": "2026-11-21T10:00:00.001Z"}, {"id": 18}]
    messages = [Message("hook", {**event, "task": {"id": "t"}, **other}, b"", "https://r.test") for other in others]
    assert len({to_cloudevent(each)["id"] for each in messages}) == len(others)
