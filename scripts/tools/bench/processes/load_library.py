"""The load of `load_sockets`, sent by an HTTP library as programs use one: aiohttp with kept-alive connections.

Run as a process of its own: `python -m tools.bench.processes.load_library URL_FILE CONNECTIONS STATUS`.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path

import aiohttp
import uvloop

from tools.bench.processes.load_sockets import BODY


async def run(urls: list[str], connections: int, status: str) -> dict[str, object]:
    """Send one POST to each address: answers a second, durations (ms), HTTP statuses."""
    remaining = iter(enumerate(urls))
    statuses: Counter[int] = Counter()
    durations = []

    async def post(http: aiohttp.ClientSession) -> None:
        for number, url in remaining:
            started = time.perf_counter()
            async with http.post(url, data=BODY % (number, status.encode())) as response:
                await response.read()
            durations.append(time.perf_counter() - started)
            statuses[response.status] += 1

    started = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as http:
        await asyncio.gather(*(post(http) for _ in range(connections)))
    rate = len(urls) / (time.perf_counter() - started)
    durations.sort()
    median, p99 = (durations[len(durations) * percent // 100] * 1000 for percent in (50, 99))
    return {"rate": rate, "median_ms": median, "p99_ms": p99, "statuses": statuses}


if __name__ == "__main__":
    addresses = Path(sys.argv[1]).read_text(encoding="utf-8").split()
    print(json.dumps(uvloop.run(run(addresses, int(sys.argv[2]), sys.argv[3]))))
