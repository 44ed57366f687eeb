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

from kling_receiver.policy import Policy
from kling_receiver.store.database import Database
from kling_receiver.store.errors import STATEMENT_ERRORS, Unavailable
from kling_receiver.store.priority import ForegroundGate
from kling_receiver.store.transaction import UNKNOWN_RESULT, CommitResult, Transaction

T = TypeVar("T")
Change = Callable[[Transaction], Any]

MAX_BATCH = 256
LAZY_SECONDS = 0.2
"""Seconds."""
COMMIT_TIMEOUT_SECONDS = 20
"""Seconds for a commit; a database that hangs is one that cannot be used."""
MAX_PENDING = 4_000
"""Changes that may wait; more are refused, so that memory is bounded and callers hear of it."""
MAX_PENDING_BYTES = 64_000_000
"""Bytes of bodies that may wait with them."""


@dataclass(frozen=True, slots=True)
class _Batched:
    """A change that is made together with all others of its kind: by one call of `make` for all their items."""

    apply: Callable[[Transaction, list[Any]], None]
    item: Any


@dataclass(slots=True)
class _Pending:
    change: Change | _Batched
    size: int
    durable: bool
    future: asyncio.Future[Any]


class Writer:
    """The one door to the database for changes. `on_commit` is called in the event loop."""

    def __init__(
        self,
        database: Database,
        *,
        policy: Policy = Policy(),  # noqa: B008  # frozen
        on_commit: Callable[[CommitResult], None] = lambda committed: None,
        lazy_seconds: float = LAZY_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._policy, self._on_commit, self._clock = database, policy, on_commit, clock
        self._lazy_seconds = lazy_seconds
        self.foreground = ForegroundGate()
        """Whether nothing urgent is being written: it is, sooner, when little else is done meanwhile."""
        self._queue: deque[_Pending] = deque()
        self._lazy: list[_Pending] = []
        self._bytes = 0
        self._woken = threading.Event()
        self._waking = False
        self._lazy_timer: asyncio.TimerHandle | None = None
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
            self._wake_with_lazy()
            self._thread = None  # from now on nothing is taken in that nobody would write
            self._woken.set()
            await asyncio.to_thread(thread.join)

    async def run(self, change: Callable[[Transaction], T], *, size: int = 0, durable: bool = True) -> T:
        """Make one change durable and return what it returned. `size`: bytes that it holds.

        One that need not be `durable` is so once the next one is: a power failure may undo it.

        Raises Unavailable, or what it raised.
        """
        result: T = await self._submit(change, size, durable=durable)
        return result

    async def run_batched(
        self, apply: Callable[[Transaction, list[T]], None], item: T, *, size: int = 0, urgent: bool = True
    ) -> None:
        """Make one of many like changes durable: `make` is given all that wait, in their order.

        What is not `urgent` gathers for so long as NO_HURRY, so that few callbacks wait for it, is durable with
        the next change that is, and waits however long the database takes.
        """
        await self._submit(_Batched(apply, item), size, urgent=urgent, durable=urgent)

    async def probe(self) -> None:
        """Show that writing works, by a write of no meaning. Raises Unavailable."""
        await self.run(lambda tx: tx.database.probe(tx.connection, tx.now))

    async def _submit(self, change: Change | _Batched, size: int, *, durable: bool, urgent: bool = True) -> Any:
        if self._thread is None:
            raise Unavailable("The writer is not running.")
        if len(self._queue) + len(self._lazy) >= MAX_PENDING or self._bytes + size > MAX_PENDING_BYTES:
            raise Unavailable("Too many changes wait.")
        future = asyncio.get_running_loop().create_future()
        self._bytes += size
        (self._queue if urgent else self._lazy).append(_Pending(change, size, durable, future))
        if urgent and not self._waking:
            # Once for all that this turn of the loop brings: they share a commit.
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake)
        elif not urgent and not self._lazy_timer:
            self._lazy_timer = asyncio.get_running_loop().call_later(self._lazy_seconds, self._wake_with_lazy)
        if not urgent:
            return await future
        try:
            with self.foreground.foreground():
                async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
                    return await future
        except TimeoutError:
            raise Unavailable("The database does not answer.") from None

    def flush_lazy(self) -> None:
        """Write now what gathers."""
        if self._lazy:
            self._wake_with_lazy()

    def _wake(self) -> None:
        self._waking = False
        self._woken.set()

    def _wake_with_lazy(self) -> None:
        """For what gathered meanwhile too."""
        if self._lazy_timer:
            self._lazy_timer.cancel()
            self._lazy_timer = None
        self._queue.extend(self._lazy)
        self._lazy.clear()
        self._woken.set()

    def _run(self) -> None:
        while self._thread or self._queue:
            self._woken.wait()
            self._woken.clear()  # before looking: what comes from now on sets it again
            while batch := self._next_batch():
                self._write(batch)

    def _next_batch(self) -> list[_Pending]:
        return [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]

    def _write(self, batch: list[_Pending]) -> None:
        try:
            answers, committed = self._commit(batch)
        except Exception as error:
            if isinstance(error, DBAPIError) and not isinstance(error, STATEMENT_ERRORS):
                # A commit may have taken effect although its answer was lost: whoever waits is to look.
                self._post_results(batch, [self._database.to_unavailable(error)] * len(batch), UNKNOWN_RESULT)
            elif isinstance(error, Unavailable):
                self._post_results(batch, [error] * len(batch), None)
            elif len(batch) == 1:
                self._post_results(batch, [error], None)
            else:
                for waiting in batch:
                    self._write([waiting])
        else:
            self._post_results(batch, answers, committed)

    def _commit(self, batch: list[_Pending]) -> tuple[list[Any], CommitResult]:
        with self._database.write(durable=any(each.durable for each in batch)) as connection:
            tx = Transaction(connection, self._database, int(self._clock() * 1000), self._policy)
            shared: dict[Any, list[Any]] = {}
            for each in batch:
                if isinstance(each.change, _Batched):
                    shared.setdefault(each.change.apply, []).append(each.change.item)
            for make, items in shared.items():
                make(tx, items)
            answers = [None if isinstance(each.change, _Batched) else each.change(tx) for each in batch]
            committed = tx.flush()
        return answers, committed

    def _post_results(self, batch: list[_Pending], results: list[Any], committed: CommitResult | None) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._resolve, batch, results, committed)

    def _resolve(self, batch: list[_Pending], results: list[Any], committed: CommitResult | None) -> None:
        for waiting, answer in zip(batch, results, strict=True):
            self._bytes -= waiting.size
            if waiting.future.done():  # whoever asked has gone
                continue
            if isinstance(answer, Exception):
                waiting.future.set_exception(answer)
            else:
                waiting.future.set_result(answer)
        if committed is not None:
            self._on_commit(committed)
