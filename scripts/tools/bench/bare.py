"""What a callback route costs at least: Starlette on uvicorn, set up as the receiver is, that keeps nothing."""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


async def take(request: Request) -> Response:
    """Read the body, answer 200."""
    await request.body()
    return JSONResponse({"ok": True})


if __name__ == "__main__":
    routes = [Route("/callbacks/{token}", take, methods=["POST"])]
    uvicorn.run(Starlette(routes=routes), port=int(sys.argv[1]), access_log=False, log_level="critical")
