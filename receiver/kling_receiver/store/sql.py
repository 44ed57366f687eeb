"""Statements by the driver's own hand: what one finished task sets in motion is two dozen of them.

Through all layers of SQLAlchemy each takes twenty times as long as in the database (SQLite: 38 us to 2 us), and
nothing else runs meanwhile. Its connections, transactions, tables and errors stay.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic

from sqlalchemy import Boolean, Connection, Table
from sqlalchemy.exc import DBAPIError
from typing_extensions import TypeVar

from kling_receiver.store.rows import Row
from kling_receiver.store.tables import dump_json, json_columns, load_json

T = TypeVar("T")
R = TypeVar("R", default=Row)

NAMED = re.compile(r"(?<![:\w]):([a-z]\w*)")
"""A parameter as it is written here, and by SQLite; psycopg writes `%(name)s`."""


@contextmanager
def driver_cursor(connection: Connection, statement: str) -> Iterator[Any]:
    """The driver's own cursor. Raises DBAPIError, as if its errors had come through the other layers."""
    errors = connection.dialect.loaded_dbapi.Error
    try:
        opened = connection.connection.cursor()
        try:
            yield opened
        finally:
            opened.close()
    except errors as error:
        raise DBAPIError.instance(statement, None, error, errors, dialect=connection.dialect) from error


def is_sqlite(connection: Connection) -> bool:
    """Which of the two engines it is connected to."""
    return connection.dialect.name == "sqlite"


class Statement(Generic[R]):
    """A statement; its parameters are written `:name`. A list is one, too (`IN :ids`); one of texts may
    be empty.

    `of`: the table whose columns it shows, so that documents and booleans come out as such. `lock`: how it ends
    on PostgreSQL, where rows that are to be changed are locked; SQLite has one writer.
    """

    def __init__(self, sql: str, *, table: Table | None = None, lock: str = "") -> None:
        self._sqlite = sql
        self._postgresql = NAMED.sub(r"%(\1)s", f"{sql} {lock}".rstrip().replace("%", "%%"))
        self._convert = _converters(table) if table is not None else {}

    def all(self, connection: Connection, **parameters: Any) -> list[R]:
        """Every row."""
        return self._run(connection, parameters, self._rows)

    def first(self, connection: Connection, **parameters: Any) -> R | None:
        """The first row, if there is any."""
        return next(iter(self.all(connection, **parameters)), None)

    def scalars(self, connection: Connection, **parameters: Any) -> list[Any]:
        """The first column."""
        return self._run(connection, parameters, lambda found: [row[0] for row in found.fetchall()])

    def scalar(self, connection: Connection, **parameters: Any) -> Any:
        """The first column of the first row; None when there is none."""
        return next(iter(self.scalars(connection, **parameters)), None)

    def execute(self, connection: Connection, **parameters: Any) -> int:
        """How many rows were changed."""
        return self._run(connection, parameters, lambda done: int(done.rowcount))

    def executemany(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Once for each of these."""
        statement = self._render(connection, {})
        with driver_cursor(connection, statement) as opened:
            opened.executemany(statement, rows)

    def _run(self, connection: Connection, parameters: Row, take: Callable[[Any], T]) -> T:
        lists = {name: value for name, value in parameters.items() if isinstance(value, list)}
        statement = self._render(connection, lists)
        for name, values in lists.items():
            parameters |= _flatten(name, values)
        with driver_cursor(connection, statement) as opened:
            opened.execute(statement, parameters)
            return take(opened)

    def _render(self, connection: Connection, lists: Mapping[str, list[Any]]) -> str:
        if is_sqlite(connection):
            sql, mark, pattern = self._sqlite, ":{}".format, r":{}\b"
        else:
            sql, mark, pattern = self._postgresql, "%({})s".format, r"%\({}\)s"
        for name, values in lists.items():
            sql = re.sub(pattern.format(name), _placeholders(name, values, mark), sql)
        return sql

    def _rows(self, found: Any) -> list[Any]:
        names = [each[0] for each in found.description]
        rows = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        for name, convert in self._convert.items():
            if name in names:
                for row in rows:
                    row[name] = convert(row[name])
        return rows


def _converters(table: Table) -> dict[str, Callable[[Any], Any]]:
    booleans = {column.name: bool for column in table.c if isinstance(column.type, Boolean)}
    return booleans | dict.fromkeys(json_columns(table), load_json)


def columns(table: Table) -> str:
    """All of a table's, by name: `*` would mean others after a migration, which PostgreSQL refuses once."""
    return ", ".join(column.name for column in table.c)


def _placeholders(name: str, values: list[Any], mark: Callable[[str], str]) -> str:
    """`(:a_0, :a_1)`; for pairs `(VALUES (:a_0_0, :a_0_1), ...)`; for nothing what holds no text."""
    if not values:
        return "(SELECT NULL WHERE false)"
    if isinstance(values[0], tuple):
        pairs = (_placeholders(f"{name}_{n}", list(pair), mark) for n, pair in enumerate(values))
        return f"(VALUES {', '.join(pairs)})"
    return f"({', '.join(mark(f'{name}_{n}') for n in range(len(values)))})"


def _flatten(name: str, values: list[Any]) -> Row:
    spread: Row = {}
    for n, value in enumerate(values):
        spread |= _flatten(f"{name}_{n}", list(value)) if isinstance(value, tuple) else {f"{name}_{n}": value}
    return spread


class BulkInsert:
    """An INSERT of rows of one shape. `columns`: those that each row names; `conflict`: what follows VALUES."""

    def __init__(self, table: Table, columns: Sequence[str], conflict: str = "") -> None:
        names, marks = ", ".join(columns), ", ".join(["{0}"] * len(columns))
        insert = f"INSERT INTO {table.name} ({names}) VALUES ({marks}) {conflict}"  # ours
        self._sqlite, self._postgresql = insert.format("?"), insert.format("%s")
        self._copy = None if conflict else f"COPY {table.name} ({names}) FROM STDIN"
        self._read = [_getter(name, name in json_columns(table)) for name in columns]

    def insert(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert all rows."""
        values = [tuple([read(row) for read in self._read]) for row in rows]
        on_sqlite = is_sqlite(connection)
        if self._copy and not on_sqlite:
            with driver_cursor(connection, self._copy) as opened, opened.copy(self._copy) as copy:
                for value in values:
                    copy.write_row(value)
            return
        statement = self._sqlite if on_sqlite else self._postgresql
        with driver_cursor(connection, statement) as opened:
            opened.executemany(statement, values)


def _getter(name: str, is_json: bool) -> Callable[[Mapping[str, Any]], Any]:
    if is_json:
        return lambda row: dump_json(row[name])
    return lambda row: row[name]
