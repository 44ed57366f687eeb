"""Errors of the database: outages, databases that cannot be used, and a second receiver."""

from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError
from sqlalchemy.exc import DBAPIError as DBAPIError

STATEMENT_ERRORS = (IntegrityError, DataError, ProgrammingError)
"""Errors of a single statement. Every other DBAPIError (full, locked, lost, damaged) is an outage of the database."""


class Unavailable(Exception):
    """The database cannot be used at the moment: no change can be confirmed as durable."""


class Unanswered(Unavailable):
    """A change was not committed in time. It may still be."""


class InvalidRow(Exception):
    """A row is not of a shape that this version writes: it is damaged, or a newer version wrote it."""


class DatabaseError(Exception):
    """The database cannot be used; the message states the reason and what to do."""


class AlreadyRunning(Unavailable, DatabaseError):
    """Another receiver, `holder`, serves the database."""

    def __init__(self, database: str, holder: str, setting: str) -> None:
        super().__init__(f"{database} is served by {holder}. Stop it first, or set {setting}.")
        self.holder = holder


def describe(error: Exception) -> str:
    """The kind of an error, which may be shown to anyone. A database's own words may have values, names and addresses.

    Whoever shows it writes the error to the log.
    """
    original = (error.orig or error) if isinstance(error, DBAPIError) else error
    name = getattr(original, "sqlite_errorname", None) or type(original).__name__
    return f"{name}, see the receiver's log"
