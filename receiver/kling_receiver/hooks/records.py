"""Hooks as rows: the verbs of an operator, and the questions about them.

A paused hook keeps what it is owed: jobs that are due at no time, and the events behind its cursor.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, delete, insert, select

from kling_callback.protocol.webhooks import new_secret
from kling_receiver.hooks.config import TASK_HOOK_PREFIX, HookConfig
from kling_receiver.jobs.enqueue import host_of
from kling_receiver.jobs.queue import NEVER
from kling_receiver.store.sql import Row, Statement, columns
from kling_receiver.store.tables import Hook
from kling_receiver.store.transaction import JOB, Transaction, last_event

HOOK = Hook.__table__  # type: ignore[attr-defined]  # set by SQLModel
MAX_REASON_CHARS = 500
MAX_SECRETS = 8
"""Of one hook at once: each signs, and a header has its limits."""
SECRET_OVERLAP_SECONDS = 86_400.0
"""Seconds for which a secret that was changed signs too."""


PAUSE = Statement("""
    UPDATE hook SET paused_at = :now, paused_because = :because WHERE name = :name AND paused_at IS NULL
""")
SUSPEND_JOBS = Statement(
    "UPDATE job SET due_at = :far WHERE hook = :name AND state = 'ready' AND kind NOT LIKE 'dispatch%'"
)
RESUME = Statement("""
    UPDATE hook SET paused_at = NULL, paused_because = '', failing_since = NULL
    WHERE name = :name
""")
RESUME_JOBS = Statement("UPDATE job SET due_at = :now, attempts = 0 WHERE hook = :name AND state = 'ready'")


SELECT_HOOK = Statement(f"SELECT {columns(HOOK)} FROM hook WHERE name = :name", table=HOOK)  # noqa: S608  # ours
SELECT_HOOKS = Statement(f"SELECT {columns(HOOK)} FROM hook WHERE task IS NULL ORDER BY name", table=HOOK)  # noqa: S608


def pause(tx: Transaction, name: str, reason: str) -> bool:
    """Send nothing to a hook until it is resumed; what it wants is kept. False when it is paused already."""
    if not PAUSE.execute(tx.connection, name=name, now=tx.now, because=reason[:MAX_REASON_CHARS]):
        return False
    SUSPEND_JOBS.execute(tx.connection, name=name, far=NEVER)
    tx.log_after_commit(
        f"hook {name} is paused: {reason}. Its events are kept; go on with: kling-receiver hooks resume {name}"
    )
    return True


def resume(tx: Transaction, name: str) -> bool:
    """Go on with a hook, paused or failing: all that was kept for it is due now. False when there is none."""
    if not RESUME.execute(tx.connection, name=name):
        return False
    RESUME_JOBS.execute(tx.connection, name=name, now=tx.now)
    tx.wake_worker()
    if row := hook(tx.connection, name):
        enqueue_dispatch(tx, row)
    return True


def enqueue_dispatch(tx: Transaction, row: Row) -> None:
    """Owe a hook a look at the event log."""
    kind, name = job_kind("dispatch", row), row["name"]
    tx.enqueue(kind, "", key=f"dispatch/{name}", lane=f"dispatch {row['lane']}", hook=name)


def job_kind(kind: str, row: Row) -> str:
    """Jobs of hooks for single tasks are of kinds of their own, so that there is room for all others."""
    return f"{kind}-task" if row["task"] else kind


def add(tx: Transaction, config: HookConfig, *, source: str = "added") -> Row | None:
    """A new hook, which hears of what happens from now on; None when its name is taken."""
    name = config.name or _free_name(tx.connection)
    if hook(tx.connection, name):
        return None
    tx.database.lock_events(tx.connection)  # so that no event is committed later with an id before its cursor
    row = config.row(name, source, cursor=last_event(tx.connection), now=tx.now)
    tx.connection.execute(insert(HOOK), row)
    return row


def _free_name(connection: Connection) -> str:
    taken = set(connection.execute(select(HOOK.c.name).where(HOOK.c.task.is_(None))).scalars())
    return next(name for n in range(1, len(taken) + 2) if (name := f"hook-{n}") not in taken)


def task_hook_name(task_id: str) -> str:
    """The name of the hook of one task alone."""
    return f"{TASK_HOOK_PREFIX}{task_id}"


def add_for_task(tx: Transaction, task_id: str, address: str) -> None:
    """A web address that hears of one task alone, unless it has one; signed with the receiver's own secret."""
    name = task_hook_name(task_id)
    if not hook(tx.connection, name):
        row = HookConfig(address=address).row(name, "task", cursor=0, now=tx.now)
        own = {"task": task_id, "lane": f"task {host_of(address)}", "secrets": [], "concurrency": 2}
        tx.connection.execute(insert(HOOK), {**row, **own})
        enqueue_dispatch(tx, {**row, **own})  # perhaps all has happened already


def update(tx: Transaction, name: str, values: Row) -> None:
    """Set columns of a hook; where it stands in the event log, and how it fares, stay."""
    tx.connection.execute(sa.update(HOOK).where(HOOK.c.name == name).values(values))


def remove(tx: Transaction, name: str) -> bool:
    """Forget a hook, and what it is owed; its attempts stay on record."""
    tx.connection.execute(delete(JOB).where(JOB.c.hook == name, JOB.c.state != "running"))
    return bool(tx.connection.execute(delete(HOOK).where(HOOK.c.name == name)).rowcount)


def rotate(tx: Transaction, name: str, secret: str, *, overlap: float) -> str | None:
    """Give a hook a new secret; the old ones sign too for `overlap` seconds. None when it has no secrets."""
    found = hook(tx.connection, name)
    if not found or not found["secrets"]:
        return None
    fresh = secret or new_secret()
    secrets = rotated(found["secrets"], fresh, now=tx.now, overlap=overlap)
    tx.connection.execute(sa.update(HOOK).where(HOOK.c.name == name).values(secrets=secrets))
    return fresh


def rotated(secrets: list[Any], fresh: str, *, now: int, overlap: float) -> list[Any]:
    """A hook's secrets once `fresh` comes first; the others end `overlap` seconds from `now` (unix ms)."""
    if not fresh or (secrets and secrets[0][0] == fresh):
        return secrets if fresh else []
    until = now + int(overlap * 1000)
    old = [[each, min(until, ends or until)] for each, ends in secrets if ends is None or ends > now]
    return [[fresh, None], *(each for each in old if each[0] != fresh)][:MAX_SECRETS]


def active_secrets(row: Row, now: int) -> list[str]:
    """The secrets that sign at `now` (unix ms), newest first."""
    return [secret for secret, until in row["secrets"] if until is None or until > now]


def hook(connection: Connection, name: str) -> Row | None:
    """A hook's row."""
    return SELECT_HOOK.first(connection, name=name)


def hooks(connection: Connection) -> list[Row]:
    """All hooks but those of single tasks, by name."""
    return SELECT_HOOKS.all(connection)
