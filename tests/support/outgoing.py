"""Deliveries without a web server: tests commit events themselves and set the time; a scripted sink receives them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from kling_receiver.app import Receiver
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import HookConfig
from kling_receiver.parts import Delays
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
IDLE_SECONDS = 0.1
"""Seconds that a run waits for more events: in production longer, so that fewer runs start."""
SCHEME = "scripted"


async def accept(message: Message) -> Delivered:
    """Accept every event."""
    return Delivered(200, "ok")


async def refuse(message: Message) -> Delivered:
    """Refuse every event."""
    raise NotDelivered("the hook answered 500", status=500)


class Endpoint:
    """A scripted sink. `received`: all messages; `accepted`: ids of the events that it accepted.

    `active`, `max_active`: attempts at once, now and at most. `open_error`, `close_error`: raised at opening and
    closing; `close_seconds`: how long closing takes.
    """

    def __init__(self, name: str, answer: Answer = accept) -> None:
        self.name, self.answer = name, answer
        self.address = f"{SCHEME}://{name}"
        self.received: list[Message] = []
        self.accepted: list[int] = []
        self.active = self.max_active = self.opened = self.closed = 0
        self.open_error: Exception | None = None
        self.close_error: Exception | None = None
        self.close_seconds = 0.0
        self.changed = asyncio.Event()

    @property
    def ids(self) -> list[int]:
        """The ids of the events that were sent here, in order."""
        return [message.event["id"] for message in self.received]

    async def send(self, message: Message) -> Delivered:
        """Answer one attempt."""
        self.received.append(message)
        self.active += 1
        self.max_active = max(self.max_active, self.active)
        self.changed.set()
        try:
            delivered = await self.answer(message)
        finally:
            self.active -= 1
        self.accepted.append(message.event["id"])
        return delivered

    async def close(self) -> None:
        """Close the sink."""
        self.closed += 1
        await asyncio.sleep(self.close_seconds)
        if self.close_error:
            raise self.close_error


ENDPOINTS: dict[str, Endpoint] = {}


def open_scripted(address: str) -> Endpoint:
    """The sink of `scripted://name`, found by its entry point like a plugin's."""
    endpoint = ENDPOINTS[address.removeprefix(f"{SCHEME}://")]
    endpoint.opened += 1
    if endpoint.open_error:
        raise endpoint.open_error
    return endpoint


def install(folder: Path, scheme: str, target: str) -> Path:
    """Install a package with a sink into `folder`, as pip would; the caller adds the folder to the path."""
    info = folder / f"{scheme}_sink-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {scheme}-sink\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[kling_callback.sinks]\n{scheme} = {target}\n")
    return folder


def install_scripted(folder: Path) -> Path:
    """Install the scripted sink into `folder`."""
    return install(folder, SCHEME, f"{__name__}:open_scripted")


class ObservedReceiver(Receiver):
    """A receiver that sets `changed` after each commit."""

    def __init__(self, settings: ReceiverSettings, **arguments: Any) -> None:
        self.changed = asyncio.Event()
        super().__init__(settings, **arguments)

    def _on_commit(self, committed: CommitResult) -> None:
        super()._on_commit(committed)
        self.changed.set()


class Outgoing:
    """A receiver that delivers events; `now` (unix ms) is its time, of which `jumped` (ms) did not pass."""

    def __init__(self, settings: ReceiverSettings) -> None:
        self.now, self.jumped = NOW, 0
        self.receiver = ObservedReceiver(
            settings,
            clock=lambda: self.now / 1000,
            monotonic=lambda: (self.now - self.jumped) / 1000,
            delays=Delays(hook_idle_seconds=IDLE_SECONDS),
        )
        self.ledger = Ledger(self.receiver.store.database)

    def endpoint(self, name: str, answer: Answer = accept) -> Endpoint:
        """A new scripted sink."""
        endpoint = ENDPOINTS[name] = Endpoint(name, answer)
        endpoint.changed = self.receiver.changed
        return endpoint

    async def change(self, change: Callable[[Transaction], T]) -> T:
        """Commit one change."""
        return await self.receiver.store.writer.run(change)

    async def add(self, address: str | Endpoint, *, name: str = "", **fields: Any) -> str:
        """Add a hook; its name."""
        if isinstance(address, Endpoint):
            name, address = name or address.name, address.address
        config = HookConfig(name=name, address=address, **fields)
        row = await self.change(lambda tx: hook_records.add(tx, config))
        assert row
        return str(row["name"])

    async def add_events(self, *types: str, task: str = "t", family: str = FAMILY, **columns: Any) -> list[int]:
        """Commit events of a task, which is created if necessary; their ids."""

        def change(tx: Transaction) -> int:
            if tx.task(task) is None:
                tx.add_tasks([{"id": task, "family": family, **columns}])
            for type_ in types:
                tx.add_event(task, type_)
            return last_event(tx.connection)

        last = await self.change(change)
        return [row["id"] for row in self.ledger.rows(EVENT) if row["id"] > last]

    def hook(self, name: str) -> HookRow:
        """A hook's row."""
        with self.receiver.store.database.read() as connection:
            row = hook_records.hook(connection, name)
        assert row
        return row

    def attempts(self, **where: Any) -> list[AttemptRow]:
        """The recorded attempts, in order."""
        return self.ledger.rows(ATTEMPT, **where)

    def jobs(self, *kinds: str) -> dict[str, JobRow]:
        """The jobs of these kinds, by key."""
        return {key: job for key, job in self.ledger.jobs().items() if job["kind"] in kinds}

    async def advance(self, seconds: float) -> None:
        """Advance the time, and wake the worker."""
        self.now += int(seconds * 1000)
        self.receiver.work.worker.wake()

    async def jump(self, seconds: float) -> None:
        """Set the clock forward or back, or suspend the machine; then a commit notices it."""
        self.jumped += int(seconds * 1000)
        self.now += int(seconds * 1000)
        await self.change(lambda tx: None)
        self.receiver.work.worker.wake()

    async def until(self, condition: Callable[[], T]) -> T:
        """Wait for a true result, which is returned; the condition is checked after each commit and each message."""
        async with asyncio.timeout(PATIENCE):
            while True:
                self.receiver.changed.clear()
                if result := condition():
                    return result
                await self.receiver.changed.wait()

    async def until_settled(self) -> None:
        """Wait until no job runs: the outcome of every attempt is recorded, with the time of its record."""
        await self.until(lambda: all(job["state"] != "running" for job in self.ledger.jobs().values()))

    async def detail(self, task: str = "t") -> TaskDetail:
        """A task with its tags and results."""
        return (await self.receiver.store.reader.details([task]))[task]


@asynccontextmanager
async def outgoing(settings: ReceiverSettings, *, work: bool = True) -> AsyncIterator[Outgoing]:
    """A receiver that delivers events. `work` False: its writer runs, its worker does not."""
    stage = Outgoing(settings)
    stage.receiver.prepare()
    if work:
        await stage.receiver.start()
    else:
        stage.receiver.store.writer.start()
    try:
        yield stage
    finally:
        await stage.receiver.stop()
