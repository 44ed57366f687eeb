"""Values that many requests ask for at once, and that are expensive to make."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

KEPT_TIMES = 9
"""A value is kept at least so many times as long as it took to make: then that takes a tenth of the time at most."""


class Shared(Generic[T]):
    """A value that is made once for all who ask at the same time, and kept for some seconds. An error is not kept.

    Whoever stops waiting does not stop the others.
    """

    def __init__(self, make: Callable[[], Awaitable[T]], seconds: float) -> None:
        """`seconds`: for which the value is kept, and longer if it took long to make."""
        self._make, self._seconds = make, seconds
        self._task: asyncio.Task[T] | None = None
        self._until = 0.0

    async def get(self) -> T:
        """The value that is kept or being made, else a new one. Raises what making it raises."""
        task = self._task
        if task is None or (task.done() and asyncio.get_running_loop().time() >= self._until):
            task = self._task = asyncio.create_task(self._run())
        return await asyncio.shield(task)

    async def _run(self) -> T:
        self._until = 0.0
        loop = asyncio.get_running_loop()
        began = loop.time()
        value = await self._make()
        ended = loop.time()
        self._until = ended + max(self._seconds, KEPT_TIMES * (ended - began))
        return value
