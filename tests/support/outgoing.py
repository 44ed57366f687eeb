"""The way out without a web server: events are committed by hand, at a time of the test's own choosing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from kling_receiver.app import Receiver
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import HookConfig
from kling_receiver.settings import ReceiverSettings
from kling_receiver.sinks import Delivered, Message, NotDelivered
from kling_receiver.store.reader import TaskDetail
from kling_receiver.store.rows import AttemptRow, HookRow, JobRow
from kling_receiver.store.tables import ATTEMPT, EVENT
from kling_receiver.store.transaction import CommitResult, Transaction, last_event
from tests.support.database import FAMILY, NOW, Ledger

T = TypeVar("T")
Answer = Callable[[Message], Awaitable[Delivered]]

PATIENCE = 20
"""Seconds after which a test fails instead of waiting on."""
SCHEME = "scripted"


async def taking(message: Message) -> Delivered:
    """Takes everything."""
    return Delivered(200, "ok")


async def refusing(message: Message) -> Delivered:
    """Takes nothing."""
    raise NotDelivered("it answered 500", status=500)


class Endpoint:
    """Where events go: `came` are all that were sent, `taken` those that it took; `most` were there at once.

    `opens`, `closes`: what it raises then, if anything; `hangs`: seconds that it takes to close.
    """

    def __init__(self, name: str, answer: Answer = taking) -> None:
        self.name, self.answer = name, answer
        self.address = f"{SCHEME}://{name}"
        self.came: list[Message] = []
        self.taken: list[int] = []
        self.under_way = self.most = self.opened = self.closed = 0
        self.opens: Exception | None = None
        self.closes: Exception | None = None
        self.hangs = 0.0
        self.changed = asyncio.Event()

    @property
    def ids(self) -> list[int]:
        """The events that came, in order."""
        return [message.event["id"] for message in self.came]

    async def send(self, message: Message) -> Delivered:
        """One attempt."""
        self.came.append(message)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.changed.set()
        try:
            taken = await self.answer(message)
        finally:
            self.under_way -= 1
        self.taken.append(message.event["id"])
        return taken

    async def close(self) -> None:
        """The sink is let go."""
        self.closed += 1
        await asyncio.sleep(self.hangs)
        if self.closes:
            raise self.closes


ENDPOINTS: dict[str, Endpoint] = {}


def open_scripted(address: str) -> Endpoint:
    """The sink of `scripted://name`, found by its entry point like anybody's own."""
    endpoint = ENDPOINTS[address.removeprefix(f"{SCHEME}://")]
    endpoint.opened += 1
    if endpoint.opens:
        raise endpoint.opens
    return endpoint


def install(folder: Path, scheme: str, target: str) -> Path:
    """A package that brings a sink: what pip would have left in `folder`, which is to be on the path."""
    info = folder / f"{scheme}_sink-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {scheme}-sink\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[kling_callback.sinks]\n{scheme} = {target}\n")
    return folder


class Watched(Receiver):
    """A receiver that says when something was committed."""

    def __init__(self, settings: ReceiverSettings, **given: Any) -> None:
        self.changed = asyncio.Event()
        super().__init__(settings, **given)

    def _committed(self, committed: CommitResult) -> None:
        super()._on_commit(committed)
        self.changed.set()


class Outgoing:
    """A receiver that works; `now` (unix ms) is its time."""

    def __init__(self, settings: ReceiverSettings) -> None:
        self.now = NOW
        self.receiver = Watched(settings, clock=lambda: self.now / 1000)
        self.ledger = Ledger(self.receiver.database)

    def endpoint(self, name: str, answer: Answer = taking) -> Endpoint:
        """Somewhere to send to."""
        endpoint = ENDPOINTS[name] = Endpoint(name, answer)
        endpoint.changed = self.receiver.changed
        return endpoint

    async def change(self, change: Callable[[Transaction], T]) -> T:
        """One commit."""
        return await self.receiver.writer.run(change)

    async def add(self, address: str | Endpoint, *, name: str = "", **given: Any) -> str:
        """Add a hook; its name."""
        if isinstance(address, Endpoint):
            name, address = name or address.name, address.address
        new = HookConfig(name=name, address=address, **given)
        row = await self.change(lambda tx: hook_records.add(tx, new))
        assert row
        return str(row["name"])

    async def happen(self, *types: str, task: str = "t", family: str = FAMILY, **values: Any) -> list[int]:
        """Commit events of a task, which is made if need be; their ids."""

        def change(tx: Transaction) -> int:
            if tx.task(task) is None:
                tx.add_tasks([{"id": task, "family": family, **values}])
            for type_ in types:
                tx.add_event(task, type_)
            return last_event(tx.connection)

        last = await self.change(change)
        return [row["id"] for row in self.ledger.rows(EVENT) if row["id"] > last]

    def hook(self, name: str) -> HookRow:
        """A hook's row."""
        with self.receiver.database.read() as connection:
            row = hook_records.hook(connection, name)
        assert row
        return row

    def attempts(self, **where: Any) -> list[AttemptRow]:
        """Attempts on record, in order."""
        return self.ledger.rows(ATTEMPT, **where)

    def jobs(self, *kinds: str) -> dict[str, JobRow]:
        """What is owed of these kinds, by key."""
        return {key: job for key, job in self.ledger.jobs().items() if job["kind"] in kinds}

    async def pass_(self, seconds: float) -> None:
        """Let time pass, and the worker look."""
        self.now += int(seconds * 1000)
        self.receiver.worker.wake()

    async def until(self, true: Callable[[], T]) -> T:
        """What this says, as soon as it says something; asked after each commit and each arrival."""
        async with asyncio.timeout(PATIENCE):
            while True:
                self.receiver.changed.clear()
                if said := true():
                    return said
                await self.receiver.changed.wait()

    async def full(self, task: str = "t") -> TaskDetail:
        """A task with all that is shown of it."""
        return (await self.receiver.reader.details([task]))[task]


@asynccontextmanager
async def outgoing(settings: ReceiverSettings, *, begin: bool = True) -> AsyncIterator[Outgoing]:
    """A receiver's way out; `begin` False: with a writer, and nobody who works."""
    there = Outgoing(settings)
    there.receiver.prepare()
    if begin:
        await there.receiver.start()
    else:
        there.receiver.writer.start()
    try:
        yield there
    finally:
        await there.receiver.stop()
