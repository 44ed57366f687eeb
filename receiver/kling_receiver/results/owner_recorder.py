"""Keeps the record of a results folder's owner up to date while events are committed."""

import logging
import threading
from dataclasses import replace

from kling_receiver.events import log as event_log
from kling_receiver.results.owner import FolderOwner, OwnerRecord
from kling_receiver.store.database import Database
from kling_receiver.store.errors import DatabaseError

log = logging.getLogger("kling_receiver.results")

INTERVAL_SECONDS = 1.0
"""Seconds between two updates: the record costs two fsyncs, and may be behind the log."""
CLOSE_SECONDS = 2.0
"""Seconds for the last update: hung storage must not keep the receiver from stopping."""


class OwnerRecorder:
    """Updates `last_event` of the record in a thread of its own, after commits and at the end."""

    def __init__(self, owner: FolderOwner, database: Database, *, interval: float = INTERVAL_SECONDS) -> None:
        """`interval`: seconds between two updates."""
        self._owner, self._database, self._interval = owner, database, interval
        self._woken, self._stopped = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._failed = False

    def start(self, record: OwnerRecord) -> None:
        """Start the thread. `record`: what the folder's record says now."""
        self._thread = threading.Thread(target=self._run, args=(record,), name="owner-recorder", daemon=True)
        self._thread.start()

    def events_committed(self) -> None:
        """Update the record soon."""
        self._woken.set()

    def close(self) -> None:
        """Update the record a last time. Blocks for CLOSE_SECONDS at most."""
        self._stopped.set()
        self._woken.set()
        if self._thread:
            self._thread.join(CLOSE_SECONDS)

    def _run(self, record: OwnerRecord) -> None:
        while True:
            self._woken.wait()
            self._woken.clear()  # before the next line: `close` sets both, in the other order
            is_last = self._stopped.is_set()
            record = self._update(record)
            if is_last:
                return
            self._stopped.wait(self._interval)

    def _update(self, record: OwnerRecord) -> OwnerRecord:
        try:
            with self._database.operator_errors(), self._database.read() as connection:
                last_event = event_log.read(connection).newest.event_id
            updated = replace(record, last_event=last_event)
            if updated != record:
                self._owner.verify()
                self._owner.write(updated)
        except (OSError, DatabaseError) as error:
            if not self._failed:  # once: the next commit tries again, and /readyz names the cause
                log.warning("the record of the results folder cannot be updated: %s", type(error).__name__)
            self._failed = True
            return record
        self._failed = False
        return updated
