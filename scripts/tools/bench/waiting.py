"""Seconds from "Kling finished" to "file saved", and requests per task: with callbacks, and with polling."""

import asyncio
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx

from kling_callback import AsyncKling
from kling_callback.protocol.ids import new_id
from kling_sandbox.receiver import API_KEY
from tools.harness import servers

VIDEO_SECONDS = 4.0
"""Seconds that the sandbox takes for a video."""
SPREAD_SECONDS = 3.0
"""Seconds over which creates are spread, so that no poller is in phase with the sandbox."""

Method = Callable[[str], Awaitable[float]]
"""Makes one task of this id; returns the unix seconds at which its file was saved."""


def run(tasks: int) -> None:
    """Make the same number of tasks by each method, one method after the other."""
    with ExitStack() as stack:
        sandbox = stack.enter_context(servers.sandbox("--video-seconds", str(VIDEO_SECONDS)))
        receiver = stack.enter_context(servers.receiver(api_base=sandbox))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        print(f"{tasks} videos of {VIDEO_SECONDS:g} s by each method\n")
        print(f"{'':16} {'median s':>9} {'p95 s':>7} {'requests to Kling per task':>28}")
        for name, interval in (("called back", None), ("polled each 1 s", 1.0), ("polled each 5 s", 5.0)):
            before = _totals(sandbox)
            delays = asyncio.run(_delays(sandbox, receiver, folder, tasks, interval))
            after = _totals(sandbox)
            requests = sum(after[key] - before[key] for key in ("creates", "queries", "downloads")) / tasks
            print(f"{name:16} {median(delays):9.3f} {quantiles(delays, n=20)[-1]:7.3f} {requests:28.1f}")


def _totals(sandbox: str) -> dict[str, int]:
    totals: dict[str, int] = httpx.get(f"{sandbox}/sandbox/account").json()["totals"]
    return totals


async def _delays(sandbox: str, receiver: str, folder: Path, tasks: int, interval: float | None) -> list[float]:
    """Seconds from finished to saved, for each task. `interval`: seconds between polls; None: callbacks."""
    task_ids = [new_id() for _ in range(tasks)]
    async with (
        httpx.AsyncClient(headers={"Authorization": f"Bearer {API_KEY}"}) as http,
        AsyncKling(api_base=sandbox, api_key=API_KEY, signing_secrets=servers.SECRET, receiver_url=receiver) as kling,
    ):

        async def called_back(task_id: str) -> float:
            task = await kling.text_to_video("a bench", external_task_id=task_id)
            result = await task.wait(timeout=60)
            await result.videos[0].save(folder / f"{task_id}.mp4")
            return time.time()

        async def polled(task_id: str) -> float:
            assert interval is not None
            url = f"{sandbox}/v1/videos/text2video"
            await http.post(url, json={"prompt": "a bench", "external_task_id": task_id})
            pause = random.uniform(0, interval)  # the first poll is at a random phase
            while True:
                await asyncio.sleep(pause)
                pause = interval
                data = (await http.get(f"{url}/{task_id}")).json()["data"]
                if data["task_status"] == "succeed":
                    break
            response = await http.get(data["task_result"]["videos"][0]["url"])
            (folder / f"{task_id}.mp4").write_bytes(response.content)
            return time.time()

        method: Method = called_back if interval is None else polled
        saved_at = await asyncio.gather(*(_spread(method, task_id) for task_id in task_ids))
        account: dict[str, Any] = (await http.get(f"{sandbox}/sandbox/account")).json()
    finished_at = {task["external_task_id"]: task["finished_at"] / 1000 for task in account["tasks"]}
    return [at - finished_at[task_id] for task_id, at in zip(task_ids, saved_at, strict=True)]


async def _spread(method: Method, task_id: str) -> float:
    await asyncio.sleep(random.uniform(0, SPREAD_SECONDS))
    return await method(task_id)
