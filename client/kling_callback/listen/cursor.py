"""How far a listener came, on disk: written only when an event was handled, so that none is missed."""

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kling_callback.atomic_file import AtomicFile
from kling_callback.errors import KlingError

FOLDER = "kling-callback"


class Cursor:
    """One file, for one receiver and one place where its events go; nobody else may read it.

    `only`: what chooses among the events; who listens for others has another cursor.
    """

    def __init__(self, folder: Path, receiver: str, to: str, *, only: Sequence[str] = ()) -> None:
        """Raises KlingError for a file that cannot be read, OSError for a folder that cannot be made."""
        name = hashlib.sha256(json.dumps([receiver, to, *only]).encode()).hexdigest()[:16]
        self.path = folder / FOLDER / f"{name}.json"
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._kept: dict[str, Any] = {"receiver": receiver, **self._read()}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep another listener of the same kind away. Raises KlingError when there is one."""
        with self.path.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise KlingError("The same command listens already.", code="held", hint=END) from None
            self._kept |= self._read()  # as the last one left it
            yield

    @property
    def after(self) -> int | None:
        """The id of the last event that was handled; None at the first time."""
        return self._kept.get("after")

    def advance(self, after: int) -> None:
        """This event, and each before it, need not come again."""
        self._write(after=after)

    def secret(self, new: Callable[[], str]) -> str:
        """A secret that stays the same from one run to the next; `new()` makes it."""
        if not isinstance(self._kept.get("secret"), str):
            self._write(secret=new())
        return str(self._kept["secret"])

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        try:
            kept = json.loads(self.path.read_bytes())
            if isinstance(kept, dict) and type(kept.get("after", 0)) is int:
                return kept
        except (OSError, ValueError, RecursionError):
            pass
        raise KlingError(f"{self.path} cannot be read.", code="bad_cursor", hint=REMOVE)

    def _write(self, **changed: Any) -> None:
        self._kept |= changed
        landing = AtomicFile(self.path, mode=0o600)
        try:
            landing.write(json.dumps(self._kept).encode())
            landing.commit()
        finally:
            landing.discard()


END = "End it first, or let this one hear of other events: --event, --tag. Another --state keeps both apart."
REMOVE = "It says how far this listener came. Remove it, and say where to begin: --from ID, or --from latest."
