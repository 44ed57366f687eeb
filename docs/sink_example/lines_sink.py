"""An example of a sink: `lines:/path/to/file` appends each event as a line, and returns once it is on disk."""

import asyncio
import os
from pathlib import Path

from kling_receiver.sinks import Delivered, Message, NotDelivered


class LinesSink:
    """One file. There is one sink for each hook, and its attempts call `send` concurrently."""

    def __init__(self, address: str) -> None:
        """Open a sink. Raises ValueError for an invalid address; `hooks add` shows its message."""
        self._path = Path(address.removeprefix("lines:"))
        if not self._path.is_absolute():
            raise ValueError("must be lines:/path/to/file, with an absolute path.")
        self._lock = asyncio.Lock()

    async def send(self, message: Message) -> Delivered:
        """Deliver one event; return once it is safe. After NotDelivered, the event is sent again later."""
        async with self._lock:
            try:
                await asyncio.to_thread(self._append, message.body)
            except OSError as error:
                raise NotDelivered(f"cannot write the file: {error.strerror}") from error
        return Delivered()

    def _append(self, line: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())

    async def close(self) -> None:
        """Do nothing: the file is open during `send` only."""
