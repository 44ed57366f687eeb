"""The command `kling-receiver doctor`: check, step by step, that a callback from the Internet reaches this receiver."""

import asyncio
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

import anyio.to_thread
import click
import httpx

from kling_callback.api.http import create_client
from kling_callback.api.kling import KlingApi, auth_of_each_key
from kling_callback.cli import terminal, usage
from kling_callback.environment import EnvironmentProblem, proxy_for
from kling_callback.errors import GatewayError
from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import CallbackSigner, sign_link
from kling_callback.protocol.urls import PORTS
from kling_receiver.cli.base import FAILED, load_settings, warn_if_unreachable
from kling_receiver.net.client import GuardedClient, RequestFailed
from kling_receiver.net.guard import Refused
from kling_receiver.net.kling_http import create_kling_client
from kling_receiver.settings import TO_ADMINISTER, ReceiverSettings
from kling_receiver.store.errors import DatabaseError
from kling_receiver.web.callbacks import DOCTOR_FAMILY, doctor_answer

TIMEOUT_SECONDS = 15
LARGE_BODY_BYTES = 900_000
"""Bytes of the doctor's callback: close to the 1 MB of a callback that is kept, so that a proxy's lower limit shows."""


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one step; the message of a failed one states what to do."""

    name: str
    ok: bool
    message: str


@click.command(cls=usage.Command, examples=["kling-receiver doctor"])
def doctor() -> None:
    """Check that callbacks can reach this receiver.

    Checks the database, sends a signed callback through the public address, and names the step that fails.
    """
    settings = load_settings((*TO_ADMINISTER, "api_base"))
    warn_if_unreachable(settings)
    if not asyncio.run(_print_checks(settings)):
        sys.exit(FAILED)


async def _print_checks(settings: ReceiverSettings) -> bool:
    """Print a line for each step as it ends. Returns whether all succeeded."""
    ok = True
    async for check in run_checks(settings):
        ok = ok and check.ok
        terminal.print_data(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.message}")
    return ok


async def run_checks(settings: ReceiverSettings) -> AsyncIterator[Check]:
    """Check the database, the steps of a callback in order, up to the first that fails; then Kling's key."""
    problem = await anyio.to_thread.run_sync(_database_problem, settings)
    yield Check("database", problem is None, problem or "`serve` can use it, or make it")
    async with create_client() as http:
        async for check in _check_public_route(settings, http):
            yield check
        if settings.links_url:
            yield await _check_links(settings, http)
    async with create_kling_client() as kling_http:
        for name, auth in auth_of_each_key(settings):
            yield await _check_key(KlingApi(settings.api_base, auth, kling_http), settings.api_base, name)
    if settings.egress_proxy:
        yield await _check_egress(settings)


def _database_problem(settings: ReceiverSettings) -> str | None:
    """Why `serve` would refuse the database; None if it would not, or if there is none yet."""
    from kling_receiver.store.database import Database
    from kling_receiver.store.engine import checks

    file = settings.database_file
    if file and not file.exists():
        return " ".join(checks.sqlite_problems()) or None
    try:
        with closing(Database(settings.database)) as database:
            database.check(settings.results)
    except (DatabaseError, OSError) as error:
        return str(error)
    return None


async def _check_public_route(settings: ReceiverSettings, http: httpx.AsyncClient) -> AsyncIterator[Check]:
    parts = urlsplit(settings.receiver_url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    name = await _check_name(settings.receiver_url, host, port)
    yield name
    if not name.ok:
        return
    nonce = new_id()
    url = CallbackSigner(settings.signing_secrets).url(settings.receiver_url, nonce, DOCTOR_FAMILY)
    body = {"doctor": secrets.token_hex(LARGE_BODY_BYTES // 2)}
    try:
        response = await http.post(url, json=body, timeout=TIMEOUT_SECONDS)
    except httpx.HTTPError as error:
        yield Check("connection", False, f"{host}:{port} does not answer ({_reason(error)}). {CONNECTION_HINT}")
        return
    yield Check("connection", True, f"{host}:{port} answers")
    yield _check_response(response, nonce)


async def _check_links(settings: ReceiverSettings, http: httpx.AsyncClient) -> Check:
    """Whether a signed link leads to this receiver, from here: it then knows that there is no such task."""
    link = sign_link(settings.signing_secrets, settings.links_url, new_id(), 0, int(time.time()) + 60)
    hint = "Set KLING_LINKS_URL to the address at which people and programs reach the receiver."
    try:
        response = await http.get(link, timeout=TIMEOUT_SECONDS)
    except httpx.HTTPError as error:
        return Check("links", False, f"{settings.links_url} does not answer ({_reason(error)}). {hint}")
    try:
        code = response.json()["error"]["code"]
    except (ValueError, TypeError, KeyError):
        code = None
    if (response.status_code, code) == (404, "unknown_task"):
        return Check("links", True, f"a signed link of {settings.links_url} reached the receiver")
    return Check("links", False, f"{settings.links_url} answered {response.status_code}, not as this receiver. {hint}")


async def _check_name(url: str, host: str, port: int) -> Check:
    """Whether the host has an address; a proxy resolves the name itself."""
    try:
        if proxy := await anyio.to_thread.run_sync(proxy_for, url):
            return Check("name", True, f"{host} is reached through the proxy that {proxy.variable} names")
        addresses = await anyio.to_thread.run_sync(socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM)
    except EnvironmentProblem as problem:
        return Check("name", False, str(problem))
    except (OSError, UnicodeError) as error:
        return Check("name", False, f"{host} has no address ({error}). Fix its DNS entry, or set KLING_RECEIVER_URL.")
    return Check("name", True, f"{host} is {', '.join(sorted({str(address[4][0]) for address in addresses}))}")


CONNECTION_HINT = "Check that the receiver and the proxy run, that the port is open and, with https, the certificate."


def _check_response(response: httpx.Response, nonce: str) -> Check:
    """Whether the response to the signed callback is this receiver's."""
    status = response.status_code
    if status == 200 and _is_from_receiver(response, nonce):
        return Check("callback", True, "a signed callback reached the receiver")
    return Check("callback", False, f"the answer was {status}. {_hint(response)}")


def _is_from_receiver(response: httpx.Response, nonce: str) -> bool:
    try:
        return bool(response.json() == doctor_answer(nonce))
    except ValueError:
        return False


def _hint(response: httpx.Response) -> str:
    status = response.status_code
    if 300 <= status < 400:
        target = response.headers.get("Location", "").split("/callbacks/")[0]
        return f"It redirects to {target}, and Kling does not follow. Set KLING_RECEIVER_URL to that."
    if status == 401:
        return "It is a receiver with other KLING_SIGNING_SECRETS. Set the same secrets for both."
    return HINTS.get(status, "Another server than this receiver answers. Check the proxy's routes.")


HINTS = {
    200: "Another server answers, not this receiver. Check the proxy's routes and KLING_RECEIVER_URL.",
    404: "The path is not passed on. Check the proxy's routes and the path in KLING_RECEIVER_URL.",
    405: "POST is not passed on. Check the proxy's rules.",
    403: "A server in front of the receiver refuses. Check the proxy's or firewall's rules for POST.",
    413: "The proxy's limit on bodies is too small. Set it to 1 MB or more.",
    502: "The proxy does not reach the receiver. Check that the receiver runs, on the port that the proxy expects.",
    503: "The receiver cannot write to its database. Check /readyz.",
    504: "The proxy does not reach the receiver in time. Check that the receiver runs.",
}


async def _check_key(kling_api: KlingApi, base: str, name: str) -> Check:
    """Whether Kling accepts a key: queried for a task that cannot exist, it answers that it has none.

    The query takes the way of the receiver's queries. `name`: of the key.
    """
    try:
        await kling_api.query("videos/text2video", task_id=new_id())
    except GatewayError as error:
        return Check("key", False, f"{name}: {error}")
    return Check("key", True, f"{base} accepts {name}")


async def _check_egress(settings: ReceiverSettings) -> Check:
    """Whether the proxy of downloads and hooks lets a request out: any answer of Kling's host shows it."""
    base, parts = settings.api_base, urlsplit(settings.api_base)
    if not settings.result_hosts.needs_proxy(parts.hostname or "", parts.port or PORTS[parts.scheme]):
        return Check("egress", True, f"not tried: {base} needs no proxy")
    client = GuardedClient(settings.result_hosts)
    try:
        response = await client.send("GET", base, read_timeout=TIMEOUT_SECONDS)
        await response.close()
    except (Refused, RequestFailed) as error:
        return Check("egress", False, f"{base} cannot be reached: {error}. {EGRESS_HINT}")
    finally:
        await client.close()
    return Check("egress", True, f"KLING_EGRESS_PROXY leads to {base}")


EGRESS_HINT = "Check KLING_EGRESS_PROXY, and that the proxy permits the hosts of Kling's files and of hooks."


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
