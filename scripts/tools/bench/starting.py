"""A start with many open tasks: seconds until ready, questions a second to Kling, callbacks meanwhile."""

import json
import sys
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
from tools.bench import servers
from tools.harness.loopback import free_port

HOUR_MS = 3_600_000
PAGE = 1000
FAMILY = "videos/text2video"


def run(tasks: int, seconds: float) -> None:
    """Both databases; the deadline of half of the tasks has passed."""
    print(f"{tasks} open tasks, {seconds:g} s watched\n")
    print(f"{'':12} {'ready after s':>13} {'questions/s':>12} {'callback median s':>18} {'slowest s':>10}")
    with ExitStack() as stack:
        postgresql = stack.enter_context(servers.postgresql())
        for name, url in (("SQLite", ""), ("PostgreSQL", postgresql)):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            fill(url or f"sqlite:///{Path(folder, 'kling.db')}", tasks)
            measure(name, url, folder, seconds)


def fill(url: str, tasks: int) -> None:
    """Register so many tasks, half of them two hours ago."""
    database = Database(url)
    database.migrate()
    now = int(time.time() * 1000)
    for first in range(0, tasks, PAGE):
        with database.write() as connection:
            at = now - first // PAGE % 2 * 2 * HOUR_MS
            tx = Transaction(connection, database, at, Policy())
            for _ in range(min(PAGE, tasks - first)):
                register(tx, new_id(), Registration(family=FAMILY, create_token="bench"))
            tx.flush()
    database.close()


def measure(name: str, database_url: str, folder: str, seconds: float) -> None:
    """Start, and watch."""
    with ExitStack() as stack:
        port = free_port()
        command = [sys.executable, "-m", "gateway", "--port", str(port)]
        gateway = stack.enter_context(servers.process(command, f"http://127.0.0.1:{port}"))
        began = time.monotonic()
        url = stack.enter_context(servers.receiver(database_url, gateway, folder=folder))
        ready = time.monotonic() - began
        waits = [callback(url) for _ in pace(seconds)]
        asked = httpx.get(f"{gateway}/sandbox/account").json()["totals"]["queries"]
        passed = time.monotonic() - began - ready
    print(f"{name:12} {ready:13.2f} {asked / passed:12.1f} {median(waits):18.3f} {max(waits):10.3f}")


def pace(seconds: float) -> Iterator[None]:
    """A turn every 50 ms."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.05)


def callback(url: str) -> float:
    """Seconds until one callback was taken."""
    began = time.monotonic()
    task = new_id()
    body = json.dumps({"task_id": task, "task_status": "processing"})
    address = CallbackSigner([servers.SECRET]).url(url, task, FAMILY)
    assert httpx.post(address, content=body, timeout=60).status_code == 200
    return time.monotonic() - began
