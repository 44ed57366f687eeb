"""The tables, with constraints that refuse impossible rows. Times are unix milliseconds.

A new column also needs an entry in `rows` and a migration.

JSON is stored as ASCII text with escapes, so that no NUL or lone surrogate reaches a database.
"""

import json
from typing import Any, get_args

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

from kling_callback.protocol.signing import Role
from kling_receiver.states import FINAL, ORIGINS, STATUSES
from kling_receiver.store.errors import InvalidRow

OUTCOMES = ("none", "pending", "created", "not_created", "unknown")
"""Outcomes of a create: unknown to the receiver (a callback came first), in progress, and its three results."""

RESULT_STATUSES = ("pending", "stored", "failed")
JOB_STATES = ("ready", "running", "dead")
SENT_HERE = "receiver/"
"""How the `create_token` begins of a task whose create the receiver sends: no client may send it."""
SUBMISSION_STATES = ("queued", "claimed", "sending")
"""States of a create that the receiver sends: it waits for a slot, has it, and may have reached Kling."""
HOOK_FORMATS = ("event", "kling")
"""What a hook is sent: our events, or the bodies that Kling posts."""
HOOK_SOURCES = ("added", "file", "settings", "task")
"""What configured a hook: an operator's command, the hooks file, KLING_HOOK_URL, or a client, for one task."""

_dumps = json.JSONEncoder(separators=(",", ":")).encode

BigId = BigInteger().with_variant(Integer(), "sqlite")


def dump_json(value: Any) -> str:
    """JSON as it is stored in a text column."""
    return "null" if value is None else _dumps(value)


def load_json(text: str | None) -> Any:
    """The value of a text column that holds JSON. Raises InvalidRow."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRow(f"no JSON ({error})") from None


class JsonText(TypeDecorator[Any]):
    """A column type: JSON as ASCII text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str:
        return dump_json(value)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return load_json(value)


def json_columns(table: Table) -> frozenset[str]:
    """The names of a table's JSON columns."""
    return frozenset(column.name for column in table.c if isinstance(column.type, JsonText))


def _in(column: str, values: tuple[str, ...] | frozenset[str]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in sorted(values))})"


def _partial(condition: str) -> dict[str, Any]:
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


class Task(SQLModel, table=True):
    """One task: `id` is ours, `kling_id` is Kling's."""

    __tablename__ = "task"
    __table_args__ = (
        CheckConstraint(_in("status", STATUSES), name="status"),
        CheckConstraint(_in("outcome", OUTCOMES), name="outcome"),
        CheckConstraint(
            f"({_in('status', FINAL)}) = (origin IS NOT NULL) AND (origin IS NULL OR {_in('origin', ORIGINS)})",
            name="origin",
        ),
        CheckConstraint(f"NOT done OR {_in('status', FINAL)}", name="done"),
        Index("task_newest", "created_at", "id"),
        Index("task_family", "family", "created_at", "id"),
        Index("task_model", "model", "created_at", "id", **_partial("model <> ''")),
        Index("task_status", "status", "created_at", "id", **_partial("status <> 'succeed'")),
        Index("task_kling_id", "kling_id", **_partial("kling_id IS NOT NULL")),
        Index("task_external_id", "external_task_id", **_partial("external_task_id IS NOT NULL")),
        Index("task_durations", "family", "created_at", "id", "duration_ms", **_partial("duration_ms IS NOT NULL")),
        Index("task_slots", "model", **_partial("slots > 0")),
        Index("task_sent_here", "create_token", **_partial(f"substr(create_token, 1, 9) = '{SENT_HERE}'")),
        Index("task_undone", "id", **_partial("origin IS NOT NULL AND NOT done")),
    )

    id: str = Field(primary_key=True)
    kling_id: str | None = None
    external_task_id: str | None = None
    """The caller's id at Kling, if it is not `id`: of tasks that no client of ours created."""
    family: str
    model: str = ""
    request: Any = Field(default=None, sa_column=Column(JsonText, nullable=False))
    request_sha256: str | None = None
    """The digest of the create's parameters, image bytes included; null if the client sent none."""
    outcome: str = "none"
    create_token: str = ""
    """The nonce of the create call that has the right to create this task."""
    slots: int = 0
    """Slots of the account that the task holds, from its create to its end."""
    keeps_our_id: bool = False
    """Kling's format names our id for good: a program was answered it as Kling's, before Kling's was known."""
    status: str = "created"
    status_msg: str = ""
    origin: str | None = None
    hint: str | None = None
    """The final status that an unconfirmed callback reported, until Kling has been queried."""
    hint_msg: str = ""
    hint_count: int = Field(default=0, sa_type=BigInteger)
    """Callbacks that caused a query to Kling."""
    callback_kling_id: str | None = None
    """The id in the last callback; behind a relay it may differ from `kling_id`."""
    cost: Any = Field(default=None, sa_column=Column(JsonText, nullable=False))
    outputs: Any = Field(default=None, sa_column=Column(JsonText, nullable=False))
    """Outputs that are no files, with Kling's names; null for none."""
    request_id: str | None = None
    """Kling's id of the create's answer, or of the latest query's."""
    kling_created_at: int | None = Field(default=None, sa_type=BigInteger)
    kling_updated_at: int | None = Field(default=None, sa_type=BigInteger)
    duration_ms: int | None = Field(default=None, sa_type=BigInteger)
    """From the create to the success, by Kling's own times where it names them."""
    done: bool = False
    callback_count: int = Field(default=0, sa_type=BigInteger)
    """Authenticated callbacks, including repeats and those past the limits of the event log."""
    kept_callbacks: int = 0
    """Callbacks whose bodies are in the event log."""
    kept_bytes: int = Field(default=0, sa_type=BigInteger)
    created_at: int = Field(sa_type=BigInteger)
    updated_at: int = Field(sa_type=BigInteger)


class Tag(SQLModel, table=True):
    """A tag that a client gave a task."""

    __tablename__ = "tag"
    __table_args__ = (
        PrimaryKeyConstraint("task_id", "tag", name="tag_once"),
        ForeignKeyConstraint(["task_id"], ["task.id"], name="tag_of_task"),
        Index("tag_newest", "tag", "created_at", "task_id"),
    )

    task_id: str = Field(sa_column=Column(Text, nullable=False))
    tag: str
    created_at: int = Field(sa_type=BigInteger)
    """The task's: an index has the tasks of a tag in the order of a list."""


class Submission(SQLModel, table=True):
    """A create that the receiver sends, until its outcome is known."""

    __tablename__ = "submission"
    __table_args__ = (
        CheckConstraint(_in("state", SUBMISSION_STATES), name="state"),
        Index("submission_queue", "state", "rank", "id", "model", "slots", "size"),
        {"sqlite_autoincrement": True},
    )

    id: int = Field(sa_column=Column(BigId, primary_key=True))
    """In the order of arrival."""
    task_id: str = Field(sa_column=Column(Text, ForeignKey("task.id"), nullable=False, unique=True))
    state: str = "queued"
    rank: int = 0
    """Minus the priority: the lowest is sent first, so that one index in ascending order serves both engines."""
    model: str = ""
    slots: int = 1
    """Slots that the task will hold: one for each image, else one."""
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """The create's parameters as JSON, without our id and callback address."""
    size: int = Field(sa_type=BigInteger)
    """Bytes of the body."""
    attempt: str = ""
    """The nonce of the attempt that is `sending`."""
    created_at: int = Field(sa_type=BigInteger)


class RemovedTask(SQLModel, table=True):
    """The id of a task that was removed: no callback and no client makes it again."""

    __tablename__ = "removed"

    id: str = Field(primary_key=True)
    removed_at: int = Field(sa_type=BigInteger)
    callback_count: int = Field(default=0, sa_type=BigInteger)
    """Callbacks that arrived since: they are answered 200, and only counted."""


class Account(SQLModel, table=True):
    """What Kling's refusals of creates have shown of the account, in one row."""

    __tablename__ = "account"

    id: int = Field(1, primary_key=True)
    slot_ceiling: int | None = None
    """Slots that the account has left for us (1303), until a task ends; null: the settings alone limit them."""
    create_interval_ms: int = 0
    """Milliseconds between two creates, since Kling found them too fast (1302)."""
    next_create_at: int = Field(default=0, sa_type=BigInteger)


class Event(SQLModel, table=True):
    """The event log, in commit order."""

    __tablename__ = "event"
    __table_args__ = (
        Index("event_once", "task_id", "body_sha256", unique=True, **_partial("body_sha256 IS NOT NULL")),
        Index("event_of_task", "task_id", "id"),
        {"sqlite_autoincrement": True},
    )

    id: int = Field(sa_column=Column(BigId, primary_key=True))
    task_id: str
    """No foreign key, because PostgreSQL would look up and lock the task for each event."""
    type: str
    created_at: int = Field(sa_type=BigInteger)
    data: Any = Field(default=None, sa_column=Column(JsonText, nullable=False))
    body_sha256: str | None = None
    """SHA-256 of a callback's body; null for other events."""
    repeat_count: int = Field(default=0, sa_type=BigInteger)
    body: bytes | None = Field(default=None, sa_column=Column(LargeBinary))


class EventLog(SQLModel, table=True):
    """The identity of the event log, in one row. See `events/log.py`."""

    __tablename__ = "event_log"

    database_id: str = Field(primary_key=True)
    """The same in every copy of the database: its results folder is recorded under it."""
    id: str
    """Renewed when the database was restored, because ids of events are then used again. "" in a backup."""
    removed_until: int = Field(default=0, sa_type=BigInteger)
    """The highest id of an event that was removed with its task: the log has reached it, whatever rows it has."""


class HourlyCount(SQLModel, table=True):
    """How many events of a type an hour has, and of the callbacks that are only counted.

    Written in the transaction of the events: the log is too long to be counted for a page.
    """

    __tablename__ = "hourly_count"

    hour: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    """Hours since 1970, UTC."""
    name: str = Field(primary_key=True)
    """The type of the events, `callback.repeated` or `callback.unkept`."""
    total: int = Field(sa_type=BigInteger)


class Result(SQLModel, table=True):
    """One file of a task; `position` counts from 0."""

    __tablename__ = "result"
    __table_args__ = (
        CheckConstraint(_in("status", RESULT_STATUSES), name="status"),
        CheckConstraint("(status = 'stored') = (sha256 IS NOT NULL)", name="stored"),
    )

    task_id: str = Field(sa_column=Column(Text, ForeignKey("task.id"), primary_key=True))
    position: int = Field(primary_key=True)
    kind: str
    kling_id: str | None = None
    duration: float | None = None
    status: str = "pending"
    content_type: str | None = None
    size: int | None = Field(default=None, sa_type=BigInteger)
    sha256: str | None = None
    path: str | None = None
    """The path of the file in the storage."""
    source_url: str = ""
    expires_at: int | None = Field(default=None, sa_type=BigInteger)
    error: str = ""
    warning: str = ""
    """What is unusual about a stored file."""


class Job(SQLModel, table=True):
    """The job queue, as a transactional outbox: a job is enqueued in the transaction that makes it necessary."""

    __tablename__ = "job"
    __table_args__ = (
        CheckConstraint(_in("state", JOB_STATES), name="state"),
        CheckConstraint("(state = 'running') = (claim_id IS NOT NULL)", name="claim"),
        UniqueConstraint("unique_key", name="job_once"),
        Index("job_due", "state", "due_at"),
        Index("job_hook", "hook_name", **_partial("hook_name IS NOT NULL")),
    )

    id: int = Field(sa_column=Column(BigId, primary_key=True))
    unique_key: str
    """`ask/<task>`, `download/<task>/<n>`, `delivery/<event>/<hook>`, ...: see `jobs/kinds.py`."""
    kind: str
    pool: str
    """The jobs of a pool share a limit on how many run at once."""
    task_id: str
    concurrency_key: str
    """The jobs of a key share a limit too: a slow or dead host delays only the jobs with its key."""
    hook_name: str | None = None
    """The hook that the job belongs to, if any."""
    args: Any = Field(default=None, sa_column=Column(JsonText, nullable=False))
    state: str = "ready"
    attempts: int = 0
    due_at: int = Field(sa_type=BigInteger)
    delay_ms: int = Field(default=0, sa_type=BigInteger)
    """The delay from which `due_at` was computed, so that a due time set by a wrong clock can be clamped."""
    claim_id: str | None = None
    """The id of the current claim: only its holder may settle the job."""
    lease_expires_at: int | None = Field(default=None, sa_type=BigInteger)
    error: str = ""
    created_at: int = Field(sa_type=BigInteger)


class Hook(SQLModel, table=True):
    """A hook. `cursor`: the id up to which every event was attempted once, or did not match."""

    __tablename__ = "hook"
    __table_args__ = (
        CheckConstraint(_in("source", HOOK_SOURCES), name="source"),
        CheckConstraint("(source = 'task') = (task_id IS NOT NULL)", name="task"),
        Index("hook_task", "task_id"),
    )

    name: str = Field(primary_key=True)
    address: str
    source: str
    format: str = "event"
    task_id: str | None = None
    """The only task whose events the hook receives; null: all tasks."""
    concurrency_key: str
    """Of its jobs. Each hook has a key of its own; hooks of single tasks share the key of their host."""
    secrets: Any = Field(default=None, sa_column=Column(JsonText, nullable=False))
    """`[[secret, until]]`, newest first. `until`: unix ms at which a rotated secret expires; null for the newest."""
    filter: Any = Field(default=None, sa_column=Column(JsonText, nullable=False))
    """`{"events": [...], "families": [...], "statuses": [...], "tags": [...]}`; an empty list matches all."""
    retry_schedule: Any = Field(default=None, sa_column=Column(JsonText, nullable=False))
    """Seconds between attempts."""
    concurrency: int
    rate_limit: float | None = None
    """Events a second."""
    timeout: float
    """Seconds for one attempt."""
    cursor: int = Field(default=0, sa_type=BigInteger)
    failing_since: int | None = Field(default=None, sa_type=BigInteger)
    paused_at: int | None = Field(default=None, sa_type=BigInteger)
    paused_because: str = ""
    created_at: int = Field(sa_type=BigInteger)


class Attempt(SQLModel, table=True):
    """One attempt to deliver one event to one hook."""

    __tablename__ = "delivery_attempt"
    __table_args__ = (
        Index("attempt_of", "hook_name", "event_id"),
        Index("attempt_newest", "event_id"),
        {"sqlite_autoincrement": True},
    )

    id: int = Field(sa_column=Column(BigId, primary_key=True))
    hook_name: str
    event_id: int = Field(sa_type=BigInteger)
    task_id: str
    attempted_at: int = Field(sa_type=BigInteger)
    duration_ms: int
    delivered: bool
    response_status: int | None = None
    """HTTP status, or a command's exit code."""
    response_body: str = ""
    """The first bytes of a response, or the last bytes of a command's output."""
    error: str = ""


class NamedToken(SQLModel, table=True):
    """A named bearer token, which can be revoked. The token itself is not stored."""

    __tablename__ = "api_token"
    __table_args__ = (
        CheckConstraint(_in("role", get_args(Role)), name="role"),
        Index("api_token_name", "name", unique=True, **_partial("revoked_at IS NULL")),
    )

    id: str = Field(primary_key=True)
    """Random, and part of what is signed: a later token of the same name has another."""
    name: str
    role: str
    created_at: int = Field(sa_type=BigInteger)
    expires_at: int = Field(sa_type=BigInteger)
    last_used_at: int | None = Field(default=None, sa_type=BigInteger)
    revoked_at: int | None = Field(default=None, sa_type=BigInteger)


class AuditEntry(SQLModel, table=True):
    """One administrative action."""

    __tablename__ = "audit_entry"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: int = Field(sa_column=Column(BigId, primary_key=True))
    created_at: int = Field(sa_type=BigInteger)
    actor: str
    action: str
    target: str
    detail: str
    result: str | None = None
    """`done`, or the code of an error; null until the action has ended."""


class SpentLogin(SQLModel, table=True):
    """The id of a login link that was used, or of a session that was signed out: kept until it would have expired."""

    __tablename__ = "spent_login"

    id: str = Field(primary_key=True)
    expires_at: int = Field(sa_type=BigInteger)


METADATA = SQLModel.metadata

TASK, TAG, SUBMISSION, REMOVED, ACCOUNT, EVENT, EVENT_LOG, RESULT, JOB, HOOK, ATTEMPT, API_TOKEN, AUDIT = (
    METADATA.tables[name]
    for name in (
        "task",
        "tag",
        "submission",
        "removed",
        "account",
        "event",
        "event_log",
        "result",
        "job",
        "hook",
        "delivery_attempt",
        "api_token",
        "audit_entry",
    )
)
