"""A sink of one's own: `lines:/path/to/file` has each event as a line. It never loses one that it took."""

import asyncio
import os
from pathlib import Path

from kling_receiver.sinks import Delivered, Message, NotDelivered


class LinesSink:
    """One file. Made once for each hook; `send` is called by many attempts at once."""

    def __init__(self, address: str) -> None:
        """Raises ValueError: `hooks add` says it to whoever adds the hook."""
        self._path = Path(address.removeprefix("lines:"))
        if not self._path.is_absolute():
            raise ValueError("must be lines:/path/to/file, the path from the root on.")
        self._writing = asyncio.Lock()

    async def send(self, message: Message) -> Delivered:
        """Return once the event is safe; raise NotTaken when it is not, and it comes again."""
        async with self._writing:
            try:
                await asyncio.to_thread(self._append, message.body)
            except OSError as error:
                raise NotDelivered(f"the file cannot be written: {error.strerror}") from error
        return Delivered()

    def _append(self, line: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())

    async def close(self) -> None:
        """Nothing is held between events."""
