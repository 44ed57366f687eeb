"""The cursor of a listener, on disk: advanced only after an event was handled, so that none is missed."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kling_callback.atomic_file import AtomicFile, temporary_path
from kling_callback.errors import KlingError
from kling_callback.listen.lock import lock
from kling_callback.protocol.events import LogPosition

FOLDER = "kling-callback"


class Cursor:
    """One file (mode 0600) for one receiver, one destination `to`, and one filter `only`."""

    def __init__(self, folder: Path, receiver: str, to: str, *, only: Sequence[str] = ()) -> None:
        """`folder`: of all state; made if missing. Raises KlingError for an unreadable file, OSError for the folder."""
        name = hashlib.sha256(json.dumps([receiver, to, *only]).encode()).hexdigest()[:16]
        self.path = folder / FOLDER / f"{name}.json"
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._state: dict[str, Any] = {"receiver": receiver, **self._read()}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock out another listener with the same cursor. Raises KlingError if one runs."""
        with self.path.with_suffix(".lock").open("w") as file:
            try:
                lock(file)
            except OSError:
                raise KlingError(
                    "The same command is already listening.", code="held", hint=ALREADY_LISTENING
                ) from None
            self._state |= self._read()  # the previous holder may have advanced the cursor
            yield

    @property
    def after(self) -> LogPosition | None:
        """The position after the last handled event; None before the first run."""
        return LogPosition.parse(self._state["after"]) if "after" in self._state else None

    def advance(self, after: LogPosition) -> None:
        """Mark all events up to this position as handled; durable on return. Raises OSError."""
        self._write(after=str(after))

    def secret(self, new: Callable[[], str]) -> str:
        """The secret of this cursor, the same in each run. `new`: makes it in the first."""
        if not isinstance(self._state.get("secret"), str):
            self._write(secret=new())
        return str(self._state["secret"])

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        try:
            state = json.loads(self.path.read_bytes())
            if isinstance(state, dict):
                LogPosition.parse(state.get("after", "0-0"))
                return state
        except (OSError, ValueError, TypeError, RecursionError):
            pass
        raise KlingError(f"{self.path} cannot be read.", code="bad_cursor", hint=REMOVE_CURSOR)

    def _write(self, **changed: Any) -> None:
        self._state |= changed
        file = AtomicFile(temporary_path(self.path), mode=0o600)
        try:
            file.write(json.dumps(self._state).encode())
            file.commit(self.path)
        finally:
            file.discard()


ALREADY_LISTENING = "Stop it first, or set other filters (--event, --tag) or another folder (--state) for this one."
REMOVE_CURSOR = "It is the cursor of this listener. Remove it, and set the start: --from ID, or --from latest."
