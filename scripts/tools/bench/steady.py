"""A steady load: tasks begin at a fixed rate, whatever the receiver does; each sends two callbacks.

Run as a process of its own: `python -m tools.bench.steady URL_FILE RATE`, one address a line. Prints JSON: how
long (ms) each callback took, and when (unix seconds) each task's last was sent.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import aiohttp
import uvloop

BODY = '{"task_id":"kling-%s","task_status":"%s","task_info":{"external_task_id":"%s"}}'
GAP = 0.2
"""Seconds between a task's two callbacks."""


async def run(lines: list[str], rate: float) -> dict[str, object]:
    """One line a task: its id, a blank, its callback address."""
    took: list[float] = []
    sent: dict[str, float] = {}
    loop = asyncio.get_running_loop()

    async def tell(http: aiohttp.ClientSession, url: str, task: str, status: str) -> None:
        began = time.perf_counter()
        sent[task] = time.time()
        async with http.post(url, data=BODY % (task, status, task)) as response:
            assert response.status == 200, response.status
        took.append((time.perf_counter() - began) * 1000)

    async def task(http: aiohttp.ClientSession, line: str, at: float) -> None:
        task, url = line.split(" ")
        await asyncio.sleep(at - loop.time())
        await tell(http, url, task, "processing")
        await asyncio.sleep(GAP)
        await tell(http, url, task, "succeed")

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=256)) as http:
        start = loop.time() + 0.5
        await asyncio.gather(*(task(http, line, start + n / rate) for n, line in enumerate(lines)))
    return {"ms": took, "sent": sent}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines(), float(sys.argv[2])))))
