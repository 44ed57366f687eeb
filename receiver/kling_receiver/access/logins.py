"""Login links and sessions of the dashboard: used links and signed-out sessions are remembered until they expire."""

import asyncio
from collections.abc import Callable

from sqlalchemy import Connection

from kling_callback.protocol.signing import Grant
from kling_receiver.access import audit
from kling_receiver.store.reader import Reader
from kling_receiver.store.sql import Statement
from kling_receiver.store.transaction import Transaction
from kling_receiver.store.writer import Writer

DELETE_EXPIRED = Statement("DELETE FROM spent_login WHERE expires_at < :before")
SPEND = Statement(
    "INSERT INTO spent_login (id, expires_at) VALUES (:id, :expires_at) ON CONFLICT (id) DO NOTHING RETURNING id"
)
SELECT_IDS = Statement("SELECT id FROM spent_login")

KEPT_MS = 60_000
"""Milliseconds for which an id is kept after its end: the clock may be set back a little."""


def spend(tx: Transaction, grant: Grant) -> bool:
    """Use up a login link, or end a session. Returns False if that was done before."""
    DELETE_EXPIRED.execute(tx.connection, before=tx.now - KEPT_MS)
    return bool(SPEND.scalars(tx.connection, id=grant.id, expires_at=grant.expires * 1000))


def _spent(connection: Connection) -> set[str]:
    return set(SELECT_IDS.scalars(connection))


class Logins:
    """The used links and ended sessions of one receiver; their ids are cached, so that a request reads no database.

    `on_end`: called as soon as a session is refused.
    """

    def __init__(self, reader: Reader, writer: Writer, *, on_end: Callable[[], None]) -> None:
        self._reader, self._writer, self._on_end = reader, writer, on_end
        self._spent: set[str] | None = None
        self._loading = asyncio.Lock()

    async def load(self) -> None:
        """Read the ids that are spent, once. Raises Unavailable."""
        if self._spent is None:
            async with self._loading:
                if self._spent is None:
                    self._spent = await self._reader.read(_spent)

    def is_spent(self, grant_id: str) -> bool:
        """Whether a session has been signed out; `load` comes first."""
        return self._spent is None or grant_id in self._spent

    async def use_link(self, link: Grant, session: Grant) -> bool:
        """Use up a login link for a session. Returns False if it was used before. Raises Unavailable."""

        def change(tx: Transaction) -> bool:
            if not spend(tx, link):
                return False
            audit.record(tx, f"dashboard {session.id}", "login", detail=f"role {session.role}, by a login link")
            return True

        return await self._writer.run(change)

    async def record_password(self, session: Grant) -> None:
        """Add a login by password to the audit log. Raises Unavailable."""
        await self._writer.run(
            lambda tx: audit.record(
                tx, f"dashboard {session.id}", "login", detail=f"role {session.role}, by the password"
            )
        )

    async def sign_out(self, session: Grant) -> None:
        """End a session at once: from now on it is refused, also after a restart. Raises Unavailable."""
        await self.load()
        if self._spent is not None:
            self._spent.add(session.id)
        self._on_end()

        def change(tx: Transaction) -> None:
            if spend(tx, session):
                audit.record(tx, f"dashboard {session.id}", "logout")

        await self._writer.run(change)
