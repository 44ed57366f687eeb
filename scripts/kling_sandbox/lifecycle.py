"""The life cycle of a task: submitted, processing, its end. Tests may hold it before each step."""

import asyncio

from kling_sandbox.callbacks import Callbacks
from kling_sandbox.state import State
from kling_sandbox.tasks import Task


class Lifecycle:
    """Move tasks forward in time and send a callback for each change."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.callbacks = Callbacks(state)
        self._running: set[asyncio.Task[None]] = set()

    async def start(self, task: Task, *, submitted: bool) -> None:
        """Run a task in the background; `submitted`: its first callback was already sent."""
        running = asyncio.create_task(self.finish(task) if submitted else self._run(task))
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _run(self, task: Task) -> None:
        await self.submit(task)
        await self.finish(task)

    async def submit(self, task: Task) -> None:
        """Send the callback of the first status."""
        await self.callbacks.send(task, "submitted")

    async def finish(self, task: Task) -> None:
        """Process the task to its end, with a callback for each status."""
        if not task.has("false-succeed"):
            await self._wait(task, 1 / 3)
        await self._set_status(task, "processing")
        await self._wait(task, 2 / 3)
        await self._set_status(task, task.final_status)

    async def _set_status(self, task: Task, status: str) -> None:
        self._state.set_status(task, status)
        await self.callbacks.send(task, status)

    async def _wait(self, task: Task, share: float) -> None:
        """Wait for a share of the task's duration, then for `release` if tasks are held."""
        await asyncio.sleep(self._state.seconds[task.family.kind] * share * (10 if task.has("slow") else 1))
        if self._state.held:
            task.held = True
            await task.steps.acquire()
            task.held = False

    def release(self, task: Task) -> None:
        """Let a held task continue."""
        if task.held:
            task.held = False
            task.steps.release()
