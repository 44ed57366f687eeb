"""The owner of a results folder: a lock while a receiver runs, and a record of the database whose files it holds.

Two receivers with two databases in one folder would overwrite each other's files. The record also remembers how far the
event log went: a database that is behind it was restored from a backup.
"""

import errno
import fcntl
import json
import logging
import os
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from kling_callback.atomic_file import AtomicFile
from kling_callback.display import escape
from kling_receiver.events import log as event_log
from kling_receiver.events.log import LogState
from kling_receiver.store.database import Database
from kling_receiver.store.errors import AlreadyRunning, DatabaseError

log = logging.getLogger("kling_receiver.results")

RECORD = ".owner.json"
MAX_RECORD_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class OwnerRecord:
    """The database whose files a folder holds.

    `database`: its address, for people. `database_id`, `log_id`: those of its table `event_log`. `last_event`: an event
    that its log had.
    """

    database: str
    database_id: str
    log_id: str
    last_event: int


class FolderOwner:
    """The lock and the record of one folder. Methods block, and raise OSError."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: int | None = None
        self._released = False
        self._record: OwnerRecord | None = None
        self._writing = threading.Lock()

    def acquire(self) -> None:
        """Keep other receivers away from the folder until `release`. Raises AlreadyRunning."""
        # The folder itself is locked, because a lock file in it could be removed.
        handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise AlreadyRunning(f"The results folder {self.root}", self._holder(), "KLING_STORAGE_URL") from None
        except OSError as error:  # some network folders take no lock; the record still tells databases apart
            log.warning("%s cannot be locked: %s. No other receiver may use it", self.root, error.strerror)
        self.release()
        self._lock, self._released = handle, False

    def _holder(self) -> str:
        with suppress(OSError, DatabaseError):
            if record := self.read():
                return f"the receiver of {record.database}"
        return "another receiver"

    def release(self) -> None:
        """Release the lock."""
        handle, self._lock, self._released = self._lock, None, True
        if handle is not None:
            os.close(handle)

    def verify(self) -> None:
        """Check that the folder at the path is the locked one, or lock it, unless it is of another database.

        The latter is a volume that was mounted again, or a folder that an operator made anew.
        """
        if self._lock is None or os.path.samestat(os.fstat(self._lock), self.root.stat()):
            return
        try:
            record = self.read()
            if record and self._record and record.database_id != self._record.database_id:
                raise DatabaseError(f"the folder has the files of another database, {record.database}")
            if record is None and self._record:
                (self.root / ".parts").stat()  # an empty mount point has none
                self.write(self._record)
            self.acquire()
        except DatabaseError as error:
            raise OSError(errno.ESTALE, str(error)) from None

    def read(self) -> OwnerRecord | None:
        """The record; None in a folder without one. Raises DatabaseError if the record cannot be understood."""
        path = self.root / RECORD
        try:
            content = json.loads(_read_file(path))
            values = [content[name] for name in ("database", "database_id", "log_id", "last_event")]
            if [type(value) for value in values] == [str, str, str, int]:
                return OwnerRecord(escape(values[0]), *values[1:])
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError, RecursionError):
            pass
        raise DatabaseError(
            f"{path} cannot be read: it names the database whose files are in this folder. "
            "If it is the one that you start now, run: kling-receiver restored"
        )

    def write(self, record: OwnerRecord) -> None:
        """Write the record durably. After `release`, another receiver may own the folder: raises OSError then."""
        with self._writing:
            self._check_owned()
            temporary = self.root / f"{RECORD}.part"
            temporary.unlink(missing_ok=True)  # of a killed process
            file = AtomicFile(temporary, mode=0o600)
            try:
                file.write(json.dumps(asdict(record)).encode())
                file.flush()
                self._check_owned()  # on hung storage `release` does not wait for this
                file.commit(self.root / RECORD)
            finally:
                file.discard()
            self._record = record

    def _check_owned(self) -> None:
        if self._released:
            raise OSError(errno.ENOLCK, "the folder was released")


def _read_file(path: Path) -> bytes:
    """The record's bytes. Of what somebody else put in its place, no pipe is waited for, and no link is followed.

    Raises OSError, ValueError for what is no file of a record.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError("a symbolic link") from error
        raise
    with os.fdopen(handle, "rb") as file:
        return file.read(MAX_RECORD_BYTES)


def claim(database: Database, owner: FolderOwner, *, restored: bool = False) -> OwnerRecord:
    """Record a database as the owner of a locked folder. If the database is older than the record, its log is renewed.

    `restored`: the operator says that the database was restored, whatever the record says.
    Raises DatabaseError for the folder of another database, OSError.
    """
    record = _read_record(owner, restored=restored)
    with database.operator_errors(), database.write() as connection:
        state = event_log.read(connection)
        if record and record.database_id != state.database_id and not restored:
            raise DatabaseError(
                f"{owner.root} has the files of another database, {record.database}. Set KLING_STORAGE_URL to another "
                f"folder. If {database} was restored or takes its place, run: kling-receiver restored"
            )
        reason = "an operator said so" if restored else _renewal_reason(state, record)
        log_id = event_log.renew(connection) if reason else state.log_id
    if reason and not restored:
        log.warning("the database was restored (%s): its event log has the new id %s", reason, log_id)
    claimed = OwnerRecord(str(database), state.database_id, log_id, state.newest.event_id)
    try:
        owner.write(claimed)
    except OSError as error:
        if record is None or record.database_id != claimed.database_id:
            raise
        log.warning("%s cannot be updated: %s", owner.root / RECORD, error.strerror)  # a full disk: /readyz says so
    return claimed


def _read_record(owner: FolderOwner, *, restored: bool) -> OwnerRecord | None:
    try:
        return owner.read()
    except DatabaseError:
        if not restored:
            raise
        return None


def _renewal_reason(state: LogState, record: OwnerRecord | None) -> str:
    """Why the log needs a new id; "" if it does not."""
    if not state.log_id:
        return "it is a backup"
    if record and record.log_id != state.log_id:
        return "the results folder remembers another log of it"
    if record and record.last_event > state.newest.event_id:
        return f"the results folder remembers event {record.last_event}, its newest is {state.newest.event_id}"
    return ""
