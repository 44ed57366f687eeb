"""An event loop in a thread of its own, for callers that block: also inside another running loop, and after a fork."""

import asyncio
import logging
import os
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from kling_callback.errors import KlingError

T = TypeVar("T")

log = logging.getLogger("kling_callback.loops.thread")

CANCEL_SECONDS = 10
"""Seconds that an interrupted call has to report the outcome of its create, and to end."""


FINISH_SECONDS = 1
"""Seconds for which the end of the thread waits for what still runs in it."""


PAUSE_SECONDS = 1
"""Seconds for which a fork waits for the thread to pause: usually less than a millisecond."""


class Call(Generic[T]):
    """A call that runs in the loop's thread. `lost`: this process is a fork, in which that thread does not exist."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        call: Callable[[], Awaitable[T]],
        all_calls: "set[Call[Any]]",
    ) -> None:
        self._loop, self._call, self._all = loop, call, all_calls
        self._ended = threading.Event()
        self._task: asyncio.Task[Any] | None = None
        self.lost = False
        self.future = asyncio.run_coroutine_threadsafe(self._run(), loop)

    def result(self) -> T:
        """Wait, and return what the call returns. Ctrl-C here cancels it there, and waits for its end."""
        try:
            return self.future.result()
        finally:
            if not self._ended.is_set():
                self.stop()

    def stop(self) -> None:
        """Cancel the call, and wait at most CANCEL_SECONDS for its end."""
        if not self.lost:
            self._loop.call_soon_threadsafe(self._cancel)
            self._ended.wait(CANCEL_SECONDS)

    def lose(self) -> None:
        """End the call in a fork: the parent still runs it. Locks of the parent may stay held, hence new ones."""
        self.lost, self._ended, self.future = True, threading.Event(), Future()
        self._ended.set()
        self.future.set_exception(
            KlingError(
                "This process was forked during the call, which continues in the parent.",
                code="forked",
                hint="Make calls in the fork by itself.",
            )
        )

    def _cancel(self) -> None:
        if self._task and not self._ended.is_set():
            self._task.cancel()

    async def _run(self) -> T:
        self._task = asyncio.current_task()
        self._all.add(self)
        try:
            return await self._call()
        finally:
            self._all.discard(self)
            self._ended.set()


class _Runner:
    """The loop and its thread. It does not refer to its LoopThread, which is collected when it has no users."""

    def __init__(self, last: Callable[[], Awaitable[None]]) -> None:
        """Returns once the loop runs. Raises KlingError if it cannot run here."""
        self.loop = asyncio.new_event_loop()
        self._last = last
        self._problems = SimpleQueue[KlingError | None]()
        # A daemon thread: a program that ends without `close` still ends.
        self.thread = threading.Thread(target=self._run, name="kling", daemon=True)
        try:
            self.thread.start()
        except RuntimeError as error:  # the limit of threads, or the end of the program
            self.loop.close()
            raise KlingError(
                f"No thread can be started: {error}.",
                code="no_thread",
                hint="Use AsyncKling, which needs none, or call before the program ends.",
            ) from None
        try:
            problem = self._problems.get()
        except BaseException:  # Ctrl-C: the caller never holds this object
            self.end()
            raise
        if problem:
            raise problem

    def end(self) -> None:
        """Let the thread end by itself. Safe in any thread, and again."""
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self.loop.stop)

    def pause(self) -> Callable[[], None]:
        """Hold the loop between two of its steps, where it has no lock, until the function returned here is called."""
        paused, resume = threading.Event(), threading.Event()
        if threading.current_thread() is not self.thread:
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(_hold, paused, resume)
                paused.wait(PAUSE_SECONDS)
        return resume.set

    def _run(self) -> None:
        if _is_loop_running():
            self.loop.close()
            self._problems.put(
                KlingError(
                    "Another event loop runs in this thread: gevent or eventlet has replaced threads by greenlets.",
                    code="no_thread",
                    hint="Share one Kling among the greenlets, or use AsyncKling in the loop that runs.",
                )
            )
            return
        self._problems.put(None)
        self.loop.run_forever()
        self.loop.run_until_complete(self._finish())
        self.loop.close()

    async def _finish(self) -> None:
        try:
            await self._last()
        except Exception:  # a connection that cannot be closed: the caller's own error matters more
            log.debug("Closing failed.", exc_info=True)
        await _others_end()
        await self.loop.shutdown_asyncgens()
        await _others_end()


async def _others_end() -> None:
    """Wait for generators that are being closed; one that was dropped just now has its task after the next step."""
    await asyncio.sleep(0)
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        _, pending = await asyncio.wait(others, timeout=FINISH_SECONDS)
        if pending:
            return
        await asyncio.sleep(0)


def _hold(paused: threading.Event, resume: threading.Event) -> None:
    paused.set()
    resume.wait()


def _is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class LoopThread:
    """An event loop in a thread of its own, started by the first call; anew after a fork, which has no such thread."""

    def __init__(self, last: Callable[[], Awaitable[None]]) -> None:
        """`last`: closes what the calls opened. It must not refer to this object."""
        self._last = last
        self._lock = threading.Lock()
        self._runner: _Runner | None = None
        self._end: weakref.finalize[[], LoopThread] | None = None
        self._closed = False
        self._calls: set[Call[Any]] = set()
        self._resume: list[Callable[[], None]] = []
        _loop_threads.add(self)

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run `call` in the loop, and return what it returns."""
        return self.start(call).result()

    def start(self, call: Callable[[], Awaitable[T]]) -> Call[T]:
        """Start `call` in the loop. Raises KlingError after `close`, and where no loop can run."""
        with self._lock:
            if self._closed or sys.is_finalizing():  # then the thread is frozen, and a call would wait for ever
                raise KlingError("This Kling is closed.", code="closed", hint="Open another one.")
            return Call(self._started().loop, call, self._calls)

    def close(self) -> None:
        """Cancel the calls that still run, then end the thread. Does nothing the second time, or at the program's end.

        Calls may still run here: an interrupt can arrive before the caller holds the call that it started.
        """
        if self._closed or sys.is_finalizing():
            return
        with self._lock:
            self._closed = True
            try:
                runner = self._started()
            except KlingError:  # no loop can run here, so nothing is open
                return
        for call in list(self._calls):
            call.stop()
        runner.end()
        runner.thread.join()

    def before_fork(self) -> None:
        """Pause the thread: a lock that it holds, such as that of an import, would be held for ever in the child."""
        if runner := self._runner:
            self._resume.append(runner.pause())

    def after_fork(self, *, in_child: bool) -> None:
        """Go on; in the child without the loop, which stays in memory: closing it there would close the parent's."""
        while self._resume:
            self._resume.pop()()
        if not in_child:
            return
        self._lock = threading.Lock()
        for call in self._calls:
            call.lose()
        self._calls = set()
        if self._runner and self._end:
            self._end.detach()
            # What the parent's loop had under way never ends here: the end of the child must not complain of it.
            self._runner.loop.set_exception_handler(lambda loop, context: None)
            _of_parents.append(self._runner)
            self._runner = None

    def _started(self) -> _Runner:
        if self._runner is None:
            self._runner = _Runner(self._last)
            self._end = weakref.finalize(self, self._runner.end)
            self._end.atexit = False
        return self._runner


_loop_threads = weakref.WeakSet[LoopThread]()
_of_parents: list[_Runner] = []


def _each(act: Callable[[LoopThread], None]) -> Callable[[], None]:
    def act_on_all() -> None:
        for each in list(_loop_threads):
            act(each)

    return act_on_all


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_each(LoopThread.before_fork),
        after_in_parent=_each(lambda each: each.after_fork(in_child=False)),
        after_in_child=_each(lambda each: each.after_fork(in_child=True)),
    )
