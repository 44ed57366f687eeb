"""Group commit: one thread writes, and what arrives while it commits shares the next commit.

Alone, a change waits for nobody. A batch that fails is tried one by one, so that a poisonous change
harms only itself.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError

from kling_receiver.policy import Rules
from kling_receiver.store.database import Database
from kling_receiver.store.errors import OWN_FAULT, Unavailable
from kling_receiver.store.priority import Calm
from kling_receiver.store.transaction import ANYTHING, Committed, Transaction
from kling_receiver.tasks.ingest import Callback, record

T = TypeVar("T")
Change = Callable[[Transaction], Any]

LARGEST_BATCH = 256
NO_HURRY = 0.2
"""Seconds."""
LONGEST_WAIT = 20
"""Seconds for a commit; a database that hangs is one that cannot be used."""
MOST_WAITING = 4_000
"""Changes that may wait; more are refused, so that memory is bounded and callers hear of it."""
MOST_BYTES = 64_000_000
"""Bytes of bodies that may wait with them."""


@dataclass(frozen=True, slots=True)
class _Shared:
    """A change that is made together with all others of its kind: by one call of `make` for all their items."""

    make: Callable[[Transaction, list[Any]], None]
    item: Any


@dataclass(slots=True)
class _Waiting:
    change: Change | _Shared
    size: int
    durable: bool
    future: asyncio.Future[Any]


class Writer:
    """The one door to the database for changes. `on_commit` is called in the event loop."""

    def __init__(
        self,
        database: Database,
        *,
        rules: Rules = Rules(),  # noqa: B008  # frozen
        on_commit: Callable[[Committed], None] = lambda committed: None,
        no_hurry: float = NO_HURRY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._rules, self._on_commit, self._clock = database, rules, on_commit, clock
        self._no_hurry = no_hurry
        self.calm = Calm()
        """Whether nothing urgent is being written: it is, sooner, when little else is done meanwhile."""
        self._queue: deque[_Waiting] = deque()
        self._later: list[_Waiting] = []
        self._bytes = 0
        self._woken = threading.Event()
        self._waking = False
        self._alarm: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to write; called inside the event loop that changes come from."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Write what waits, then end."""
        thread = self._thread
        if thread:
            self._wake_all()
            self._thread = None  # from now on nothing is taken in that nobody would write
            self._woken.set()
            await asyncio.to_thread(thread.join)

    async def run(self, change: Callable[[Transaction], T], *, size: int = 0, durable: bool = True) -> T:
        """Make one change durable and return what it returned. `size`: bytes that it holds.

        One that need not be `durable` is so once the next one is: a power failure may undo it.

        Raises Unavailable, or what it raised.
        """
        result: T = await self._put(change, size, durable=durable)
        return result

    async def record(self, callback: Callback) -> None:
        """Make one callback durable. Raises Unavailable."""
        await self.share(record, callback, size=len(callback.body))

    async def share(
        self, make: Callable[[Transaction, list[T]], None], item: T, *, size: int = 0, urgent: bool = True
    ) -> None:
        """Make one of many like changes durable: `make` is given all that wait, in their order.

        What is not `urgent` gathers for so long as NO_HURRY, so that few callbacks wait for it, is durable with
        the next change that is, and waits however long the database takes.
        """
        await self._put(_Shared(make, item), size, urgent=urgent, durable=urgent)

    async def probe(self) -> None:
        """Show that writing works, by a write of no meaning. Raises Unavailable."""
        await self.run(lambda tx: tx.database.probe(tx.connection, tx.now))

    async def _put(self, change: Change | _Shared, size: int, *, durable: bool, urgent: bool = True) -> Any:
        if self._thread is None:
            raise Unavailable("The writer is not running.")
        if len(self._queue) + len(self._later) >= MOST_WAITING or self._bytes + size > MOST_BYTES:
            raise Unavailable("Too many changes wait.")
        future = asyncio.get_running_loop().create_future()
        self._bytes += size
        (self._queue if urgent else self._later).append(_Waiting(change, size, durable, future))
        if urgent and not self._waking:
            # Once for all that this turn of the loop brings: they share a commit.
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake)
        elif not urgent and not self._alarm:
            self._alarm = asyncio.get_running_loop().call_later(self._no_hurry, self._wake_all)
        if not urgent:
            return await future
        try:
            with self.calm.broken():
                async with asyncio.timeout(LONGEST_WAIT):
                    return await future
        except TimeoutError:
            raise Unavailable("The database does not answer.") from None

    def hurry(self) -> None:
        """Write now what gathers."""
        if self._later:
            self._wake_all()

    def _wake(self) -> None:
        self._waking = False
        self._woken.set()

    def _wake_all(self) -> None:
        """For what gathered meanwhile too."""
        if self._alarm:
            self._alarm.cancel()
            self._alarm = None
        self._queue.extend(self._later)
        self._later.clear()
        self._woken.set()

    def _run(self) -> None:
        while self._thread or self._queue:
            self._woken.wait()
            self._woken.clear()  # before looking: what comes from now on sets it again
            while batch := self._take():
                self._write(batch)

    def _take(self) -> list[_Waiting]:
        return [self._queue.popleft() for _ in range(min(len(self._queue), LARGEST_BATCH))]

    def _write(self, batch: list[_Waiting]) -> None:
        try:
            answers, committed = self._commit(batch)
        except Exception as error:
            if isinstance(error, DBAPIError) and not isinstance(error, OWN_FAULT):
                # A commit may have taken effect although its answer was lost: whoever waits is to look.
                self._answer(batch, [self._database.unavailable(error)] * len(batch), ANYTHING)
            elif isinstance(error, Unavailable):
                self._answer(batch, [error] * len(batch), None)
            elif len(batch) == 1:
                self._answer(batch, [error], None)
            else:
                for waiting in batch:
                    self._write([waiting])
        else:
            self._answer(batch, answers, committed)

    def _commit(self, batch: list[_Waiting]) -> tuple[list[Any], Committed]:
        with self._database.write(durable=any(each.durable for each in batch)) as connection:
            tx = Transaction(connection, self._database, int(self._clock() * 1000), self._rules)
            shared: dict[Any, list[Any]] = {}
            for each in batch:
                if isinstance(each.change, _Shared):
                    shared.setdefault(each.change.make, []).append(each.change.item)
            for make, items in shared.items():
                make(tx, items)
            answers = [None if isinstance(each.change, _Shared) else each.change(tx) for each in batch]
            committed = tx.flush()
        return answers, committed

    def _answer(self, batch: list[_Waiting], answers: list[Any], committed: Committed | None) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._resolve, batch, answers, committed)

    def _resolve(self, batch: list[_Waiting], answers: list[Any], committed: Committed | None) -> None:
        for waiting, answer in zip(batch, answers, strict=True):
            self._bytes -= waiting.size
            if waiting.future.done():  # whoever asked has gone
                continue
            if isinstance(answer, Exception):
                waiting.future.set_exception(answer)
            else:
                waiting.future.set_result(answer)
        if committed is not None:
            self._on_commit(committed)
