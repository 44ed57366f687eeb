"""Send the creates of submissions. No task is paid for twice:

claimed ─▶ sending ─┬─ created ─────────────▶ the task is at Kling
        (committed) ├─ refused ─────────────▶ the task has failed, with Kling's words
                    ├─ not now (1302, 1303, no connection) ─▶ claimed or queued again, sent later
                    └─ unknown, or killed ──▶ never sent again: queried by our id a few times, then at the deadline

The commit of `sending` comes before the first byte to Kling. A job that finds `sending` may have been killed after it.
"""

import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from anyio import to_thread

from kling_callback.api.create import CreateOutcome, created, find_created, is_lost, judge, may_resend
from kling_callback.api.kling import KlingApi
from kling_callback.api.refusals import CONCURRENCY_LIMITED, RATE_LIMITED
from kling_callback.api.retry import RetryPolicy
from kling_callback.errors import GatewayError
from kling_callback.jobs.body import with_callback
from kling_callback.protocol.values import sanitize
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.kinds import overdue_key
from kling_receiver.jobs.queue import ClaimedJob, Done, Effect, Outcome, RetryAt, settle_as
from kling_receiver.metrics import Metrics
from kling_receiver.states import FINAL
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import SubmissionRow, TaskRow
from kling_receiver.store.sql import Statement
from kling_receiver.store.transaction import Transaction
from kling_receiver.store.writer import Writer
from kling_receiver.tasks import registration as task_registration
from kling_receiver.tasks import slots, submission, transitions
from kling_receiver.tasks.registration import Registration
from kling_receiver.tasks.transitions import Refusal

log = logging.getLogger("kling_receiver.creating")

LOOKUP_BACKOFF = Backoff(tuple(RetryPolicy().lookup_waits))
"""Seconds before each query for a create with an unknown outcome. After them, the deadline finds the task."""
UNREACHABLE_BACKOFF = Backoff((1, 2, 4, 8, 15, 30, *[60] * 59))
"""Seconds between attempts while there is no connection to Kling, an hour in all."""
FULL_BACKOFF = Backoff((1, 2, 4, 8, 15, 30, 60))
"""Seconds between attempts while Kling has no slot (1303) and none is ours to wait for. The last one repeats."""
MIN_INTERVAL_MS, MAX_INTERVAL_MS = 250, 30_000
"""Milliseconds between two creates after 1302. Each 1302 doubles them, each accepted create shortens them."""
LARGE_BYTES = 65_536
"""Bytes of a body that is parsed beside the event loop."""
INTERRUPTED = "The create was interrupted while it was sent."

BEGIN = Statement("UPDATE submission SET state = 'sending', attempt = :attempt WHERE task_id = :task_id")
PUT_BACK = Statement("UPDATE submission SET state = :state, attempt = '' WHERE task_id = :task_id")


@dataclass(frozen=True, slots=True)
class CreateDelays:
    """The delays that tests shorten."""

    lookup: Backoff = LOOKUP_BACKOFF
    unreachable: Backoff = UNREACHABLE_BACKOFF
    full: Backoff = FULL_BACKOFF


PRODUCTION_CREATE_DELAYS = CreateDelays()


class Creator:
    """Handles `create` jobs. `callback_url`: the signed address of a task, by its id and family."""

    def __init__(
        self,
        kling_api: KlingApi,
        reader: Reader,
        writer: Writer,
        metrics: Metrics,
        *,
        callback_url: Callable[[str, str], str],
        delays: CreateDelays = PRODUCTION_CREATE_DELAYS,
    ) -> None:
        self._kling_api, self._reader, self._writer, self._metrics = kling_api, reader, writer, metrics
        self._callback_url, self._delays = callback_url, delays
        self._unsent: dict[str, str] = {}
        """By task, attempts of this process whose `sending` may be committed, and that were certainly not sent."""

    async def create(self, job: ClaimedJob) -> Effect:
        """Handle one `create` job: send the create, or look the task up if it may have been sent before."""
        task = await self._reader.task(job.task_id)
        if task is None:
            return settle_as(Done())
        if (job.args or {}).get("lookup"):
            return await self._look_up(job, task)
        found = await self._reader.read(
            lambda connection: submission.SELECT_BODY.first(connection, task_id=job.task_id)
        )
        if found is None:
            self._unsent.pop(job.task_id, None)
            return _without_submission(job)  # cancelled, or its outcome is known
        body = await self._body(task, bytes(found["body"]))
        attempt = self._unsent.get(job.task_id) or secrets.token_hex(8)
        try:
            refused = await self._writer.run(lambda tx: self._begin(tx, job, found["id"], attempt))
        except Unavailable:
            self._unsent[job.task_id] = attempt
            raise
        self._unsent.pop(job.task_id, None)
        return refused or await self._send(job, task, body, attempt)

    async def _body(self, task: TaskRow, content: bytes) -> dict[str, Any]:
        body: dict[str, Any] = (
            await to_thread.run_sync(json.loads, content) if len(content) > LARGE_BYTES else json.loads(content)
        )
        return with_callback(task["family"], body, task["id"], self._callback_url(task["id"], task["family"]))

    def _begin(self, tx: Transaction, job: ClaimedJob, submission_id: int, attempt: str) -> Effect | None:
        """Commit that the create is sent from now on: None. Otherwise what to do instead of sending it.

        `submission_id`: of the body that was read. The task may have been cancelled since, and submitted with another.
        """
        task, row = tx.require_task(job.task_id), submission.SELECT.first(tx.connection, task_id=job.task_id)
        if row is None or row["id"] != submission_id:
            return _without_submission(job)
        if row["state"] == "sending":
            return None if row["attempt"] == attempt else self._settle(job, row["attempt"], _unknown(INTERRUPTED))
        if submission.is_known(task):
            return self._drop(job)
        account = slots.lock_account(tx)
        if account["slot_ceiling"] is not None:
            tx.write_changes()
        if account["slot_ceiling"] is not None and slots.held(tx).total() > max(account["slot_ceiling"], row["slots"]):
            return lambda tx: _requeue(tx, job)  # it was claimed before a 1303 of another create
        if account["create_interval_ms"] and not (job.args or {}).get("paced"):
            due = max(account["next_create_at"], tx.now)
            slots.update_account(tx, {**account, "next_create_at": due + account["create_interval_ms"]})
            if due > tx.now:
                return settle_as(RetryAt(due, "Kling asked for a slower pace.", args={"paced": 1}, counts=False))
        BEGIN.execute(tx.connection, task_id=job.task_id, attempt=attempt)
        tx.update_task(task, slots=row["slots"])
        transitions.enqueue_deadline(tx, task)
        return None

    async def _send(self, job: ClaimedJob, task: TaskRow, body: dict[str, Any], attempt: str) -> Effect:
        """Send the create once. What it returns is applied when the job is settled."""
        error: GatewayError | None = None
        try:
            outcome = created(await self._kling_api.create(task["family"], body))
        except GatewayError as refusal:
            error = failure = refusal  # `refusal` ends with this block, before the job is settled
            if may_resend(error):
                self._metrics.creates.labels("not_now").inc()
                log.info("task %s: its create is sent again later. %s", job.task_id, error.message)
                return lambda tx: self._put_back(tx, job, attempt, failure)
            outcome = await judge(self._kling_api, task["family"], task["id"], error)
            log.warning("task %s: the outcome of its create is %s. %s", job.task_id, outcome.outcome, error)
        self._metrics.creates.labels(outcome.outcome).inc()
        return self._settle(job, attempt, outcome, is_useless=error is not None and is_lost(error))

    def _settle(self, job: ClaimedJob, attempt: str, outcome: CreateOutcome, *, is_useless: bool = False) -> Effect:
        """Record the outcome of an attempt, which is the last one. `is_useless`: no task can come of it."""

        def apply(tx: Transaction) -> Outcome:
            task, row = tx.require_task(job.task_id), submission.SELECT.first(tx.connection, task_id=job.task_id)
            if row is None or row["attempt"] != attempt:
                return _without_submission(job)(tx)  # another worker has settled it
            _record(tx, task, row, outcome)
            if outcome.outcome == "created":
                _accepted(tx)
            if is_useless:
                transitions.fail_locally(tx, task, outcome.reason)
            elif outcome.outcome == "unknown":
                return self._next_lookup(tx, outcome.reason, 1)
            return Done()

        return apply

    def _drop(self, job: ClaimedJob) -> Effect:
        """Remove a submission whose task Kling knows although its create was not sent here."""

        def apply(tx: Transaction) -> Outcome:
            task, row = tx.require_task(job.task_id), submission.SELECT.first(tx.connection, task_id=job.task_id)
            if row is not None:
                log.warning("task %s: its create is not sent, because Kling knows the task already", job.task_id)
                _record(tx, task, row, _unknown("Kling knew the task before its create was sent."))
                if task["status"] not in FINAL:
                    transitions.enqueue_deadline(tx, task)
                    slots.hold(tx, task)
            return Done()

        return apply

    def _put_back(self, tx: Transaction, job: ClaimedJob, attempt: str, error: GatewayError) -> Outcome:
        """Let a create wait that Kling did not accept, but may later."""
        task, row = tx.require_task(job.task_id), submission.SELECT.first(tx.connection, task_id=job.task_id)
        if row is None or row["attempt"] != attempt:
            return _without_submission(job)(tx)
        if submission.is_known(task):  # by a callback meanwhile: whatever it proves, nothing is paid twice
            _record(tx, task, row, _unknown(str(error)))
            return Done()
        tx.update_task(task, slots=0)
        tx.cancel_job(overdue_key(task["id"]))
        PUT_BACK.execute(tx.connection, task_id=task["id"], state="claimed")
        if error.code == CONCURRENCY_LIMITED:
            return self._wait_for_slot(tx, job, error)
        if error.code == RATE_LIMITED:
            return _slow_down(tx, error)
        return self._wait_for_connection(tx, job, task, error)

    def _wait_for_slot(self, tx: Transaction, job: ClaimedJob, error: GatewayError) -> Outcome:
        """Kling has no slot (1303), because other programs use the account: claim no more until a task ends."""
        tx.write_changes()
        row = submission.SELECT.first(tx.connection, task_id=job.task_id)
        assert row is not None
        account = slots.lock_account(tx)
        others = slots.held(tx).total() - row["slots"]
        slots.update_account(tx, {**account, "slot_ceiling": max(others, 1)})
        if others > 0:
            return _requeue(tx, job)
        count = (job.args or {}).get("full", 0) + 1
        due = self._delays.full.next_at(min(count, len(self._delays.full.steps)), tx.now, at_least=error.retry_after)
        return RetryAt(due or tx.now, error.message, args={"full": count})

    def _wait_for_connection(self, tx: Transaction, job: ClaimedJob, task: TaskRow, error: GatewayError) -> Outcome:
        count = (job.args or {}).get("unreachable", 0) + 1
        due = self._delays.unreachable.next_at(count, tx.now, at_least=error.retry_after)
        if due is not None:
            return RetryAt(due, error.message, args={"unreachable": count})
        row = submission.SELECT.first(tx.connection, task_id=job.task_id)
        assert row is not None
        _record(tx, task, row, CreateOutcome("not_created", reason=error.message))
        return Done()

    async def _look_up(self, job: ClaimedJob, task: TaskRow) -> Effect:
        """Query the task by our id, after a create with an unknown outcome."""
        if task["outcome"] != "unknown" or task["kling_id"]:
            return settle_as(Done())
        report = await find_created(self._kling_api, task["family"], task["id"])
        self._metrics.queries.labels("answered" if report else "unknown_task").inc()

        def apply(tx: Transaction) -> Outcome:
            task = tx.require_task(job.task_id)
            if report:
                task_registration.record_outcome(tx, task, _registration(task, created(report)))
                return Done()
            return self._next_lookup(tx, "Kling does not know the task yet.", job.args["lookup"] + 1)

        return apply

    def _next_lookup(self, tx: Transaction, reason: str, number: int) -> Outcome:
        due = self._delays.lookup.next_at(number, tx.now)
        return Done() if due is None else RetryAt(due, reason, args={"lookup": number})


def _record(tx: Transaction, task: TaskRow, row: SubmissionRow, outcome: CreateOutcome) -> None:
    """Record the outcome of a create, and remove its submission with the body."""
    submission.drop(tx, row)
    refusal: Refusal | None = None
    if outcome.answer:
        refusal = {"http_status": outcome.http_status, "answer": sanitize(outcome.answer)}
    task_registration.record_outcome(tx, task, _registration(task, outcome), refusal=refusal)


def _registration(task: TaskRow, outcome: CreateOutcome) -> Registration:
    """The report of an outcome, as a client would send it."""
    return Registration.model_construct(
        family=task["family"],
        create_token=task["create_token"],
        outcome=outcome.outcome,
        kling_id=outcome.kling_id,
        request_id=outcome.request_id,
        reason=outcome.reason[:4000],
        finished=outcome.finished,
    )


def _unknown(reason: str) -> CreateOutcome:
    return CreateOutcome("unknown", reason=reason)


def _accepted(tx: Transaction) -> None:
    """Kling accepted a create: use one slot more after a 1303, and send a little faster after a 1302."""
    account = slots.lock_account(tx)
    if account["create_interval_ms"]:
        shorter = account["create_interval_ms"] * 9 // 10
        account["create_interval_ms"] = shorter if shorter >= MIN_INTERVAL_MS // 2 else 0
        slots.update_account(tx, account)
    if account["slot_ceiling"] is not None:
        slots.freed(tx)


def _slow_down(tx: Transaction, error: GatewayError) -> Outcome:
    """Kling found the creates too fast (1302): space them more."""
    account = slots.lock_account(tx)
    interval = min(max(2 * account["create_interval_ms"], MIN_INTERVAL_MS), MAX_INTERVAL_MS)
    wait = max(interval, int(min(error.retry_after or 0, MAX_INTERVAL_MS / 1000) * 1000))
    due = max(account["next_create_at"], tx.now + wait)
    slots.update_account(tx, {**account, "create_interval_ms": interval, "next_create_at": due + interval})
    return RetryAt(due, error.message, args={"paced": 1}, counts=False)


def _requeue(tx: Transaction, job: ClaimedJob) -> Outcome:
    """Queue a claimed submission again, first of its priority. The next free slot enqueues its job."""
    row = submission.SELECT.first(tx.connection, task_id=job.task_id)
    if row is not None and row["state"] == "claimed":
        PUT_BACK.execute(tx.connection, task_id=job.task_id, state="queued")
        slots.queued(tx, job.task_id)  # a slot may have become free since it was decided
        return Done()
    return _without_submission(job)(tx)


def _without_submission(job: ClaimedJob) -> Effect:
    """End a job whose submission is gone. If the task was submitted again meanwhile, the job goes on with that."""

    def apply(tx: Transaction) -> Outcome:
        row = submission.SELECT.first(tx.connection, task_id=job.task_id)
        if row is None or row["state"] == "queued":  # a slot enqueues its job
            return Done()
        return RetryAt(tx.now, "The task was submitted again.", args={}, counts=False)

    return apply
