"""Forward calls that Kling answers at once, and those of the account: its answer is passed on as it is."""

from starlette.requests import Request
from starlette.responses import Response

from kling_callback.api.kling import KlingApi
from kling_callback.errors import CreateUnknown, NotCreated
from kling_callback.protocol import families
from kling_receiver.settings import ReceiverSettings
from kling_receiver.web.compat.replies import BAD_PARAMETER, NO_ANSWER, UNAVAILABLE, CompatError

MAX_QUERY_CHARS = 4_000

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
        self._has_key, self._kling_api = settings.has_key, kling_api

    async def forward(self, request: Request, path: str, content: bytes | None) -> Response:
        """Kling's answer to a call, unchanged. `path`: one of METHODS. Raises CompatError."""
        if not self._has_key:
            raise CompatError(UNAVAILABLE, "This receiver has no Kling key. Set KLING_API_KEY there.")
        query = request.scope["query_string"].decode("latin-1")
        if len(query) > MAX_QUERY_CHARS or not query.isascii() or not query.isprintable() or set(query) & set(" #"):
            raise CompatError(BAD_PARAMETER, "The query of the address has letters that must be encoded. Encode them.")
        target = f"/{path}" if families.is_account(path) else path
        method = METHODS[path]
        try:
            answer = await self._kling_api.forward(target, method, query, content if method == "POST" else None)
        except NotCreated as error:
            raise CompatError(UNAVAILABLE, str(error)) from None
        except CreateUnknown as error:
            hint = "Send the request again." if method == "GET" else error.hint
            raise CompatError(NO_ANSWER, f"{error.message} {hint}") from None
        headers = {**SAFE, "Content-Type": answer.content_type or "application/json"}
        if answer.retry_after is not None:
            headers["Retry-After"] = f"{answer.retry_after:.0f}"
        return Response(answer.content, answer.status, headers)
