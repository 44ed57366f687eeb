"""The callback routes: authenticate, read, commit, answer. They never query Kling, and change no status themselves.

With a valid token no body is refused for its content, unless KLING_WEBHOOK_SIGNATURE is `required`: an unreadable body
is still a hint to query Kling.
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
from kling_callback.protocol.signing import LEEWAY_SECONDS, CallbackSigner, CallbackToken
from kling_callback.protocol.webhooks import SignatureState, is_plausible, verify
from kling_receiver.doctor.echo import DOCTOR_FAMILY, doctor_answer
from kling_receiver.metrics import Metrics
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.errors import Unavailable, describe
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import TaskRow
from kling_receiver.store.writer import Writer
from kling_receiver.tasks.ingest import Callback, ingest
from kling_receiver.web.body import Body, BodyLimiter, Reservation, UnauthenticatedReservation, read_body
from kling_receiver.web.errors import error_response

log = logging.getLogger("kling_receiver.callbacks")


ERROR_LOG_SECONDS = 1.0
"""Seconds between two log lines about errors, of which a sender may cause any number."""


class CallbackRoutes:
    """`POST /callbacks/{token}`, and `POST /callbacks` for callbacks that Kling itself signed."""

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
        self._log_errors_at = 0.0
        self._accepted = metrics.callbacks.labels("accepted")
        self._warned_of_clock = False
        self._signer = CallbackSigner(settings.signing_secrets, clock=clock)

    async def receive(self, request: Request) -> Response:
        """Answer 200 once the callback is durable, 401 for a bad token before the body is read, else 503."""
        text = request.path_params["token"].strip("/")
        if not text:
            return await self.receive_signed(request)
        try:
            token = self._signer.verify(text, self._settings.callback_max_age)
        except TokenError as error:
            return self._reject("bad_token", str(error), "Use the callback_url exactly as the receiver returned it.")
        self._warn_of_clock(token.signed_at - self._clock())
        return await self._counted(self._handle_token(request, token))

    def _warn_of_clock(self, seconds_ahead: float) -> None:
        """Log once that a token is from the future: a clock is wrong, and tokens expire by it."""
        if seconds_ahead > LEEWAY_SECONDS and not self._warned_of_clock:
            self._warned_of_clock = True
            log.warning(
                "a callback address was signed %d s in the future, and is accepted; check the clocks of this machine "
                "and of the one that signed it",
                seconds_ahead,
            )

    async def _handle_token(self, request: Request, token: CallbackToken) -> Response:
        with Reservation(self._bodies) as reservation:
            if token.family == DOCTOR_FAMILY:
                await read_body(request, reservation)
                await self._writer.probe()
                return JSONResponse(doctor_answer(token.task_id))
            if not (is_id(token.task_id) and is_family(token.family)):
                message = "The task id or family in the callback token is not valid."
                return self._reject("bad_token", message, "Sign a valid task id and family.")
            body = await read_body(request, reservation)
            signature = self._signature(request, body)
            if self._settings.webhook_signature == "required" and signature != "good":
                return self._reject(*BAD_SIGNATURE)
            return await self._record(_callback(token.task_id, token.family, body, signature))

    async def receive_signed(self, request: Request) -> Response:
        """Receive a callback without a token: Kling's console test, or an address set elsewhere.

        Answers 401 unless Kling's signature is valid, and 200 without storing it if no task matches.
        """
        if not self._settings.webhook_secrets:
            return self._reject(*NO_SECRETS)
        if not is_plausible(request.headers, self._clock()):
            return self._reject(*BAD_SIGNATURE)
        return await self._counted(self._handle_signed(request))

    async def _handle_signed(self, request: Request) -> Response:
        with UnauthenticatedReservation(self._bodies) as reservation:
            body = await read_body(request, reservation, max_dropped=0)  # the signature of a longer body cannot match
            if self._signature(request, body) != "good":
                return self._reject(*BAD_SIGNATURE)
            task = await self._find_task(parse_callback(body.content))
            if task is None:
                self._metrics.callbacks.labels("unknown_task").inc()
                log.info("a callback signed by Kling belongs to no known task; it was not stored")
                return JSONResponse({"ok": True})
            return await self._record(_callback(task["id"], task["family"], body, "good"))

    async def _counted(self, response: Awaitable[Response]) -> Response:
        try:
            return await response
        except Unavailable:  # answered with 503 by the application
            self._metrics.callbacks.labels("unavailable").inc()
            raise
        except Exception as error:
            self._metrics.callbacks.labels("error").inc()
            self._log_error(error)
            raise Unavailable(f"The callback could not be stored: {describe(error)}.") from error

    def _log_error(self, error: Exception) -> None:
        """Log an error with its traceback, at most once in ERROR_LOG_SECONDS."""
        now = time.monotonic()
        if now >= self._log_errors_at:
            self._log_errors_at = now + ERROR_LOG_SECONDS
            log.error("a callback could not be stored", exc_info=error)

    def _signature(self, request: Request, body: Body) -> SignatureState:
        secrets = self._settings.webhook_secrets
        return verify(secrets, request.headers, body.content, self._clock()) if secrets else "absent"

    async def _find_task(self, report: Report | None) -> TaskRow | None:
        """Find the task of a signed report: by the id that our create sent, else by Kling's id."""
        if report is None:
            return None
        task = await self._reader.task(report.external_task_id) if report.external_task_id else None
        if task is None and report.kling_id and (task_id := await self._reader.find_by_kling_id(report.kling_id)):
            task = await self._reader.task(task_id)
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
    "Kling's signature is missing or not valid.",
    "Set KLING_WEBHOOK_SECRETS to the secret from Kling's console.",
)
NO_SECRETS = (
    "bad_signature",
    "A callback without a token must be signed by Kling, and this receiver has none of Kling's secrets.",
    "Set KLING_WEBHOOK_SECRETS to the secret from Kling's console, or use a callback_url from this receiver.",
)
ACCEPTED = JSONResponse({"ok": True})


def _callback(task_id: str, family: str, body: Body, signature: SignatureState) -> Callback:
    oversized = body.size > len(body.content)
    report = None if oversized or body.problem else parse_callback(body.content)
    problem = body.problem or ("oversized" if oversized else None if report else "unreadable")
    if signature == "bad":  # sent by another holder of the address, not by Kling: only a hint to query Kling
        report, problem = None, "wrongly signed"
    return Callback(
        task_id=task_id,
        family=family,
        body_sha256=body.sha256,
        body=body.content,
        size=body.size,
        report=report,
        signed=signature == "good" and report is not None,
        problem=problem,
    )
