"""Handle the events of all tasks, one after the other, each at least once and in order."""

from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass

from anyio import to_thread

from kling_callback.kling import AsyncKling
from kling_callback.listen.cursor import Cursor
from kling_callback.protocol.events import Event


@dataclass(frozen=True, slots=True)
class HandlerResult:
    """The result of handling an event: a label for its line, and a message about the problem, if any."""

    label: str = ""
    problem: str = ""


Handle = Callable[[Event], Awaitable[HandlerResult]]
Reporter = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Matches events of these types, of tasks with this tag; an empty filter matches all."""

    types: Collection[str] = ()
    tag: str | None = None

    @property
    def key(self) -> list[str]:
        """A list that is equal for equal filters, part of the cursor's identity."""
        tag = [] if self.tag is None else [f"tag {self.tag}"]
        return [*sorted(set(self.types)), *tag]

    def __call__(self, event: Event) -> bool:
        """Whether the filter matches an event."""
        tag_matches = self.tag is None or self.tag in (event.task.get("tags") or ())
        return tag_matches and (not self.types or event.type in self.types)


async def listen(
    kling: AsyncKling,
    cursor: Cursor,
    handle: Handle,
    *,
    event_filter: EventFilter,
    report: Callable[[Event, HandlerResult], None],
) -> None:
    """Handle the events after the cursor, without end. The cursor advances after `handle` and `report`.

    Raises ReceiverError, OSError if the cursor cannot be written, and what `handle` raises.
    """
    async with aclosing(kling.events(after=cursor.after)) as events:
        async for event in events:
            if event_filter(event):
                report(event, await handle(event))
            await to_thread.run_sync(cursor.advance, event.id)


async def position_cursor(kling: AsyncKling, cursor: Cursor, first: int | None, report: Reporter) -> None:
    """Set the cursor before a run. `first`: the event to begin with; 0: after the newest; None: where it is.

    A new cursor begins after the newest event. If the receiver's database was replaced, it begins with the first.
    """
    newest = await kling.last_event()
    if first is not None:
        cursor.advance(first - 1 if first else newest)
    elif cursor.after is None:
        cursor.advance(newest)
    elif cursor.after > newest:
        report(
            f"Event {cursor.after} was handled, but the newest is {newest}: the receiver has another database. "
            "All its events are handled."
        )
        cursor.advance(0)


async def print_only(event: Event) -> HandlerResult:
    """Do nothing: the caller prints the event."""
    return HandlerResult()
