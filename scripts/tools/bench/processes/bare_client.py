"""The bare HTTP client: posts bodies to one address concurrently, prints the rate.

Run as a process of its own: `python -m tools.bench.processes.bare_client FILE URL CONCURRENCY`, one body a line.
"""

import asyncio
import sys
import time
from pathlib import Path

import httpx
import uvloop
from httpx_aiohttp import AiohttpTransport


async def run(bodies: list[bytes], url: str, concurrency: int) -> float:
    """Posts a second."""
    remaining = iter(bodies)

    async def post(http: httpx.AsyncClient) -> None:
        for body in remaining:
            response = await http.post(url, content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == 204

    async with httpx.AsyncClient(transport=AiohttpTransport(), trust_env=False) as http:
        started = time.perf_counter()
        await asyncio.gather(*(post(http) for _ in range(concurrency)))
        return len(bodies) / (time.perf_counter() - started)


if __name__ == "__main__":
    print(uvloop.run(run(Path(sys.argv[1]).read_bytes().splitlines(), sys.argv[2], int(sys.argv[3]))))
