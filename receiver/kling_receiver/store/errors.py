"""Errors of the database: outages, and a database that cannot be used at all."""

from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError

STATEMENT_ERRORS = (IntegrityError, DataError, ProgrammingError)
"""What befalls one statement; the database's other troubles (full, locked, gone, damaged) befall all."""


class Unavailable(Exception):
    """The database cannot be used just now; no change can be said to be durable."""


class DatabaseError(Exception):
    """The database cannot be used; the message says why and what to do."""


class AlreadyRunning(Unavailable, DatabaseError):
    """Another receiver, `holder`, serves the database."""

    def __init__(self, what: str, holder: str, setting: str) -> None:
        super().__init__(f"{what} is served by {holder}. Stop it first, or set {setting}.")
        self.holder = holder
