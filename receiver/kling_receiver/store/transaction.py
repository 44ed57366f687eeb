"""One commit in the making: rows read and changed, events and jobs gathered, then written in bulk.

Many callbacks share one transaction, so what each of them changes is kept here and written once.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from kling_receiver.policy import Policy
from kling_receiver.store.database import Database
from kling_receiver.store.sql import BulkInsert, Row, Statement, columns
from kling_receiver.store.tables import Event, Job, Task, dump_json, json_columns

TASK, EVENT, JOB = Task.__table__, Event.__table__, Job.__table__  # type: ignore[attr-defined]  # set by SQLModel

SELECT_TASKS = Statement(
    f"SELECT {columns(TASK)} FROM task WHERE id IN :ids ORDER BY id", table=TASK, lock="FOR UPDATE"
)
COUNT_REPEAT = Statement("UPDATE event SET repeats = repeats + :times WHERE task = :task AND digest = :digest")
JSON_COLUMNS = json_columns(TASK)
INSERT_TASKS = BulkInsert(TASK, [column.name for column in TASK.c])
INSERT_EVENTS = BulkInsert(EVENT, [column.name for column in EVENT.c if column.name != "id"])
INSERT_JOBS = BulkInsert(
    JOB,
    ["key", "kind", "task", "lane", "hook", "data", "state", "attempts", "due_at", "error", "created_at"],
    """
    ON CONFLICT (key) DO UPDATE SET
        due_at = CASE WHEN job.state = 'dead' OR excluded.due_at < job.due_at
                      THEN excluded.due_at ELSE job.due_at END,
        attempts = CASE WHEN job.state = 'dead' THEN 0 ELSE job.attempts END,
        data = CASE WHEN job.state = 'dead' THEN excluded.data ELSE job.data END,
        state = CASE WHEN job.state = 'dead' THEN 'ready' ELSE job.state END
    """,
)
DELETE_JOB = Statement("DELETE FROM job WHERE key = :key AND state <> 'running'")
RUN_NOW = Statement("UPDATE job SET due_at = :now WHERE key = :key AND state = 'ready' AND due_at > :now")
ENQUEUE_DISPATCH = Statement("""
    INSERT INTO job (key, kind, task, lane, hook, data, state, attempts, due_at, error, created_at)
    SELECT 'dispatch/' || name, kind, '', 'dispatch ' || lane, name, 'null', 'ready', 0, :now, '', :now
    FROM (
        SELECT name, lane, 'dispatch' AS kind FROM hook WHERE task IS NULL AND paused_at IS NULL
        UNION ALL SELECT name, lane, 'dispatch-task' FROM hook WHERE paused_at IS NULL
            AND task IN (SELECT task FROM event WHERE id > (SELECT max(id) FROM event) - :count)
    ) AS offered WHERE true ORDER BY name
    ON CONFLICT (key) DO UPDATE SET due_at = excluded.due_at
    WHERE job.state = 'ready' AND job.due_at > excluded.due_at AND job.error = ''
""")
"""Owes each hook a look at the newest `:count` events. One that runs looks anyway, one that was
put off stays so.
"""


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a commit set in motion: the tasks that have new events (None: perhaps any), when (unix ms) the
    first job is due, how many events of each type there are, the tasks of which a file cannot be had, and
    what is to be said loudly besides.
    """

    task_ids: frozenset[str] | None
    next_due_at: int | None
    event_counts: Mapping[str, int] = field(default_factory=dict)
    failed_result_task_ids: frozenset[str] = frozenset()
    messages: tuple[str, ...] = ()


UNKNOWN_RESULT = CommitResult(None, 0)


@dataclass(slots=True)
class Transaction:
    """A writing transaction at `now` (unix ms)."""

    connection: Connection
    database: Database
    now: int
    policy: Policy = Policy()
    tasks: dict[str, Row] = field(default_factory=dict)
    _new: dict[str, Row] = field(default_factory=dict)
    _changed: dict[str, set[str]] = field(default_factory=dict)
    _events: list[Row] = field(default_factory=list)
    _repeats: dict[tuple[str, str], int] = field(default_factory=dict)
    _jobs: dict[str, Row | None] = field(default_factory=dict)
    _run_now: set[str] = field(default_factory=set)
    _messages: list[str] = field(default_factory=list)
    _woken: bool = False

    def load(self, ids: Iterable[str]) -> None:
        """Put the rows of these tasks into `tasks`, locked until the commit; in one order: no deadlocks."""
        missing = sorted(set(ids) - self.tasks.keys())
        if missing:
            self.tasks.update((row["id"], row) for row in SELECT_TASKS.all(self.connection, ids=missing))

    def task(self, task_id: str) -> Row | None:
        """One task's row, or None."""
        self.load([task_id])
        return self.tasks.get(task_id)

    def require_task(self, task_id: str) -> Row:
        """The row of a task that exists, since a job or an event of it does."""
        row = self.task(task_id)
        assert row is not None, task_id
        return row

    def add_tasks(self, rows: list[Row]) -> None:
        """Add tasks; each row names its `id` and `family` at least. Written once, at the end or by `insert`."""
        for row in rows:
            full = {**TASK_DEFAULTS, "created_at": self.now, "updated_at": self.now, **row}
            self.tasks[row["id"]] = self._new[row["id"]] = full

    def flush_new_tasks(self) -> None:
        """Write the new tasks now: before rows that belong to them."""
        if self._new:
            INSERT_TASKS.insert(self.connection, list(self._new.values()))
            self._new.clear()

    def update_task(self, task: Row, **values: Any) -> None:
        """Set columns of a task; written once, at the end."""
        task.update(values, updated_at=self.now)
        if task["id"] not in self._new:
            self._changed.setdefault(task["id"], {"updated_at"}).update(values)

    def add_event(self, task_id: str, type: str, data: Any = None, **callback: Any) -> None:  # noqa: A002  # the field's term
        """Add an event; `callback` has the `digest` and `body` of one that came from outside."""
        event = {"task": task_id, "type": type, "at": self.now, "data": data, "digest": None, "body": None}
        self._events.append({**event, "repeats": 0, **callback})

    def count_repeat(self, task_id: str, digest: str) -> None:
        """Count a callback that came again."""
        self._repeats[task_id, digest] = self._repeats.get((task_id, digest), 0) + 1

    def log_after_commit(self, message: str) -> None:
        """Have the operator told, once this is committed."""
        self._messages.append(message)

    def enqueue(
        self,
        kind: str,
        task_id: str,
        *,
        key: str,
        lane: str,
        due_at: int | None = None,
        data: Any = None,
        **more: Any,
    ) -> None:
        """Add a job; where one of that key waits already, the earlier of both times counts.

        `more`: whose `hook` it is, `attempts` that were made, `state` and `error` of what is given up at once.
        """
        due = self.now if due_at is None else due_at
        waiting = self._jobs.get(key)
        if waiting:
            due = min(due, waiting["due_at"])
        row = {"key": key, "kind": kind, "task": task_id, "lane": lane, "data": data, "due_at": due}
        usual = {"hook": None, "state": "ready", "attempts": 0, "error": "", "created_at": self.now}
        self._jobs[key] = {**row, **usual, **more}

    def cancel_job(self, key: str) -> None:
        """Drop a job that is no longer needed (one that runs settles itself)."""
        self._jobs[key] = None

    def wake_worker(self) -> None:
        """Have the worker look for jobs that are due now."""
        self._woken = True

    def run_now(self, key: str) -> None:
        """Make a waiting job due now, if there is one."""
        self._run_now.add(key)

    def flush(self) -> CommitResult:
        """Write all that was gathered; tasks before events, events before jobs."""
        self.flush_new_tasks()
        self._update()
        offered = bool(self._events) and self._write_events()
        if self._repeats:  # perhaps of events that were written just now
            repeats = [{"task": t, "digest": d, "times": n} for (t, d), n in self._repeats.items()]
            COUNT_REPEAT.executemany(self.connection, repeats)
        if owed := [job for job in self._jobs.values() if job]:
            INSERT_JOBS.insert(self.connection, owed)
        if forgotten := [{"key": key} for key, job in self._jobs.items() if not job]:
            DELETE_JOB.executemany(self.connection, forgotten)
        if self._run_now:
            hastened = [{"key": key, "now": self.now} for key in sorted(self._run_now)]
            RUN_NOW.executemany(self.connection, hastened)
        dues = [job["due_at"] for job in owed]
        if self._run_now or self._woken or offered:
            dues.append(self.now)
        return CommitResult(
            frozenset(event["task"] for event in self._events),
            min(dues, default=None),
            Counter(event["type"] for event in self._events),
            frozenset(event["task"] for event in self._events if event["type"] == "result.failed"),
            tuple(self._messages),
        )

    def _update(self) -> None:
        """One statement for all tasks of which the same columns changed."""
        groups: dict[tuple[str, ...], list[Row]] = {}
        for task in sorted(self._changed):
            names = tuple(sorted(self._changed[task]))
            row = self.tasks[task]
            values = {name: dump_json(row[name]) if name in JSON_COLUMNS else row[name] for name in names}
            groups.setdefault(names, []).append({**values, "row_id": task})
        for names, rows in groups.items():
            _update_task(names).executemany(self.connection, rows)

    def _write_events(self) -> bool:
        """Whether a hook is owed a look at them."""
        self.database.lock_events(self.connection)
        INSERT_EVENTS.insert(self.connection, self._events)
        return ENQUEUE_DISPATCH.execute(self.connection, count=len(self._events), now=self.now) > 0


LAST_EVENT = Statement("SELECT coalesce(max(id), 0) FROM event")


def last_event(connection: Connection) -> int:
    """The id of the newest event, 0 when there is none."""
    return int(LAST_EVENT.scalar(connection))


@functools.cache
def _update_task(names: tuple[str, ...]) -> Statement:
    values = ", ".join(f"{name} = :{name}" for name in names)
    return Statement(f"UPDATE task SET {values} WHERE id = :row_id")  # noqa: S608  # ours


TASK_DEFAULTS: Row = {
    column.name: None
    if column.nullable or column.name in ("request", "cost")
    else Task.model_fields[column.name].default
    for column in TASK.c
}
