"""The same load as `load`, from an HTTP library as programs use one: aiohttp, kept-alive connections."""

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path

import aiohttp
import uvloop

from tools.bench.load import BODY


async def run(urls: list[str], connections: int, status: str) -> dict[str, object]:
    """Send one POST to each address; how many answers a second, and how long each took (ms)."""
    left = iter(enumerate(urls))
    statuses: Counter[int] = Counter()
    seconds = []

    async def post(http: aiohttp.ClientSession) -> None:
        for number, url in left:
            began = time.perf_counter()
            async with http.post(url, data=BODY % (number, status.encode())) as response:
                await response.read()
            seconds.append(time.perf_counter() - began)
            statuses[response.status] += 1

    began = time.perf_counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as http:
        await asyncio.gather(*(post(http) for _ in range(connections)))
    rate = len(urls) / (time.perf_counter() - began)
    seconds.sort()
    median, p99 = (seconds[len(seconds) * part // 100] * 1000 for part in (50, 99))
    return {"rate": rate, "median_ms": median, "p99_ms": p99, "statuses": statuses}


if __name__ == "__main__":
    addresses = Path(sys.argv[1]).read_text(encoding="utf-8").split()
    print(json.dumps(uvloop.run(run(addresses, int(sys.argv[2]), sys.argv[3]))))
