"""The minimal cost of a callback route: Starlette on uvicorn, configured like the receiver, that stores nothing.

Run as a process of its own: `python -m tools.bench.processes.bare_route PORT`.
"""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


async def accept(request: Request) -> Response:
    """Read the body, answer 200."""
    await request.body()
    return JSONResponse({"ok": True})


if __name__ == "__main__":
    routes = [Route("/callbacks/{token}", accept, methods=["POST"])]
    uvicorn.run(Starlette(routes=routes), port=int(sys.argv[1]), access_log=False, log_level="critical")
