"""A steady load: tasks start at a fixed rate, however slow the receiver is; each sends two callbacks.

Run as a process: `python -m tools.bench.processes.load_steady FILE RATE`; a line is a task's id and its callback
address. Prints JSON: `ms`, the duration of each callback, and `sent_at`, the unix seconds of each task's last one.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import aiohttp
import uvloop

BODY = '{"task_id":"kling-%s","task_status":"%s","task_info":{"external_task_id":"%s"}}'
GAP_SECONDS = 0.2
"""Seconds between a task's two callbacks."""


async def run(lines: list[str], rate: float) -> dict[str, object]:
    """Send the callbacks of all tasks. `rate`: tasks a second."""
    durations: list[float] = []
    sent_at: dict[str, float] = {}
    loop = asyncio.get_running_loop()

    async def call_back(http: aiohttp.ClientSession, url: str, task_id: str, status: str) -> None:
        started = time.perf_counter()
        sent_at[task_id] = time.time()
        async with http.post(url, data=BODY % (task_id, status, task_id)) as response:
            assert response.status == 200, response.status
        durations.append((time.perf_counter() - started) * 1000)

    async def run_task(http: aiohttp.ClientSession, line: str, at: float) -> None:
        task_id, url = line.split(" ")
        await asyncio.sleep(at - loop.time())
        await call_back(http, url, task_id, "processing")
        await asyncio.sleep(GAP_SECONDS)
        await call_back(http, url, task_id, "succeed")

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=256)) as http:
        start = loop.time() + 0.5
        await asyncio.gather(*(run_task(http, line, start + n / rate) for n, line in enumerate(lines)))
    return {"ms": durations, "sent_at": sent_at}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines(), float(sys.argv[2])))))
