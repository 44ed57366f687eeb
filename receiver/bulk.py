"""Many rows into one table by the driver's own quick way: executemany, or COPY on PostgreSQL.

A batch of callbacks is a few hundred rows; looked at one by one, they cost more than all else about them.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Table

from receiver.sql import Row, cursor, is_sqlite
from receiver.tables import documents, encode


class Bulk:
    """An INSERT of rows of one shape. `columns`: those that each row names; `conflict`: what follows VALUES."""

    def __init__(self, table: Table, columns: Sequence[str], conflict: str = "") -> None:
        names, marks = ", ".join(columns), ", ".join(["{0}"] * len(columns))
        insert = f"INSERT INTO {table.name} ({names}) VALUES ({marks}) {conflict}"  # noqa: S608  # ours
        self._sqlite, self._postgresql = insert.format("?"), insert.format("%s")
        self._copy = None if conflict else f"COPY {table.name} ({names}) FROM STDIN"
        self._read = [_reader(name, name in documents(table)) for name in columns]

    def insert(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Insert all rows."""
        values = [tuple([read(row) for read in self._read]) for row in rows]
        on_sqlite = is_sqlite(connection)
        if self._copy and not on_sqlite:
            with cursor(connection, self._copy) as opened, opened.copy(self._copy) as copy:
                for value in values:
                    copy.write_row(value)
            return
        statement = self._sqlite if on_sqlite else self._postgresql
        with cursor(connection, statement) as opened:
            opened.executemany(statement, values)


def _reader(name: str, is_json: bool) -> Callable[[Row], Any]:
    if is_json:
        return lambda row: encode(row[name])
    return lambda row: row[name]
