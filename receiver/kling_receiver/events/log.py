"""The identity of the event log, and positions in it.

A restored database uses the ids of events again, for other events. Its log therefore gets a new id, which is part of
every cursor and of every message id: no consumer takes a new event for one that it has.
"""

import secrets
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection

from kling_callback.protocol.events import LogPosition
from kling_receiver.store.rows import EventRow
from kling_receiver.store.sql import Statement

SELECT_LOG = Statement("SELECT database_id, id FROM event_log")
REMOVED_UNTIL = Statement("SELECT removed_until FROM event_log")
SET_LOG_ID = Statement("UPDATE event_log SET id = :id")
CLEAR_LOG_ID = "UPDATE event_log SET id = ''"
"""Of a backup: the first start from it chooses an id."""
SELECT_NEWEST = Statement("SELECT id, created_at FROM event ORDER BY id DESC LIMIT 1")
SELECT_TIME = Statement("SELECT created_at FROM event WHERE id = :id")


@dataclass(frozen=True, slots=True)
class LogState:
    """The ids of the database and of its log ("": to be chosen, because the database is a backup), and its end."""

    database_id: str
    log_id: str
    newest: LogPosition


def position(event: EventRow) -> LogPosition:
    """The position after an event."""
    return LogPosition(event["log_id"], event["id"], event["created_at"])


def read(connection: Connection, *, may_lack_removals: bool = False) -> LogState:
    """The identity of the log, and its end: the newest event that it has, or had before its task was removed.

    `may_lack_removals`: of the tables of a version that removed no tasks.
    """
    row, newest = SELECT_LOG.first(connection), SELECT_NEWEST.first(connection)
    assert row is not None  # the migration made it
    removed_until = 0 if may_lack_removals else REMOVED_UNTIL.scalar(connection)
    end = LogPosition(row["id"], removed_until)
    if newest and newest["id"] > removed_until:
        end = LogPosition(row["id"], newest["id"], newest["created_at"])
    return LogState(row["database_id"], row["id"], end)


def newest(connection: Connection) -> LogPosition:
    """The position after the newest event."""
    return read(connection).newest


def locate(connection: Connection, cursor: LogPosition) -> Literal["known", "other_log", "lost"]:
    """Whether a cursor is a position of this log, or of another one.

    `lost`: this log had the event, and has it no more: an older database took its place without a new id. Its end shows
    that, and later the time of the event that has the number now.
    """
    state = read(connection)
    if cursor.log_id != state.log_id:
        return "other_log"
    created_at = SELECT_TIME.scalar(connection, id=cursor.event_id)
    is_same = None in (cursor.at, created_at) or cursor.at == created_at
    return "known" if is_same and cursor.event_id <= state.newest.event_id else "lost"


def renew(connection: Connection) -> str:
    """Give the log a new id, and return it."""
    new = secrets.token_hex(8)
    SET_LOG_ID.execute(connection, id=new)
    return new
