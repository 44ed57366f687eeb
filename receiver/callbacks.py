"""The inbound route: prove, read, hand to the writer, answer. It never asks, fetches or decides anything.

Nothing with a good token is refused for its content: what cannot be read still says that something happened.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from client.codec import read_callback
from client.errors import TokenError
from client.ids import is_id
from client.signing import CallbackSigner, CallbackToken
from receiver import doctor
from receiver.errors import error_response
from receiver.metrics import Metrics
from receiver.settings import ReceiverSettings
from receiver.signatures import check
from receiver.store import Callback
from receiver.writer import Unavailable, Writer

KEPT = 1_000_000
"""Bytes of a body that are kept."""
DROPPED = 16_000_000
"""Bytes after those that are read and dropped, for the digest."""
READ_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body: its first KEPT bytes, the size and digest of all that was read."""

    kept: bytes
    size: int
    digest: str
    trouble: str | None = None


class CallbackRoutes:
    """`POST /callbacks/{token}`, and `POST /callbacks` for what Kling itself signed."""

    def __init__(
        self,
        settings: ReceiverSettings,
        writer: Writer,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._writer, self._metrics, self._clock = settings, writer, metrics, clock
        self._signer = CallbackSigner(settings.signing_secrets, clock=clock)

    async def with_token(self, request: Request) -> Response:
        """200 once durable; 401 for a bad token, before a byte of the body is read; 503 when not durable."""
        try:
            token = self._signer.read(request.path_params["token"].rstrip("/"), self._settings.callback_max_age)
        except TokenError as error:
            return self._refuse(
                "bad_token", str(error), "Use the callback_url exactly as the receiver gave it."
            )
        if token.family == doctor.FAMILY:
            return JSONResponse(doctor.answer(token.task_id))
        if not is_id(token.task_id):
            return self._refuse("bad_token", "The callback token names an impossible task.", "Sign another id.")
        body = await read_body(request)
        signature = check(self._settings.webhook_secrets, request.headers, body.kept, self._clock())
        if self._settings.webhook_signature == "required" and signature != "good":
            return self._refuse("bad_signature", "Kling's signature is missing or does not hold.", SECRETS_HINT)
        return await self._take(_callback(token, body, self._believable(signature)))

    async def without_token(self, request: Request) -> Response:
        """For Kling's console test, and addresses set elsewhere: 401 unless Kling's signature holds."""
        secrets = self._settings.webhook_secrets
        body = await read_body(request) if secrets else Body(b"", 0, "")
        if not secrets or check(secrets, request.headers, body.kept, self._clock()) != "good":
            return self._refuse("bad_signature", "Kling's signature is missing or does not hold.", SECRETS_HINT)
        self._metrics.callbacks.labels("unknown_task").inc()
        return JSONResponse({"ok": True})

    def _believable(self, signature: str) -> str:
        return signature if self._settings.webhook_secrets else "absent"

    async def _take(self, callback: Callback) -> Response:
        began = time.perf_counter()
        try:
            await self._writer.record(callback)
        except Unavailable as error:
            self._metrics.callbacks.labels("unavailable").inc()
            return error_response(
                503, "unavailable", str(error), "Send it again.", headers={"Retry-After": "5"}
            )
        self._metrics.callbacks.labels("accepted").inc()
        self._metrics.commit_seconds.observe(time.perf_counter() - began)
        return JSONResponse({"ok": True})

    def _refuse(self, code: str, message: str, hint: str) -> Response:
        self._metrics.callbacks.labels(code).inc()
        return error_response(401, code, message, hint)


SECRETS_HINT = "Set KLING_WEBHOOK_SECRETS to the secret from Kling's console."


def _callback(token: CallbackToken, body: Body, signature: str) -> Callback:
    oversized = body.size > len(body.kept)
    report = None if oversized or body.trouble else read_callback(body.kept)
    trouble = body.trouble or ("oversized" if oversized else None if report else "unreadable")
    if signature == "bad":
        # Whoever holds the address may have sent it, Kling did not: it proves that something happened, no more.
        report, trouble = None, "wrongly signed"
    return Callback(
        task=token.task_id,
        family=token.family,
        digest=body.digest,
        body=body.kept,
        size=body.size,
        report=report,
        signed=signature == "good" and report is not None,
        trouble=trouble,
    )


async def read_body(request: Request) -> Body:
    """Read a body without keeping more than KEPT bytes of it. Never raises for what the sender does."""
    kept, size, digest, trouble = bytearray(), 0, hashlib.sha256(), None
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for chunk in request.stream():
                digest.update(chunk)
                size += len(chunk)
                if len(kept) < KEPT:
                    kept += chunk[: KEPT - len(kept)]
                if size > KEPT + DROPPED:
                    break
    except (ClientDisconnect, TimeoutError):
        trouble = "cut off"
    return Body(bytes(kept), size, digest.hexdigest(), trouble)
