"""Handle the events of all tasks, one after the other, each at least once and in order."""

from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass

from anyio import to_thread

from kling_callback.errors import KlingError, ReceiverError
from kling_callback.events import OTHER_LOG
from kling_callback.kling import AsyncKling
from kling_callback.listen.cursor import Cursor
from kling_callback.protocol.events import Event, LogPosition


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
    warn: Reporter,
) -> None:
    """Handle the events after the cursor, without end. The cursor advances after `handle` and `report`.

    When the receiver refuses the cursor, because its database was restored or replaced, all its events are handled,
    after a message to `warn`.
    Raises ReceiverError, OSError if the cursor cannot be written, and what `handle` raises.
    """
    while True:
        try:
            await _listen(kling, cursor, handle, event_filter, report)
        except ReceiverError as error:
            if error.code != OTHER_LOG:
                raise
            newest = LogPosition.parse(await kling.last_event())
            if cursor.after == LogPosition(newest.log_id, 0):  # it would be refused again, without end
                raise
            _start_over(cursor, newest, warn)


async def _listen(
    kling: AsyncKling,
    cursor: Cursor,
    handle: Handle,
    event_filter: EventFilter,
    report: Callable[[Event, HandlerResult], None],
) -> None:
    after = None if cursor.after is None else str(cursor.after)
    async with aclosing(kling.events(after=after)) as events:
        async for event in events:
            if event_filter(event):
                report(event, await handle(event))
            await to_thread.run_sync(cursor.advance, event.position)


async def position_cursor(kling: AsyncKling, cursor: Cursor, first: int | None, warn: Reporter) -> None:
    """Set the cursor before a run. `first`: the event to begin with; 0: after the newest; None: where it is.

    A new cursor begins after the newest event. If the receiver's database was restored or replaced, it begins with the
    first. Raises KlingError if `first` is later than the next event.
    """
    newest = LogPosition.parse(await kling.last_event())
    if first is not None and first > newest.event_id + 1:
        raise KlingError(
            f"There is no event {first}: the newest is {newest.event_id}.",
            code="no_event",
            hint="Begin with the next event: --from latest.",
        )
    if first:
        cursor.advance(LogPosition(newest.log_id, first - 1))
    elif first == 0 or cursor.after is None:
        cursor.advance(newest)
    elif cursor.after.log_id != newest.log_id or cursor.after.event_id > newest.event_id:
        _start_over(cursor, newest, warn)


def _start_over(cursor: Cursor, newest: LogPosition, warn: Reporter) -> None:
    """Move the cursor to the beginning of the receiver's log: events are repeated rather than missed."""
    handled = cursor.after.event_id if cursor.after else 0
    warn(
        f"Event {handled} was handled, of another event log: the receiver's database was restored or replaced. "
        f"All its events are handled from the first one on, {newest.event_id} so far; some of them may be repeats."
    )
    cursor.advance(LogPosition(newest.log_id, 0))


async def print_only(event: Event) -> HandlerResult:
    """Do nothing: the caller prints the event."""
    return HandlerResult()
