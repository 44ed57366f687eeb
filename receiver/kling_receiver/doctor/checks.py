"""Check, step by step, that a callback from the Internet reaches this receiver, that links open and keys work."""

import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import anyio.to_thread
import httpx

from kling_callback.api.http import create_client
from kling_callback.api.kling import KlingApi, auth_of_each_key
from kling_callback.environment import EnvironmentProblem, proxy_for
from kling_callback.errors import GatewayError
from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import CallbackSigner, sign_link
from kling_callback.protocol.urls import PORTS
from kling_receiver.doctor.echo import DOCTOR_FAMILY, DOCTOR_TASK, doctor_answer
from kling_receiver.net.client import GuardedClient, RequestFailed
from kling_receiver.net.guard import Refused
from kling_receiver.net.kling_http import create_kling_client
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.errors import DatabaseError

TIMEOUT_SECONDS = 15
LARGE_BODY_BYTES = 900_000
"""Bytes of the doctor's callback: close to the 1 MB of a callback that is kept, so that a proxy's lower limit shows."""

LINK_SECONDS = 300
"""Seconds for which the doctor's link is valid: the clock of its receiver may be ahead of ours."""
BROWSER_HEADERS = {
    "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "User-Agent": "Mozilla/5.0 (kling-receiver doctor)",
}
"""A login in front of a receiver answers a browser otherwise than a program."""


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one step; the message of a failed one states what to do."""

    name: str
    ok: bool
    message: str


async def run_checks(settings: ReceiverSettings) -> AsyncIterator[Check]:
    """Check the database, then what `run_request_checks` checks.

    Not in the process of a receiver: it would lose SQLite's locks, because the check opens and closes the file.
    """
    problem = await anyio.to_thread.run_sync(_database_problem, settings)
    yield Check("database", problem is None, problem or "`serve` can use it, or make it")
    async for check in run_request_checks(settings):
        yield check


async def run_request_checks(settings: ReceiverSettings) -> AsyncIterator[Check]:
    """Check the steps of a callback in order, up to the first that fails; then a link, and Kling's keys.

    Where links begin with an address that callbacks did not reach, no link is tried.
    """
    async with create_client() as http:
        is_reached = True
        async for check in _check_public_route(settings, http):
            is_reached = is_reached and check.ok
            yield check
        if is_reached or settings.links_base != settings.receiver_url:
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


async def _check_links(settings: ReceiverSettings, http: httpx.AsyncClient) -> Check:
    """Whether a signed link opens as in a browser: the receiver answers with the number that the link has."""
    base, number = settings.links_base, secrets.randbelow(10**9)
    expires = int(time.time()) + LINK_SECONDS
    link = sign_link(settings.signing_secrets, base, DOCTOR_TASK, number, expires)
    try:
        response = await http.get(link, headers=BROWSER_HEADERS, timeout=TIMEOUT_SECONDS)
    except httpx.HTTPError as error:
        return Check("links", False, f"{base} does not answer ({_reason(error)}). {CONNECTION_HINT} {LINKS_HINT}")
    if response.status_code == 200 and _is_from_receiver(response, str(number)):
        return Check("links", True, f"a signed link of {base} opens")
    return Check("links", False, f"{base} answered a signed link with {response.status_code}. {_link_hint(response)}")


LINKS_HINT = "Or set KLING_LINKS_URL to the address at which people and programs reach the receiver."
LOGIN_HINT = f"A link opens without a login: exempt /api/tasks/*/results/* from it. {LINKS_HINT}"
LINK_HINTS = {
    401: f"A login in front of the receiver refuses. {LOGIN_HINT}",
    403: f"A server in front of the receiver refuses. {LOGIN_HINT}",
    404: f"Another server answers: the path is not passed on. Pass /api/tasks/*/results/* on as well. {LINKS_HINT}",
    502: HINTS[502],
    504: HINTS[504],
}
RECEIVER_LINK_HINTS = {
    "bad_link": "It is a receiver with other KLING_SIGNING_SECRETS. Set the same secrets for both.",
    "not_found": "It is a receiver that does not know this path. Set KLING_LINKS_URL to the prefix that the proxy "
    "passes on, the same for `serve` and here, and restart `serve`.",
    "no_token": "The proxy drops the query of links, which is their signature. Check its rules.",
    "unknown_task": "It is a receiver of an earlier version. Restart `serve`.",
}
"""By the code of the receiver's error."""


def _link_hint(response: httpx.Response) -> str:
    """Why the doctor's link did not open, and what to do."""
    status = response.status_code
    if 300 <= status < 400:
        return _redirect_hint(response)
    if hint := RECEIVER_LINK_HINTS.get(_error_code(response)):
        is_expired = status == 401 and "expired" in response.json()["error"]["message"]
        return "The link has expired there. Set the clocks of both machines." if is_expired else hint
    if 200 <= status < 300:
        is_login = b'type="password"' in response.content.lower().replace(b"'", b'"')
        return f"{'A login page' if is_login else 'A page of another server'} answers. {LOGIN_HINT}"
    return LINK_HINTS.get(status, "Another server than this receiver answers. Check the proxy's routes.")


def _redirect_hint(response: httpx.Response) -> str:
    """What to do about a redirect: to the receiver's other address, or to a login."""
    url = str(response.request.url)
    target = urlsplit(urljoin(url, response.headers.get("Location", "")))
    shown = f"{target.scheme}://{target.netloc.rpartition('@')[2]}{target.path}"
    own = urlsplit(url)
    base, found, rest = shown.partition(f"/api/tasks/{DOCTOR_TASK}/results/")
    if not found or rest.strip("/") != own.path.rpartition("/")[2]:
        return f"It redirects to {shown}, as a login does. {LOGIN_HINT}"
    if url.startswith(f"{base}/api/"):
        return f"It redirects to {shown}, which is the same address. Check the proxy's rules for redirects."
    return f"It redirects to {base}, and not every program follows. Set KLING_LINKS_URL to that."


def _error_code(response: httpx.Response) -> str:
    """The code of the receiver's error; "" for an answer of another server."""
    try:
        return str(response.json()["error"]["code"])
    except (ValueError, TypeError, LookupError):
        return ""


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
