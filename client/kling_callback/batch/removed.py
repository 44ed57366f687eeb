"""Find tasks that were removed while their events could not be received: no event says so."""

from collections.abc import Callable

import anyio

from kling_callback.errors import ReceiverError
from kling_callback.kling import AsyncKling

READ_AGAIN_SECONDS = 5
"""Before a task is read again after the retries of the client, while the receiver is busy."""

NOT_ONE = frozenset({404, 409})
"""HTTP statuses of an id that no task has, or several have."""


class RemovedTasks:
    """Reads the open tasks after each reconnection of the event stream, one after the other.

    The state of those that the receiver has comes by the stream, which may be ahead of what is read here.
    """

    def __init__(
        self, kling: AsyncKling, open_ids: Callable[[], list[str]], on_removed: Callable[[str, str], None]
    ) -> None:
        """`open_ids`: the tasks that are waited for now.

        `on_removed`: called with an id and the receiver's words; the task may have ended while it was read.
        """
        self._kling, self._open_ids, self._on_removed = kling, open_ids, on_removed
        self._reconnected = anyio.Event()

    def reconnected(self) -> None:
        """Read the open tasks from now on, again if they are being read."""
        self._reconnected.set()

    async def find(self) -> None:
        """Find them, without end. Raises ReceiverError when the receiver refuses."""
        while True:
            await self._reconnected.wait()
            self._reconnected = anyio.Event()
            for task_id in self._open_ids():
                await self._read(task_id)

    async def _read(self, task_id: str) -> None:
        while True:
            try:
                await self._kling.task(task_id)
                return None
            except ReceiverError as error:
                if error.http_status in NOT_ONE:
                    return self._on_removed(task_id, error.message)
                if not error.retryable:
                    raise
                await anyio.sleep(READ_AGAIN_SECONDS)
