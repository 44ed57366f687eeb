"""What a client says of a create: one is about to be sent, and how it went. Fills gaps, never resets."""

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func, select

from kling_callback.protocol.reports import Report
from kling_receiver.hooks import records as hook_records
from kling_receiver.jobs import enqueue
from kling_receiver.states import move
from kling_receiver.store.sql import Row, Sql
from kling_receiver.store.transaction import EVENT, Transaction
from kling_receiver.tasks import transitions

MOST_TAGS = 100
"""Of one task, from however many registrations."""

MOST_TRIES = 100
"""Creates of one task that were not taken."""
TAG = Sql("""
    INSERT INTO tag (tag, task) SELECT :tag, :task
    WHERE (SELECT count(*) FROM tag WHERE task = :task) < :most ON CONFLICT DO NOTHING
""")


@dataclass(frozen=True, slots=True)
class Registration:
    """What a client says of a task. `outcome` None: a create is about to be sent; else how it ended."""

    id: str
    family: str
    attempt: str = ""
    model: str = ""
    request: Any = None
    tags: tuple[str, ...] = ()
    hook: str = ""
    outcome: Literal["created", "not_created", "unknown"] | None = None
    task_id: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Registered:
    """`conflict`: why the registration was refused. `create`: whether this attempt may send the create."""

    new: bool = False
    create: bool = False
    conflict: str | None = None


def register(tx: Transaction, given: Registration) -> Registered:
    """Make a task known before its create, and note after it how it went. Fills gaps, never resets."""
    task = tx.task(given.id)
    if task is None:
        task = _add(tx, given)
        new = True
    else:
        new = False
        if task["family"] != given.family:
            return Registered(
                conflict=f"Task {given.id} is of the family {task['family']}, not {given.family}."
            )
        _fill(tx, task, given)
    if given.hook:
        hook_records.add_for_task(tx, given.id, given.hook)
    if given.outcome:
        _note_outcome(tx, task, given)
        return Registered(new)
    if task["outcome"] == "not_created" and task["origin"] == "local" and not task["callbacks"]:
        if _is_worn_out(tx, task):
            return Registered(conflict=f"Task {given.id} was tried {MOST_TRIES} times.")
        _reopen(tx, task, given.attempt)
    return Registered(new, create=_may_create(task, given.attempt))


def _may_create(task: Row, attempt: str) -> bool:
    """Whether this attempt may send the create: nothing has shown yet that Kling knows the task."""
    unknown = task["outcome"] == "pending" and task["status"] == "created" and not task["callbacks"]
    return unknown and bool(attempt) and bool(task["attempt"] == attempt)


def _add(tx: Transaction, given: Registration) -> Row:
    tx.create(
        [
            {
                "id": given.id,
                "family": given.family,
                "model": given.model,
                "request": given.request,
                "outcome": "pending",
                "attempt": given.attempt,
            }
        ]
    )
    task = tx.tasks[given.id]
    tx.log(given.id, "task.created", {"by": "client"})
    _tag(tx, given)
    enqueue.watch(tx, given.id, given.family)
    return task


def _is_worn_out(tx: Transaction, task: Row) -> bool:
    """Whether there were so many attempts at its create that whoever makes them only makes events."""
    tries = select(func.count()).where(EVENT.c.task == task["id"], EVENT.c.type == "task.created")
    return bool(tx.connection.execute(tries).scalar_one() >= MOST_TRIES)


def _reopen(tx: Transaction, task: Row, attempt: str) -> None:
    """A create that was not taken is tried again, by another attempt: our own word that it failed is void."""
    tx.change(
        task, outcome="pending", attempt=attempt, status="created", status_msg="", origin=None, done=False
    )
    tx.log(task["id"], "task.created", {"by": "client"})
    enqueue.watch(tx, task["id"], task["family"])


def _fill(tx: Transaction, task: Row, given: Registration) -> None:
    gaps = {"model": given.model, "request": given.request}
    if filled := {name: value for name, value in gaps.items() if value and not task[name]}:
        tx.change(task, **filled)
    _tag(tx, given)


def _tag(tx: Transaction, given: Registration) -> None:
    if given.tags:
        tx.insert()
        rows = [{"tag": tag, "task": given.id, "most": MOST_TAGS} for tag in sorted(set(given.tags))]
        TAG.do_each(tx.connection, rows)


def _note_outcome(tx: Transaction, task: Row, given: Registration) -> None:
    if given.outcome == "created":
        _note_created(tx, task, given)
    elif given.attempt not in ("", task["attempt"]):
        return  # another attempt has the word
    elif given.outcome == "not_created" and task["status"] == "created" and not task["callbacks"]:
        tx.change(task, outcome="not_created")
        transitions.end_locally(tx, task, given.reason or "The create was not taken.")
    elif task["outcome"] == "pending":  # also when Kling has shown meanwhile that it knows the task
        tx.change(task, outcome="unknown")
        tx.hasten(f"ask/{task['id']}")


def _note_created(tx: Transaction, task: Row, given: Registration) -> None:
    """The create's own answer has Kling's id: it goes before one that a question brought, until it is said."""
    first = task["outcome"] != "created"
    named = first and given.attempt == task["attempt"]
    tx.change(task, outcome="created")
    if first or not task["task_id"]:
        learn_id(tx, task, given.task_id if named else task["task_id"] or given.task_id)


def learn_id(tx: Transaction, task: Row, task_id: str | None) -> None:
    """Kling knows the task, by this id of its own; let a question that waited for it go."""
    tx.change(task, task_id=task_id)
    if task["origin"] == "callback":
        enqueue.ask(tx, task["id"])  # now by an id that Kling knows
    elif move(task["status"], task["origin"], "submitted", "kling") == "applied":
        transitions.move_to(tx, task, Report("submitted"), "kling")
    tx.hasten(f"ask/{task['id']}")
