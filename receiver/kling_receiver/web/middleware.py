"""The path prefix, the reason of a failed start, and the handlers that turn exceptions into the one error shape."""

import logging
import re
import sys
from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kling_receiver.store.errors import DatabaseError, Unavailable, describe
from kling_receiver.web.errors import ApiError, error_response

log = logging.getLogger("kling_receiver.web")


class PathPrefix:
    """Removes the path of KLING_RECEIVER_URL or KLING_LINKS_URL from each request, unless a proxy has removed it.

    A path is shortened only if a route remains: with the prefix `/api`, a proxy may already have shortened
    `/api/api/tasks` to `/api/tasks`.

    The prefix alone, without a slash at its end, is redirected to the first page, whose addresses are relative.

    Several slashes before `callbacks` count as one: a proxy that replaces `/kling` by `/` makes `//callbacks/` of
    `/kling/callbacks/`. Other routes are not public, and a rule of the proxy for `/api` must not be evaded by `//api`.
    """

    def __init__(self, app: ASGIApp, prefix: str, routes: Sequence[Route]) -> None:
        self.app, self.prefix, self._routes = app, prefix.rstrip("/"), routes
        self.first_segments = {route.path.split("/")[1] for route in routes}
        own = rf"(?:{re.escape(self.prefix.strip('/'))}/+)?" if self.prefix else ""
        self._callbacks = re.compile(rf"/+{own}(callbacks(?:/.*)?)", re.DOTALL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        doubled = scope["type"] == "http" and "//" in scope["path"]
        if doubled and (callback := self._callbacks.fullmatch(scope["path"])):
            scope = {**scope, "path": f"/{callback[1]}"}
        if self.prefix and scope["type"] == "http" and scope["path"] == self.prefix and not self._is_route(scope):
            query = scope["query_string"].decode("latin-1")
            location = f"{self.prefix.rpartition('/')[2]}/" + (f"?{query}" if query else "")
            await RedirectResponse(location, 307)(scope, receive, send)
            return
        if self.prefix and scope["type"] == "http" and scope["path"].startswith(f"{self.prefix}/"):
            first = scope["path"].removeprefix(self.prefix).split("/")[1]
            shortened = {**scope, "root_path": self.prefix}
            if first in self.first_segments or self._has_route(shortened):
                scope = shortened
        await self.app(scope, receive, send)

    def _is_route(self, scope: Scope) -> bool:
        """Whether the path is one of a route: a proxy may have removed the prefix."""
        return any(route.matches(scope)[0] is not Match.NONE for route in self._routes)

    def _has_route(self, scope: Scope) -> bool:
        """Whether a route matches whose path begins with a parameter."""
        return any(route.matches(scope)[0] is not Match.NONE for route in self._routes if route.path.startswith("/{"))


class StartErrors:
    """Reports a start that the database or a folder ended in one line; Starlette sends the traceback of any error."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_reason(message: Message) -> None:
            error = sys.exception()  # Starlette sends this message while it handles the error
            if message["type"] == "lifespan.startup.failed" and isinstance(error, DatabaseError | OSError):
                message = {**message, "message": str(error)}
            await send(message)

        await self.app(scope, receive, send_reason if scope["type"] == "lifespan" else send)


async def api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error.status, error.code, error.message, error.hint, headers=error.headers)


async def unavailable(request: Request, error: Exception) -> Response:
    return error_response(503, "unavailable", str(error), "Send the request again.", headers={"Retry-After": "5"})


async def refused_by_database(request: Request, error: Exception) -> Response:
    """A statement that the database refuses (a revoked right, a constraint): the operator can fix that."""
    log.error("the database refused a statement of a request", exc_info=error)
    return await unavailable(request, Unavailable(f"The database refused a statement: {describe(error)}."))


async def http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    hint = {404: "Check the path: /openapi.json lists every route.", 405: "Use a method from the Allow header."}
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    return error_response(
        error.status_code, code, f"{error.detail}.", hint.get(error.status_code, ""), headers=error.headers
    )


async def internal_error(request: Request, error: Exception) -> Response:
    return error_response(500, "internal", "The receiver failed.", "Check its log.")
