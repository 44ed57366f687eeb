"""Errors of the database: outages, databases that cannot be used, and a second receiver."""

from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError
from sqlalchemy.exc import DBAPIError as DBAPIError

STATEMENT_ERRORS = (IntegrityError, DataError, ProgrammingError)
"""Errors of a single statement. Every other DBAPIError (full, locked, lost, damaged) is an outage of the database."""


class Unavailable(Exception):
    """The database cannot be used at the moment: no change can be confirmed as durable."""


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
    """One line about an error, which may be shown to anyone: a database's own words, else the error's type."""
    if isinstance(error, DBAPIError):
        return str(error.orig).strip().partition("\n")[0] or type(error).__name__
    return f"{type(error).__name__}, see the receiver's log"
