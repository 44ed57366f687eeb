"""Follow the events of all tasks, also past a restore of the receiver's database."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from kling_callback.errors import ReceiverError
from kling_callback.events import OTHER_LOG
from kling_callback.kling import AsyncKling


async def follow_all(
    kling: AsyncKling,
    cursor: str,
    on_task: Callable[[dict[str, Any]], None],
    *,
    on_reconnect: Callable[[], None],
    on_restore: Callable[[], Awaitable[None]],
) -> None:
    """Call `on_task` with the task's JSON of each event after `cursor`, without end.

    `on_restore`: called once the receiver has another event log; what is open is read anew there, since events are
    missing. Raises ReceiverError when the receiver refuses, or is not reached for too long.
    """
    while True:
        try:
            async with aclosing(kling.events(after=cursor, on_reconnect=on_reconnect)) as events:
                async for event in events:
                    cursor = event.cursor
                    on_task(event.task)
        except ReceiverError as error:
            if error.code != OTHER_LOG:
                raise
            cursor = await kling.last_event()
            await on_restore()
