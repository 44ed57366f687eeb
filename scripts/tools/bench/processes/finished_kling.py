"""A Kling API for benches at which every task has succeeded, with one small image.

Run as a process of its own: `python -m tools.bench.processes.finished_kling PORT`.
"""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

IMAGE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63f8cfc0f01f00050001ff56c72f0d0000000049454e44ae426082"
)


async def query(request: Request) -> Response:
    """The record of any task."""
    task_id = request.path_params["id"]
    record = {
        "task_id": f"kling-{task_id}",
        "task_status": "succeed",
        "task_info": {"external_task_id": task_id},
        "task_result": {"images": [{"index": 0, "url": str(request.url_for("image"))}]},
    }
    return JSONResponse({"code": 0, "message": "SUCCEED", "data": record})


async def image(request: Request) -> Response:
    """The image of every task."""
    return Response(IMAGE, media_type="image/png")


if __name__ == "__main__":
    routes = [Route("/v1/images/generations/{id}", query), Route("/image.png", image, name="image")]
    uvicorn.run(Starlette(routes=routes), port=int(sys.argv[1]), access_log=False, log_level="critical")
