"""Standard Webhooks: verify the signatures of Kling's callbacks, sign the deliveries to hooks.

`webhook-signature` is `v1,<base64 of HMAC-SHA256 over id.timestamp.body>`, several separated by blanks.
Pure functions.
"""

import base64
import binascii
import functools
import hashlib
import hmac
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from kling_callback.protocol.events import LogPosition
from kling_callback.protocol.urls import is_web_address

TOLERANCE_SECONDS = 300
"""Seconds by which a signature's timestamp may differ from our clock."""

HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
MIN_KEY_BYTES = 16
MAKE_WEBHOOK_SECRET_HINT = (
    "Make one with: python3 -c \"import base64, os; print('whsec_' + base64.b64encode(os.urandom(32)).decode())\""
)
MAX_SIGNATURES = 16
"""Signatures of one message that are compared."""
MAX_SECRETS = 8
"""Secrets of one hook at once. Each of them signs, and a header has its limits."""
_encode = json.JSONEncoder(separators=(",", ":")).encode

SignatureState = Literal["absent", "good", "bad"]


@functools.lru_cache(64)
def secret_key(secret: str) -> bytes:
    """The key inside `whsec_<base64>`. Raises ValueError, with a message that does not contain the secret."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (ValueError, binascii.Error):
        raise ValueError("is not of the form whsec_<base64>.") from None
    if len(key) < MIN_KEY_BYTES:
        raise ValueError(f"is too short: {len(key)} bytes, at least {MIN_KEY_BYTES} are needed.")
    return key


def new_secret(*, random: Callable[[int], bytes] = os.urandom) -> str:
    """Make a secret for a hook."""
    return f"whsec_{base64.b64encode(random(32)).decode()}"


def sign(secret: str, message_id: str, timestamp: int | str, body: bytes) -> str:
    """The `webhook-signature` of one message. `timestamp`: unix seconds."""
    # Header values are latin-1 on the wire.
    signed = f"{message_id}.{timestamp}.".encode("latin-1", "replace") + body
    digest = hmac.new(secret_key(secret), signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def signed_headers(secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a POST of this body, with one signature for each secret. `timestamp`: unix seconds."""
    return {
        "Content-Type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(sign(secret, message_id, timestamp, body) for secret in secrets),
    }


def timestamp_of(headers: Mapping[str, str]) -> int | None:
    """The `webhook-timestamp` in unix seconds; None if it is missing or not a number."""
    value = headers.get("webhook-timestamp", "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 12 else None


def is_plausible(headers: Mapping[str, str], now: float) -> bool:
    """Whether there is a signature with a recent timestamp: a check before the body is read. `now`: unix seconds."""
    signed_at = timestamp_of(headers)
    return (
        signed_at is not None and bool(headers.get("webhook-signature")) and abs(signed_at - now) <= TOLERANCE_SECONDS
    )


def verify(secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: float) -> SignatureState:
    """Whether one of the secrets signed this message within TOLERANCE_SECONDS of `now` (unix seconds).

    `absent` without any of HEADERS. Never raises: malformed headers are `bad`.
    """
    if not any(headers.get(name) for name in HEADERS):
        return "absent"
    return "good" if is_plausible(headers, now) and signature_matches(secrets, headers, body) else "bad"


def signature_matches(secrets: Sequence[str], headers: Mapping[str, str], body: bytes) -> bool:
    """Whether one of the secrets signed this message, at any time."""
    message_id, timestamp, header = (headers.get(name, "") for name in HEADERS)
    signatures = [each.encode() for each in header.split()[:MAX_SIGNATURES] if each.isascii()]
    expected = [sign(secret, message_id, timestamp, body).encode() for secret in secrets]
    return any(hmac.compare_digest(each, signature) for each in expected for signature in signatures)


def webhook_id(event: LogPosition, hook: str = "default") -> str:
    """The `webhook-id` of an event: the same for each delivery, and unique across databases and their restores.

    `hook`: name of the hook; that of KLING_HOOK_URL is `default`.
    """
    return f"{hook}_{event}"


def hook_body(event: Mapping[str, Any]) -> bytes:
    """The body of a delivery: the event, redacted and encoded."""
    return encode(redact_event(event))


def encode(event: Mapping[str, Any]) -> bytes:
    """A redacted event as the bytes that are sent."""
    return _encode(event).encode()


def redact_event(event: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the queries of the addresses of files, in results and outputs: they authorize downloads."""
    task = event["task"]
    results = [_without_query(each) for each in task.get("results", ())]
    outputs = {"outputs": _without_queries(task["outputs"])} if "outputs" in task else {}
    return {**event, "task": {**task, "results": results, **outputs}}


def _without_query(result: Any) -> Any:
    url = result.get("source_url") if isinstance(result, dict) else None
    return {**result, "source_url": url.partition("?")[0]} if isinstance(url, str) else result


def _without_queries(value: Any) -> Any:
    """JSON without the queries of the web addresses in it."""
    if isinstance(value, dict):
        return {name: _without_queries(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_queries(each) for each in value]
    return value.partition("?")[0] if is_web_address(value, blanks=True) else value
