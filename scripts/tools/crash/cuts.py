"""Cut the link to PostgreSQL for good, without an error: seconds until the server releases the receiver's lock."""

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, create_engine, text

from kling_callback.protocol.ids import new_id
from kling_receiver.store.locks import NODE_LOCK
from tools.crash import link
from tools.harness.process import Process
from tools.harness.submitting import post

RELEASE_SECONDS = 300
"""Seconds until a cut counts as one after which the lock is never released."""
HELD = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = :lock AND granted")


@dataclass(frozen=True)
class Cut:
    """`seconds`: from the cut until the server released the lock; None: not within RELEASE_SECONDS."""

    when: str
    seconds: float | None


def measure() -> list[Cut]:
    """Cut the link while the receiver is idle, and while the server has an answer to send."""
    return [Cut("idle", _cut_idle()), Cut("an answer on its way", _cut_answering())]


def _cut_idle() -> float | None:
    with _running() as (server, _, direct):
        server.cut()
        return _seconds_until_released(direct)


def _cut_answering() -> float | None:
    """The receiver's statement waits for a lock that is released after the cut."""
    with _running() as (server, receiver, direct), ThreadPoolExecutor(1) as sender:
        direct.execute(text("BEGIN; LOCK TABLE task"))
        sender.submit(post, receiver, new_id(), {"task_status": "submitted"}, timeout=60)
        while not _any_waiting(direct):
            time.sleep(0.05)
        server.cut()
        direct.execute(text("COMMIT"))
        return _seconds_until_released(direct)


@contextmanager
def _running() -> Iterator[tuple[link.Link, Process, Connection]]:
    """A server behind a link, a receiver on it, and a connection to the server that is never cut."""
    with tempfile.TemporaryDirectory(prefix="kling-cut-") as name, link.server() as server:
        engine = create_engine(server.direct_url, isolation_level="AUTOCOMMIT")
        with Process(Path(name, "data"), KLING_DATABASE_URL=server.url) as receiver, engine.connect() as direct:
            yield server, receiver, direct
        engine.dispose()


def _any_waiting(direct: Connection) -> bool:
    return bool(direct.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


def _seconds_until_released(direct: Connection) -> float | None:
    started = time.monotonic()
    while time.monotonic() < started + RELEASE_SECONDS:
        if not direct.scalar(HELD, {"lock": NODE_LOCK & 0xFFFFFFFF}):
            return time.monotonic() - started
        time.sleep(0.2)
    return None
