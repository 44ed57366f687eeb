"""Whether the way from the open Internet to this receiver is open, and if not, where it breaks."""

import secrets
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import anyio.to_thread
import httpx

from kling_callback.errors import GatewayError
from kling_callback.kling_api import KlingApi, auth_from
from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import CallbackSigner
from kling_receiver.settings import ReceiverSettings
from kling_receiver.web.callbacks import DOCTOR_FAMILY, doctor_answer

LARGE_BODY_BYTES = 900_000
"""Bytes that the doctor sends: a proxy that lets them through lets all through that is kept (1 MB)."""


@dataclass(frozen=True, slots=True)
class Check:
    """One step of the way: `good` or not, and what to do when it is not."""

    name: str
    ok: bool
    message: str


async def run_checks(settings: ReceiverSettings) -> AsyncIterator[Check]:
    """Walk the way a callback takes, step by step; the walk ends where it is broken."""
    async with httpx.AsyncClient(timeout=15, follow_redirects=False) as http:
        async for finding in _check_public_route(settings, http):
            yield finding
        if settings.has_key:
            yield await _check_key(settings, http)


async def _check_public_route(settings: ReceiverSettings, http: httpx.AsyncClient) -> AsyncIterator[Check]:
    parts = urlsplit(settings.receiver_url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = await anyio.to_thread.run_sync(socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        yield Check("name", False, f"{host} has no address ({error}). Mend its DNS entry, or KLING_RECEIVER_URL.")
        return
    yield Check("name", True, f"{host} is {', '.join(sorted({str(each[4][0]) for each in found}))}")
    nonce = new_id()
    url = CallbackSigner(settings.signing_secrets).url(settings.receiver_url, nonce, DOCTOR_FAMILY)
    body = {"doctor": secrets.token_hex(LARGE_BODY_BYTES // 2)}
    try:
        response = await http.post(url, json=body)
    except httpx.HTTPError as error:
        yield Check("connection", False, f"{host}:{port} does not answer ({_reason(error)}). {_CONNECTION_HINT}")
        return
    yield Check("connection", True, f"{host}:{port} answers")
    yield _echo(response, nonce)


_CONNECTION_HINT = "Is the receiver running, the proxy in front of it too, the port open, its certificate good?"


def _echo(response: httpx.Response, nonce: str) -> Check:
    """What the answer to a signed callback says of the way."""
    status = response.status_code
    if status == 200 and _is_echo(response, nonce):
        return Check("callback", True, "a signed callback came through: the way is open")
    return Check("callback", False, f"the answer was {status}. {_hint(response)}")


def _is_echo(response: httpx.Response, nonce: str) -> bool:
    try:
        return bool(response.json() == doctor_answer(nonce))
    except ValueError:
        return False


def _hint(response: httpx.Response) -> str:
    status = response.status_code
    if 300 <= status < 400:
        to = response.headers.get("Location", "").split("/callbacks/")[0]
        return f"It redirects to {to}, and Kling does not follow. Set KLING_RECEIVER_URL to that."
    if status == 401:
        return "It is a receiver, but with other KLING_SIGNING_SECRETS."
    return HINTS.get(status, "Something else than this receiver answers there: look at the proxy's routes.")


HINTS = {
    200: "It is not this receiver: something else answers. Look at the proxy's routes and KLING_RECEIVER_URL.",
    404: "The path is not passed on: look at the proxy's routes and at the path in KLING_RECEIVER_URL.",
    405: "POST is not passed on: look at the proxy's rules.",
    403: "Something in front refuses: look at the proxy's or firewall's rules for POST.",
    413: "The proxy's limit on bodies is too small: allow 1 MB at least.",
    502: "The proxy does not reach the receiver: is it running, and on the port that the proxy expects?",
    503: "The receiver cannot write its database: look at /readyz.",
    504: "The proxy does not reach the receiver in time.",
}


async def _check_key(settings: ReceiverSettings, http: httpx.AsyncClient) -> Check:
    """Whether Kling takes our key: asked for a task that cannot exist, it says that it knows none."""
    gateway = KlingApi(settings.api_base, auth_from(settings), http)
    try:
        await gateway.query("videos/text2video", external_id=new_id())
    except GatewayError as error:
        return Check("key", False, str(error))
    return Check("key", True, f"{settings.api_base} takes the key")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
