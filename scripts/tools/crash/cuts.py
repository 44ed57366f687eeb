"""A link to PostgreSQL that is cut in silence, for good: how long the receiver's hold keeps others away."""

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

PATIENCE = 300
HELD = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = :lock AND granted")


@dataclass(frozen=True)
class Cut:
    """`seconds`: from the cut until the server gave up the hold; None: not within PATIENCE."""

    when: str
    seconds: float | None


def measured() -> list[Cut]:
    """Cut while the receiver is idle, and while the server has an answer to send."""
    return [Cut("idle", _idle()), Cut("an answer on its way", _answering())]


def _idle() -> float | None:
    with _running() as (far, _, beside):
        far.cut()
        return _given_up(beside)


def _answering() -> float | None:
    """The receiver's statement waits for a lock that is given free after the cut."""
    with _running() as (far, receiver, beside), ThreadPoolExecutor(1) as sender:
        beside.execute(text("BEGIN; LOCK TABLE task"))
        sender.submit(post, receiver, new_id(), {"task_status": "submitted"}, timeout=60)
        while not _waits(beside):
            time.sleep(0.05)
        far.cut()
        beside.execute(text("COMMIT"))
        return _given_up(beside)


@contextmanager
def _running() -> Iterator[tuple[link.Link, Process, Connection]]:
    with tempfile.TemporaryDirectory(prefix="kling-cut-") as name, link.server() as far:
        engine = create_engine(far.beside, isolation_level="AUTOCOMMIT")
        with Process(Path(name, "data"), KLING_DATABASE_URL=far.url) as receiver, engine.connect() as beside:
            yield far, receiver, beside
        engine.dispose()


def _waits(beside: Connection) -> bool:
    return bool(beside.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


def _given_up(beside: Connection) -> float | None:
    began = time.monotonic()
    while time.monotonic() < began + PATIENCE:
        if not beside.scalar(HELD, {"lock": NODE_LOCK & 0xFFFFFFFF}):
            return time.monotonic() - began
        time.sleep(0.2)
    return None
