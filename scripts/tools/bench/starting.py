"""A start with many open tasks: seconds until ready, queries a second to Kling, callbacks meanwhile."""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import httpx

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import CallbackSigner
from kling_receiver.policy import Policy
from kling_receiver.store.database import Database
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks.registration import Registration, register
from tools.harness import servers
from tools.harness.postgresql import postgresql

HOUR_MS = 3_600_000
PAGE_TASKS = 1000
"""Tasks of one transaction."""
CALLBACK_INTERVAL_SECONDS = 0.05
FAMILY = "videos/text2video"


def run(tasks: int, seconds: float) -> None:
    """Measure on both databases; the deadline of half of the tasks has passed."""
    print(f"{tasks} open tasks, measured for {seconds:g} s\n")
    print(f"{'':12} {'ready after s':>13} {'queries/s':>12} {'callback median s':>18} {'slowest s':>10}")
    with ExitStack() as stack:
        server_url = stack.enter_context(postgresql())
        for name, database_url in (("SQLite", ""), ("PostgreSQL", server_url)):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            fill(database_url or f"sqlite:///{Path(folder, 'kling.db')}", tasks)
            _measure(name, database_url, folder, seconds)


def fill(database_url: str, tasks: int) -> None:
    """Register so many tasks, half of them two hours ago."""
    database = Database(database_url)
    database.migrate()
    now = int(time.time() * 1000)
    for first in range(0, tasks, PAGE_TASKS):
        with database.write() as connection:
            at = now - first // PAGE_TASKS % 2 * 2 * HOUR_MS
            tx = Transaction(connection, database, at, Policy())
            for _ in range(min(PAGE_TASKS, tasks - first)):
                register(tx, new_id(), Registration(family=FAMILY, create_token="bench"))
            tx.flush()
    database.close()


def _measure(name: str, database_url: str, folder: str, seconds: float) -> None:
    """Start a receiver, post callbacks one by one, print a row."""
    with ExitStack() as stack:
        sandbox = stack.enter_context(servers.sandbox())
        started = time.monotonic()
        url = stack.enter_context(servers.receiver(database_url, sandbox, folder=folder))
        ready = time.monotonic() - started
        durations = [_post_callback(url) for _ in _ticks(seconds)]
        queries = httpx.get(f"{sandbox}/sandbox/account").json()["totals"]["queries"]
        elapsed = time.monotonic() - started - ready
    print(f"{name:12} {ready:13.2f} {queries / elapsed:12.1f} {median(durations):18.3f} {max(durations):10.3f}")


def _ticks(seconds: float) -> Iterator[None]:
    """One tick every CALLBACK_INTERVAL_SECONDS."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(CALLBACK_INTERVAL_SECONDS)


def _post_callback(url: str) -> float:
    """Post one callback of a new task. Returns the seconds until its answer."""
    started = time.monotonic()
    task_id = new_id()
    body = json.dumps({"task_id": task_id, "task_status": "processing"})
    address = CallbackSigner([servers.SECRET]).url(url, task_id, FAMILY)
    assert httpx.post(address, content=body, timeout=60).status_code == 200
    return time.monotonic() - started
