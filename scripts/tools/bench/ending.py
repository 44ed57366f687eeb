"""A gateway for benches at which every task has succeeded, with one small picture.

Run as a process of its own: `python -m tools.bench.ending PORT`.
"""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63f8cfc0f01f00050001ff56c72f0d0000000049454e44ae426082"
)


async def query(request: Request) -> Response:
    """Any task's record."""
    task = request.path_params["id"]
    picture = {"index": 0, "url": str(request.url_for("picture"))}
    record = {
        "task_id": f"kling-{task}",
        "task_status": "succeed",
        "task_info": {"external_task_id": task},
        "task_result": {"images": [picture]},
    }
    return JSONResponse({"code": 0, "message": "SUCCEED", "data": record})


async def picture(request: Request) -> Response:
    """The picture."""
    return Response(PICTURE, media_type="image/png")


if __name__ == "__main__":
    routes = [Route("/v1/images/generations/{id}", query), Route("/picture.png", picture, name="picture")]
    uvicorn.run(Starlette(routes=routes), port=int(sys.argv[1]), access_log=False, log_level="critical")
