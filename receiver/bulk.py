"""Many rows into one table by the driver's own quick way: executemany, or COPY on PostgreSQL.

A batch of callbacks is a few hundred rows; looked at one by one, they cost more than all else about them.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError

from receiver.tables import Json, encode

Row = dict[str, Any]


class Bulk:
    """An INSERT of rows of one shape. `columns`: those that each row names; `conflict`: what follows VALUES."""

    def __init__(self, table: Table, columns: Sequence[str], conflict: str = "") -> None:
        names, marks = ", ".join(columns), ", ".join(["{0}"] * len(columns))
        self._insert = f"INSERT INTO {table.name} ({names}) VALUES ({marks}) {conflict}"  # noqa: S608  # ours
        self._copy = None if conflict else f"COPY {table.name} ({names}) FROM STDIN"
        self._read = [_reader(name, isinstance(table.c[name].type, Json)) for name in columns]

    def insert(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Insert all rows."""
        values = [tuple([read(row) for read in self._read]) for row in rows]
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(self._insert.format("?"), values)
        elif self._copy:
            _copy_in(connection, self._copy, values)
        else:
            connection.exec_driver_sql(self._insert.format("%s"), values)


def _copy_in(connection: Connection, statement: str, values: list[tuple[Any, ...]]) -> None:
    errors = connection.dialect.loaded_dbapi.Error
    try:
        with connection.connection.cursor() as cursor, cursor.copy(statement) as copy:  # type: ignore[attr-defined]
            for row in values:
                copy.write_row(row)
    except errors as error:  # told in the one tree of errors, as if it had gone through the other layers
        raise DBAPIError.instance(statement, None, error, errors, dialect=connection.dialect) from error


def _reader(name: str, is_json: bool) -> Callable[[Row], Any]:
    if is_json:
        return lambda row: encode(row[name])
    return lambda row: row[name]
