"""Forward calls that Kling answers at once, and those of the account: its answer is passed on as it is."""

from starlette.requests import Request
from starlette.responses import Response

from kling_callback.api.kling import KlingApi
from kling_callback.errors import CreateUnknown, NotCreated
from kling_callback.protocol import families
from kling_receiver.settings import ReceiverSettings
from kling_receiver.web.api.submission import MAX_BYTES, READ_SECONDS, too_large
from kling_receiver.web.body import BodyLimiter, Reservation, read_body
from kling_receiver.web.compat.replies import BAD_BODY, BAD_PARAMETER, NO_ANSWER, NO_PATH, UNAVAILABLE, CompatError

MAX_QUERY_CHARS = 4_000
MAX_LARGE = 16
"""Calls with large bodies at once: 256 MB of memory at most."""

METHODS = {
    **dict.fromkeys(families.SYNCHRONOUS_GET, "GET"),
    **dict.fromkeys(families.SYNCHRONOUS_POST, "POST"),
}
"""The method of each endpoint that answers at once."""

SAFE = {"Content-Security-Policy": "sandbox; default-src 'none'", "X-Content-Type-Options": "nosniff"}
"""Headers of an answer that may be the page of a proxy: no browser may run it at our address."""


class Forwarder:
    """Sends calls to Kling with the account's key, each once."""

    def __init__(self, settings: ReceiverSettings, kling_api: KlingApi) -> None:
        self._has_key, self._kling_api, self._bodies = settings.has_key, kling_api, BodyLimiter(MAX_LARGE)

    async def forward(self, request: Request, path: str) -> Response:
        """Kling's answer to a call, unchanged. `path`: below /v1, or of the account. Raises CompatError, ApiError."""
        method = "GET" if request.method == "HEAD" else request.method
        if METHODS.get(path) != method:
            raise CompatError(NO_PATH, f"{method} {request.url.path[:200]} does not exist. Check path and method.")
        if not self._has_key:
            raise CompatError(UNAVAILABLE, "This receiver has no Kling key. Set KLING_API_KEY there.")
        query = request.scope["query_string"].decode("latin-1")
        if len(query) > MAX_QUERY_CHARS or not query.isascii() or not query.isprintable() or set(query) & set(" #"):
            raise CompatError(BAD_PARAMETER, "The query of the address has letters that must be encoded. Encode them.")
        with Reservation(self._bodies) as reservation:
            content = await _read(request, reservation) if method == "POST" else None
            return await self._send(f"/{path}" if families.is_account(path) else path, method, query, content)

    async def _send(self, path: str, method: str, query: str, content: bytes | None) -> Response:
        try:
            answer = await self._kling_api.forward(path, method, query, content)
        except NotCreated as error:
            raise CompatError(UNAVAILABLE, str(error)) from None
        except CreateUnknown as error:
            hint = "Send the request again." if method == "GET" else error.hint
            raise CompatError(NO_ANSWER, f"{error.message} {hint}") from None
        headers = {**SAFE, "Content-Type": answer.content_type or "application/json"}
        if answer.retry_after is not None:
            headers["Retry-After"] = f"{answer.retry_after:.0f}"
        return Response(answer.content, answer.status, headers)


async def _read(request: Request, reservation: Reservation) -> bytes:
    body = await read_body(request, reservation, max_kept=MAX_BYTES, seconds=READ_SECONDS)
    if body.size > len(body.content):
        raise too_large(MAX_BYTES)
    if body.problem:
        raise CompatError(BAD_BODY, "The request was cut off. Send it again.")
    return body.content
