"""The inbound route: prove, read, hand to the writer, answer. It never asks, fetches or decides anything.

Nothing with a good token is refused for its content: what cannot be read still says that something happened.
"""

import logging
import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kling_callback.errors import TokenError
from kling_callback.protocol.families import is_family
from kling_callback.protocol.ids import is_id
from kling_callback.protocol.reports import Report, parse_callback
from kling_callback.protocol.signing import CallbackSigner, CallbackToken
from kling_callback.protocol.webhooks import SignatureState, is_plausible, verify
from kling_receiver.metrics import Metrics
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import TaskRow
from kling_receiver.store.writer import Writer
from kling_receiver.tasks.ingest import Callback, ingest
from kling_receiver.web.body import Body, BodyLimiter, Reservation, UnauthenticatedReservation, read_body
from kling_receiver.web.errors import error_response

log = logging.getLogger("kling_receiver.callbacks")


DOCTOR_FAMILY = "(doctor)"
"""The family of a callback token that asks for nothing but an echo: no task is made, and no task's is this."""


def doctor_answer(nonce: str) -> dict[str, str]:
    """What the callback route says to the doctor: the nonce proves that it was this receiver."""
    return {"doctor": nonce}


class CallbackRoutes:
    """`POST /callbacks/{token}`, and `POST /callbacks` for what Kling itself signed."""

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        writer: Writer,
        reader: Reader,
        bodies: BodyLimiter,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._clock = settings, clock
        self._writer, self._reader, self._bodies, self._metrics = writer, reader, bodies, metrics
        self._accepted = metrics.callbacks.labels("accepted")
        self._signer = CallbackSigner(settings.signing_secrets, clock=clock)

    async def receive(self, request: Request) -> Response:
        """200 once durable; 401 for a bad token, before a byte of the body is read; 503 when not durable."""
        given = request.path_params["token"].rstrip("/")
        if not given:
            return await self.receive_signed(request)
        try:
            token = self._signer.verify(given, self._settings.callback_max_age)
        except TokenError as error:
            return self._reject("bad_token", str(error), "Use the callback_url exactly as the receiver gave it.")
        return await self._counted(self._handle_token(request, token))

    async def _handle_token(self, request: Request, token: CallbackToken) -> Response:
        with Reservation(self._bodies) as share:
            if token.family == DOCTOR_FAMILY:
                await read_body(request, share)
                await self._writer.probe()
                return JSONResponse(doctor_answer(token.task_id))
            if not (is_id(token.task_id) and is_family(token.family)):
                return self._reject("bad_token", "The callback token names an impossible task.", "Sign another id.")
            body = await read_body(request, share)
            signature = self._signature(request, body)
            if self._settings.webhook_signature == "required" and signature != "good":
                return self._reject(*BAD_SIGNATURE)
            return await self._record(_callback(token.task_id, token.family, body, signature))

    async def receive_signed(self, request: Request) -> Response:
        """For Kling's console test, and addresses set elsewhere: 401 unless Kling's signature holds."""
        if not self._settings.webhook_secrets:
            return self._reject(*NO_SECRETS)
        if not is_plausible(request.headers, self._clock()):
            return self._reject(*BAD_SIGNATURE)
        return await self._counted(self._handle_signed(request))

    async def _handle_signed(self, request: Request) -> Response:
        with UnauthenticatedReservation(self._bodies) as share:
            body = await read_body(request, share, max_dropped=0)  # what is too long has no signature that holds
            if self._signature(request, body) != "good":
                return self._reject(*BAD_SIGNATURE)
            task = await self._find_task(parse_callback(body.content))
            if task is None:
                self._metrics.callbacks.labels("unknown_task").inc()
                log.info("a callback that Kling signed is of no task of ours; nothing was kept")
                return JSONResponse({"ok": True})
            return await self._record(_callback(task["id"], task["family"], body, "good"))

    async def _counted(self, answer: Awaitable[Response]) -> Response:
        try:
            return await answer
        except Unavailable:  # answered 503 by the application
            self._metrics.callbacks.labels("unavailable").inc()
            raise

    def _signature(self, request: Request, body: Body) -> SignatureState:
        secrets = self._settings.webhook_secrets
        return verify(secrets, request.headers, body.content, self._clock()) if secrets else "absent"

    async def _find_task(self, report: Report | None) -> TaskRow | None:
        """Our task that a signed report is of: by the id that we sent, else by Kling's."""
        if report is None:
            return None
        task = await self._reader.task(report.external_task_id) if report.external_task_id else None
        if task is None and report.kling_id and (holder := await self._reader.find_by_kling_id(report.kling_id)):
            task = await self._reader.task(holder)
        return task

    async def _record(self, callback: Callback) -> Response:
        began = time.perf_counter()
        await self._writer.run_batched(ingest, callback, size=len(callback.body))
        self._accepted.inc()
        self._metrics.commit_seconds.observe(time.perf_counter() - began)
        return ACCEPTED

    def _reject(self, code: str, message: str, hint: str) -> Response:
        self._metrics.callbacks.labels(code).inc()
        return error_response(401, code, message, hint)


BAD_SIGNATURE = (
    "bad_signature",
    "Kling's signature is missing or does not hold.",
    "Set KLING_WEBHOOK_SECRETS to the secret from Kling's console.",
)
NO_SECRETS = (
    "bad_signature",
    "An address without a token takes only what Kling signed, and this receiver has none of Kling's secrets.",
    "Set KLING_WEBHOOK_SECRETS to the secret from Kling's console, or use a callback_url of the receiver's.",
)
ACCEPTED = JSONResponse({"ok": True})


def _callback(task_id: str, family: str, body: Body, signature: SignatureState) -> Callback:
    oversized = body.size > len(body.content)
    report = None if oversized or body.problem else parse_callback(body.content)
    trouble = body.problem or ("oversized" if oversized else None if report else "unreadable")
    if signature == "bad":
        # Whoever holds the address may have sent it, Kling did not: it proves that something happened, no more.
        report, trouble = None, "wrongly signed"
    return Callback(
        task_id=task_id,
        family=family,
        body_sha256=body.sha256,
        body=body.content,
        size=body.size,
        report=report,
        signed=signature == "good" and report is not None,
        problem=trouble,
    )
