"""Two rivals that act on one database at the same time, each with its own connections: threads, or processes."""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any

import pytest

from kling_receiver.store.database import Database
from tests.support.database import Ledger

PATIENCE = 20
"""Seconds for which one rival waits for the other."""

Action = Callable[[Ledger], Any]
"""What a rival does; in another process it must be a plain function, or a `partial` of one."""


class Own(threading.local):
    """The state of one rival: the barrier at which both start, and its connection."""

    barrier: Barrier
    database: Database | None = None
    url = ""

    def ledger(self, url: str, now: int) -> Ledger:
        """The database at `url`, at the time `now`; the one before it is closed."""
        if self.url != url:
            self.close()
            self.database, self.url = Database(url), url
        assert self.database
        ledger = Ledger(self.database)
        ledger.now = now
        return ledger

    def close(self) -> None:
        """Close the database."""
        if self.database:
            self.database.close()
        self.database, self.url = None, ""


own = Own()


def enter(barrier: Barrier) -> None:
    """Initialize a thread or process as a rival."""
    own.barrier = barrier


def act(url: str, now: int, action: Action) -> Any:
    """Wait for the other rival, then act. Returns what the action returns."""
    ledger = own.ledger(url, now)
    own.barrier.wait(PATIENCE)
    return action(ledger)


def leave() -> None:
    """Close the database, in both rivals: each waits for the other."""
    own.barrier.wait(PATIENCE)
    own.close()


@dataclass
class Rivals:
    """Two rivals. `here`: the same database, for the steps before and after a race."""

    here: Ledger
    url: str
    executor: Executor = field(repr=False)

    def at_once(self, one: Action, other: Action) -> list[Any]:
        """Start two actions at the same moment. Returns what each returns."""
        futures = [self.executor.submit(act, self.url, self.here.now, action) for action in (one, other)]
        return [future.result(PATIENCE * 2) for future in futures]

    def part(self) -> None:
        """End the races on this database."""
        for each in [self.executor.submit(leave) for _ in range(2)]:
            each.result(PATIENCE * 2)


@pytest.fixture(scope="session")
def rival_threads() -> Iterator[Executor]:
    """Two threads of this process."""
    with ThreadPoolExecutor(2, initializer=enter, initargs=(Barrier(2),)) as executor:
        yield executor


@pytest.fixture(scope="session")
def rival_processes() -> Iterator[Executor]:
    """Two new processes."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn, initializer=enter, initargs=(spawn.Barrier(2),)) as executor:
        yield executor


@pytest.fixture(params=["threads", "processes"])
def rivals(request: pytest.FixtureRequest, database: Database, database_url: str) -> Iterator[Rivals]:
    """Rivals as threads, and as processes."""
    executor: Executor = request.getfixturevalue(f"rival_{request.param}")
    both = Rivals(Ledger(database), database_url, executor)
    yield both
    both.part()
