"""Named bearer tokens, which can be revoked. A token is accepted only while its id has a row that is not revoked.

The ids are cached in memory, so that a request reads no database: the one receiver of a database makes all changes.
Tokens without a name have no row.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import Connection, func, insert, select

from kling_callback.protocol.signing import LEEWAY_SECONDS, ApiToken
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import TokenRow
from kling_receiver.store.sql import Statement, columns
from kling_receiver.store.tables import API_TOKEN
from kling_receiver.store.transaction import Transaction
from kling_receiver.store.writer import Writer

MAX_TOKENS = 10_000
"""Tokens that are neither expired nor forgotten, those that were revoked included."""
USE_INTERVAL_MS = 3_600_000
"""Milliseconds between two records of a token's use: a token that is used all the time adds few writes."""

SELECT_ACTIVE = Statement[TokenRow](
    f"SELECT {columns(API_TOKEN)} FROM api_token WHERE revoked_at IS NULL ORDER BY name",  # constants
    table=API_TOKEN,
)
SELECT_ONE = Statement[TokenRow](
    f"SELECT {columns(API_TOKEN)} FROM api_token WHERE id = :id OR (name = :name AND revoked_at IS NULL)",  # constants
    table=API_TOKEN,
)
DELETE_EXPIRED = Statement("DELETE FROM api_token WHERE expires_at < :before")
REVOKE = Statement("UPDATE api_token SET revoked_at = :now WHERE name = :name AND revoked_at IS NULL")
RECORD_USE = Statement("UPDATE api_token SET last_used_at = :used_at WHERE id = :id")


class NotAdded(Exception):
    """A token was not added; the message says why."""


def add(tx: Transaction, token: ApiToken) -> TokenRow:
    """Add the row of a named token; the same token again is no error. Raises NotAdded.

    A revoked token keeps its row until it has expired, so that it cannot be added again.
    """
    DELETE_EXPIRED.execute(tx.connection, before=tx.now - LEEWAY_SECONDS * 1000)
    for row in SELECT_ONE.all(tx.connection, id=token.id, name=token.name):
        if row["id"] != token.id:
            raise NotAdded(f"There is a token {token.name} already.")
        if not _is_of(row, token):
            raise NotAdded(f"The token {row['name']} has the same id.")
        if row["revoked_at"]:
            raise NotAdded(f"The token {token.name} was revoked.")
        return row
    if tx.connection.execute(select(func.count()).select_from(API_TOKEN)).scalar_one() >= MAX_TOKENS:
        raise NotAdded(f"There are {MAX_TOKENS} tokens, and those that were revoked count until they expire.")
    row = TokenRow(
        id=token.id,
        name=token.name,
        role=token.role,
        created_at=tx.now,
        expires_at=token.expires * 1000,
        last_used_at=None,
        revoked_at=None,
    )
    tx.connection.execute(insert(API_TOKEN), dict(row))
    return row


def _is_of(row: TokenRow, token: ApiToken) -> bool:
    """Whether a row with a token's id is of this token: one that is listed as `read` must not be an administrator's."""
    return (row["name"], row["role"], row["expires_at"]) == (token.name, token.role, token.expires * 1000)


def active(connection: Connection) -> list[TokenRow]:
    """The tokens that are not revoked, by name."""
    return SELECT_ACTIVE.all(connection)


def record_uses(tx: Transaction, uses: list[tuple[str, int]]) -> None:
    """Record when tokens were used: pairs of an id and unix ms."""
    RECORD_USE.executemany(tx.connection, [{"id": token_id, "used_at": used_at} for token_id, used_at in uses])


class TokenCache:
    """The named tokens of one receiver, read at the first use of one.

    `on_revoke`: called as soon as a token is refused. `clock`: unix seconds.
    """

    def __init__(
        self,
        reader: Reader,
        writer: Writer,
        *,
        on_revoke: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._reader, self._writer, self._on_revoke, self._clock = reader, writer, on_revoke, clock
        self._active: dict[str, TokenRow] = {}
        self._is_loaded = False
        self._changing = asyncio.Lock()
        self._recording: set[asyncio.Task[None]] = set()

    async def is_active(self, token: ApiToken) -> bool:
        """Whether a named token was added and is not revoked; records its use. Raises Unavailable."""
        if not self._is_loaded:
            async with self._changing:
                await self._load()
        row = self._active.get(token.id)
        if row is None or not _is_of(row, token):
            return False
        self._record_use(row)
        return True

    def was_revoked(self, token: ApiToken) -> bool:
        """Whether a named token that was active is so no longer."""
        return token.id not in self._active

    async def rows(self) -> list[TokenRow]:
        """The tokens that are not revoked, by name. Raises Unavailable."""
        rows = await self._reader.read(active)
        for row in rows:
            if cached := self._active.get(row["id"]):  # its last use may not be stored yet
                row["last_used_at"] = cached["last_used_at"]
        return rows

    async def add(self, token: ApiToken) -> TokenRow:
        """Add a named token. Raises NotAdded, Unavailable."""
        async with self._changing:
            await self._load()
            try:
                row = await self._writer.run(lambda tx: add(tx, token))
            except Unavailable:
                self._is_loaded = False  # the commit may have succeeded although its answer was lost
                raise
            self._active = {**self._active, row["id"]: row}
            return row

    async def revoke(self, name: str) -> bool:
        """Revoke a token at once: from now on it is refused. Returns False when there is none. Raises Unavailable.

        If the commit fails, the token stays refused until the next start; the caller has to repeat the call.
        """
        async with self._changing:
            await self._load()
            self._active = {token_id: row for token_id, row in self._active.items() if row["name"] != name}
            self._on_revoke()
            return bool(await self._writer.run(lambda tx: REVOKE.execute(tx.connection, name=name, now=tx.now)))

    async def _load(self) -> None:
        if not self._is_loaded:
            self._active = {row["id"]: row for row in await self._reader.read(active)}
            self._is_loaded = True

    def _record_use(self, row: TokenRow) -> None:
        now = int(self._clock() * 1000)
        if now - (row["last_used_at"] or 0) >= USE_INTERVAL_MS:
            row["last_used_at"] = now
            task = asyncio.create_task(self._save_use(row["id"], now))
            self._recording.add(task)
            task.add_done_callback(self._recording.discard)

    async def _save_use(self, token_id: str, now: int) -> None:
        with suppress(Unavailable):  # the next use after USE_INTERVAL_MS records it
            await self._writer.run_batched(record_uses, (token_id, now), lazy=True)
