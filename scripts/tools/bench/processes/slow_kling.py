"""A Kling API for benches that takes its time for a create, calls back, and counts what happens.

Run as a process of its own: `python -m tools.bench.processes.slow_kling PORT`. A create's prompt is the seconds until
its task has succeeded, or `held`: until `POST /release`.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tools.bench.processes.finished_kling import image

CREATE_SECONDS = 0.05
HELD = "held"


@dataclass(eq=False)
class Task:
    """One task, with the unix seconds of its create, its end, and the sending of its last callback."""

    id: str
    external_id: str
    callback_url: str
    created_at: float
    ended_at: float = 0.0
    called_back_at: float = 0.0
    queries: int = 0


class SlowKling:
    """The tasks, and the greatest number of them that were open at once."""

    def __init__(self) -> None:
        self._ids = count(1)
        self._background = set[asyncio.Task[None]]()
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.tasks: dict[str, Task] = {}
        self.by_external_id: dict[str, Task] = {}
        self.open = self.peak = 0
        self.callback_ms: list[float] = []
        self.held: list[Task] = []

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Keep one client for callbacks."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=256)) as self._http:
            yield

    async def create(self, request: Request) -> Response:
        """Answer after a while; the task is open from the request to its end."""
        body = await request.json()
        external_id = body.get("external_task_id", "")
        task = Task(f"kling-{next(self._ids)}", external_id, body.get("callback_url", ""), time.time())
        self.tasks[task.id] = self.by_external_id[external_id] = task
        self.open += 1
        self.peak = max(self.peak, self.open)
        await asyncio.sleep(CREATE_SECONDS)
        if body["prompt"] == HELD:
            self.held.append(task)
        else:
            self._start(self._end(task, float(body["prompt"])))
        return _envelope(self._record(task, "submitted"))

    async def query(self, request: Request) -> Response:
        """The record of a task, by either id."""
        name = request.path_params["id"]
        task = self.tasks.get(name) or self.by_external_id.get(name)
        if task is None:
            return JSONResponse({"code": 1201, "message": "Task not found"}, 400)
        task.queries += 1
        record = self._record(task, "succeed" if task.ended_at else "submitted")
        if task.ended_at:
            record["task_result"] = {"images": [{"index": 0, "url": str(request.url_for("image"))}]}
        return _envelope(record)

    async def release(self, request: Request) -> Response:
        """End the held tasks, so many a second."""
        rate = float(request.query_params["rate"])
        for number, task in enumerate(self.held):
            self._start(self._end(task, number / rate))
        self.held = []
        return Response()

    async def report(self, request: Request) -> Response:
        """What happened since the last report, which is then forgotten."""
        created = Counter(task.external_id for task in self.tasks.values() if task.external_id)
        report = {
            "peak": self.peak,
            "most_queries": max((task.queries for task in self.tasks.values()), default=0),
            "most_creates": max(created.values(), default=0),
            "callback_ms": self.callback_ms,
            "tasks": [
                {
                    "external_id": task.external_id,
                    "created_at": task.created_at,
                    "ended_at": task.ended_at,
                    "called_back_at": task.called_back_at,
                }
                for task in self.tasks.values()
            ],
        }
        self.clear()
        return JSONResponse(report)

    async def progress(self, request: Request) -> Response:
        """How many tasks were created, and how many final callbacks were answered."""
        return JSONResponse({"created": len(self.tasks), "finished": len(self.callback_ms)})

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _end(self, task: Task, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.open -= 1
        task.ended_at = time.time()
        if task.callback_url:
            record = self._record(task, "succeed")
            task.called_back_at = time.time()
            started = time.perf_counter()
            async with self._http.post(task.callback_url, data=json.dumps(record)) as response:
                assert response.status == 200, response.status
            self.callback_ms.append((time.perf_counter() - started) * 1000)

    def _record(self, task: Task, status: str) -> dict[str, Any]:
        return {"task_id": task.id, "task_status": status, "task_info": {"external_task_id": task.external_id}}


def _envelope(data: Any) -> Response:
    return JSONResponse({"code": 0, "message": "SUCCEED", "request_id": "bench", "data": data})


if __name__ == "__main__":
    kling = SlowKling()
    routes = [
        Route("/v1/images/generations", kling.create, methods=["POST"]),
        Route("/v1/images/generations/{id}", kling.query),
        Route("/image.png", image, name="image"),
        Route("/release", kling.release, methods=["POST"]),
        Route("/report", kling.report, methods=["POST"]),
        Route("/progress", kling.progress),
    ]
    app = Starlette(routes=routes, lifespan=kling.lifespan)
    uvicorn.run(app, port=int(sys.argv[1]), access_log=False, log_level="critical")
