"""One create, from its registration to the report of its outcome. A task is never paid for twice:

register ─▶ send ─┬─ taken ──────────────▶ report created
                  ├─ surely not taken ───▶ send again for a while (only 1302, 1303, no connection),
                  │                        then report not_created
                  └─ unknown ────────────▶ look for it by our id a few times, never send again,
                                           report created or unknown
"""

import logging
import secrets
from contextlib import suppress
from typing import Any

import anyio

from kling_callback.base import is_created
from kling_callback.errors import CreateUnknown, GatewayError, KlingError, NotCreated, ReceiverError
from kling_callback.jobs.body import model_of, with_callback
from kling_callback.kling_api import CONCURRENCY_LIMITED, NOT_SENT_ERRORS, RATE_LIMITED, KlingApi
from kling_callback.protocol.redact import redacted
from kling_callback.protocol.reports import UNKNOWN_TASK, Report
from kling_callback.receiver_api import CreateOutcome, ReceiverApi, Registered, Registration
from kling_callback.settings import KlingSettings
from kling_callback.tasks import AsyncTask

log = logging.getLogger("client")


class CreateCall:
    """One create call. `ending` is at each moment what is known of its outcome."""

    def __init__(
        self,
        kling_api: KlingApi,
        receiver: ReceiverApi,
        settings: KlingSettings,
        *,
        task_id: str,
        family: str,
        body: dict[str, Any],
        tags: tuple[str, ...] = (),
        hook: str = "",
    ) -> None:
        self._kling_api, self._receiver, self._retry = kling_api, receiver, receiver.retry
        self._id, self._family, self._body = task_id, family, body
        self._registration = Registration(
            family=family,
            model=model_of(family, body),
            request=redacted(body),
            base=settings.api_base,
            key_fingerprint=settings.key_fingerprint,
            tags=tags,
            hook=hook,
            create_token=secrets.token_urlsafe(16),
        )
        self.outcome = CreateOutcome("not_created", reason="It was interrupted before it was sent.")
        self._unreported: str | None = None
        self._began = 0.0

    async def run(self) -> AsyncTask:
        """The task, new or already there. Raises NotCreated, or ReceiverError before anything was sent."""
        registered = await self._register()
        task = await self._create(registered) if registered.create else await self._continue(registered.task)
        return AsyncTask(self._receiver, task, unreported=self._unreported)

    async def _register(self) -> Registered:
        try:
            return await self._receiver.register(self._id, self._registration)
        except ReceiverError as error:
            error.outcome = "not_created"
            raise

    async def _create(self, registered: Registered) -> dict[str, Any]:
        try:
            refusal = await self._send(registered.callback_url)
            task = await self._report(registered.task)
        except BaseException:
            await self._report_interrupted()
            raise
        if refusal:
            raise refusal
        return task

    async def _continue(self, task: dict[str, Any]) -> dict[str, Any]:
        """A task that was there before: nothing is sent; one look if nobody knows what became of its create."""
        if is_created(task) or task.get("done") or task["status"] != "created":
            return task
        if report := await self._find_created():
            self._created(report)
            return await self._report(task)
        return task

    async def _send(self, callback_url: str) -> NotCreated | None:
        """Send the create until Kling took it, surely will not take it, or may have; returns the refusal."""
        body = with_callback(self._family, self._body, self._id, callback_url)
        self._began = anyio.current_time()
        try:
            sending = self._retry.retry(lambda: self._try(body), self._resend, self._retry.create_seconds)
            self._created(await sending)
        except NotCreated as error:
            return error if error.code not in UNKNOWN_TASK else await self._check_exists(error)
        except CreateUnknown as error:
            self.outcome = CreateOutcome("unknown", reason=error.message)
            log.warning("Nobody knows yet whether Kling took task %s. It is not sent again.", self._id)
            await self._search_created()
        return None

    async def _try(self, body: dict[str, Any]) -> Report:
        self.outcome = CreateOutcome("unknown", reason="It was interrupted while it was sent.")
        try:
            return await self._kling_api.create(self._family, body)
        except NotCreated as error:
            self.outcome = CreateOutcome("not_created", reason=error.message)
            raise

    def _resend(self, error: KlingError) -> bool:
        """Whether to send it again; a Kling that is not there is given less time than a busy one."""
        waited = anyio.current_time() - self._began
        return may_resend(error) and (error.code is not None or waited < self._retry.connect_seconds)

    async def _check_exists(self, refusal: NotCreated) -> NotCreated | None:
        """Kling has one code for bad parameters and for an id that is taken; the latter means: created."""
        if report := await self._find_created():
            self._created(report)
            return None
        if "already exist" not in refusal.message.lower():
            return refusal
        self.outcome = CreateOutcome("unknown", reason=refusal.message)
        return None

    async def _search_created(self) -> None:
        for pause in self._retry.lookup_waits:
            await anyio.sleep(pause * self._retry.jitter())
            if report := await self._find_created():
                self._created(report)
                return

    async def _find_created(self) -> Report | None:
        """Ask Kling for our id once. Not finding it proves nothing."""
        with suppress(GatewayError):
            report = await self._kling_api.query(self._family, external_id=self._id)
            if report and report.kling_id and report.external_task_id in (None, self._id):
                return report
        return None

    def _created(self, report: Report) -> None:
        self.outcome = CreateOutcome("created", kling_id=report.kling_id)

    async def _report(self, task: dict[str, Any]) -> dict[str, Any]:
        """Tell the receiver; when it cannot be told, callback and deadline still find the task."""
        try:
            return await self._receiver.report(self._id, self._registration, self.outcome)
        except ReceiverError as error:
            ending = self.outcome
            self._unreported = (
                f"The receiver could not be told that the create of task {self._id} ended as {ending.outcome}"
                f"{f', as {ending.kling_id} at Kling' if ending.kling_id else ''}. {error}"
            )
            log.warning("%s", self._unreported)
            return {**task, "task_id": task.get("task_id") or ending.kling_id}

    async def _report_interrupted(self) -> None:
        """Interrupted: say in a moment what is known. `kling wait` finds the task in any case."""
        log.warning("Interrupted. If Kling took task %s, wait for it with: kling wait %s", self._id, self._id)
        # RuntimeError: the client was closed under us; the interruption is what the caller is to hear of.
        with (
            anyio.move_on_after(self._retry.interrupt_seconds, shield=True),
            suppress(KlingError, RuntimeError),
        ):
            await self._receiver.report(self._id, self._registration, self.outcome, persist=False)


def may_resend(error: KlingError) -> bool:
    """Whether this create may be sent again: Kling surely did not take it, and may take it later."""
    never_left = isinstance(error.__cause__, NOT_SENT_ERRORS) and error.retryable
    return isinstance(error, NotCreated) and (error.code in (RATE_LIMITED, CONCURRENCY_LIMITED) or never_left)
