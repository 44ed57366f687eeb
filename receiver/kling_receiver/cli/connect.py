"""Finds the receiver for a command: the one that runs, by HTTP; its database, opened here, when none does."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx

from kling_callback.cli import terminal
from kling_callback.errors import ReceiverError
from kling_callback.http import create_client
from kling_callback.protocol.signing import api_token
from kling_callback.receiver_api import ReceiverApi as Remote
from kling_callback.retry import RetryPolicy
from kling_receiver.app import Receiver, create_app
from kling_receiver.cli.base import load_settings
from kling_receiver.settings import AdminSettings
from kling_receiver.store.database import Database
from kling_receiver.store.errors import AlreadyRunning, DatabaseError
from kling_receiver.store.transaction import Transaction

T = TypeVar("T")

NO_RETRY = RetryPolicy(max_attempts=1)
PROXY_ERRORS = (502, 503, 504)
"""What a proxy answers for a receiver that does not run."""
TOKEN_SECONDS = 300


@asynccontextmanager
async def connect(settings: AdminSettings) -> AsyncIterator[Remote]:
    """The receiver's API, for an admin. Raises DatabaseError when one runs and does not answer."""
    base = settings.receiver_base
    async with create_client(base) as http:
        remote = _remote(http, base, settings)
        try:
            await remote.tasks(limit=1)
        except ReceiverError as error:
            if error.code not in ("unreachable", None) or (error.http_status or 502) not in PROXY_ERRORS:
                raise
        else:
            yield remote
            return
    _check_database(settings, base)
    async with _opened(settings, base) as http:
        yield _remote(http, base, settings)


def call_receiver(call: Callable[[Remote], Awaitable[T]], settings: AdminSettings | None = None) -> T:
    """What a command is told by the receiver, asked as the `settings` say; None: as they are read now."""
    known = settings or load_settings(AdminSettings)

    async def run() -> T:
        async with connect(known) as receiver:
            return await call(receiver)

    return asyncio.run(run())


def change_database(settings: AdminSettings, change: Callable[[Transaction], T]) -> T:
    """A change to the database itself, which a receiver has migrated: of what must not come over the network.

    Raises DatabaseError.
    """
    file = settings.database_file
    if file and not file.exists():
        hint = "Set KLING_DATA_DIR as the receiver has it, and call this on its machine."
        raise DatabaseError(f"There is no database {file}. {hint}")
    database = Database(settings.database)
    try:
        with database.operator_errors(), database.write() as connection:
            tx = Transaction(connection, database, int(time.time() * 1000))
            changed = change(tx)
            tx.flush()
        return changed
    finally:
        database.close()


def _remote(http: httpx.AsyncClient, base: str, settings: AdminSettings) -> Remote:
    return Remote(http, base, lambda: api_token(settings.signing_secrets, "admin", TOKEN_SECONDS), NO_RETRY)


def _check_database(settings: AdminSettings, base: str) -> None:
    file = settings.database_file
    if file and not file.exists():
        hint = "Start it with `kling-receiver serve`, or set KLING_RECEIVER_INTERNAL_URL or KLING_DATA_DIR."
        raise DatabaseError(f"No receiver answers at {base}, and there is no database {file}. {hint}")


@asynccontextmanager
async def _opened(settings: AdminSettings, base: str) -> AsyncIterator[httpx.AsyncClient]:
    """The same API without a server: nothing is listened to, and what is owed stays owed."""
    receiver = Receiver(settings)
    try:
        receiver.prepare()
    except AlreadyRunning as held:
        receiver.database.close()
        hint = "Set KLING_RECEIVER_INTERNAL_URL to where it is reached from here."
        raise DatabaseError(f"A receiver runs ({held.holder}), but does not answer at {base}. {hint}") from held
    terminal.print_message("No receiver runs; its database is opened. What is ordered is done once one does.")
    receiver.writer.start()
    transport = httpx.ASGITransport(create_app(receiver), raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport) as http:
            yield http
    finally:
        await receiver.stop()
