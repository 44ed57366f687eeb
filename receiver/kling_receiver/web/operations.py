"""The routes for operators: /healthz, /readyz, /metrics, /openapi.json."""

from collections.abc import Awaitable, Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kling_receiver.metrics import CONTENT_TYPE, Metrics
from kling_receiver.settings import ReceiverSettings
from kling_receiver.web.auth import Guard
from kling_receiver.web.errors import error_response
from kling_receiver.web.openapi.document import document


def operation_routes(
    settings: ReceiverSettings, guard: Guard, metrics: Metrics, ready: Callable[[], Awaitable[str | None]]
) -> list[Route]:
    """The routes for operators. `ready`: why a callback would not be stored and processed; None if it would."""

    async def healthz(request: Request) -> Response:
        return JSONResponse({"ok": True})

    async def readyz(request: Request) -> Response:
        if reason := await ready():
            return error_response(503, "not_ready", reason, "Fix the cause. Restart only if the reason says so.")
        return JSONResponse({"ok": True})

    async def metrics_text(request: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    async def openapi(request: Request) -> Response:
        return JSONResponse(
            await run_in_threadpool(document, settings.receiver_url, with_compat=settings.compat_api == "on")
        )

    return [
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/metrics", guard.require("read", metrics_text, query=None), methods=["GET"]),
        Route("/openapi.json", guard.require("admin", openapi, query=None), methods=["GET"]),
    ]
