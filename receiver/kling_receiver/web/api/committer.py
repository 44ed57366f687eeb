"""Commit submissions: each is registered when its caller is told so, and is never sent when it is told otherwise."""

import asyncio
from collections.abc import Callable

from kling_receiver.store.errors import Unavailable
from kling_receiver.store.transaction import Transaction
from kling_receiver.store.writer import Writer
from kling_receiver.tasks import submission as submissions
from kling_receiver.tasks.submission import Submission, SubmissionResult
from kling_receiver.web.errors import ApiError

CONFIRM_SECONDS = 8.0
"""Seconds in which a commit without an answer is checked, before its caller is told that nothing was registered."""
CONFIRM_AGAIN_SECONDS = 0.5
"""Seconds between two attempts to check it."""
WITHDRAWN = "The database did not answer, and the caller was told to send it again."

Submit = Callable[[Transaction, str, Submission], SubmissionResult]


class Undecided(ApiError):
    """Whether a task is registered is not known: the database was lost during its commit."""

    def __init__(self, task_id: str) -> None:
        message = f"The database does not answer: it is not known whether task {task_id} is registered."
        super().__init__(503, "undecided", message, f"Before you send it again, ask: GET /api/tasks/{task_id}.")
        self.task_id = task_id


class Committer:
    """Registers the tasks of submissions."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._checks = set[asyncio.Task[bool]]()

    async def commit(self, submission: Submission, submit: Submit, *, may_withdraw: bool) -> SubmissionResult:
        """Register a submission's task. Raises Unavailable if it is not registered, and will not be.

        A caller who is told so sends it again, perhaps without an id by which the repeat is known: it is paid twice.
        `may_withdraw`: False: if it is not known for CONFIRM_SECONDS, Undecided is raised, and the task may be sent.
        """
        has_run = given_up = False

        def change(tx: Transaction) -> SubmissionResult:
            nonlocal has_run
            has_run = True  # before it is asked whether it may: the other thread does these two in the other order
            return SubmissionResult() if given_up else submit(tx, submission.task_id, submission)

        try:
            # Its size is not counted as pending: the reservation limits how many large ones there are.
            return await self._writer.run(change)
        except Unavailable:
            given_up = True
            if not has_run or not await self._is_registered(submission, may_withdraw=may_withdraw):
                raise
            return SubmissionResult(created=True)

    async def _is_registered(self, submission: Submission, *, may_withdraw: bool) -> bool:
        """Whether a commit whose answer was lost, or that is late, has registered a task.

        If that is not known in CONFIRM_SECONDS, and the task may be withdrawn, it leaves the queue as soon as it is
        there: the writer makes changes in their order, and the check comes before the job's. A repeat that is known by
        its id finds the task.
        """
        task_id, create_token = submission.task_id, submission.registration.create_token
        is_refused = False

        def check(tx: Transaction) -> bool:
            task = tx.task(task_id)
            is_ours = task is not None and task["create_token"] == create_token
            return is_ours and not (is_refused and submissions.cancel(tx, task_id, WITHDRAWN) == "cancelled")

        async def check_until_known() -> bool:
            while True:
                was_refused = is_refused
                try:
                    is_registered = await self._writer.run(check)
                except Unavailable:
                    await asyncio.sleep(CONFIRM_AGAIN_SECONDS)
                    continue
                if was_refused or not is_registered or not is_refused:
                    return is_registered

        task = asyncio.create_task(check_until_known())
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)
        done, _ = await asyncio.wait([task], timeout=CONFIRM_SECONDS)
        if not done and not may_withdraw:
            raise Undecided(task_id)
        is_refused = not done and not submission.is_repeatable
        return bool(done) and task.result()
