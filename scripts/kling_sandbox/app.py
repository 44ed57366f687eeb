"""The routes: Kling's two standards, the result files, and the account of what happened here."""

import asyncio
import contextlib
from typing import Any, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kling_sandbox.creates import Creates
from kling_sandbox.files import Files
from kling_sandbox.ledger import Ledger
from kling_sandbox.life import Life
from kling_sandbox.queries import Queries
from kling_sandbox.replies import Refused


def application(ledger: Ledger, life: Life) -> ASGIApp:
    creates, queries, files = Creates(ledger, life), Queries(ledger), Files(ledger)

    async def account(request: Request) -> Response:
        return JSONResponse(ledger.account())

    routes = [
        Route("/v1/{path:path}", creates.post, methods=["POST"]),
        Route("/v1/{path:path}", queries.one, methods=["GET"]),
        Route("/{path}/{model}", creates.post, methods=["POST"]),
        Route("/tasks", queries.batch),
        Route("/files/{number}/{name}", files.get),
        Route("/sandbox/account", account),
    ]
    handlers: Any = {Refused: refused, 404: nowhere, 405: nowhere}
    return with_transport(Starlette(routes=[Mount(ledger.base_path, routes=routes)], exception_handlers=handlers))


async def refused(request: Request, error: Refused) -> Response:
    return error.reply()


async def nowhere(request: Request, error: Exception) -> Response:
    return Refused(1202, f"{request.method} {request.url.path} does not exist").reply()


def with_transport(app: ASGIApp) -> ASGIApp:
    """Show the connection to the replies that close it, and end quietly when the sandbox does."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        scope["transport"] = cast("Any", send).__self__.transport
        with contextlib.suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return wrapped
