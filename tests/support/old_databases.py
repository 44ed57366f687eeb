"""Databases of earlier versions: filled at a revision of the schema, and what they must hold after the migration.

The names of both schemas are written here by hand: they are not taken from the migration that is tested.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import alembic.command
import alembic.config
from sqlalchemy import Connection, inspect, text

from kling_receiver.store.database import Database

Row = dict[str, Any]

STATES = ("ready", "running", "dead")
NEVER = 1 << 60
HOUR = 3_600_000
SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()

RENAMED: dict[str, dict[str, str]] = {
    "task": {
        "task_id": "kling_id",
        "attempt": "create_token",
        "hints": "hint_count",
        "callbacks": "callback_count",
        "kept": "kept_callbacks",
        "callback_id": "callback_kling_id",
    },
    "tag": {"task": "task_id"},
    "event": {"task": "task_id", "at": "created_at", "digest": "body_sha256", "repeats": "repeat_count"},
    "result": {"task": "task_id", "n": "position", "name": "path"},
    "job": {
        "task": "task_id",
        "hook": "hook_name",
        "key": "unique_key",
        "lane": "concurrency_key",
        "data": "args",
        "claim": "claim_id",
        "leased_until": "lease_expires_at",
    },
    "hook": {"task": "task_id", "lane": "concurrency_key", "schedule": "retry_schedule", "rate": "rate_limit"},
    "attempt": {
        "hook": "hook_name",
        "event": "event_id",
        "task": "task_id",
        "at": "attempted_at",
        "ms": "duration_ms",
        "taken": "delivered",
        "status": "response_status",
        "answer": "response_body",
    },
}
"""The columns of the first three revisions that have another name since revision 0004."""
ADDED: dict[str, Row] = {
    "task": {
        "outputs": "null",
        "request_id": None,
        "kling_created_at": None,
        "kling_updated_at": None,
        "external_task_id": None,
        "request_sha256": None,
        "duration_ms": None,
        "slots": 0,
        "keeps_our_id": False,
    },
    "result": {"warning": ""},
    "hook": {"format": "event"},
}
"""The columns of later revisions, and their values in old rows."""
SINCE: dict[str, dict[str, tuple[str, Any]]] = {
    "task": {
        "request_id": ("0005", "a request's id"),
        "kling_created_at": ("0005", 1_700_000_000_123),
        "external_task_id": ("0006", "a caller's id"),
        "request_sha256": ("0006", "cd" * 32),
        "duration_ms": ("0007", 4567),
        "outputs": ("0005", "null"),
        "kling_updated_at": ("0005", None),
        "slots": ("0010", 0),
        "keeps_our_id": ("0010", True),
    },
    "result": {"warning": ("0005", "a warning")},
    "hook": {"format": ("0010", "event")},
}
"""Those of them that an earlier revision has too: since when, and the values of its rows."""

ORDER = (
    *("task", "tag", "event", "result", "job", "hook", "attempt", "delivery_attempt"),
    *("api_token", "audit_entry", "submission"),
)
"""The tables of all revisions that have rows here: each after those that it refers to."""
NUMBERED = {"event", "job", "attempt", "delivery_attempt", "submission", "audit_entry"}
"""Those of them whose ids the database counts."""


def migrate_to(database: Database, revision: str) -> None:
    """Make the tables of a revision in an empty database."""
    with database.write() as connection:
        config = alembic.config.Config()
        config.set_main_option("script_location", "kling_receiver.store:migrations")
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, revision)


@dataclass
class OldDatabase:
    """The rows of an old database, and those that a migration must make of them.

    `kling_ids`: Kling's ids by our task ids; `files`, `hooks`: the addresses of result files and of hooks.
    """

    revision: str
    now: int
    kling_ids: Mapping[str, str] = field(default_factory=dict)
    files: str = "https://files.example"
    hooks: str = "https://hooks.example"
    old: dict[str, list[Row]] = field(default_factory=dict)
    new: dict[str, list[Row]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.has_hooks = self.revision >= "0003"
        for state in STATES:
            self._add_asked(state)
            self._add_overdue(state)
            self._add_swept(state)
            self._add_downloaded(state)
        self._add_events()
        if self.has_hooks:
            for state in STATES:
                self._add_hook(state)
                self._add_task_hook(state)
            self._add_paused_hook()
        else:
            for number, state in enumerate(STATES, 1):
                self._add_delivery_of_the_one_hook(number, state)
        if self.revision >= "0009":
            self._add_access()
        if self.revision >= "0010":
            self._add_submission()

    def _add(self, table: str, row: Row, **changes: Any) -> None:
        """Add an old row, and the new one, which has the same values but for its names and the `changes`."""
        names, new_table = RENAMED.get(table, {}), "delivery_attempt" if table == "attempt" else table
        renamed = {**{names.get(name, name): value for name, value in row.items()}, **changes}
        since = SINCE.get(new_table, {}).items()
        known = {column: value for column, (revision, value) in since if revision <= self.revision}
        table, row = (new_table, {**renamed, **known}) if self.revision >= "0004" else (table, row)
        self.old.setdefault(table, []).append(row)
        self.new.setdefault(new_table, []).append({**renamed, **ADDED.get(new_table, {}), **known})

    def _add_task(self, task: str, status: str, **columns: Any) -> None:
        row: Row = {
            "id": task,
            "task_id": self.kling_ids.get(task),
            "family": "images/generations",
            "model": "kling-v1-5",
            "request": json.dumps({"prompt": "a kangaroo \u00e9\0"}),
            "outcome": "created",
            "attempt": f"nonce of {task}",
            "status": status,
            "status_msg": "so far so good",
            "origin": None,
            "hint": None,
            "hint_msg": "",
            "hints": 2,
            "callback_id": f"callback id of {task}",
            "cost": '"3.5"',
            "done": False,
            "callbacks": 5,
            "kept": 3,
            "kept_bytes": 1234,
            "created_at": self.now - HOUR,
            "updated_at": self.now - 1000,
        }
        self._add("task", {**row, **columns})
        for tag in ("red", f"of {task}"):
            self._add("tag", {"tag": tag, "task": task})
            self.new["tag"][-1]["created_at"] = self.now - HOUR  # the task's

    def _add_job(self, key: str, kind: str, state: str, new: Row, **columns: Any) -> None:
        """Add a job. `new`: the columns that the migration adds or changes."""
        running = state == "running"
        row: Row = {
            "id": len(self.old.get("job", [])) + 1,
            "key": key,
            "kind": kind,
            "task": "",
            "lane": "kling",
            "data": "null",
            "state": state,
            "attempts": 0 if state == "ready" else 3,
            "due_at": self.now - 1000,
            "claim": f"claim of {key}" if running else None,
            "leased_until": self.now + HOUR if running else None,
            "error": "" if state == "ready" else "a reason",
            "created_at": self.now - 3000,
            **({"hook": None} if self.has_hooks else {}),
            **columns,
        }
        delay = row["due_at"] - row["created_at"] if row["due_at"] < NEVER else NEVER
        self._add("job", row, **{"hook_name": row.get("hook"), "delay_ms": max(delay, 0), **new})

    def _add_asked(self, state: str) -> None:
        """A task with a hint: its query is due, runs, or was given up."""
        task = f"ask-{state}"
        data = json.dumps({"unanswered": 1, "undecided": 2}, separators=(",", ":"))
        if state == "dead":
            self._add_task(task, "succeed", origin="callback", done=True)
            self._add_result(task, 0, "failed", error="Kling could not be asked.")
        else:
            self._add_task(task, "processing", hint="succeed", hint_msg="a hint")
        self._add_job(f"ask/{task}", "ask", state, {"pool": "kling"}, task=task, data=data)

    def _add_overdue(self, state: str) -> None:
        """An open task after its deadline: it was looked at twice, or (the one that is ready) not yet."""
        task, looks = f"overdue-{state}", state != "ready"
        self._add_task(task, "submitted")
        data, new = ('{"looks":2}', '{"queries":2}') if looks else ("null", "null")
        job = {"task": task, "lane": "overdue", "data": data}
        self._add_job(f"overdue/{task}", "overdue", state, {"pool": "kling", "args": new}, **job)

    def _add_swept(self, state: str) -> None:
        """An open task in a sweep, long before its deadline."""
        task = f"sweep-{state}"
        self._add_task(task, "created", outcome="unknown")
        job = {"task": task, "lane": "overdue"}
        self._add_job(f"overdue/{task}", "overdue", "ready", {"pool": "kling"}, **job, due_at=self.now + HOUR)
        self._add_job(f"sweep/{task}", "sweep", state, {"pool": "kling"}, **job)

    def _add_downloaded(self, state: str) -> None:
        """A task with a stored file, and one that is pending, is downloaded just now, or is lost."""
        task = f"download-{state}"
        self._add_task(task, "succeed", origin="kling", done=state == "dead")
        stored = {"content_type": "image/png", "size": 5, "sha256": "ab" * 32, "name": f"{task}/0.png"}
        self._add_result(task, 0, "stored", **stored, kling_id="a file's id", duration=5.5)
        self._add_result(task, 1, "failed" if state == "dead" else "pending", error="gone" if state == "dead" else "")
        data, new = ('{"n":1}', '{"index":1}')
        if state == "ready":
            data, new = ('{"n":1,"no_room":2}', '{"index":1,"storage_failures":2}')
        job = {"task": task, "lane": "download files.example", "data": data}
        self._add_job(f"download/{task}/1", "download", state, {"pool": "downloads", "args": new}, **job)

    def _add_result(self, task: str, n: int, status: str, **columns: Any) -> None:
        row: Row = {
            "task": task,
            "n": n,
            "kind": "image",
            "kling_id": None,
            "duration": None,
            "status": status,
            "content_type": None,
            "size": None,
            "sha256": None,
            "name": None,
            "source_url": f"{self.files}/{task}/{n}.png",
            "expires_at": None,
            "error": "",
        }
        self._add("result", {**row, **columns})

    def _add_events(self) -> None:
        """Events of every task; callbacks with bodies that no text column takes."""
        for number, task in enumerate(row["id"] for row in list(self.old["task"])):
            event = {"task": task, "at": self.now - HOUR + number, "digest": None, "repeats": 0, "body": None}
            data = {"type": "task.created", "data": '{"by":"client"}'}
            self._add("event", {"id": 2 * number + 1, **event, **data})
            callback = {"type": "callback.received", "digest": f"digest {number}", "repeats": 7}
            body = {"data": '{"status":null,"trouble":"unreadable"}', "body": b"\0\xff\xfe" + bytes([number])}
            self._add("event", {"id": 2 * number + 2, **event, **callback, **body})

    @property
    def last_event(self) -> int:
        """The id of the newest event."""
        return int(self.old["event"][-1]["id"])

    def _add_delivery_of_the_one_hook(self, number: int, state: str) -> None:
        """A delivery before there were several hooks: it goes to the hook `default`."""
        args = json.dumps({"hook": "default", "event": number}, separators=(",", ":"))
        new = {
            "unique_key": f"delivery/{number}/default",
            "kind": "delivery",
            "pool": "hook-retries",
            "concurrency_key": "hook default",
            "args": args,
            "hook_name": "default",
        }
        self._add_job(f"hook/{number}", "hook", state, new, task="ask-ready", lane="hook")

    def _add_hook_row(self, name: str, **columns: Any) -> None:
        row: Row = {
            "name": name,
            "address": f"{self.hooks}/{name.replace(':', '/')}",
            "source": "added",
            "task": None,
            "lane": name,
            "secrets": json.dumps([[SECRET, None]]),
            "filter": json.dumps({"events": [], "families": [], "statuses": [], "tags": []}),
            "schedule": "[1,2,3]",
            "concurrency": 4,
            "rate": 50.5,
            "timeout": 7.5,
            "cursor": self.last_event - 2,
            "failing_since": None,
            "paused_at": None,
            "paused_because": "",
            "created_at": self.now - HOUR,
        }
        self._add("hook", {**row, **columns})
        for taken in (True, False):
            answer = {
                "taken": taken,
                "status": 204 if taken else None,
                "answer": "ok" * taken,
                "error": "" if taken else "no",
            }
            number = len(self.new.get("delivery_attempt", [])) + 1
            where = {"id": number, "hook": name, "event": 1, "task": "ask-ready", "at": self.now - 500, "ms": 12}
            self._add("attempt", {**where, **answer})

    def _add_hook(self, state: str) -> None:
        """A hook that is behind: its dispatch, a replay and a delivery of it are due, run, or were given up."""
        name = f"hook-{state}"
        self._add_hook_row(name)
        self._add_hook_jobs(name, state, name, None, kinds=("dispatch", "replay", "hook"))

    def _add_task_hook(self, state: str) -> None:
        """The same for the hook of a single task."""
        task = f"overdue-{state}"
        name, lane = f"task:{task}", "task hooks.example"
        self._add_hook_row(name, source="task", task=task, lane=lane, cursor=0, secrets="[]")
        self._add_hook_jobs(name, state, lane, task, kinds=("dispatch-task", "replay-task", "hook-task"))

    def _add_hook_jobs(self, name: str, state: str, lane: str, task: str | None, kinds: tuple[str, str, str]) -> None:
        pools = [f"{'task-' if task else ''}hook-{name}" for name in ("runs", "replays", "retries")]
        dispatch, replay, delivery = kinds
        new: Row = {"kind": "dispatch", "pool": pools[0]}
        self._add_job(f"dispatch/{name}", dispatch, state, new, lane=f"dispatch {lane}", hook=name)
        args = {"after": 0, "until": 4, "task": task, "hook": name}
        new = {"kind": "replay", "pool": pools[1]}
        key = f"replay/{name}/0/4/{task or ''}"
        self._add_job(key, replay, state, new, lane=f"hook {lane}", hook=name, data=json.dumps(args))
        event = 2 * [row["id"] for row in self.old["task"]].index(task or "ask-ready") + 1
        new = {"kind": "delivery", "pool": pools[2], "unique_key": f"delivery/{event}/{name}"}
        args = {"hook": name, "event": event}
        job = {"task": task or "ask-ready", "lane": f"hook {lane}", "hook": name, "data": json.dumps(args)}
        self._add_job(f"hook/{event}/{name}", delivery, state, new, **job)

    def _add_paused_hook(self) -> None:
        """A paused hook: its delivery is suspended."""
        paused = {"paused_at": self.now - 1, "paused_because": "a reason", "failing_since": self.now - HOUR}
        self._add_hook_row("hook-paused", source="file", **paused)
        new = {"kind": "delivery", "pool": "hook-retries", "unique_key": "delivery/1/hook-paused"}
        data = '{"hook":"hook-paused","event":1}'
        job = {"task": "ask-ready", "lane": "hook hook-paused", "hook": "hook-paused", "data": data}
        self._add_job("hook/1/hook-paused", "hook", "ready", new, **job, due_at=NEVER)

    def _add_access(self) -> None:
        """A token that is valid, one that was revoked, and the entries of the audit log about them."""
        for number, revoked_at in enumerate((None, self.now - 1), 1):
            row: Row = {"id": f"token-{number}", "name": "a script", "role": "client", "created_at": self.now - HOUR}
            ends = {"expires_at": self.now + HOUR, "last_used_at": self.now - 2, "revoked_at": revoked_at}
            self._add("api_token", {**row, **ends})
            about = {"actor": "an admin", "action": "tokens add", "target": "a script", "detail": "client"}
            result = "done" if revoked_at else None
            self._add("audit_entry", {"id": number, "created_at": self.now - HOUR, **about, "result": result})

    def _add_submission(self) -> None:
        """A create that the receiver was sending: its task holds a slot."""
        task, body = "sweep-running", '{"prompt":"a kangaroo \u00e9"}'.encode()
        row: Row = {"id": 7, "task_id": task, "state": "sending", "rank": -1, "model": "kling-v1-5", "slots": 1}
        more = {"body": body, "size": len(body), "attempt": "an attempt", "created_at": self.now - HOUR}
        self._add("submission", {**row, **more})
        for rows in (self.old, self.new):
            next(each for each in rows["task"] if each["id"] == task)["slots"] = 1

    def fill(self, url: str) -> None:
        """Make the tables of the revision in an empty database, and insert the old rows."""
        database = Database(url)
        migrate_to(database, self.revision)
        with database.write() as connection:
            for table in ORDER:
                for row in self.old.get(table, ()):
                    names = ", ".join(f'"{name}"' for name in row)
                    values = ", ".join(f":{name}" for name in row)
                    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)
            if not database.is_sqlite:
                for table in sorted(NUMBERED & self.old.keys()):
                    sql = f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))"
                    connection.execute(text(sql))
        database.close()


def dump(connection: Connection) -> dict[str, list[Row]]:
    """Every row of every table that is not empty, in a fixed order."""
    rows: dict[str, list[Row]] = {}
    for table in inspect(connection).get_table_names():
        if table not in ("alembic_version", "event_log", "account", "hourly_count"):
            found = [dict(row._mapping) for row in connection.execute(text(f"SELECT * FROM {table}"))]
            rows[table] = found
    return in_order(rows)


def in_order(rows: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
    """The same rows, sorted, without empty tables."""
    return {table: sorted(rows[table], key=_sort_key) for table in sorted(rows) if rows[table]}


def _sort_key(row: Row) -> list[str]:
    return [str(row[name]) for name in sorted(row)]
