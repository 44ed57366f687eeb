"""Requests over bare sockets, which no HTTP library has made valid."""

import base64
import socket
import time
from collections import Counter
from contextlib import suppress
from random import Random
from urllib.parse import quote, urlsplit

from kling_callback.protocol.signing import CallbackSigner, Role, api_token
from kling_callback.protocol.webhooks import sign
from tools.fuzz.bodies import broken, mutated, registered
from tools.fuzz.parsers import PAIRS, SECRETS, WEBHOOK_SECRET, text

SIGNER = CallbackSigner(SECRETS)
ROLES: tuple[Role, ...] = ("read", "client", "admin")
TASKS = 50
"""Task ids that all requests share, so that each meets rows of earlier ones."""


def run(url: str, count: int, random: Random) -> Counter[int]:
    """Send `count` requests to a receiver that has SECRETS. Returns the count of each status; 500 or more fails."""
    statuses: Counter[int] = Counter()
    for _ in range(count):
        state = random.getrandbits(64)
        raw, is_complete = request(Random(state))
        status = send(url, raw, is_complete)
        repeat = f"repeat with: tools.fuzz.wire.request(Random({state}))"
        assert status < 500, f"{status} to {raw[:300]!r}; {repeat}"
        statuses[status] += 1
    return statuses


def send(url: str, raw: bytes, is_complete: bool) -> int:
    """Send one request. Returns the status, or 0 if the connection was closed without an answer.

    `is_complete`: False shuts the sending side down, so that the receiver does not wait for more.
    """
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=30) as connection:
        try:
            connection.sendall(raw)
            if not is_complete:
                with suppress(OSError):  # closed by the receiver; it may have answered before
                    connection.shutdown(socket.SHUT_WR)
            first = connection.recv(65536)
        except (BrokenPipeError, ConnectionResetError):
            return 0
    return int(first[9:12]) if first.startswith(b"HTTP/1.1 ") else 0


def request(random: Random) -> tuple[bytes, bool]:
    """One request, and whether its framing is intact: the right body length, no header line split."""
    method, path, headers, body = random.choice(KINDS)(random)
    if random.random() < 0.2:
        headers[random.choice(HEADERS)] = text("x", random)
    is_complete = not any(LINE_BREAKING & set(name + value) or name in FRAMING for name, value in headers.items())
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    raw = (head + lines).encode("latin-1", "replace") + b"\r\n" + body
    return (broken(raw, random), False) if random.random() < 0.1 else (raw, is_complete)


LINE_BREAKING = set("\r\n\0")
FRAMING = {"transfer-encoding", "expect"}


HEADERS = [
    "range",
    "if-range",
    "if-none-match",
    "last-event-id",
    "content-type",
    "content-encoding",
    "authorization",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "transfer-encoding",
    "expect",
    "cookie",
    "x-forwarded-for",
]
Parts = tuple[str, str, dict[str, str], bytes]


def _callback(random: Random) -> Parts:
    token = SIGNER.token(
        f"t{random.randrange(TASKS)}", random.choice(("images/generations", "/text-to-video/kling-3.0"))
    )
    path = token if random.random() < 0.8 else _path(token, random)
    return "POST", f"/callbacks/{path}", *_signed(mutated(random), random)


def _callback_without_token(random: Random) -> Parts:
    return "POST", "/callbacks", *_signed(mutated(random), random)


def _signed(body: bytes, random: Random) -> tuple[dict[str, str], bytes]:
    if random.random() < 0.5:
        return {}, body
    at = int(time.time())
    headers = {"webhook-id": "m", "webhook-timestamp": str(at)}
    headers["webhook-signature"] = sign(WEBHOOK_SECRET, "m", at, body)
    if random.random() < 0.3:
        name = random.choice(list(headers))
        headers[name] = text(headers[name], random)
    return headers, body


def _registration(random: Random) -> Parts:
    return "PUT", f"/api/tasks/{_task_id(random)}", _bearer(random), registered(random)


def _read_request(random: Random) -> Parts:
    task_id = _task_id(random)
    path = random.choice(
        (
            *("/api/tasks", f"/api/tasks/{task_id}", f"/api/tasks/{task_id}/results/{_index(random)}"),
            *(f"/api/tasks/{task_id}/events", "/api/events", "/metrics", "/readyz", "/healthz", "/openapi.json"),
            f"/{_path('api', random)}",
        )
    )
    pairs = [f"{name}={_path(value, random)}" for name, value in PAIRS if random.random() < 0.3]
    headers = _bearer(random) | {
        "range": text("bytes=0-5", random),
        "last-event-id": text("8c1f-5-1800000000123", random),
    }
    return random.choice(("GET", "GET", "HEAD", "PUT", "DELETE")), f"{path}?{'&'.join(pairs)}", headers, b""


def _task_id(random: Random) -> str:
    return f"t{random.randrange(TASKS)}" if random.random() < 0.8 else _path("t", random)


def _index(random: Random) -> str:
    return str(random.randrange(3)) if random.random() < 0.7 else _path("0", random)


def _path(like: str, random: Random) -> str:
    return quote(text(like, random).encode("utf-8", "surrogatepass"), safe="")


def _bearer(random: Random) -> dict[str, str]:
    token = api_token(SECRETS, random.choice(ROLES), 300)
    if random.random() < 0.1:
        token = text(token, random)
    if random.random() < 0.05:
        return {"authorization": f"Basic {base64.b64encode(token.encode('utf-8', 'replace')).decode()}"}
    return {"authorization": f"Bearer {token}"}


KINDS = (
    _callback,
    _callback,
    _callback,
    _callback_without_token,
    _registration,
    _registration,
    _read_request,
    _read_request,
)
