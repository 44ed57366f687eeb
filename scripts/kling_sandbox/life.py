"""The life of a task: submitted, processing, its end; each change is told, and tests may hold it."""

import asyncio

from kling_sandbox.callbacks import Callbacks
from kling_sandbox.ledger import Ledger
from kling_sandbox.tasks import Task


class Life:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.callbacks = Callbacks(ledger)
        self.lives: set[asyncio.Task[None]] = set()

    async def start(self, task: Task, *, begun: bool) -> None:
        life = asyncio.create_task(self.finish(task) if begun else self.run(task))
        self.lives.add(life)
        life.add_done_callback(self.lives.discard)

    async def run(self, task: Task) -> None:
        await self.begin(task)
        await self.finish(task)

    async def begin(self, task: Task) -> None:
        await self.callbacks.tell(task, "submitted")

    async def finish(self, task: Task) -> None:
        if not task.has("false-succeed"):
            await self.pass_time(task, 1 / 3)
        await self.turn(task, "processing")
        await self.pass_time(task, 2 / 3)
        await self.turn(task, task.ending)

    async def turn(self, task: Task, status: str) -> None:
        self.ledger.turn(task, status)
        await self.callbacks.tell(task, status)

    async def pass_time(self, task: Task, share: float) -> None:
        await asyncio.sleep(self.ledger.seconds[task.family.kind] * share * (10 if task.has("slow") else 1))
        if self.ledger.held:
            task.held = True
            await task.turns.acquire()
            task.held = False

    def let_go(self, task: Task) -> None:
        if task.held:
            task.held = False
            task.turns.release()
