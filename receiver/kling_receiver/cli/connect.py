"""Connect a command to the receiver: by HTTP to the running one, or to its database when none runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import httpx

from kling_callback.api.http import create_client
from kling_callback.api.receiver import ReceiverApi
from kling_callback.api.retry import RetryPolicy
from kling_callback.cli import terminal
from kling_callback.errors import ReceiverError
from kling_callback.protocol.signing import api_token
from kling_receiver.access import LOCAL_COMMAND
from kling_receiver.cli.base import load_settings
from kling_receiver.settings import TO_ADMINISTER, ReceiverSettings
from kling_receiver.store.errors import AlreadyRunning, DatabaseError

if TYPE_CHECKING:
    from kling_receiver.store.transaction import Transaction

T = TypeVar("T")

NO_RETRY = RetryPolicy(max_attempts=1)
PROXY_ERRORS = (502, 503, 504)
"""What a proxy answers for a receiver that does not run."""
TOKEN_SECONDS = 300
"""Seconds for which a bearer token is valid: each request has a new one."""


@asynccontextmanager
async def connect(settings: ReceiverSettings) -> AsyncIterator[ReceiverApi]:
    """The receiver's API with the role admin: of the running receiver, or of one opened on its database.

    Raises DatabaseError if a receiver runs and does not answer, or there is no database.
    """
    base = settings.receiver_base
    async with create_client() as http:
        api = _api(http, base, settings)
        try:
            await api.tasks(limit=1)
        except ReceiverError as error:
            if error.code not in ("unreachable", None) or (error.http_status or 502) not in PROXY_ERRORS:
                raise
        else:
            yield api
            return
    _require_database(settings, base)
    async with _open_offline(settings, base) as http:
        yield _api(http, base, settings)


def call_receiver(call: Callable[[ReceiverApi], Awaitable[T]], settings: ReceiverSettings | None = None) -> T:
    """Run `call` with the receiver's API, and return its result. `settings`: None reads them now."""
    admin_settings = settings or load_settings(TO_ADMINISTER)

    async def run() -> T:
        async with connect(admin_settings) as api:
            return await call(api)

    return asyncio.run(run())


def change_database(settings: ReceiverSettings, change: Callable[["Transaction"], T]) -> T:
    """Run `change` in a transaction on a migrated database: for changes that the API refuses over the network.

    Raises DatabaseError.
    """
    from kling_receiver.store.database import Database
    from kling_receiver.store.transaction import command_transaction

    file = settings.database_file
    if file and not file.exists():
        hint = "Set KLING_DATA_DIR as for the receiver, and run this command on its machine."
        raise DatabaseError(f"There is no database {file}. {hint}")
    database = Database(settings.database)
    try:
        database.check()
        with command_transaction(database) as tx:
            result = change(tx)
            tx.flush()
        return result
    finally:
        database.close()


def _api(http: httpx.AsyncClient, base: str, settings: ReceiverSettings) -> ReceiverApi:
    def token() -> str:
        return api_token(settings.signing_secrets, "admin", TOKEN_SECONDS, name=LOCAL_COMMAND)

    return ReceiverApi(http, base, token, NO_RETRY)


def _require_database(settings: ReceiverSettings, base: str) -> None:
    file = settings.database_file
    if file and not file.exists():
        hint = "Start it with `kling-receiver serve`, or set KLING_RECEIVER_INTERNAL_URL or KLING_DATA_DIR."
        raise DatabaseError(f"No receiver answers at {base}, and there is no database {file}. {hint}")


@asynccontextmanager
async def _open_offline(settings: ReceiverSettings, base: str) -> AsyncIterator[httpx.AsyncClient]:
    """Serve the same API in this process: it listens on no port and runs no jobs; those wait for a receiver."""
    from kling_receiver.app import Receiver, create_app  # half of the start-up time, rarely needed

    receiver = Receiver(settings)
    try:
        receiver.prepare()
    except AlreadyRunning as error:
        hint = "Set KLING_RECEIVER_INTERNAL_URL to an address at which this machine reaches it."
        raise DatabaseError(f"A receiver runs ({error.holder}), but does not answer at {base}. {hint}") from error
    terminal.print_message("No receiver runs, so its database is opened.")
    receiver.store.writer.start()
    transport = httpx.ASGITransport(create_app(receiver), raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport) as http:
            yield http
    finally:
        await receiver.stop()
        if receiver.has_enqueued:
            terminal.print_message("What this has enqueued is done after the next start.")
