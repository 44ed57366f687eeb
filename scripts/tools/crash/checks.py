"""Check the README's promises after a crash, by their numbers: in database, files, sandbox and hook."""

import hashlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from kling_receiver.jobs.kinds import ask_key, delivery_key, dispatch_key, download_key, overdue_key
from kling_receiver.results.owner import RECORD
from kling_receiver.states import FINAL
from tools.crash.history import Event, contradictions, omissions
from tools.crash.scenario import Stage
from tools.harness.submitting import register

Row = dict[str, Any]

REPAIRED = "lacked a job"
"""In the receiver's log: a start found work without a job (`tasks/startup.py`)."""


@dataclass(frozen=True)
class Rows:
    """The rows of one moment."""

    tasks: list[Row]
    events: list[Row]
    results: list[Row]
    jobs: list[Row]
    hooks: list[Row]


def read_rows(stage: Stage) -> Rows:
    """The rows of the receiver's database, in one read transaction."""
    events = "SELECT id, task_id, type, body_sha256 FROM event"
    queries = ("SELECT * FROM task", events, "SELECT * FROM result", "SELECT * FROM job", "SELECT * FROM hook")
    with stage.open_database() as database, database.read() as connection:
        return Rows(*[_select(connection, query) for query in queries])


def _select(connection: Connection, query: str) -> list[Row]:
    return [dict(row) for row in connection.execute(text(query)).mappings()]


def unscheduled(stage: Stage) -> list[str]:
    """Open work without a job (promise 7), which no worker would ever do."""
    rows = read_rows(stage)
    keys = {job["unique_key"] for job in rows.jobs if job["state"] != "dead"}
    open_tasks = [task for task in rows.tasks if task["status"] not in FINAL]
    expected = {overdue_key(task["id"]) for task in open_tasks}
    expected |= {ask_key(task["id"]) for task in open_tasks if task["hint"]}
    expected |= {download_key(row["task_id"], row["position"]) for row in rows.results if row["status"] == "pending"}
    for hook in rows.hooks:
        types = stage.wanted[hook["name"]]
        # Read after the jobs: an event whose job is gone was delivered before.
        delivered = stage.hook.received(hook["name"])
        wanted = [event["id"] for event in rows.events if types is None or event["type"] in types]
        undelivered = [event_id for event_id in wanted if event_id not in delivered]
        behind = any(event_id > hook["cursor"] for event_id in undelivered)
        expected |= {dispatch_key(hook["name"])} if behind else set()
        expected |= {delivery_key(event_id, hook["name"]) for event_id in undelivered if event_id <= hook["cursor"]}
    return [f"7: no job {key}" for key in sorted(expected - keys)]


def broken_promises(stage: Stage) -> list[str]:
    """Every broken promise at the end of a run, when all work should be done; empty if there is none."""
    rows = read_rows(stage)
    log = log_of(rows)
    record_callbacks(stage)
    return [
        *contradictions(stage.history, log),
        *omissions(stage.history, log, stage.wanted),
        *["5: bad signature"] * stage.hook.forged,
        *_missing_files(stage, rows),
        *[f"7: {line}" for line in stage.receiver.log_text().splitlines() if REPAIRED in line],
        *[f"7: job left: {job['unique_key']} {job['error']}" for job in rows.jobs if job["kind"] != "dispatch"],
    ]


def log_of(rows: Rows) -> list[Event]:
    """The event log."""
    return [Event(event["id"], event["task_id"], event["type"], event["body_sha256"]) for event in rows.events]


def record_callbacks(stage: Stage) -> None:
    """Take what the sandbox was told into the history: the callbacks that were answered 200, and its creates."""
    for callback in stage.gateway.callbacks:
        if callback.answered == 200:
            stage.history.acknowledge(stage.gateway.tasks[callback.task_id].external_id or "", callback.body)
    stage.history.created += [body["external_task_id"] for body in stage.gateway.creates]


def _missing_files(stage: Stage, rows: Rows) -> list[str]:
    ends = {task["id"]: (task["status"], task["origin"], bool(task["done"])) for task in rows.tasks}
    good = ("succeed", "kling", True)
    problems = [
        f"4: {job.task_id} ended {ends.get(job.task_id)}" for job in stage.jobs if ends.get(job.task_id) != good
    ]
    folder = stage.data / "results"
    files = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / RECORD
    }
    stored = {result["path"]: result["sha256"] for result in rows.results}
    problems += [f"4: not as stored: {path}" for path in files | stored if files.get(path) != stored.get(path)]
    expected = sum(job.body.get("n", 1) for job in stage.jobs)
    return problems + [f"4: {len(stored)} files of {expected}"] * (len(stored) != expected)


def may_be_created_twice(stage: Stage) -> list[str]:
    """Tasks that the receiver would let a second create call send (promise 6); the receiver must be running."""
    answers = {job.task_id: register(stage.receiver, job.task_id, job.family, attempt="another") for job in stage.jobs}
    return [f"6: may be created again: {task_id}" for task_id, answer in answers.items() if answer.json()["create"]]
