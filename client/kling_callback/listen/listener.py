"""Events to a developer's own machine: each is handled, at least once and in order, before the next."""

from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass

from anyio import to_thread

from kling_callback.kling import AsyncKling
from kling_callback.listen.cursor import Cursor
from kling_callback.protocol.events import Event


@dataclass(frozen=True, slots=True)
class HandlerResult:
    """What became of an event: a word on it, and what is wrong, if anything is."""

    label: str = ""
    problem: str = ""


Handle = Callable[[Event], Awaitable[HandlerResult]]
Reporter = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are handled: of these types, of tasks with this tag. What is empty wants all."""

    types: Collection[str] = ()
    tag: str | None = None

    @property
    def key(self) -> list[str]:
        """The same for the same choice, however it is typed."""
        tag = [] if self.tag is None else [f"tag {self.tag}"]
        return [*sorted(set(self.types)), *tag]

    def __call__(self, event: Event) -> bool:
        """Whether this one is."""
        tags = event.task.get("tags")
        tagged = self.tag is None or (isinstance(tags, list) and self.tag in tags)
        return tagged and (not self.types or event.type in self.types)


async def listen(
    kling: AsyncKling,
    cursor: Cursor,
    handle: Handle,
    *,
    event_filter: EventFilter,
    report: Callable[[Event, HandlerResult], None],
) -> None:
    """Handle what comes after the cursor, without end; an event is behind it once it is handled and told.

    Raises ReceiverError, and what `handle` raises.
    """
    async with aclosing(kling.events(after=cursor.after)) as events:
        async for event in events:
            if event_filter(event):
                report(event, await handle(event))
            await to_thread.run_sync(cursor.advance, event.id)


async def position_cursor(kling: AsyncKling, cursor: Cursor, first: int | None, report: Reporter) -> None:
    """Set the cursor: before the event `first`, or 0 for behind the newest; None leaves it where it is.

    At the first time that is behind the newest event; a database that began anew is read from its first.
    """
    newest = await kling.last_event()
    if first is not None:
        cursor.advance(first - 1 if first else newest)
    elif cursor.after is None:
        cursor.advance(newest)
    elif cursor.after > newest:
        report(f"Event {cursor.after} was handled, but the newest is {newest}: the receiver's database is another.")
        cursor.advance(0)


async def print_only(event: Event) -> HandlerResult:
    """It is told, and that is all."""
    return HandlerResult()
