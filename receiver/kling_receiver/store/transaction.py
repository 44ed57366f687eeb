"""The unit of work: rows read and changed, events and jobs collected, then written together in one commit.

Many callbacks share one transaction. What each of them changes is collected here and written once.
"""

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Unpack, cast

from sqlalchemy import Connection

from kling_receiver.jobs.kinds import Kind, Pool
from kling_receiver.policy import DEFAULT_POLICY, Policy
from kling_receiver.store.database import Database
from kling_receiver.store.rows import Row, TaskChanges, TaskRow
from kling_receiver.store.sql import BulkInsert, Statement, columns
from kling_receiver.store.tables import EVENT, JOB, TASK, Task, dump_json, json_columns

SELECT_TASKS = Statement[TaskRow](
    f"SELECT {columns(TASK)} FROM task WHERE id IN :ids ORDER BY id", table=TASK, lock="FOR UPDATE"
)
COUNT_REPEAT = Statement("""
    UPDATE event SET repeat_count = repeat_count + :times WHERE task_id = :task_id AND body_sha256 = :body_sha256
""")
JSON_COLUMNS = json_columns(TASK)
INSERT_TASKS = BulkInsert(TASK, [column.name for column in TASK.c])
INSERT_EVENTS = BulkInsert(EVENT, [column.name for column in EVENT.c if column.name != "id"])
INSERT_JOBS = BulkInsert(
    JOB,
    [column.name for column in JOB.c if column.name not in ("id", "claim_id", "lease_expires_at")],
    """
    ON CONFLICT (unique_key) DO UPDATE SET
        due_at = CASE WHEN job.state = 'dead' OR excluded.due_at < job.due_at
                      THEN excluded.due_at ELSE job.due_at END,
        delay_ms = CASE WHEN job.state = 'dead' OR excluded.due_at < job.due_at
                        THEN excluded.delay_ms ELSE job.delay_ms END,
        attempts = CASE WHEN job.state = 'dead' THEN 0 ELSE job.attempts END,
        args = CASE WHEN job.state = 'dead' THEN excluded.args ELSE job.args END,
        state = CASE WHEN job.state = 'dead' THEN 'ready' ELSE job.state END
    """,
)
COUNT = Statement("""
    INSERT INTO hourly_count (hour, name, total) VALUES (:hour, :name, :total)
    ON CONFLICT (hour, name) DO UPDATE SET total = hourly_count.total + excluded.total
""")
HOUR_MS = 3_600_000
"""Milliseconds of an hour, for which events are counted."""
DELETE_JOB = Statement("DELETE FROM job WHERE unique_key = :unique_key AND state <> 'running'")
RUN_NOW = Statement("""
    UPDATE job SET due_at = :now, delay_ms = 0
    WHERE unique_key = :unique_key AND state = 'ready' AND due_at > :now
""")
ENQUEUE_DISPATCH = Statement(f"""
    INSERT INTO job (unique_key, kind, pool, task_id, concurrency_key, hook_name, args, state, attempts,
        due_at, delay_ms, error, created_at)
    SELECT '{Kind.DISPATCH}/' || name, '{Kind.DISPATCH}', pool, '', '{Kind.DISPATCH} ' || concurrency_key, name,
        'null', 'ready', 0, :now, 0, '', :now
    FROM (
        SELECT name, concurrency_key, '{Pool.HOOK_RUNS}' AS pool FROM hook
        WHERE task_id IS NULL AND paused_at IS NULL
        UNION ALL SELECT name, concurrency_key, '{Pool.TASK_HOOK_RUNS}' FROM hook WHERE paused_at IS NULL
            AND task_id IN (SELECT task_id FROM event WHERE id > (SELECT max(id) FROM event) - :count)
    ) AS due WHERE true ORDER BY name
    ON CONFLICT (unique_key) DO UPDATE SET due_at = excluded.due_at, delay_ms = 0
    WHERE job.state = 'ready' AND job.due_at > excluded.due_at AND job.error = ''
""")
"""Enqueues a dispatch for each hook that may want one of the newest `:count` events.

A dispatch that runs sees the events anyway; one that backs off keeps its time. UNION, not OR: PostgreSQL then finds
the hooks of single tasks by their index.
"""


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a commit caused.

    `task_ids`: the tasks that have new events, or were removed; None: perhaps any task.
    `next_due_at`: when the first of the new jobs is due (unix ms); None: there are none.
    `event_counts`: how many new events there are of each type. `messages`: what the operator's log is to say.
    `worked_on`: the tasks whose jobs or deliveries changed, whether they have new events or not.
    `hooks_changed`: a hook has other settings, another state, or more attempts.
    """

    task_ids: frozenset[str] | None
    next_due_at: int | None
    event_counts: Mapping[str, int] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    worked_on: frozenset[str] = field(default=frozenset(), compare=False)
    hooks_changed: bool = False


UNKNOWN_RESULT = CommitResult(None, 0, hooks_changed=True)
"""Of a commit that may have succeeded although the database reported an error."""


@dataclass(slots=True)
class Transaction:
    """A writing transaction at `now` (unix ms)."""

    connection: Connection
    database: Database
    now: int
    policy: Policy = DEFAULT_POLICY
    tasks: dict[str, TaskRow] = field(default_factory=dict)
    _new: dict[str, TaskRow] = field(default_factory=dict)
    _changed: dict[str, set[str]] = field(default_factory=dict)
    _events: list[Row] = field(default_factory=list)
    _repeats: dict[tuple[str, str], int] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)
    _jobs: dict[str, Row | None] = field(default_factory=dict)
    _run_now: set[str] = field(default_factory=set)
    _messages: dict[str, None] = field(default_factory=dict)
    _at_end: dict["AtEnd", list[Any]] = field(default_factory=dict)
    _removed: set[str] = field(default_factory=set)
    _woken: bool = False
    _worked_on: set[str] = field(default_factory=set)
    _hooks_changed: bool = False

    def load(self, ids: Iterable[str]) -> None:
        """Read these tasks into `tasks` and lock them until the commit, in one order: writers cannot deadlock."""
        missing = sorted(set(ids) - self.tasks.keys())
        if missing:
            self.tasks.update((row["id"], row) for row in SELECT_TASKS.all(self.connection, ids=missing))

    def task(self, task_id: str) -> TaskRow | None:
        """One task's row, or None."""
        self.load([task_id])
        return self.tasks.get(task_id)

    def require_task(self, task_id: str) -> TaskRow:
        """The row of a task that must exist, since a job or an event of it does."""
        row = self.task(task_id)
        assert row is not None, task_id
        return row

    def add_tasks(self, rows: list[Row]) -> None:
        """Add tasks; each row has at least `id` and `family`. They are written by `flush_new_tasks` or `flush`."""
        for row in rows:
            full: Row = {**TASK_DEFAULTS, "created_at": self.now, "updated_at": self.now, **row}
            self.tasks[row["id"]] = self._new[row["id"]] = cast(TaskRow, full)

    def flush_new_tasks(self) -> None:
        """Write the new tasks now, before rows that refer to them."""
        if self._new:
            INSERT_TASKS.insert(self.connection, list(self._new.values()))
            self._new.clear()

    def update_task(self, task: TaskRow, **changes: Unpack[TaskChanges]) -> None:
        """Set columns of a task. They are written by `flush`."""
        task.update(cast(TaskRow, changes))
        task["updated_at"] = self.now
        if task["id"] not in self._new:
            self._changed.setdefault(task["id"], {"updated_at"}).update(changes)

    def add_event(
        self,
        task_id: str,
        type: str,  # noqa: A002  # the field's term
        data: Any = None,
        *,
        body: bytes | None = None,
        body_sha256: str | None = None,
    ) -> None:
        """Add an event. `body` and `body_sha256`: of a callback, as it arrived."""
        row = {"task_id": task_id, "type": type, "created_at": self.now, "data": data}
        self._events.append({**row, "body": body, "body_sha256": body_sha256, "repeat_count": 0})

    def count_repeat(self, task_id: str, body_sha256: str) -> None:
        """Count a repeat of a callback that is in the event log."""
        self._repeats[task_id, body_sha256] = self._repeats.get((task_id, body_sha256), 0) + 1
        self.count("callback.repeated")

    def count(self, name: str) -> None:
        """Count once what has no event of its own, in this hour."""
        self._counts[name] += 1

    def log_after_commit(self, message: str) -> None:
        """Log an error for the operator once this transaction is committed; the same message once."""
        self._messages[message] = None

    def enqueue(
        self,
        kind: Kind,
        task_id: str,
        *,
        unique_key: str,
        pool: Pool,
        concurrency_key: str,
        due_at: int | None = None,
        args: Any = None,
        **values: Any,
    ) -> None:
        """Add a job. A job that waits with this `unique_key` keeps the earlier due time; a dead one becomes ready.

        `due_at`: unix ms; None: now. `concurrency_key`: jobs with the same key share one limit, so that a slow or dead
        peer delays only these.
        `values`: `hook_name`, the `attempts` made so far, the `state` and `error` of a job that is dead at once.
        """
        due = self.now if due_at is None else due_at
        if waiting := self._jobs.get(unique_key):
            due = min(due, waiting["due_at"])
        self._jobs[unique_key] = {
            "unique_key": unique_key,
            "kind": kind,
            "pool": pool,
            "task_id": task_id,
            "concurrency_key": concurrency_key,
            "hook_name": None,
            "args": args,
            "state": "ready",
            "attempts": 0,
            "due_at": due,
            "delay_ms": max(due - self.now, 0),
            "error": "",
            "created_at": self.now,
            **values,
        }

    def cancel_job(self, unique_key: str) -> None:
        """Delete a job that is no longer needed, unless it runs: a running job settles itself."""
        self._jobs[unique_key] = None

    def forget_task(self, task_id: str) -> None:
        """Write nothing more about a task whose rows are deleted in this transaction; its streams end."""
        for collected in (self.tasks, self._new, self._changed):
            collected.pop(task_id, None)
        self._events = [event for event in self._events if event["task_id"] != task_id]
        self._repeats = {key: times for key, times in self._repeats.items() if key[0] != task_id}
        self._jobs = {key: job for key, job in self._jobs.items() if not job or job["task_id"] != task_id}
        self._removed.add(task_id)

    def worked_on(self, task_id: str) -> None:
        """Say that a job or a delivery of a task changed: pages that show them are then updated without an event."""
        self._worked_on.add(task_id)

    def wake_worker(self) -> None:
        """Let the worker look for due jobs after the commit."""
        self._woken = True

    def note_hook_change(self) -> None:
        """Let the pages of hooks be rendered again after the commit."""
        self._hooks_changed = True

    def run_now(self, unique_key: str) -> None:
        """Make a waiting job due now, if there is one."""
        self._run_now.add(unique_key)

    def run_at_end(self, action: "AtEnd", item: Any = None) -> None:
        """Call `action` once before the commit, with all its items: it sees every change of the transaction written."""
        self._at_end.setdefault(action, []).append(item)

    def flush(self) -> CommitResult:
        """Write everything that was collected: tasks before events, events before jobs."""
        self.flush_new_tasks()
        self.write_changes()
        while self._at_end:
            actions, self._at_end = self._at_end, {}
            for action, items in actions.items():
                action(self, items)
            self.write_changes()
        dispatches = bool(self._events) and self._write_events()
        self._write_repeats()  # after the events: they may be of events of this transaction
        enqueued = self._write_jobs()
        event_counts = Counter(event["type"] for event in self._events)
        self._write_counts(event_counts + self._counts)
        due = [job["due_at"] for job in enqueued]
        if self._run_now or self._woken or dispatches:
            due.append(self.now)
        return CommitResult(
            frozenset(event["task_id"] for event in self._events) | self._removed,
            min(due, default=None),
            event_counts,
            tuple(self._messages),
            hooks_changed=self._hooks_changed,
            worked_on=frozenset(self._worked_on),
        )

    def write_changes(self) -> None:
        """Write the changes of tasks now, before they are counted: one statement for each set of changed columns."""
        groups: dict[tuple[str, ...], list[Row]] = {}
        for task_id in sorted(self._changed):
            names = tuple(sorted(self._changed[task_id]))
            row = cast(Row, self.tasks[task_id])
            values = {name: dump_json(row[name]) if name in JSON_COLUMNS else row[name] for name in names}
            groups.setdefault(names, []).append({**values, "row_id": task_id})
        self._changed.clear()
        for names, rows in groups.items():
            _update_statement(names).executemany(self.connection, rows)

    def _write_events(self) -> bool:
        """Write the events; whether a hook has a dispatch to do because of them."""
        self.database.lock_events(self.connection)
        INSERT_EVENTS.insert(self.connection, self._events)
        return ENQUEUE_DISPATCH.execute(self.connection, count=len(self._events), now=self.now) > 0

    def _write_repeats(self) -> None:
        if self._repeats:
            rows = [
                {"task_id": task_id, "body_sha256": body_sha256, "times": times}
                for (task_id, body_sha256), times in self._repeats.items()
            ]
            COUNT_REPEAT.executemany(self.connection, rows)

    def _write_counts(self, counts: Counter[str]) -> None:
        """Count what this hour has. Last: each writer locks the rows of the hour until its commit."""
        if counts:
            hour = self.now // HOUR_MS
            COUNT.executemany(
                self.connection, [{"hour": hour, "name": name, "total": counts[name]} for name in sorted(counts)]
            )

    def _write_jobs(self) -> list[Row]:
        """Write the jobs that are enqueued, cancelled and made due; those that are enqueued."""
        if enqueued := [job for job in self._jobs.values() if job]:
            INSERT_JOBS.insert(self.connection, enqueued)
        if cancelled := [{"unique_key": key} for key, job in self._jobs.items() if not job]:
            DELETE_JOB.executemany(self.connection, cancelled)
        if self._run_now:
            rows = [{"unique_key": key, "now": self.now} for key in sorted(self._run_now)]
            RUN_NOW.executemany(self.connection, rows)
        return enqueued


AtEnd = Callable[[Transaction, list[Any]], None]
"""What is done once at the end of a transaction, however many of its changes ask for it."""

LAST_EVENT = Statement("SELECT coalesce(max(id), 0) FROM event")


def last_event(connection: Connection) -> int:
    """The id of the newest event; 0 when there is none."""
    return int(LAST_EVENT.scalar(connection))


@functools.cache
def _update_statement(names: tuple[str, ...]) -> Statement[Row]:
    values = ", ".join(f"{name} = :{name}" for name in names)
    return Statement(f"UPDATE task SET {values} WHERE id = :row_id")  # names of columns


TASK_DEFAULTS: Row = {
    column.name: None
    if column.nullable or column.name in ("request", "cost", "outputs")
    else Task.model_fields[column.name].default
    for column in TASK.c
}


@contextmanager
def command_transaction(database: Database) -> Iterator[Transaction]:
    """The transaction of a command that opens the database itself; it calls `flush`. Raises DatabaseError."""
    with database.operator_errors(), database.write() as connection:
        yield Transaction(connection, database, int(time.time() * 1000))
