"""Every change to tasks, their events and results: the verbs of the trade, each inside a transaction.

Whom to believe: a proven callback moves a task to `submitted` or `processing`; its final status is a hint,
until Kling says so itself (in the answer to our question, or in a body that it signed).
"""

from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from sqlalchemy import or_, select, text, tuple_

from client.codec import Output, Report
from receiver.expiry import expires_at
from receiver.states import FINAL, Origin, move
from receiver.transaction import EVENT, TASK, Row, Transaction

KEPT_EVENTS = 200
KEPT_BYTES = 1_000_000
"""Callbacks of one task that are kept; past either they are only counted. A body has 1 MB at most."""

GRACE_MS = 2_000
"""For how long a question waits for the create's answer: it may name the id that Kling is to be asked by."""

CALM_MS = 60_000
"""For how long a question waits that a task's uncounted callbacks give cause to."""


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
        watch(tx, row["id"], row["family"])
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
    columns = EVENT.c.task, EVENT.c.digest
    rows = tx.connection.execute(
        select(*columns).where(EVENT.c.digest.is_not(None), tuple_(*columns).in_(sorted(pairs)))
    )
    return {(row.task, row.digest) for row in rows}


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
        believe(tx, task, report, noted=kept)
        if report.status == "succeed" and not report.outputs:
            ask(tx, task["id"])
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
    named = or_(TASK.c.id == (report.external_id or ""), TASK.c.task_id == (report.task_id or ""))
    return tx.connection.execute(select(TASK.c.id).where(named, TASK.c.id != task["id"])).first() is not None


def _advance(tx: Transaction, task: Row, report: Report, kept: bool) -> None:
    """`submitted` and `processing` are taken from any proven callback."""
    moved = move(task["status"], task["origin"], str(report.status), "callback")
    if moved == "applied":
        _move(tx, task, report, "callback")
    elif task["status"] in FINAL and task["origin"] != "kling":
        _take_hint(tx, task, None, kept)  # it lives, although we thought it had ended
    elif moved == "late" and kept:
        _ignore(tx, task, report, "late")


def _take_hint(tx: Transaction, task: Row, report: Report | None, kept: bool) -> None:
    """Something happened that only Kling can tell us of: ask, unless its final word is known."""
    if task["status"] in FINAL and task["origin"] == "kling":
        if kept and report and report.status != task["status"]:
            _ignore(tx, task, report, "contradictory")
        return
    if report:
        tx.change(task, hint=report.status, hint_msg=report.message)
    if kept:  # what is only counted hastens nothing
        tx.change(task, hints=task["hints"] + 1)
    wait = (GRACE_MS if task["outcome"] == "pending" else 0) if kept else CALM_MS
    ask(tx, task["id"], tx.now + wait)


def ask(tx: Transaction, task: str, due_at: int | None = None) -> None:
    """Owe Kling a question about a task."""
    tx.owe("ask", task, key=f"ask/{task}", lane="kling", due_at=due_at)


def believe(tx: Transaction, task: Row, report: Report, *, noted: bool = True) -> None:
    """Take Kling's own word, and owe the download of the files that it names.

    `noted`: False for what is only counted, so that no event says that it was ignored.
    """
    moved = move(task["status"], task["origin"], str(report.status), "kling")
    if moved in ("late", "contradictory"):
        if noted:
            _ignore(tx, task, report, moved)
        return
    if report.cost is not None:
        tx.change(task, cost=report.cost)
    if moved == "applied":
        _move(tx, task, report, "kling")
    if report.status == "failed":
        finish(tx, task)
    elif report.status == "succeed":
        _expect(tx, task, report.outputs)


def _move(tx: Transaction, task: Row, report: Report, by: Origin) -> None:
    final = report.final
    revived = task["status"] in FINAL and not final
    tx.change(
        task,
        status=report.status,
        status_msg=report.message,
        origin=by if final else None,
        done=False,
    )
    if final:
        tx.forget(f"overdue/{task['id']}")
    if revived:
        watch(tx, task["id"], task["family"])
        if task["hint"]:
            ask(tx, task["id"])
    tx.log(task["id"], f"task.{report.status}", {"by": by, "message": report.message})


def _ignore(tx: Transaction, task: Row, report: Report, reason: str) -> None:
    said = {"reason": reason, "status": report.status, "stands": task["status"]}
    tx.log(task["id"], "callback.ignored", said)


EXPECT = text("""
    INSERT INTO result (task, n, kind, kling_id, duration, status, source_url, expires_at, error)
    VALUES (:task, :n, :kind, :kling_id, :duration, 'pending', :source_url, :expires_at, '')
    ON CONFLICT (task, n) DO UPDATE SET
        kind = excluded.kind, kling_id = excluded.kling_id, duration = excluded.duration, status = 'pending',
        source_url = excluded.source_url, expires_at = excluded.expires_at, error = ''
    WHERE result.status <> 'stored'
""")
COUNT_RESULTS = text("SELECT count(*) FROM result WHERE task = :task AND status = :status")
PENDING = text("SELECT n, source_url FROM result WHERE task = :task AND status = 'pending' ORDER BY n")
HAS_RESULTS = text("SELECT count(*) FROM result WHERE task = :task AND source_url <> ''")


def _expect(tx: Transaction, task: Row, outputs: tuple[Output, ...]) -> None:
    """Owe the download of each file, once."""
    if outputs and not tx.connection.execute(HAS_RESULTS, {"task": task["id"]}).scalar():
        renew(tx, task, outputs)


def renew(tx: Transaction, task: Row, outputs: tuple[Output, ...]) -> None:
    """Owe the download of each file that is not stored, from where Kling says that it lies now."""
    rows = [
        {
            "task": task["id"],
            "n": n,
            "kind": output.kind,
            "kling_id": output.id,
            "duration": output.duration,
            "source_url": output.url,
            "expires_at": expires_at(output.url, tx.now),
        }
        for n, output in enumerate(outputs)
    ]
    tx.insert()
    tx.connection.execute(EXPECT, rows)
    for row in tx.connection.execute(PENDING, {"task": task["id"]}):
        tx.change(task, done=False)
        download(tx, task["id"], row.n, row.source_url)


def download(tx: Transaction, task: str, n: int, url: str) -> None:
    """Owe the download of one file; files of one host wait for each other, not for other hosts."""
    tx.owe("download", task, key=f"download/{task}/{n}", lane=f"download {_host(url)}", data={"n": n})


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2][:200].lower()
    except ValueError:
        return ""


STORE = text("""
    UPDATE result SET status = 'stored', content_type = :content_type, size = :size, sha256 = :sha256,
        name = :name, error = ''
    WHERE task = :task AND n = :n AND status <> 'stored'
""")
LOSE = text("""
    UPDATE result SET status = 'failed', sha256 = NULL, error = :error WHERE task = :task AND n = :n
""")
FAIL = text(
    "UPDATE result SET status = 'failed', error = :error WHERE task = :task AND n = :n AND status = 'pending'"
)
ADD_FAILED = text("""
    INSERT INTO result (task, n, kind, status, source_url, error)
    VALUES (:task, 0, 'file', 'failed', '', :error)
    ON CONFLICT (task, n) DO NOTHING
""")


@dataclass(frozen=True, slots=True)
class Stored:
    """A file that lies in the storage, whole: `size` in bytes."""

    name: str
    content_type: str
    size: int
    sha256: str


def store_result(tx: Transaction, task: Row, n: int, stored: Stored) -> None:
    """A file is on disk: say so."""
    values = {
        "name": stored.name,
        "content_type": stored.content_type,
        "size": stored.size,
        "sha256": stored.sha256,
    }
    if tx.connection.execute(STORE, {**values, "task": task["id"], "n": n}).rowcount:
        tx.log(task["id"], "result.stored", {"index": n, **values})
        finish(tx, task)


def fail_result(tx: Transaction, task: Row, n: int, reason: str) -> None:
    """A file cannot be had: say so, loudly."""
    if tx.connection.execute(FAIL, {"task": task["id"], "n": n, "error": reason}).rowcount:
        tx.log(task["id"], "result.failed", {"index": n, "reason": reason})
    finish(tx, task)


def lose_result(tx: Transaction, task: Row, n: int, reason: str) -> None:
    """A file that was stored is no longer there: say so, until it is fetched again."""
    tx.connection.execute(LOSE, {"task": task["id"], "n": n, "error": reason})
    tx.log(task["id"], "result.failed", {"index": n, "reason": reason})


def lack_files(tx: Transaction, task: Row, reason: str) -> None:
    """A success of which nobody names the files, unless somebody has: say so, as loudly."""
    tx.insert()
    if tx.connection.execute(ADD_FAILED, {"task": task["id"], "error": reason}).rowcount:
        tx.log(task["id"], "result.failed", {"index": 0, "reason": reason})
    finish(tx, task)


def finish(tx: Transaction, task: Row) -> None:
    """Call a task done when its end is believed and no file is owed any more."""
    pending = tx.connection.execute(COUNT_RESULTS, {"task": task["id"], "status": "pending"}).scalar()
    if not task["done"] and task["status"] in FINAL and not pending:
        tx.change(task, done=True, hint=None)
        tx.log(task["id"], "task.done", {"status": task["status"], "origin": task["origin"]})


def stand(tx: Transaction, task: Row) -> None:
    """Kling could not be asked: the callback's status stands, and what it named is not to be trusted."""
    if task["hint"] and task["status"] not in FINAL:
        _move(tx, task, Report(task["hint"], message=task["hint_msg"]), "callback")
    if task["status"] == "succeed":
        lack_files(tx, task, "Kling could not be asked, and addresses are taken from nobody else.")
    elif task["status"] == "failed":
        finish(tx, task)


def drop_hint(tx: Transaction, task: Row, said: str) -> None:
    """Kling, asked again and again, says otherwise than the callback: Kling is believed."""
    if task["hint"]:
        _ignore(tx, task, Report(task["hint"]), f"Kling says {said}")
        tx.change(task, hint=None, hint_msg="")


def end_locally(tx: Transaction, task: Row, reason: str) -> None:
    """End a task by our own judgement; Kling's word, whenever it comes, goes before it."""
    if task["status"] not in FINAL:
        _move(tx, task, Report("failed", message=reason), "local")
        finish(tx, task)


@dataclass(frozen=True, slots=True)
class Registration:
    """What a client says of a task. `outcome` None: a create is about to be sent; else how it ended."""

    id: str
    family: str
    attempt: str = ""
    model: str = ""
    request: Any = None
    tags: tuple[str, ...] = ()
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
    if given.outcome:
        _note_outcome(tx, task, given)
        return Registered(new)
    if task["outcome"] == "not_created" and task["origin"] == "local" and not task["callbacks"]:
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
    watch(tx, given.id, given.family)
    return task


def _reopen(tx: Transaction, task: Row, attempt: str) -> None:
    """A create that was not taken is tried again, by another attempt: our own word that it failed is void."""
    tx.change(
        task, outcome="pending", attempt=attempt, status="created", status_msg="", origin=None, done=False
    )
    tx.log(task["id"], "task.created", {"by": "client"})
    watch(tx, task["id"], task["family"])


def _fill(tx: Transaction, task: Row, given: Registration) -> None:
    gaps = {"model": given.model, "request": given.request}
    if filled := {name: value for name, value in gaps.items() if value and not task[name]}:
        tx.change(task, **filled)
    _tag(tx, given)


TAG = text("INSERT INTO tag (tag, task) VALUES (:tag, :task) ON CONFLICT DO NOTHING")


def _tag(tx: Transaction, given: Registration) -> None:
    if given.tags:
        tx.insert()
        tx.connection.execute(TAG, [{"tag": tag, "task": given.id} for tag in sorted(set(given.tags))])


def watch(tx: Transaction, task: str, family: str) -> None:
    """Owe a look at the task at its deadline, should it not have ended by then."""
    due = tx.now + tx.rules.overdue_ms(family)
    tx.owe("overdue", task, key=f"overdue/{task}", lane="overdue", due_at=due)


def _note_outcome(tx: Transaction, task: Row, given: Registration) -> None:
    if given.outcome == "created":
        note_created(tx, task, given.task_id)
    elif task["status"] != "created" or task["callbacks"] or given.attempt not in ("", task["attempt"]):
        return  # Kling has shown that it knows the task, or another attempt has the word
    elif given.outcome == "not_created":
        tx.change(task, outcome="not_created")
        end_locally(tx, task, given.reason or "The create was not taken.")
    elif task["outcome"] == "pending":
        tx.change(task, outcome="unknown")


def note_created(tx: Transaction, task: Row, task_id: str | None) -> None:
    """Kling took the create: learn its id, and let a question that waited for it go."""
    first = task["outcome"] != "created"
    tx.change(task, outcome="created", task_id=task["task_id"] or task_id)
    if first and task["origin"] == "callback":
        ask(tx, task["id"])  # now by an id that Kling knows
    elif first and move(task["status"], task["origin"], "submitted", "kling") == "applied":
        _move(tx, task, Report("submitted"), "kling")
    tx.hasten(f"ask/{task['id']}")
