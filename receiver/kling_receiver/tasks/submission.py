"""Submissions: tasks whose creates the receiver sends. They are registered durably and answered at once."""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection

from kling_callback.errors import ParameterError
from kling_callback.jobs.body import chosen_id, model_of, options_of
from kling_callback.jobs.untyped import prepare
from kling_callback.protocol.families import is_new_standard
from kling_callback.protocol.ids import new_id
from kling_callback.protocol.redact import ADDRESSING, digest, redacted
from kling_callback.protocol.values import MAX_ID_CHARS, sanitize
from kling_receiver.jobs.kinds import create_key
from kling_receiver.policy import SlotLimits
from kling_receiver.store.rows import SubmissionRow, TaskRow
from kling_receiver.store.sql import Statement
from kling_receiver.store.tables import SENT_HERE
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import registration as task_registration
from kling_receiver.tasks import slots, transitions
from kling_receiver.tasks.registration import Registration

MAX_QUEUED = 10_000
"""Submissions that wait or are being sent."""
MAX_QUEUED_BYTES = 1_000_000_000
"""Bytes of the bodies of these submissions."""
MAX_KEY_CHARS = 256
"""Characters of an Idempotency-Key."""
CANCELLED = "Cancelled before it was sent."

COUNT = Statement("SELECT count(*) AS number, coalesce(sum(size), 0) AS bytes FROM submission")
INSERT = Statement("""
    INSERT INTO submission (task_id, state, rank, model, slots, body, size, attempt, created_at)
    VALUES (:task_id, 'queued', :rank, :model, :slots, :body, :size, '', :now)
""")
SELECT = Statement[SubmissionRow](
    """
    SELECT id, task_id, state, rank, model, slots, size, attempt, created_at FROM submission WHERE task_id = :task_id
    """,
    lock="FOR UPDATE",
)
"""A submission without its body, which may be large."""
SELECT_BODY = Statement("SELECT id, body FROM submission WHERE task_id = :task_id")
SENT_BY = Statement(f"""
    SELECT id FROM task WHERE create_token = :create_token AND substr(create_token, 1, 9) = '{SENT_HERE}' LIMIT 1
""")  # a constant; its index has this condition
"""The task of an earlier submission with the same Idempotency-Key, whatever its id is."""
DELETE = Statement("DELETE FROM submission WHERE task_id = :task_id")


@dataclass(frozen=True, slots=True)
class Submission:
    """A create to send. `registration`: its task; `content`: the body as JSON, without our id and callback address.

    `external_id`: the caller's id of the task, by which it is found, if it cannot be `task_id`.
    `is_repeatable`: whether a repeat of the request is known as one, by an id or an Idempotency-Key.
    """

    task_id: str
    registration: Registration
    content: bytes
    slots: int
    priority: int = 0
    external_id: str = ""
    is_repeatable: bool = False


@dataclass(frozen=True, slots=True)
class SubmissionResult:
    """`created`: whether the task is new, or was opened again; if not, it was submitted before, and nothing is sent.

    `conflict`: why it was refused, because the id belongs to another task; `full`: because too much is queued.
    `task_id`: of the task that was submitted before with the same Idempotency-Key, if it has another id.
    """

    created: bool = False
    conflict: str | None = None
    full: str | None = None
    task_id: str | None = None


def derived_id(text: str) -> str:
    """The task's id that belongs to a text of the caller's, such as an Idempotency-Key: the same for the same text."""
    return f"k-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:40]}"


def build(
    family: str,
    body: Any,
    *,
    limits: SlotLimits,
    task_id: str | None = None,
    external_id: str = "",
    external_task_id: str | None = None,
    idempotency_key: str = "",
    priority: int = 0,
    tags: Sequence[str] = (),
    hook: str = "",
    hook_events: Sequence[str] = (),
    hook_format: Literal["event", "kling"] = "event",
) -> Submission:
    """Check the parameters of a create as the client does, and make its submission. Blocks for large bodies.

    `body`: Kling's, without a callback_url (`jobs.body.without_callback`). No file is read.
    `task_id`: our id; None: the `external_task_id`, given or in the body, else one derived from the
    `idempotency_key`, else a new one. Raises ParameterError with all problems.
    """
    problems: list[str] = []
    prepared: dict[str, Any] = {}
    try:
        task_id = task_id or chosen_id(family, body, external_task_id)
    except ParameterError as error:
        problems += error.problems
    try:
        prepared = prepare(family, body, local_files=False)
    except ParameterError as error:
        problems += error.problems
    model = sanitize(model_of(family, prepared), MAX_ID_CHARS)  # Kling gets it as it is, and says what is wrong
    needed = slots.slots_of(family, prepared)
    if problem := limits.problem(model, needed):
        problems.append(f"{'n' if needed > 1 else 'model'}: {problem} Ask for fewer images at once.")
    if problems:
        raise ParameterError(problems)
    is_repeatable = task_id is not None or bool(idempotency_key)
    if task_id is None:
        task_id = derived_id(idempotency_key) if idempotency_key else new_id()
    nonce = hashlib.sha256(idempotency_key.encode("utf-8", "replace")).hexdigest() if idempotency_key else ""
    registration = Registration.model_construct(
        family=family,
        model=model,
        request=redacted(prepared),
        request_sha256=digest(prepared),
        tags=tuple(tags),
        create_token=f"{SENT_HERE}{nonce or secrets.token_hex(16)}",
        hook=hook,
        hook_events=list(hook_events),
        hook_format=hook_format,
    )
    content = json.dumps(_without_address(family, prepared), separators=(",", ":")).encode()
    return Submission(task_id, registration, content, needed, priority, external_id, is_repeatable)


def _without_address(family: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without the fields that are set when it is sent."""
    if not is_new_standard(family):
        return {name: value for name, value in body.items() if name not in ADDRESSING}
    options = {name: value for name, value in options_of(family, body).items() if name not in ADDRESSING}
    rest = {name: value for name, value in body.items() if name != "options"}
    return {**rest, "options": options} if options else rest


def submit(tx: Transaction, task_id: str, submission: Submission) -> SubmissionResult:
    """Register a task under our id, usually `submission.task_id`, and queue its create.

    A repeat is recognized by the id, or by the Idempotency-Key, and changes nothing. A task that Kling certainly did
    not accept is opened again, but not by a repeat with the same Idempotency-Key.
    """
    registration = submission.registration
    task = tx.task(task_id)
    if task and task["create_token"] == registration.create_token:
        return SubmissionResult(conflict=task_registration.conflict_with(task, registration))
    if earlier := SENT_BY.scalar(tx.connection, create_token=registration.create_token):
        conflict = task_registration.conflict_with(tx.require_task(earlier), registration)
        return SubmissionResult(conflict=conflict, task_id=earlier)
    opens = task is None or task_registration.may_reopen(task)
    if opens and (full := why_full(tx.connection, len(submission.content))):
        return SubmissionResult(full=full)
    result = task_registration.register(tx, task_id, registration)
    if result.conflict or not result.may_create:
        return SubmissionResult(conflict=result.conflict)
    if submission.external_id:
        transitions.set_external_id(tx, tx.require_task(task_id), submission.external_id)
    tx.flush_new_tasks()
    INSERT.execute(
        tx.connection,
        task_id=task_id,
        rank=-submission.priority,
        model=registration.model,
        slots=submission.slots,
        body=submission.content,
        size=len(submission.content),
        now=tx.now,
    )
    slots.queued(tx, task_id)
    return SubmissionResult(created=True)


def why_full(connection: Connection, size: int = 0) -> str | None:
    """Why no more may be queued now; None if there is room. `size`: bytes of the next body."""
    row = COUNT.first(connection)
    assert row is not None
    if row["number"] >= MAX_QUEUED:
        return f"{row['number']} tasks wait already, at most {MAX_QUEUED:,}."
    if row["bytes"] + size > MAX_QUEUED_BYTES and row["number"]:
        return f"The parameters of the waiting tasks have {row['bytes']:,} bytes, at most {MAX_QUEUED_BYTES:,}."
    return None


def cancel(tx: Transaction, task_id: str, reason: str = CANCELLED) -> Literal["cancelled", "sent", "ended", "removed"]:
    """End a task that waits in the queue: its create is never sent.

    `sent`: it was sent, or is being sent; `ended`: it has ended otherwise; `removed`: it is not here any more.
    """
    task = tx.task(task_id)
    if task is None:
        return "removed"
    submission = SELECT.first(tx.connection, task_id=task_id)
    if submission is None or submission["state"] == "sending" or is_known(task):
        was_cancelled = task["origin"] == "local" and task["status_msg"] == CANCELLED
        return "cancelled" if was_cancelled else "sent" if task["origin"] is None else "ended"
    drop(tx, submission)
    tx.cancel_job(create_key(task_id))
    tx.update_task(task, outcome="not_created")
    transitions.fail_locally(tx, task, reason)
    return "cancelled"


def waits(tx: Transaction, task: TaskRow) -> bool:
    """Whether a task's create is still to be sent: its deadline begins with that."""
    if task["outcome"] != "pending" or not slots.is_sent_here(task):
        return False
    row = SELECT.first(tx.connection, task_id=task["id"])
    return row is not None and row["state"] != "sending"


def is_known(task: TaskRow) -> bool:
    """Whether anything shows that Kling knows a task already: its create must not be sent."""
    not_sent = task["outcome"] == "pending" and task["status"] == "created" and not task["kling_id"]
    return not not_sent or task["callback_count"] > 0


def drop(tx: Transaction, submission: SubmissionRow) -> None:
    """Remove a submission with its body. A slot that it had been given becomes free."""
    DELETE.execute(tx.connection, task_id=submission["task_id"])
    if submission["state"] == "claimed":
        slots.freed(tx)
