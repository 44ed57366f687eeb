"""The promises, as questions to what is left after a crash: the database, the files, the gateway, the hook."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from kling_receiver.states import RANK
from tools.crash.script import Stage
from tools.harness.submitting import register

Row = dict[str, Any]

RANKS = {f"task.{status}": rank for status, rank in RANK.items()}


@dataclass(frozen=True)
class Kept:
    """The rows, all of one moment."""

    tasks: list[Row]
    events: list[Row]
    results: list[Row]
    jobs: list[Row]
    hooks: list[Row]


def kept(stage: Stage, events: str = "SELECT id, task_id, type, body_sha256 FROM event") -> Kept:
    """What the database holds now."""
    queries = ("SELECT * FROM task", events, "SELECT * FROM result", "SELECT * FROM job", "SELECT * FROM hook")
    with stage.opened() as database, database.read() as connection:
        return Kept(*[_rows(connection, query) for query in queries])


def _rows(connection: Connection, query: str) -> list[Row]:
    return [dict(row) for row in connection.execute(text(query)).mappings()]


def unscheduled(stage: Stage) -> list[str]:
    """What is open and has no job (promise 7): nobody would ever do it."""
    rows = kept(stage, "SELECT id FROM event")
    taken = set(stage.hook.taken)  # read later than the jobs: one that is gone was taken before
    keys = {job["key"] for job in rows.jobs if job["state"] != "dead"}
    open_tasks = [task for task in rows.tasks if task["status"] not in ("succeed", "failed")]
    owed = {f"overdue/{task['id']}" for task in open_tasks}
    owed |= {f"ask/{task['id']}" for task in open_tasks if task["hint"]}
    owed |= {f"download/{each['task']}/{each['n']}" for each in rows.results if each["status"] == "pending"}
    untaken = [event["id"] for event in rows.events if event["id"] not in taken]
    for hook in rows.hooks:
        behind = any(event > hook["cursor"] for event in untaken)
        owed |= {f"dispatch/{hook['name']}"} if behind else set()
        owed |= {f"hook/{event}/{hook['name']}" for event in untaken if event <= hook["cursor"]}
    return [f"7: nobody owes {key}" for key in sorted(owed - keys)]


def broken(stage: Stage) -> list[str]:
    """Every promise that is broken, now that all should be done; empty when none is."""
    rows = kept(stage)
    return [
        *_unheard(stage, rows),
        *_repeated(rows),
        *_backward(rows),
        *_fileless(stage, rows),
        *_undelivered(stage, rows),
        *_paid_twice(stage),
        *[f"7: {line}" for line in stage.receiver.said().splitlines() if "that was not owed" in line],
        *[f"7: still owed: {job['key']} {job['error']}" for job in rows.jobs if job["kind"] != "dispatch"],
    ]


def _unheard(stage: Stage, rows: Kept) -> list[str]:
    log = {(event["task"], event["digest"]) for event in rows.events}
    answered = {
        (stage.gateway.tasks[each.task_id].external_id, hashlib.sha256(each.body).hexdigest())
        for each in stage.gateway.callbacks
        if each.answered == 200
    }
    return [f"1: answered 200, and not in the log: {task} {digest}" for task, digest in answered - log]


def _repeated(rows: Kept) -> list[str]:
    times = Counter((event["task"], event["digest"]) for event in rows.events if event["digest"])
    return [f"2: in the log {count} times: {task}" for (task, _), count in times.items() if count > 1]


def _backward(rows: Kept) -> list[str]:
    ranks = defaultdict(list)
    for event in sorted(rows.events, key=lambda event: int(event["id"])):
        if event["type"] in RANKS:
            ranks[event["task"]].append(RANKS[event["type"]])
    return [f"3: went back: {task} {went}" for task, went in ranks.items() if went != sorted(set(went))]


def _fileless(stage: Stage, rows: Kept) -> list[str]:
    ended = {task["id"]: (task["status"], task["origin"], bool(task["done"])) for task in rows.tasks}
    good = ("succeed", "kling", True)
    wrong = [f"4: {job.id} ended {ended.get(job.id)}" for job in stage.jobs if ended.get(job.id) != good]
    results = stage.data / "results"
    files = {
        str(path.relative_to(results)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in results.rglob("*")
        if path.is_file()
    }
    said = {each["name"]: each["sha256"] for each in rows.results}
    wrong += [f"4: not as it was stored: {name}" for name in files | said if files.get(name) != said.get(name)]
    wanted = sum(job.body.get("n", 1) for job in stage.jobs)
    return wrong + [f"4: {len(said)} files of {wanted}"] * (len(said) != wanted)


def _undelivered(stage: Stage, rows: Kept) -> list[str]:
    missing = {event["id"] for event in rows.events} - set(stage.hook.taken)
    return [f"5: never delivered: event {event}" for event in missing] + ["5: forged"] * stage.hook.forged


def _paid_twice(stage: Stage) -> list[str]:
    times = Counter(body["external_task_id"] for body in stage.gateway.creates)
    return [f"6: created {count} times: {task}" for task, count in times.items() if count > 1]


def may_pay_twice(stage: Stage) -> list[str]:
    """Tasks whose create the receiver would let another attempt send (promise 6); it must run."""
    answers = {job.id: register(stage.receiver, job.id, job.family, attempt="another") for job in stage.jobs}
    return [f"6: may be created again: {task}" for task, answer in answers.items() if answer.json()["create"]]
