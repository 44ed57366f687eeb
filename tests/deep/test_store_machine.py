"""Any sequence of callbacks, answers, registrations and settlements ends in the state of a small model."""

import dataclasses
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from kling_callback.errors import GatewayError
from kling_callback.protocol.reports import Report, parse_answer
from kling_receiver.events import log as event_log
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import HookConfig
from kling_receiver.jobs import queue
from kling_receiver.jobs.queue import Capacity, ClaimedJob, Done, GiveUp, Outcome, RetryAt
from kling_receiver.results import records as result_records
from kling_receiver.results.records import StoredFile
from kling_receiver.results.removal import remove_task
from kling_receiver.states import FINAL, RANK
from kling_receiver.store.database import Database
from kling_receiver.store.rows import TaskRow
from kling_receiver.store.tables import EVENT, JOB, REMOVED, RESULT, TAG, TASK
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import overdue, startup
from tests.support.database import FILE, SPELLINGS, Ledger, callback, handle, spelled

TASKS = st.sampled_from(["t", "u"])
ATTEMPTS = st.sampled_from(["a", "b"])
STATUSES = st.sampled_from(["submitted", "processing", "succeed", "failed", None])
SPELLED = st.sampled_from(list(SPELLINGS))
FILES = st.sampled_from([(), (FILE,), (FILE, "")])
CALLBACKS = st.tuples(TASKS, STATUSES, st.booleans(), st.sampled_from([0, 0, 0, 1]), FILES, SPELLED)


def answered(spelling: str, record: tuple[str, tuple[str, ...]]) -> Report:
    """Kling's answer to a query, parsed."""
    answer = parse_answer(spelled(spelling, record[0], files=record[1]))
    assert answer is not None
    return answer.reports[0]


NAMED = [(FILE, FILE), (FILE, f"{FILE}1"), (FILE, ""), ("", f"{FILE}1"), (f"{FILE}1",), ()]
"""The files of a success; "" is one whose address comes late, or never."""
RECORDS = st.sampled_from(
    [*((status, ()) for status in ("submitted", "processing", "failed")), *(("succeed", files) for files in NAMED)]
)
SURE = st.builds(answered, SPELLED, RECORDS)
ANSWERS = st.none() | SURE
ALL_ROWS = [
    (table, select(table).order_by(*table.primary_key.columns)) for table in (TASK, EVENT, RESULT, JOB, REMOVED)
]
FAR_FUTURE = 1 << 62
NO_ANSWER = GatewayError("no answer")


@dataclass
class Model:
    """The expected state of a task."""

    status: str = "created"
    origin: str | None = None
    outcome: str = "none"
    attempt: str = ""
    files: bool = False
    bodies: Counter[str] = field(default_factory=Counter)

    def kling(self, status: str, files: bool = False) -> None:
        """Kling's first final status stands; before it, Kling's status replaces ours, and never goes back."""
        if self.origin != "kling" and (self.status in FINAL or RANK[status] >= RANK[self.status]):
            self.status, self.origin = status, "kling" if status in FINAL else None
        if self.status == status == "succeed":
            self.files = self.files or files

    def callback(self, status: str | None) -> None:
        """A callback moves an open task forward, but never to a final status."""
        if status and status not in FINAL and self.status not in FINAL:
            self.status = max(self.status, status, key=RANK.__getitem__)

    def ours(self, status: str, origin: str) -> None:
        """A local or callback status ends an open task."""
        if self.status not in FINAL:
            self.status, self.origin = status, origin

    @property
    def untouched(self) -> bool:
        """Whether nothing shows that Kling knows the task."""
        return self.status == "created" and not self.bodies

    def register(self, attempt: str, outcome: str | None) -> bool:
        """A registration. Returns whether the client may send the create."""
        if outcome == "created":
            first, self.outcome = self.outcome != "created", "created"
            if first and self.origin not in ("callback", "kling") and self.status in ("created", "failed"):
                self.kling("submitted")
        elif outcome and attempt == self.attempt:
            if outcome == "not_created" and self.untouched:
                self.outcome = "not_created"
                self.ours("failed", "local")
            elif self.outcome == "pending":
                self.outcome = "unknown"
        elif not outcome and self.outcome == "not_created" and self.origin == "local" and not self.bodies:
            self.status, self.origin, self.outcome, self.attempt = "created", None, "pending", attempt
        may = self.outcome == "pending" and self.untouched and attempt == self.attempt
        return may and outcome is None


@dataclass
class Run:
    """A claimed job, and the task as its worker read it."""

    job: ClaimedJob
    task: TaskRow


class ReadOnce(Ledger):
    """A ledger whose committed rows are read once after each commit: every invariant looks at all of them."""

    _tables: dict[Any, list[dict[str, Any]]] | None = None

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """One transaction, after which the rows are read again."""
        with super().transaction() as tx:
            yield tx
        self._tables = None

    def rows(self, table: Any, **where: Any) -> list[Any]:
        """Committed rows, in the order of their keys."""
        if self._tables is None:
            with self.database.read() as connection:
                self._tables = {
                    each: [dict(row) for row in connection.execute(query).mappings()] for each, query in ALL_ROWS
                }
        return [dict(row) for row in self._tables[table] if where.items() <= row.items()]


class StoreMachine(RuleBasedStateMachine):
    """The store and the queue on a real database, with a worker whose jobs end when hypothesis decides."""

    template: Path

    @initialize()
    def begin(self) -> None:
        """A database with its tables and no rows."""
        self.folder = Path(tempfile.mkdtemp())
        shutil.copy(self.template, self.folder / "kling.db")
        self.database = Database(f"sqlite:///{self.folder / 'kling.db'}")
        self.ledger = ReadOnce(self.database)
        self.models: dict[str, Model] = {}
        self.running: list[Run] = []
        self.last_event = 0
        self.removed: dict[str, int] = {}
        self.ledger.change(lambda tx: hook_records.add(tx, HookConfig(address="https://example.com/events")))

    def teardown(self) -> None:
        """Remove the database."""
        if hasattr(self, "database"):
            self.database.close()
            shutil.rmtree(self.folder)

    @rule(batch=st.lists(CALLBACKS, min_size=1, max_size=5))
    def callbacks_arrive(self, batch: list[tuple[str, str | None, bool, int, tuple[str, ...], str]]) -> None:
        """Repeated, reordered, contradictory, false, signed or not, in any spelling or none; in one commit."""
        made = []
        for task, status, signed, variant, named, spelling in batch:
            one = callback(task, status, signed=signed, n=variant, files=named, spelling=spelling)
            made.append(one)
            if task in self.removed:
                self.removed[task] += 1
                continue
            model = self.models.setdefault(task, Model())
            model.bodies[one.body_sha256] += 1
            if model.bodies[one.body_sha256] > 1 and not (one.signed and status and model.origin != "kling"):
                continue
            if one.signed and status:
                model.kling(status, bool(named))
            else:
                model.callback(status)
        self.ledger.record(*made)

    @rule(task=TASKS, attempt=ATTEMPTS, outcome=st.sampled_from([None, None, "created", "not_created", "unknown"]))
    def a_client_registers(self, task: str, attempt: str, outcome: Any) -> None:
        """Before its create, or after it."""
        if task in self.removed:
            assert "was removed" in str(self.ledger.register(task, create_token=attempt, outcome=outcome).conflict)
            return
        if task not in self.models:
            self.models[task] = Model(outcome="pending", attempt=attempt)
        expected = self.models[task].register(attempt, outcome)
        answer = self.ledger.register(task, create_token=attempt, outcome=outcome, kling_id=f"k{task}")
        assert answer.may_create == expected

    @rule(wait=st.sampled_from([1, 2_000, 60_000, 200_000]))
    def time_passes(self, wait: int) -> None:
        """And a worker claims the due jobs."""
        self.ledger.now += wait
        self.claim()

    def claim(self) -> None:
        """Claim all jobs but those of hooks and files."""

        def claim(tx: Transaction) -> list[ClaimedJob]:
            busy = Capacity(1, {"hook-runs": 0, "removals": 0})
            return queue.claim_due(tx, busy, claim_id=token_hex(8), lease_ms=10**9)

        for job in self.ledger.change(claim):
            self.running.append(Run(job, self.ledger.task(job.task_id)))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), answer=ANSWERS, reached=st.booleans(), last=st.booleans())
    def a_job_ends(self, data: st.DataObject, answer: Report | None, reached: bool, last: bool) -> None:
        """A query is answered or not, a file is stored or not; perhaps in the last attempt."""
        run = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        many = {"unanswered": 99, "undecided": 99, "queries": 99}
        job = dataclasses.replace(run.job, attempts=99, args=(run.job.args or {}) | many) if last else run.job
        handler = getattr(self, f"_{job.kind}")
        settled = self.ledger.change(
            lambda tx: queue.settle(tx, job, lambda tx: handler(tx, job, run.task, answer, reached))
        )
        assert settled

    @precondition(lambda self: self.running)
    @rule(answer=ANSWERS)
    def the_process_dies(self, answer: Report | None) -> None:
        """Its jobs are released, and a settlement of the dead worker has no effect."""
        self.ledger.change(lambda tx: queue.rescue(tx, FAR_FUTURE))
        before = self.everything()
        for run in self.running:
            job = run.job
            handler = getattr(self, f"_{job.kind}")
            lost = self.ledger.change(
                lambda tx, job=job, run=run, handler=handler: queue.settle(  # type: ignore[misc]
                    tx, job, lambda tx: handler(tx, job, run.task, answer, True)
                )
            )
            assert not lost
        self.running.clear()
        assert self.everything() == before
        self.claim()

    @precondition(lambda self: self.models)
    @rule(data=st.data(), answer=SURE)
    def an_operator_queries(self, data: st.DataObject, answer: Report) -> None:
        """Kling's answer is authoritative at any time."""
        task = data.draw(st.sampled_from(sorted(self.models)))
        self.models[task].kling(str(answer.status), bool(answer.outputs))
        self.ledger.change(lambda tx: overdue.apply_answer(tx, tx.require_task(task), answer, "operator"))

    @precondition(lambda self: self.models)
    @rule(data=st.data(), answer=SURE, lost=st.sampled_from([(), (0,), (1,), (0, 1)]))
    def an_operator_fetches(self, data: st.DataObject, answer: Report, lost: tuple[int, ...]) -> None:
        """Stored files are lost. Every file whose address is known is downloaded again, if Kling names any file."""
        task = data.draw(st.sampled_from(sorted(self.models)))
        self.models[task].kling(str(answer.status), bool(answer.outputs))
        gone = [
            file["position"]
            for file in self.ledger.results(task)
            if file["status"] == "stored" and file["position"] in lost
        ]

        def fetch(tx: Transaction) -> bool:
            row = tx.require_task(task)
            for n in gone:
                result_records.mark_lost(tx, row, n, "gone")
            overdue.apply_answer(tx, row, answer, "operator")
            again = row["status"] == answer.status == "succeed" and bool(answer.outputs)
            if again:
                result_records.refresh_downloads(tx, row, answer.outputs)
            return again

        if self.ledger.change(fetch):
            named = [file for file in self.ledger.results(task) if file["source_url"]]
            assert {file["status"] for file in named} <= {"pending", "stored"}

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def an_operator_removes(self, data: st.DataObject) -> None:
        """A task that is done, while none of its jobs runs. Its id is never a task's again."""
        task = data.draw(st.sampled_from(sorted(self.models)))
        in_use = any(run.job.task_id == task for run in self.running)
        expected = "unfinished" if not self.ledger.task(task)["done"] else "in_use" if in_use else "removed"
        assert self.ledger.change(lambda tx: remove_task(tx, task)) == expected
        if expected == "removed":
            self.removed[task] = 0
            del self.models[task]

    @rule(times=st.integers(1, 2))
    def it_starts(self, times: int) -> None:
        """Once, or twice in a row: no job is missing, and every swept task has a deadline."""
        self.running.clear()
        self.ledger.change(lambda tx: queue.rescue(tx, FAR_FUTURE))
        for _ in range(times):
            assert self.ledger.change(startup.repair) == 0
            self.ledger.change(lambda tx: startup.schedule_sweep(tx, self.ledger.now))
        swept = {key.removeprefix("sweep/") for key in self.ledger.jobs() if key.startswith("sweep/")}
        assert {f"overdue/{task}" for task in swept} <= self.ledger.jobs().keys()

    def everything(self) -> list[list[Any]]:
        """Every row there is."""
        return [self.ledger.rows(table) for table in (TASK, EVENT, RESULT, JOB, REMOVED)]

    def _ask(self, tx: Transaction, job: ClaimedJob, task: TaskRow, answer: Report | None, reached: bool) -> Outcome:
        model = self.models[job.task_id]
        results = self.ledger.results(job.task_id)
        named = bool(results) and all(file["source_url"] for file in results)
        settled = task["origin"] == "kling" and (task["status"] == "failed" or named)
        if reached and answer and not settled:
            model.kling(str(answer.status), bool(answer.outputs))
        outcome = handle(job, task, answer if reached else NO_ANSWER, results)(tx)
        if settled:
            assert outcome == Done()
        if isinstance(outcome, GiveUp) and (hint := tx.require_task(job.task_id)["hint"] or self._stood(tx, job)):
            model.ours(hint, "callback")
        return outcome

    def _stood(self, tx: Transaction, job: ClaimedJob) -> str | None:
        task = tx.require_task(job.task_id)
        return str(task["status"]) if task["origin"] == "callback" else None

    def _overdue(
        self, tx: Transaction, job: ClaimedJob, task: TaskRow, answer: Report | None, reached: bool
    ) -> Outcome:
        model = self.models[job.task_id]
        hint = tx.require_task(job.task_id)["hint"]
        if reached and answer and task["status"] not in FINAL and model.status not in FINAL:
            model.kling(str(answer.status), bool(answer.outputs))
        outcome = handle(job, task, answer if reached else NO_ANSWER)(tx)
        if isinstance(outcome, Done) and task["status"] not in FINAL:
            model.ours(hint or "failed", "callback" if hint else "local")
        return outcome

    def _sweep(self, tx: Transaction, job: ClaimedJob, task: TaskRow, answer: Report | None, reached: bool) -> Outcome:
        if reached and answer and task["status"] not in FINAL:
            self.models[job.task_id].kling(str(answer.status), bool(answer.outputs))
        return handle(job, task, answer if reached else NO_ANSWER)(tx)

    def _download(
        self, tx: Transaction, job: ClaimedJob, task: TaskRow, answer: Report | None, reached: bool
    ) -> Outcome:
        n = job.args["index"]
        if reached:
            stored = StoredFile(f"{job.task_id}/{n}", "image/png", 1, "0" * 64)
            result_records.mark_stored(tx, tx.require_task(job.task_id), n, stored)
            return Done()
        if job.attempts < 99:
            return RetryAt(tx.now + 5, "cut")
        result_records.mark_failed(tx, tx.require_task(job.task_id), n, "gone")
        return GiveUp("gone")

    @invariant()
    def the_model_is_right(self) -> None:
        """Status and origin are those of the model; each distinct callback is one event."""
        for task, model in getattr(self, "models", {}).items():
            row = self.ledger.task(task)
            assert (row["status"], row["origin"], row["outcome"]) == (model.status, model.origin, model.outcome)
            events = self.ledger.rows(EVENT, task_id=task, type="callback.received")
            assert {event["body_sha256"]: event["repeat_count"] + 1 for event in events} == dict(model.bodies)
            assert row["callback_count"] == sum(model.bodies.values())

    @invariant()
    def no_job_is_missing(self) -> None:
        """There is a job for each pending file, hint, missing file and open task; without any, the task is done."""
        jobs = self.ledger.jobs() if hasattr(self, "ledger") else {}
        live = {key for key, job in jobs.items() if job["state"] != "dead"}
        for task, model in getattr(self, "models", {}).items():
            row, named = self.ledger.task(task), self.ledger.results(task)
            pending = {
                f"download/{task}/{file['position']}" if file["source_url"] else f"ask/{task}"
                for file in named
                if file["status"] == "pending"
            }
            unnamed = model.status == "succeed" and not any(file["source_url"] for file in named)
            assert pending <= live
            if unnamed:
                assert [file["status"] for file in named] == ["failed"] if row["done"] else f"ask/{task}" in live
            else:
                assert row["done"] == (model.status in FINAL and not pending)
            if model.status not in FINAL:
                assert f"overdue/{task}" in live
                assert row["hint"] is None or f"ask/{task}" in live
            if model.files:
                assert any(file["source_url"] for file in named)

    @invariant()
    def every_event_is_dispatched(self) -> None:
        """Ids grow, and the hook has a dispatch."""
        if not hasattr(self, "ledger"):
            return
        ids = [event["id"] for event in self.ledger.rows(EVENT)]
        assert not ids or self.ledger.jobs()["dispatch/hook-1"]["state"] == "ready"
        with self.ledger.database.read() as connection:
            end = event_log.newest(connection).event_id
        assert end >= max(self.last_event, *ids, 0)
        self.last_event = end

    @invariant()
    def of_a_removed_task_only_the_id_is_left(self) -> None:
        """And the job that removes its files."""
        if not hasattr(self, "ledger"):
            return
        counts = {row["id"]: row["callback_count"] for row in self.ledger.rows(REMOVED)}
        assert counts == self.removed
        for task in self.removed:
            for table in (EVENT, RESULT, TAG):
                assert not self.ledger.rows(table, task_id=task)
            assert not self.ledger.rows(TASK, id=task)
            assert {job["kind"] for job in self.ledger.rows(JOB, task_id=task)} <= {"remove"}


def test_any_sequence_ends_in_the_state_of_the_model(tmp_path: Path) -> None:
    """Hypothesis searches for one that does not."""
    template = Database(f"sqlite:///{tmp_path / 'template.db'}")
    template.migrate()
    template.close()

    class Machine(StoreMachine):
        """On copies of this template."""

        template = tmp_path / "template.db"

    quick = settings(
        max_examples=60,
        stateful_step_count=30,
        deadline=None,
        database=None,  # no example of another run, which may have been interrupted
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Machine, settings=quick)
