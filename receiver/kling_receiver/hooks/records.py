"""Hooks as rows: the verbs of an operator, and the questions about them.

A paused hook keeps what it is owed: jobs that are due at no time, and the events behind its cursor.
"""

from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from kling_callback.protocol.webhooks import new_secret
from kling_receiver.hooks.config import OF_TASK, NewHook
from kling_receiver.jobs.enqueue import host_of
from kling_receiver.jobs.queue import FAR
from kling_receiver.store.sql import Row, Sql, columns
from kling_receiver.store.tables import Hook
from kling_receiver.store.transaction import JOB, Transaction, last_event

HOOK = Hook.__table__  # type: ignore[attr-defined]  # set by SQLModel
LONGEST_SAID = 500
MOST_SECRETS = 8
"""Of one hook at once: each signs, and a header has its limits."""
OVERLAP = 86_400.0
"""Seconds for which a secret that was changed signs too."""


PAUSE = Sql("""
    UPDATE hook SET paused_at = :now, paused_because = :because WHERE name = :name AND paused_at IS NULL
""")
PUT_OFF = Sql(
    "UPDATE job SET due_at = :far WHERE hook = :name AND state = 'ready' AND kind NOT LIKE 'dispatch%'"
)
RESUME = Sql("""
    UPDATE hook SET paused_at = NULL, paused_because = '', failing_since = NULL
    WHERE name = :name
""")
BRING_BACK = Sql("UPDATE job SET due_at = :now, attempts = 0 WHERE hook = :name AND state = 'ready'")


ONE = Sql(f"SELECT {columns(HOOK)} FROM hook WHERE name = :name", of=HOOK)  # noqa: S608  # ours
ALL = Sql(f"SELECT {columns(HOOK)} FROM hook WHERE task IS NULL ORDER BY name", of=HOOK)  # noqa: S608


def pause(tx: Transaction, name: str, because: str) -> bool:
    """Send nothing to a hook until it is resumed; what it wants is kept. False when it is paused already."""
    if not PAUSE.do(tx.connection, name=name, now=tx.now, because=because[:LONGEST_SAID]):
        return False
    PUT_OFF.do(tx.connection, name=name, far=FAR)
    tx.say(
        f"hook {name} is paused: {because}. Its events are kept; go on with: kling-receiver hooks resume {name}"
    )
    return True


def resume(tx: Transaction, name: str) -> bool:
    """Go on with a hook, paused or failing: all that was kept for it is due now. False when there is none."""
    if not RESUME.do(tx.connection, name=name):
        return False
    BRING_BACK.do(tx.connection, name=name, now=tx.now)
    tx.wake()
    if row := hook(tx.connection, name):
        look(tx, row)
    return True


def look(tx: Transaction, row: Row) -> None:
    """Owe a hook a look at the event log."""
    kind, name = of_kind("dispatch", row), row["name"]
    tx.owe(kind, "", key=f"dispatch/{name}", lane=f"dispatch {row['lane']}", hook=name)


def of_kind(kind: str, row: Row) -> str:
    """Jobs of hooks for single tasks are of kinds of their own, so that there is room for all others."""
    return f"{kind}-task" if row["task"] else kind


def add(tx: Transaction, new: NewHook, *, source: str = "added") -> Row | None:
    """A new hook, which hears of what happens from now on; None when its name is taken."""
    name = new.name or _free_name(tx.connection)
    if hook(tx.connection, name):
        return None
    tx.database.lock_events(tx.connection)  # so that no event is committed later with an id before its cursor
    row = new.row(name, source, cursor=last_event(tx.connection), now=tx.now)
    tx.connection.execute(insert(HOOK), row)
    return row


def _free_name(connection: Connection) -> str:
    taken = set(connection.execute(select(HOOK.c.name).where(HOOK.c.task.is_(None))).scalars())
    return next(name for n in range(1, len(taken) + 2) if (name := f"hook-{n}") not in taken)


def of_task(task: str) -> str:
    """The name of the hook of one task alone."""
    return f"{OF_TASK}{task}"


def add_for_task(tx: Transaction, task: str, address: str) -> None:
    """A web address that hears of one task alone, unless it has one; signed with the receiver's own secret."""
    name = of_task(task)
    if not hook(tx.connection, name):
        row = NewHook(address=address).row(name, "task", cursor=0, now=tx.now)
        own = {"task": task, "lane": f"task {host_of(address)}", "secrets": [], "concurrency": 2}
        tx.connection.execute(insert(HOOK), {**row, **own})
        look(tx, {**row, **own})  # perhaps all has happened already


def change(tx: Transaction, name: str, values: Row) -> None:
    """Set columns of a hook; where it stands in the event log, and how it fares, stay."""
    tx.connection.execute(update(HOOK).where(HOOK.c.name == name).values(values))


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
    secrets = succeeded(found["secrets"], fresh, now=tx.now, overlap=overlap)
    tx.connection.execute(update(HOOK).where(HOOK.c.name == name).values(secrets=secrets))
    return fresh


def succeeded(secrets: list[Any], fresh: str, *, now: int, overlap: float) -> list[Any]:
    """A hook's secrets once `fresh` comes first; the others end `overlap` seconds from `now` (unix ms)."""
    if not fresh or (secrets and secrets[0][0] == fresh):
        return secrets if fresh else []
    until = now + int(overlap * 1000)
    old = [[each, min(until, ends or until)] for each, ends in secrets if ends is None or ends > now]
    return [[fresh, None], *(each for each in old if each[0] != fresh)][:MOST_SECRETS]


def good_secrets(row: Row, now: int) -> list[str]:
    """The secrets that sign at `now` (unix ms), newest first."""
    return [secret for secret, until in row["secrets"] if until is None or until > now]


def hook(connection: Connection, name: str) -> Row | None:
    """A hook's row."""
    return ONE.first(connection, name=name)


def hooks(connection: Connection) -> list[Row]:
    """All hooks but those of single tasks, by name."""
    return ALL.all(connection)
