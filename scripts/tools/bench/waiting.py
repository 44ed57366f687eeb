"""From "gateway finished" to "file in hand", and what it cost in requests: called back, against polling."""

import asyncio
import random
import sys
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
from tools.bench import servers
from tools.harness.loopback import free_port

PACE = 4.0
"""Seconds that the sandbox takes for a video."""
SPREAD = 3.0
"""Seconds over which creates are spread, so that no poller is in step with the gateway."""

Way = Callable[[str], Awaitable[float]]
"""Makes one task of the id it is given; unix seconds at which its file was in hand."""


def run(tasks: int) -> None:
    """Each way makes the same number of tasks, one way after the other."""
    with ExitStack() as stack:
        port = free_port()
        command = [sys.executable, "-m", "gateway", "--port", str(port), "--video-seconds", str(PACE)]
        gateway = stack.enter_context(servers.process(command, f"http://127.0.0.1:{port}"))
        receiver = stack.enter_context(servers.receiver(api_base=gateway))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        print(f"{tasks} videos of {PACE:g} s each way\n")
        print(f"{'':16} {'median s':>9} {'p95 s':>7} {'requests to the gateway per task':>34}")
        for name, seconds in (("called back", None), ("polled each 1 s", 1.0), ("polled each 5 s", 5.0)):
            before = _totals(gateway)
            delays = asyncio.run(_way(gateway, receiver, folder, tasks, seconds))
            after = _totals(gateway)
            requests = sum(after[key] - before[key] for key in ("creates", "queries", "downloads")) / tasks
            print(f"{name:16} {median(delays):9.3f} {quantiles(delays, n=20)[-1]:7.3f} {requests:34.1f}")


def _totals(gateway: str) -> dict[str, int]:
    totals: dict[str, int] = httpx.get(f"{gateway}/sandbox/account").json()["totals"]
    return totals


async def _way(gateway: str, receiver: str, folder: Path, tasks: int, poll: float | None) -> list[float]:
    ids = [new_id() for _ in range(tasks)]
    async with (
        httpx.AsyncClient(headers={"Authorization": "Bearer sandbox-key"}) as http,
        AsyncKling(
            api_base=gateway, api_key="sandbox-key", signing_secrets=servers.SECRET, receiver_url=receiver
        ) as kling,
    ):

        async def called_back(task: str) -> float:
            handle = await kling.text_to_video("a bench", external_task_id=task)
            result = await handle.wait(timeout=60)
            await result.videos[0].save(folder / f"{task}.mp4")
            return time.time()

        async def polled(task: str) -> float:
            assert poll is not None
            url = f"{gateway}/v1/videos/text2video"
            await http.post(url, json={"prompt": "a bench", "external_task_id": task})
            pause = random.uniform(0, poll)  # a poller is in step with nobody
            while True:
                await asyncio.sleep(pause)
                pause = poll
                data = (await http.get(f"{url}/{task}")).json()["data"]
                if data["task_status"] == "succeed":
                    break
            answer = await http.get(data["task_result"]["videos"][0]["url"])
            (folder / f"{task}.mp4").write_bytes(answer.content)
            return time.time()

        way: Way = called_back if poll is None else polled
        in_hand = await asyncio.gather(*(_soon(way, task) for task in ids))
        seen: dict[str, Any] = (await http.get(f"{gateway}/sandbox/account")).json()
    finished = {task["external_task_id"]: task["finished_at"] / 1000 for task in seen["tasks"]}
    return [at - finished[task] for task, at in zip(ids, in_hand, strict=True)]


async def _soon(way: Way, task: str) -> float:
    await asyncio.sleep(random.uniform(0, SPREAD))
    return await way(task)
