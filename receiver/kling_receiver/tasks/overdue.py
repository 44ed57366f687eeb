"""Tasks whose callback never comes: Kling is asked at the deadline, then ever more seldom, to an end.

It is also asked once after a start, and when an operator says so.
"""

import functools
import logging
from typing import Literal

from kling_callback.errors import GatewayError
from kling_callback.protocol.reports import Report
from kling_receiver.jobs import enqueue
from kling_receiver.jobs.queue import Claimed, Done, Outcome, RetryAt, Verdict, verdict
from kling_receiver.states import FINAL
from kling_receiver.store.reader import Reader
from kling_receiver.store.sql import Row
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import registration as task_registration
from kling_receiver.tasks import transitions
from kling_receiver.tasks.reconcile import Asker

log = logging.getLogger("kling_receiver.recover")

LOOKS = 6
"""Questions about a task that Kling knows; the waits between them double, from the deadline's own length on."""
LOOKS_AT_NOTHING = 3
"""Questions about a task that Kling says it does not know."""

NEVER_CAME = {False: ": its create did not arrive", True: ", although it took its create"}

NEVER_CALLED = (
    "none of the newest tasks was ever called back, and Kling has ended one: it cannot reach this receiver, or "
    "it calls nobody back. Test the way with: kling-receiver doctor"
)


class Overdue:
    """Looks after tasks that did not end in time."""

    def __init__(self, asker: Asker, reader: Reader) -> None:
        self._asker, self._reader = asker, reader
        self._warned = False

    async def look(self, job: Claimed) -> Verdict:
        """The handler of `overdue`."""
        task = await self._reader.task(job.task)
        if task is None or task["status"] in FINAL:
            return functools.partial(_ended, job=job)
        if not job.data:
            log.warning("task %s is overdue: no final callback came; asking Kling", job.task)
        try:
            report = await self._asker.question(task)
        except GatewayError as error:
            return functools.partial(_unanswered, job=job, error=error)
        if report and report.final:
            await self._warn(task)
        return functools.partial(_answered, job=job, report=report)

    async def sweep(self, job: Claimed) -> Verdict:
        """The handler of `sweep`: one question after a start, before which a callback may have been missed."""
        task = await self._reader.task(job.task)
        if task is None or task["status"] in FINAL:
            return verdict(Done())
        try:
            report = await self._asker.question(task)
        except GatewayError as error:
            log.info("task %s, asked about after the start: %s", job.task, error)
            return verdict(Done())  # its deadline stands
        return functools.partial(_swept, task=job.task, report=report)

    async def _warn(self, task: Row) -> None:
        """Say once, loudly, that this gateway seems never to call back."""
        if not self._warned and not task["callbacks"] and not await self._reader.was_called():
            self._warned = True
            log.error(NEVER_CALLED)


def learn(tx: Transaction, task: Row, report: Report, by: Literal["deadline", "startup", "operator"]) -> None:
    """Believe what Kling said when it was asked without a callback's cause."""
    open_until_now = task["status"] not in FINAL
    if report.task_id and not task["task_id"]:
        task_registration.learn_id(tx, task, report.task_id)
    if report.status:
        transitions.believe(tx, task, report)
    if report.final and open_until_now:
        tx.log(task["id"], "task.recovered", {"by": by})
    if report.status == "succeed" and not report.outputs:
        enqueue.ask(tx, task["id"])


def _swept(tx: Transaction, task: str, report: Report | None) -> Outcome:
    if report:
        learn(tx, tx.known(task), report, "startup")
    return Done()


def _ended(tx: Transaction, job: Claimed) -> Outcome:
    """The task has ended, unless Kling's word revived it since it was read."""
    task = tx.task(job.task)
    return Done() if task is None or task["status"] in FINAL else RetryAt(tx.now, "It lives again.")


def _answered(tx: Transaction, job: Claimed, report: Report | None) -> Outcome:
    task = tx.known(job.task)
    if task["status"] in FINAL:
        return Done()
    _say_overdue(tx, job)
    if report:
        learn(tx, task, report, "deadline")
    if report and report.final:
        return Done()
    if report is None and _looks(job) >= LOOKS_AT_NOTHING and not task["callbacks"]:
        why = NEVER_CAME[task["task_id"] is not None]
        transitions.end_locally(tx, task, f"Kling does not know this task{why}.")
        return Done()
    return _again(tx, job, f"Kling says {report.status}." if report else "Kling does not know the task.")


def _unanswered(tx: Transaction, job: Claimed, error: GatewayError) -> Outcome:
    if tx.known(job.task)["status"] in FINAL:
        return Done()
    _say_overdue(tx, job)
    return _again(tx, job, str(error))


def _say_overdue(tx: Transaction, job: Claimed) -> None:
    if not job.data:
        tx.log(job.task, "task.overdue", {})


def _looks(job: Claimed) -> int:
    """How often Kling was asked, this time included; a look that was cut off does not count."""
    return int((job.data or {}).get("looks", 0)) + 1


def _again(tx: Transaction, job: Claimed, said: str) -> Outcome:
    task, looks = tx.known(job.task), _looks(job)
    if looks >= LOOKS:
        transitions.stand(tx, task)  # where a callback told of an end, that is what is known
        transitions.end_locally(tx, task, f"The task did not end, and was asked about {looks} times: {said}")
        return Done()
    wait = tx.rules.overdue_ms(task["family"]) * 2 ** (looks - 1)
    return RetryAt(tx.now + wait, said, data={"looks": looks})
