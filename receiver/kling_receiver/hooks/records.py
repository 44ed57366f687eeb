"""The rows of hooks: add, pause, resume, rotate, remove, read.

A paused hook keeps its events: its retries are suspended, and its cursor stays where it is.
"""

from collections.abc import Sequence
from typing import cast, get_args

import sqlalchemy as sa
from sqlalchemy import Connection, delete, insert, select

from kling_callback.protocol.webhooks import MAX_SECRETS, new_secret
from kling_receiver.hooks.config import TASK_HOOK_PREFIX, HookConfig, HookFormat
from kling_receiver.jobs.enqueue import host_of
from kling_receiver.jobs.kinds import Kind, dispatch_key, hook_pool
from kling_receiver.jobs.queue import NEVER
from kling_receiver.store.errors import InvalidRow
from kling_receiver.store.rows import HookRow, Row
from kling_receiver.store.sql import Statement, columns
from kling_receiver.store.tables import HOOK, JOB, json_columns, load_json
from kling_receiver.store.transaction import Transaction, last_event

MAX_REASON_CHARS = 500
SECRET_OVERLAP_SECONDS = 86_400.0
"""Seconds for which a rotated secret signs beside its successor."""

PAUSE = Statement("""
    UPDATE hook SET paused_at = :now, paused_because = :reason WHERE name = :name AND paused_at IS NULL
""")
SUSPEND_JOBS = Statement(f"""
    UPDATE job SET due_at = {NEVER}, delay_ms = {NEVER}
    WHERE hook_name = :name AND state = 'ready' AND kind <> '{Kind.DISPATCH}'
""")  # constants
RESUME = Statement("""
    UPDATE hook SET paused_at = NULL, paused_because = '', failing_since = NULL WHERE name = :name
""")
RESUME_JOBS = Statement("""
    UPDATE job SET due_at = :now, delay_ms = 0, attempts = 0 WHERE hook_name = :name AND state = 'ready'
""")
MOVE_FAILING_SINCE = Statement("UPDATE hook SET failing_since = failing_since + :jump WHERE failing_since IS NOT NULL")
FORGET_DOWNTIME = Statement("""
    UPDATE hook SET failing_since = :now - CASE
        WHEN failing_since <= :now AND attempted_at > :now THEN :now - failing_since
        WHEN attempted_at > failing_since THEN attempted_at - failing_since ELSE 0 END
    FROM (SELECT hook_name, max(id) AS newest FROM delivery_attempt
        WHERE hook_name IN (SELECT name FROM hook WHERE failing_since IS NOT NULL) GROUP BY hook_name
    ) AS last JOIN delivery_attempt ON delivery_attempt.id = last.newest
    WHERE hook.name = last.hook_name AND failing_since IS NOT NULL
""")
SELECT_HOOK = Statement(f"SELECT {columns(HOOK)} FROM hook WHERE name = :name")  # constants
SELECT_HOOKS = Statement(f"SELECT {columns(HOOK)} FROM hook WHERE task_id IS NULL ORDER BY name")  # constants
UNREADABLE = "this version cannot read the hook. Remove it and add it again, or start the version that wrote it"
"""Why a hook is paused whose row is damaged, or was written by a newer version."""


def pause(tx: Transaction, name: str, reason: str) -> bool:
    """Stop sending to a hook until it is resumed; its events are kept. Returns False when it is paused already."""
    if not PAUSE.execute(tx.connection, name=name, now=tx.now, reason=reason[:MAX_REASON_CHARS]):
        return False
    SUSPEND_JOBS.execute(tx.connection, name=name)
    tx.note_hook_change()
    tx.log_after_commit(
        f"hook {name} is paused: {reason}. Its events are kept. Resume it with: kling-receiver hooks resume {name}"
    )
    return True


def resume(tx: Transaction, name: str) -> bool:
    """Resume a paused or failing hook: everything that was kept is due now. Returns False when there is no hook."""
    if not RESUME.execute(tx.connection, name=name):
        return False
    RESUME_JOBS.execute(tx.connection, name=name, now=tx.now)
    tx.note_hook_change()
    tx.wake_worker()
    if row := hook(tx.connection, name):
        enqueue_dispatch(tx, row)
    return True


def move_failing_since(tx: Transaction, jump_ms: int) -> None:
    """Leave a jump of the clock, or a suspend of the machine, out of the time for which hooks have been failing."""
    MOVE_FAILING_SINCE.execute(tx.connection, jump=jump_ms)


def forget_downtime(tx: Transaction) -> None:
    """Leave the time in which no receiver ran out of the time for which hooks have been failing.

    A hook has been failing from its first failure to the last attempt; the clock may have been set since.
    """
    FORGET_DOWNTIME.execute(tx.connection, now=tx.now)


def enqueue_dispatch(tx: Transaction, row: HookRow) -> None:
    """Enqueue a dispatch: the events behind the hook's cursor are sent."""
    name = row["name"]
    tx.enqueue(
        Kind.DISPATCH,
        "",
        unique_key=dispatch_key(name),
        pool=hook_pool(Kind.DISPATCH, row["task_id"]),
        concurrency_key=f"{Kind.DISPATCH} {row['concurrency_key']}",
        hook_name=name,
    )


def add(tx: Transaction, config: HookConfig, *, source: str = "added") -> HookRow | None:
    """Add a hook that receives events from now on. Returns None when its name is taken."""
    name = config.name or _free_name(tx.connection)
    if hook(tx.connection, name):
        return None
    tx.database.lock_events(tx.connection)  # so that no event is committed later with an id before its cursor
    row = config.row(name, source, cursor=last_event(tx.connection), now=tx.now)
    tx.connection.execute(insert(HOOK), row)
    tx.note_hook_change()
    return row


def _free_name(connection: Connection) -> str:
    taken = set(connection.execute(select(HOOK.c.name).where(HOOK.c.task_id.is_(None))).scalars())
    return next(name for n in range(1, len(taken) + 2) if (name := f"hook-{n}") not in taken)


def task_hook_name(task_id: str) -> str:
    """The name of the hook of a single task."""
    return f"{TASK_HOOK_PREFIX}{task_id}"


def add_for_task(
    tx: Transaction, task_id: str, address: str, events: Sequence[str] = (), hook_format: HookFormat = "event"
) -> None:
    """Add a hook for one task, unless the task has one. `events`: only of these types; empty means any.

    `protocol.signing.task_hook_secrets` sign its deliveries.
    """
    name = task_hook_name(task_id)
    if hook(tx.connection, name):
        return
    row = HookConfig(address=address, events=list(events), format=hook_format).row(name, "task", cursor=0, now=tx.now)
    row["task_id"], row["concurrency_key"] = task_id, f"task {host_of(address)}"
    row["secrets"], row["concurrency"] = [], 2
    tx.connection.execute(insert(HOOK), row)
    enqueue_dispatch(tx, row)  # the task may have ended already


def has_other_hook(
    tx: Transaction, task_id: str, address: str, events: Sequence[str] = (), hook_format: HookFormat = "event"
) -> bool:
    """Whether a task has a hook already, with another address, other events or another format."""
    row = hook(tx.connection, task_hook_name(task_id))
    expected = (address, list(events), hook_format)
    return row is not None and (row["address"], row["filter"]["events"], row["format"]) != expected


def update(tx: Transaction, name: str, values: Row) -> None:
    """Set columns of a hook. Its cursor and its health stay as they are."""
    tx.connection.execute(sa.update(HOOK).where(HOOK.c.name == name).values(values))
    tx.note_hook_change()


def remove(tx: Transaction, name: str) -> bool:
    """Remove a hook and its jobs. Its delivery attempts stay on record."""
    tx.connection.execute(delete(JOB).where(JOB.c.hook_name == name, JOB.c.state != "running"))
    tx.note_hook_change()
    return bool(tx.connection.execute(delete(HOOK).where(HOOK.c.name == name)).rowcount)


def rotate(tx: Transaction, name: str, secret: str, *, overlap: float) -> str | None:
    """Give a hook a new secret; the old ones sign for `overlap` more seconds. Returns None when it has no secrets."""
    row = hook(tx.connection, name)
    if not row or not row["secrets"]:
        return None
    newest = secret or new_secret()
    update(tx, name, {"secrets": rotated(row["secrets"], newest, now=tx.now, overlap=overlap)})
    return newest


def rotated(
    secrets: list[tuple[str, int | None]], newest: str, *, now: int, overlap: float
) -> list[tuple[str, int | None]]:
    """A hook's secrets with `newest` first; the others expire `overlap` seconds from `now` (unix ms)."""
    if not newest or (secrets and secrets[0][0] == newest):
        return secrets if newest else []
    until = now + int(overlap * 1000)
    old = [(secret, min(until, end or until)) for secret, end in secrets if end is None or end > now]
    return [(newest, None), *(each for each in old if each[0] != newest)][:MAX_SECRETS]


def active_secrets(row: HookRow, now: int) -> list[str]:
    """The secrets that sign at `now` (unix ms), newest first."""
    return [secret for secret, end in row["secrets"] if end is None or end > now]


def hook(connection: Connection, name: str) -> HookRow | None:
    """A hook's row. One that cannot be read is shown as paused: it must not stop the other hooks."""
    row = SELECT_HOOK.first(connection, name=name)
    return _read(row) if row else None


def hooks(connection: Connection) -> list[HookRow]:
    """All hooks except those of single tasks, by name."""
    return [_read(row) for row in SELECT_HOOKS.all(connection)]


def pause_unreadable(tx: Transaction, row: HookRow) -> None:
    """Pause a hook that is only shown as paused."""
    if row["paused_because"] == UNREADABLE:
        pause(tx, row["name"], UNREADABLE)


def _read(row: Row) -> HookRow:
    try:
        values = {name: load_json(row[name]) for name in JSON_COLUMNS}
        if not (
            row["format"] in get_args(HookFormat)
            and all(type(secret) is str and type(end) in (int, type(None)) for secret, end in values["secrets"])
            and values["filter"].keys() == NO_FILTER.keys()
            and all(type(value) is str for each in values["filter"].values() for value in each)
            and all(type(step) in (int, float) for step in values["retry_schedule"])
        ):
            raise TypeError
    except (InvalidRow, AttributeError, TypeError, ValueError):
        paused_at = row["paused_at"] or row["created_at"]
        values = {"format": "event", "secrets": [], "filter": NO_FILTER, "retry_schedule": [], "paused_at": paused_at}
        values["paused_because"] = UNREADABLE
    return cast(HookRow, {**row, **values})


JSON_COLUMNS = json_columns(HOOK)
NO_FILTER: dict[str, list[str]] = {"events": [], "families": [], "statuses": [], "tags": []}
