"""A database for tests: transactions at a chosen time, rows to read and write, and callbacks to ingest."""

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import httpx
import psycopg
from sqlalchemy import event, insert, select

from kling_callback.api.auth import BearerAuth
from kling_callback.api.kling import KlingApi
from kling_callback.errors import GatewayError
from kling_callback.protocol.reports import Report, parse_callback
from kling_callback.protocol.results.outputs import Output
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import HookConfig
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.kinds import Kind
from kling_receiver.jobs.queue import ClaimedJob, Effect
from kling_receiver.metrics import Metrics
from kling_receiver.policy import Policy
from kling_receiver.results import records as result_records
from kling_receiver.results.records import StoredFile
from kling_receiver.store.database import Database
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import EventRow, JobRow, ResultRow, Row, TaskRow
from kling_receiver.store.tables import EVENT, JOB, RESULT, TASK
from kling_receiver.store.transaction import TASK_DEFAULTS, CommitResult, Transaction
from kling_receiver.tasks import ingest, transitions
from kling_receiver.tasks import registration as task_registration
from kling_receiver.tasks.ingest import Callback
from kling_receiver.tasks.overdue import OverdueTasks
from kling_receiver.tasks.reconcile import QUERY_BACKOFF, Reconciler
from kling_receiver.tasks.registration import Registration, RegistrationResult

NOW = 1_790_000_000_000
FAMILY = "images/generations"
FILE = "https://v16-kling.klingai.com/x.png"

STORED = StoredFile("t/0.png", "image/png", 5, "ab" * 32)
OVERDUE = "overdue/t"

T = TypeVar("T")


class LoggedEvent(EventRow):
    """An event with everything that its row has."""

    body: bytes | None
    body_sha256: str | None
    repeat_count: int


class Ledger:
    """A database, changed at `now` (unix ms)."""

    def __init__(self, database: Database, *, rules: Policy = Policy()) -> None:  # noqa: B008  # frozen
        self.database, self.rules, self.now = database, rules, NOW
        self.committed = CommitResult(frozenset(), None)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """One transaction, flushed and committed at its end."""
        with self.database.write() as connection:
            tx = Transaction(connection, self.database, self.now, self.rules)
            yield tx
            self.committed = tx.flush()

    def change(self, change: Callable[[Transaction], T]) -> T:
        """What one change returns, after its commit."""
        with self.transaction() as tx:
            return change(tx)

    def log(self, *types: str) -> None:
        """Add events of the task `t`, in one commit."""
        with self.transaction() as tx:
            for type_ in types:
                tx.add_event("t", type_)

    def record(self, *callbacks: Callback) -> None:
        """Ingest callbacks in one batch."""
        self.change(lambda tx: ingest.ingest(tx, list(callbacks)))

    def apply_report(self, task: str, report: Report) -> None:
        """Apply a status that Kling reports."""
        self.change(lambda tx: transitions.apply_report(tx, tx.require_task(task), report))

    def register(self, task: str = "t", **given: Any) -> RegistrationResult:
        """Register a task."""
        registration = Registration.model_construct(**{"family": FAMILY, "create_token": "a", **given})  # not validated
        return self.change(lambda tx: task_registration.register(tx, task, registration))

    def accept_hint(self) -> None:
        """Accept the hint of the task `t`, as after the last retry of a query."""
        self.change(lambda tx: transitions.accept_hint(tx, tx.require_task("t")))

    def store(self, n: int = 0) -> None:
        """Mark a file of the task `t` as stored."""
        self.change(lambda tx: result_records.mark_stored(tx, tx.require_task("t"), n, STORED))

    def fail(self, n: int = 0) -> None:
        """Mark a file of the task `t` as failed."""
        self.change(lambda tx: result_records.mark_failed(tx, tx.require_task("t"), n, "gone"))

    def rows(self, table: Any, **where: Any) -> list[Any]:
        """Committed rows, in the order of their keys."""
        query = select(table).where(*(table.c[name] == value for name, value in where.items()))
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(*table.primary_key.columns))
            return [dict(row._mapping) for row in rows]

    def task(self, task: str = "t") -> TaskRow:
        """A task's row."""
        row: TaskRow
        (row,) = self.rows(TASK, id=task)
        return row

    def events(self, task: str = "t") -> list[LoggedEvent]:
        """A task's events, in order."""
        return self.rows(EVENT, task_id=task)

    def types(self, task: str = "t") -> list[str]:
        """The types of a task's events, in order."""
        return [row["type"] for row in self.events(task)]

    def results(self, task: str = "t") -> list[ResultRow]:
        """A task's results, in order."""
        return self.rows(RESULT, task_id=task)

    def jobs(self) -> dict[str, JobRow]:
        """Every job, by its key."""
        return {row["unique_key"]: row for row in self.rows(JOB)}

    def put_task(self, task: str = "t", **values: Any) -> None:
        """Insert a task's row, without the unit of work."""
        row = {**TASK_DEFAULTS, "id": task, "family": FAMILY, "created_at": NOW, "updated_at": NOW, **values}
        with self.database.write() as connection:
            connection.execute(insert(TASK), row)

    def put_hook(self, name: str = "all", address: str = "https://example.com/", **given: Any) -> None:
        """Add a hook that receives events from now on."""
        self.change(lambda tx: hook_records.add(tx, HookConfig(name=name, address=address, **given)))

    def put_job(self, key: str = "ask/t", **values: Any) -> None:
        """Insert a job's row, without the queue."""
        row = {"kind": "ask", "pool": "kling", "task_id": "t", "concurrency_key": "kling", "args": None}
        usual = {"state": "ready", "attempts": 0, "error": "", "due_at": NOW, "delay_ms": 0, "created_at": NOW}
        with self.database.write() as connection:
            connection.execute(insert(JOB), {**row, **usual, "unique_key": key, **values})

    def run_job(self, key: str) -> None:
        """Mark a job as running."""
        with self.database.write() as connection:
            connection.execute(
                JOB.update().where(JOB.c.unique_key == key).values(state="running", claim_id="c", lease_expires_at=NOW)
            )

    def kill_job(self, key: str, attempts: int = 9) -> None:
        """Mark a job as dead."""
        with self.database.write() as connection:
            connection.execute(
                JOB.update()
                .where(JOB.c.unique_key == key)
                .values(state="dead", claim_id=None, lease_expires_at=None, attempts=attempts)
            )


METRICS = Metrics()


class ReadEarlier(Reader):
    """A reader that returns the rows of one task as they were read before."""

    def __init__(self, task: TaskRow | None, results: Sequence[ResultRow]) -> None:
        self._task, self._results = task, list(results)

    async def task(self, task_id: str) -> TaskRow | None:
        """The row of the task."""
        return self._task

    async def results(self, task_id: str) -> list[ResultRow]:
        """The rows of its files."""
        return self._results

    async def any_recent_callback(self) -> bool:
        """True, so that there is no warning."""
        return True


class Answered(Reconciler):
    """A reconciler whose queries have one answer."""

    def __init__(self, answer: Report | GatewayError | None, reader: Reader) -> None:
        kling_api = KlingApi("https://api-singapore.klingai.com", BearerAuth(""), cast(httpx.AsyncClient, None))
        backoff = Backoff(QUERY_BACKOFF.steps, lambda: 1.0)  # no chance, so that a sequence of rules can be repeated
        super().__init__(kling_api, reader, METRICS, backoff=backoff)
        self._answer = answer

    async def query(self, task: TaskRow) -> Report | None:
        """The answer, or the error."""
        if isinstance(self._answer, GatewayError):
            raise self._answer
        return self._answer


def handle(
    job: ClaimedJob,
    task: TaskRow | None,
    answer: Report | GatewayError | None,
    results: Sequence[ResultRow] = (),
) -> Effect:
    """What the handler of a job about Kling returns, for a task as it was read and for Kling's answer."""
    reader = ReadEarlier(task, results)
    reconciler = Answered(answer, reader)
    overdue = OverdueTasks(reconciler, reader)
    handlers = {Kind.ASK: reconciler.reconcile, Kind.OVERDUE: overdue.check, Kind.SWEEP: overdue.check_after_start}
    return asyncio.run(handlers[Kind(job.kind)](job))


def callback(task: str = "t", status: str | None = "processing", **given: Any) -> Callback:
    """An authenticated callback; `status` None: an unreadable one. Its report is parsed from its body."""
    signed, family = given.pop("signed", False), given.pop("family", FAMILY)
    body = given.pop("body", None) or _body(status, **given)
    report = parse_callback(body)
    return Callback(
        task_id=task,
        family=family,
        body_sha256=hashlib.sha256(body).hexdigest(),
        body=body,
        size=len(body),
        report=report,
        signed=signed and report is not None,
        problem=None if report else "unreadable",
    )


SPELLINGS: dict[str, Callable[[Row], Row]] = {
    "legacy": lambda record: record,
    "new": lambda record: {
        **record["more"],
        "status": {"succeed": "succeeded"}.get(record["task_status"], record["task_status"]),
        "message": record["task_status_msg"],
        "outputs": [{"type": "image", "url": image["url"]} for image in record["task_result"]["images"]],
    },
    "wrapped": lambda record: {"code": 0, "message": "SUCCEED", "data": record},
    "relayed": lambda record: {
        "code": "success",
        "data": {"status": "IN_PROGRESS", "progress": "50%", "data": {"code": 0, "data": record}},
    },
}
"""One record as Kling's two standards have it, and as gateways wrap it."""


def spelled(spelling: str, status: str, *, files: Sequence[str] = (), message: str = "", **record: Any) -> bytes:
    """A body that reports this status."""
    images = [{"index": n, "url": url} for n, url in enumerate(files)]
    known = {"task_status": status, "task_status_msg": message, "task_result": {"images": images}}
    return json.dumps(SPELLINGS[spelling]({**known, **record, "more": record})).encode()


def _body(status: str | None, *, spelling: str = "legacy", **record: Any) -> bytes:
    return f"gibberish {record}".encode() if status is None else spelled(spelling, status, **record)


def view(task: TaskRow) -> tuple[str, str | None, bool]:
    """What most tests check: status, origin, done."""
    return task["status"], task["origin"], task["done"]


def says(status: Any, *files: str, **record: Any) -> Report:
    """A report as Kling answers it."""
    return Report(status, outputs=tuple(Output("image", url) for url in files), **record)


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Every statement of the driver during the block, on any connection (on SQLite once for each row)."""
    seen: list[str] = []

    def begin(connection: Any, *rest: Any) -> None:
        if database.is_sqlite:
            connection.set_trace_callback(seen.append)
        else:
            connection.cursor_factory = Noting

    def end(connection: Any, *rest: Any) -> None:
        if database.is_sqlite:
            connection.set_trace_callback(None)
        else:
            connection.cursor_factory = psycopg.Cursor

    class Noting(psycopg.Cursor[Any]):
        def execute(self, query: Any, *rest: Any, **more: Any) -> Any:
            seen.append(str(query))
            return super().execute(query, *rest, **more)

        def executemany(self, query: Any, *rest: Any, **more: Any) -> Any:
            seen.append(str(query))
            return super().executemany(query, *rest, **more)

        def copy(self, statement: Any, *rest: Any, **more: Any) -> Any:
            seen.append(str(statement))
            return super().copy(statement, *rest, **more)

    engines = (database._writer, database._readers)
    for engine in engines:
        event.listen(engine, "checkout", begin)
        event.listen(engine, "checkin", end)
    yield seen
    for engine in engines:
        event.remove(engine, "checkout", begin)
        event.remove(engine, "checkin", end)
