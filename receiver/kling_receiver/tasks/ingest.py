"""Proven callbacks are taken in: each kept or counted, and what it says applied. None is refused here."""

from dataclasses import dataclass

from kling_callback.protocol.reports import Report
from kling_receiver.jobs import enqueue
from kling_receiver.states import FINAL, move
from kling_receiver.store.sql import Row, Sql
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import transitions

KEPT_EVENTS = 200
KEPT_BYTES = 1_000_000
"""Callbacks of one task that are kept; past either they are only counted. A body has 1 MB at most."""

GRACE_MS = 2_000
"""For how long a question waits for the create's answer: it may name the id that Kling is to be asked by."""

CALM_MS = 60_000
"""For how long a question waits that a task's uncounted callbacks give cause to."""

SEEN = Sql("SELECT task, digest FROM event WHERE digest IS NOT NULL AND (task, digest) IN :pairs")
ANOTHERS = Sql("SELECT id FROM task WHERE (id = :external_id OR task_id = :task_id) AND id <> :id LIMIT 1")


@dataclass(frozen=True, slots=True)
class Callback:
    """A proven callback. `body` is what is kept of it; `trouble` says why it could not be read as it should."""

    task: str
    family: str
    digest: str
    body: bytes
    size: int
    report: Report | None
    signed: bool = False
    trouble: str | None = None


def record(tx: Transaction, callbacks: list[Callback]) -> None:
    """Take in proven callbacks, in the order in which they arrived."""
    families = {callback.task: callback.family for callback in callbacks}
    tx.load(families)
    new = [{"id": task, "family": families[task]} for task in sorted(families.keys() - tx.tasks.keys())]
    tx.create(new)
    for row in new:
        tx.log(row["id"], "task.created", {"by": "callback"})
        enqueue.watch(tx, row["id"], row["family"])
    seen = _seen(tx, callbacks)
    for callback in callbacks:
        task = tx.tasks[callback.task]
        tx.change(task, callbacks=task["callbacks"] + 1)
        if (callback.task, callback.digest) in seen:
            tx.repeat(callback.task, callback.digest)
            _hear_again(tx, task, callback)
            continue
        if kept := _room(task):
            seen.add((callback.task, callback.digest))
            _keep(tx, task, callback)
        _apply(tx, task, callback, kept)


def _hear_again(tx: Transaction, task: Row, callback: Callback) -> None:
    """A repeat says nothing new, unless Kling signed what was not (rightly) signed before."""
    report = callback.report
    if not (report and report.status and callback.signed):
        return
    if move(task["status"], task["origin"], report.status, "kling") == "applied":
        _apply(tx, task, callback, kept=True)


def _seen(tx: Transaction, callbacks: list[Callback]) -> set[tuple[str, str]]:
    pairs = {(each.task, each.digest) for each in callbacks if tx.tasks[each.task]["kept"]}
    if not pairs:
        return set()
    return {(row["task"], row["digest"]) for row in SEEN.all(tx.connection, pairs=sorted(pairs))}


def _room(task: Row) -> bool:
    return bool(task["kept"] < KEPT_EVENTS and task["kept_bytes"] < KEPT_BYTES)


def _keep(tx: Transaction, task: Row, callback: Callback) -> None:
    tx.change(task, kept=task["kept"] + 1, kept_bytes=task["kept_bytes"] + len(callback.body))
    report = callback.report
    said = {
        "status": report.status if report else None,
        "signed": callback.signed,
        "size": callback.size,
        **({"trouble": callback.trouble} if callback.trouble else {}),
    }
    tx.log(task["id"], "callback.received", said, digest=callback.digest, body=callback.body)


def _apply(tx: Transaction, task: Row, callback: Callback, kept: bool) -> None:
    report = callback.report
    if report and report.task_id and report.external_id != task["id"]:
        tx.change(task, callback_id=report.task_id)
    if report and report.status and callback.signed and not _is_anothers(tx, task, report):
        transitions.believe(tx, task, report, noted=kept)
        if report.status == "succeed" and not report.outputs:
            enqueue.ask(tx, task["id"])
    elif report and report.status and not report.final:
        _advance(tx, task, report, kept)
    else:
        _take_hint(tx, task, report, kept)


def _is_anothers(tx: Transaction, task: Row, report: Report) -> bool:
    """Whether a record that Kling signed is of another task: then it was not Kling who sent it here."""
    if report.external_id == task["id"]:
        return False
    if report.external_id and task["outcome"] != "none":
        return True  # our create named our id
    if task["task_id"] and report.task_id:
        return bool(report.task_id != task["task_id"])
    named = {"external_id": report.external_id or "", "task_id": report.task_id or ""}
    return ANOTHERS.value(tx.connection, id=task["id"], **named) is not None


def _advance(tx: Transaction, task: Row, report: Report, kept: bool) -> None:
    """`submitted` and `processing` are taken from any proven callback."""
    moved = move(task["status"], task["origin"], str(report.status), "callback")
    if moved == "applied":
        transitions.move_to(tx, task, report, "callback")
    elif task["status"] in FINAL and task["origin"] != "kling":
        _take_hint(tx, task, None, kept)  # it lives, although we thought it had ended
    elif moved == "late" and kept:
        transitions.ignore(tx, task, report, "late")


def _take_hint(tx: Transaction, task: Row, report: Report | None, kept: bool) -> None:
    """Something happened that only Kling can tell us of: ask, unless its final word is known."""
    if task["status"] in FINAL and task["origin"] == "kling":
        if kept and report and report.status != task["status"]:
            transitions.ignore(tx, task, report, "contradictory")
        return
    if report:
        tx.change(task, hint=report.status, hint_msg=report.message)
    if kept:  # what is only counted hastens nothing
        tx.change(task, hints=task["hints"] + 1)
    is_answered = task["outcome"] != "pending" or task["task_id"]
    wait = (0 if is_answered else GRACE_MS) if kept else CALM_MS
    enqueue.ask(tx, task["id"], tx.now + wait)
