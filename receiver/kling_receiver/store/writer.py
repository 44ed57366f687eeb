"""Group commit: one thread writes, and the changes that arrive during a commit share the next one.

A single change is committed at once. When a batch fails, its changes are committed one by one, so that a failing
change affects only itself.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError

from kling_receiver.policy import DEFAULT_POLICY, Policy
from kling_receiver.store.database import BLOCKED_SECONDS, Database
from kling_receiver.store.errors import STATEMENT_ERRORS, Unanswered, Unavailable
from kling_receiver.store.foreground_gate import ForegroundGate
from kling_receiver.store.transaction import UNKNOWN_RESULT, CommitResult, Transaction

T = TypeVar("T")
Change = Callable[[Transaction], Any]

MAX_BATCH = 256
"""Changes in one commit."""
LAZY_SECONDS = 0.2
"""Seconds for which lazy changes are collected, so that they add few commits."""
COMMIT_TIMEOUT_SECONDS = 20
"""Seconds. A commit that takes longer is reported as an outage."""
CLOCK_JUMP_SECONDS = 2.0
"""Seconds between the wall clock and the monotonic clock that are no inaccuracy: one of them jumped, or stood still."""
MAX_PENDING = 4_000
"""Changes that wait for a commit. More are refused, so that memory is bounded."""
MAX_PENDING_BYTES = 64_000_000
"""Bytes of callback bodies in these changes."""


@dataclass(frozen=True, slots=True)
class _Batched:
    """A change that shares one call of `apply` with all others of its batch that have the same `apply`."""

    apply: Callable[[Transaction, list[Any]], None]
    item: Any


@dataclass(slots=True)
class _Pending:
    change: Change | _Batched
    size: int
    durable: bool
    future: asyncio.Future[Any]


class Writer:
    """Makes all changes to the database. `on_commit` is called in the event loop, after each commit."""

    def __init__(
        self,
        database: Database,
        *,
        policy: Policy = DEFAULT_POLICY,
        on_commit: Callable[[CommitResult], None] = lambda result: None,
        lazy_seconds: float = LAZY_SECONDS,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        on_clock_jump: Callable[[Transaction, int], None] = lambda tx, jump_ms: None,
    ) -> None:
        """`clock`: unix seconds. `monotonic`: seconds; it does not run while the machine is suspended.

        `on_clock_jump`: called in the first transaction after the wall clock jumped, before its changes, with the
        milliseconds by which it is ahead of the monotonic clock since then (negative: it was set back).
        """
        self._database, self._policy, self._on_commit, self._clock = database, policy, on_commit, clock
        self._monotonic, self._on_clock_jump = monotonic, on_clock_jump
        self._clock_offset = clock() - monotonic()
        self._lazy_seconds = lazy_seconds
        self.foreground = ForegroundGate()
        """Background work waits at it while changes that are not lazy are in flight: their commits are then faster."""
        self._queue: deque[_Pending] = deque()
        self._lazy: list[_Pending] = []
        self._bytes = 0
        self._woken = threading.Event()
        self._waking = False
        self._lazy_timer: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Start the writer's thread. Call it in the event loop that submits the changes."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Commit the pending changes, then stop; do not wait for a database that hangs."""
        thread = self._thread
        if thread:
            self._wake_with_lazy()
            self._thread = None  # from now on changes are refused
            self._woken.set()
            await asyncio.to_thread(thread.join, BLOCKED_SECONDS)

    async def run(self, change: Callable[[Transaction], T], *, size: int = 0, durable: bool = True) -> T:
        """Commit one change and return its result. `size`: bytes that the change holds in memory.

        `durable` False: a power failure may undo the change, until the next durable commit.
        Raises Unavailable, or what the change raised.
        """
        result: T = await self._submit(change, size, durable=durable)
        return result

    async def run_batched(
        self, apply: Callable[[Transaction, list[T]], None], item: T, *, size: int = 0, lazy: bool = False
    ) -> None:
        """Commit one of many changes of a kind: `apply` is called with the items of a batch, in their order.

        `lazy`: collected for LAZY_SECONDS, so that few callbacks wait for them; durable with the next durable commit;
        without a timeout. Raises Unavailable, or what `apply` raised.
        """
        await self._submit(_Batched(apply, item), size, durable=not lazy, lazy=lazy)

    async def probe(self) -> None:
        """Commit a write that changes nothing, to check that writing works. Raises Unavailable."""
        await self.run(lambda tx: tx.database.probe(tx.connection, tx.now))

    async def _submit(self, change: Change | _Batched, size: int, *, durable: bool, lazy: bool = False) -> Any:
        if self._thread is None:
            raise Unavailable("The writer is not running.")
        if len(self._queue) + len(self._lazy) >= MAX_PENDING or self._bytes + size > MAX_PENDING_BYTES:
            raise Unavailable("Too many changes are pending.")
        future = asyncio.get_running_loop().create_future()
        self._bytes += size
        (self._lazy if lazy else self._queue).append(_Pending(change, size, durable, future))
        if lazy:
            if not self._lazy_timer:
                self._lazy_timer = asyncio.get_running_loop().call_later(self._lazy_seconds, self._wake_with_lazy)
            return await future
        if not self._waking:
            # In the next iteration of the loop, so that all changes of this one share a commit.
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake)
        try:
            with self.foreground.foreground():
                async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
                    return await future
        except TimeoutError:
            raise Unanswered("The database does not answer.") from None

    def flush_lazy(self) -> None:
        """Commit the collected lazy changes now."""
        if self._lazy:
            self._wake_with_lazy()

    def _wake(self) -> None:
        self._waking = False
        self._woken.set()

    def _wake_with_lazy(self) -> None:
        """Wake the thread, with the collected lazy changes in its queue."""
        if self._lazy_timer:
            self._lazy_timer.cancel()
            self._lazy_timer = None
        self._queue.extend(self._lazy)
        self._lazy.clear()
        self._woken.set()

    def _run(self) -> None:
        while self._thread or self._queue:
            self._woken.wait()
            self._woken.clear()  # before reading the queue: a later change sets it again
            while batch := self._next_batch():
                self._write(batch)

    def _next_batch(self) -> list[_Pending]:
        return [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]

    def _write(self, batch: list[_Pending]) -> None:
        try:
            results, committed = self._commit(batch)
        except Exception as error:
            if isinstance(error, DBAPIError) and not isinstance(error, STATEMENT_ERRORS):
                # The commit may have succeeded although its answer was lost: every waiter must check.
                self._post_results(batch, [self._database.to_unavailable(error)] * len(batch), UNKNOWN_RESULT)
            elif isinstance(error, Unavailable):
                self._post_results(batch, [error] * len(batch), None)
            elif len(batch) == 1:
                self._post_results(batch, [error], None)
            else:
                for pending in batch:
                    self._write([pending])
        else:
            self._post_results(batch, results, committed)

    def _commit(self, batch: list[_Pending]) -> tuple[list[Any], CommitResult]:
        with self._database.write(durable=any(pending.durable for pending in batch)) as connection:
            now = self._clock()
            jump = now - self._monotonic() - self._clock_offset
            tx = Transaction(connection, self._database, int(now * 1000), self._policy)
            if jumped := abs(jump) >= CLOCK_JUMP_SECONDS:
                self._on_clock_jump(tx, int(jump * 1000))
            items_of: dict[Any, list[Any]] = {}
            for pending in batch:
                if isinstance(pending.change, _Batched):
                    items_of.setdefault(pending.change.apply, []).append(pending.change.item)
            for apply, items in items_of.items():
                apply(tx, items)
            results = [None if isinstance(pending.change, _Batched) else pending.change(tx) for pending in batch]
            committed = tx.flush()
        if jumped:  # only now: a transaction that failed undid what its jump had changed
            self._clock_offset += jump
        return results, committed

    def _post_results(self, batch: list[_Pending], results: list[Any], committed: CommitResult | None) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop was closed while the database hung
            self._loop.call_soon_threadsafe(self._resolve, batch, results, committed)

    def _resolve(self, batch: list[_Pending], results: list[Any], committed: CommitResult | None) -> None:
        for pending, result in zip(batch, results, strict=True):
            self._bytes -= pending.size
            if pending.future.done():  # the caller was cancelled
                continue
            if isinstance(result, Exception):
                pending.future.set_exception(result)
            else:
                pending.future.set_result(result)
        if committed is not None:
            self._on_commit(committed)
