"""The routes of Kling's own API: which path is a create, a query, a list, or a call that is forwarded."""

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from kling_callback.protocol import families
from kling_receiver.web.auth import RouteHandler
from kling_receiver.web.compat.auth import CompatGuard
from kling_receiver.web.compat.creates import Creates
from kling_receiver.web.compat.forward import METHODS, Forwarder
from kling_receiver.web.compat.queries import Queries
from kling_receiver.web.compat.replies import NO_PATH, CompatError, failure, in_kling_shape

PREFIXES = ("", "/kling")
"""Relays have Kling's paths below `/kling`, and many programs are written for them."""

Endpoint = Callable[[Request, Callable[[], float]], Awaitable[Response]]


class CompatRoutes:
    """Kling's own routes. `own`: the first segments of the receiver's own paths, which none of them takes."""

    def __init__(
        self, guard: CompatGuard, creates: Creates, queries: Queries, forwarder: Forwarder, *, own: Collection[str]
    ) -> None:
        self._guard, self._creates, self._queries, self._forwarder = guard, creates, queries, forwarder
        self._own = frozenset(own)

    def routes(self) -> list[Route]:
        """The routes of this module."""
        return [
            route
            for prefix in PREFIXES[::-1]  # the longest first: `/kling/tasks` is no product `kling`
            for route in (
                CompatRoute(f"{prefix}/v1/{{path:path}}", self._guarded(self._legacy), methods=["GET", "POST"]),
                CompatRoute(f"{prefix}/account/{{path:path}}", self._guarded(self._account), methods=["GET", "POST"]),
                CompatRoute(f"{prefix}/tasks", self._guarded(self._queries.batch), methods=["GET"]),
                NewStandardRoute(f"{prefix}/{{product}}/{{model}}", self._guarded(self._new), self._own, "POST"),
                NewStandardRoute(
                    f"{prefix}/{{product}}/{{model}}/{{id}}", self._guarded(self._new_task), self._own, "GET"
                ),
            )
        ]

    def _guarded(self, endpoint: Endpoint) -> RouteHandler:
        @in_kling_shape
        async def guarded(request: Request) -> Response:
            return await endpoint(request, await self._guard.check(request))

        return guarded

    async def _legacy(self, request: Request, seconds_left: Callable[[], float]) -> Response:
        path = request.path_params["path"]
        if path in METHODS and not families.is_account(path):
            return await self._forwarder.forward(request, path)
        if request.method == "POST":
            if families.is_new_standard(path):  # `//`: a path of the gateway that is not below /v1
                raise CompatError(NO_PATH, f"Nothing is made at /v1/{path[:200]}. Check the path.")
            return await self._creates.create(request, path)
        if path in families.ASYNCHRONOUS:
            return await self._queries.list_family(request, path)
        family, _, task_id = path.rpartition("/")
        if family in families.ASYNCHRONOUS or families.is_job(family):
            return await self._queries.one(request, family, task_id, seconds_left)
        return await self._queries.list_family(request, path)

    async def _account(self, request: Request, seconds_left: Callable[[], float]) -> Response:
        return await self._forwarder.forward(request, f"account/{request.path_params['path']}")

    async def _new(self, request: Request, seconds_left: Callable[[], float]) -> Response:
        return await self._creates.create(request, _family(request))

    async def _new_task(self, request: Request, seconds_left: Callable[[], float]) -> Response:
        return await self._queries.one(request, _family(request), request.path_params["id"], seconds_left)


class CompatRoute(Route):
    """A route of Kling's. As at Kling, another method is an error like an unknown path."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request whose path matches."""
        if scope["method"] in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        message = f"{scope['method']} {scope['path'][:200]} does not exist. Check path and method."
        await failure(NO_PATH, message)(scope, receive, send)


class NewStandardRoute(CompatRoute):
    """A route of the new standard: only for paths that Kling may have, and that are none of the receiver's own."""

    def __init__(self, path: str, endpoint: RouteHandler, own: frozenset[str], method: str) -> None:
        super().__init__(path, endpoint, methods=[method])
        self._own = own

    def matches(self, scope: MutableMapping[str, Any]) -> tuple[Match, MutableMapping[str, Any]]:
        """As of any route, but never for a path that the receiver may have itself."""
        match, child = super().matches(scope)
        if match is not Match.NONE:
            product, model = (child["path_params"][name] for name in ("product", "model"))
            if product in self._own or not families.creates_tasks(f"/{product}/{model}"):
                return Match.NONE, {}
        return match, child


def _family(request: Request) -> str:
    return f"/{request.path_params['product']}/{request.path_params['model']}"
