"""Requests at a fixed rate, however slow the server is; prints their durations as JSON.

Run as a process: `python -m tools.bench.processes.load_requests FILE RATE`; a line is JSON: method, address, headers,
body or null. A duration counts from the moment at which the request was due, so that no wait is left out. Prints lists
in the order of the lines: `due_at` and `answered_at`, unix seconds; `statuses`; and `bodies`, if they are short.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

MAX_BODIES = 5_000
CONNECTIONS = 2_000


async def run(lines: list[str], rate: float) -> dict[str, Any]:
    """Send all requests. `rate`: requests a second."""
    loop = asyncio.get_running_loop()
    due_at, answered_at = [0.0] * len(lines), [0.0] * len(lines)
    statuses, bodies = [0] * len(lines), [""] * len(lines)

    async def send(http: aiohttp.ClientSession, number: int, line: str, due: float) -> None:
        method, url, headers, body = json.loads(line)
        await asyncio.sleep(due - loop.time())
        due_at[number] = time.time() - (loop.time() - due)
        async with http.request(method, url, headers=headers, json=body) as response:
            text = await response.text()
        answered_at[number], statuses[number] = time.time(), response.status
        if len(lines) <= MAX_BODIES:
            bodies[number] = text.strip()

    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        start = loop.time() + 0.3
        await asyncio.gather(*(send(http, number, line, start + number / rate) for number, line in enumerate(lines)))
    return {"due_at": due_at, "answered_at": answered_at, "statuses": statuses, "bodies": bodies}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines(), float(sys.argv[2])))))
