"""For those who receive hooks: whatever came is proven and read, or refused with one kind of error."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kling_callback.errors import HookError, SettingsError
from kling_callback.protocol.events import MAX_EVENT_CHARS, Event
from kling_callback.protocol.webhooks import (
    HEADERS,
    TOLERANCE_SECONDS,
    secret_key,
    signature_matches,
    timestamp_of,
)
from kling_callback.receiver_api import is_task
from kling_callback.settings import split

RAW = "verify_hook needs the body as it came: bytes, neither decoded nor parsed (`await request.body()`, say)."


@dataclass(frozen=True, slots=True)
class HookEvent(Event):
    """An event that came to a hook. `webhook_id` is the same when it comes again: drop what you have had."""

    webhook_id: str


def verify_hook(
    body: bytes,
    headers: Mapping[str, str],
    secret: str | Sequence[str],
    *,
    clock: Callable[[], float] = time.time,
) -> HookEvent:
    """The event that a receiver sent, once it is proven that it did, not more than five minutes ago.

    `body`: as it came, not decoded. `headers`: all of the request's, in any case. `secret`: the hook's
    `whsec_...`, or several (a sequence, or separated by commas) while one replaces another. `clock`: in
    unix seconds.

    Raises HookError, and nothing else, whatever the sender made up; SettingsError for a secret that is none;
    TypeError for a body that is not bytes.
    """
    if not isinstance(body, bytes | bytearray):
        raise TypeError(RAW)
    secrets, given = _secrets(secret), _headers(headers)
    if len(body) > MAX_EVENT_CHARS:
        raise HookError(f"The body has more than {MAX_EVENT_CHARS} bytes.", code="too_large")
    at = timestamp_of(given)
    if at is None:
        raise HookError("The header webhook-timestamp is no time.", code="bad_header")
    if not signature_matches(secrets, given, body):
        raise HookError("The signature does not hold.", code="bad_signature", hint=SECRETS_DIFFER)
    _check_age(clock() - at)
    return _event(body, given["webhook-id"])


SECRETS_DIFFER = "If it came from your receiver: is the secret the hook's, and the body as it came?"
CLOCKS_DIFFER = "If it came from your receiver: compare the clocks."


def _secrets(secret: str | Sequence[str]) -> list[str]:
    secrets, problems = list(split(secret)), []
    for place, each in enumerate(secrets, 1):
        try:
            secret_key(each)
        except ValueError as error:
            problems.append(f"secret {place} {error}")
    if problems or not secrets:
        raise SettingsError(problems or ["a hook's secret is missing. Give its whsec_..."])
    return secrets


def _headers(headers: Mapping[Any, Any]) -> dict[str, str]:
    """The three headers that count; as bytes they come from ASGI."""
    named = {_text(name).lower(): _text(value) for name, value in headers.items()}
    for name in HEADERS:
        if not named.get(name):
            raise HookError(f"The header {name} is missing.", code="missing_header")
    return {name: named[name] for name in HEADERS}


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else ""


def _check_age(age: float) -> None:
    if age > TOLERANCE_SECONDS:
        raise HookError(f"It was signed {age:.0f} seconds ago.", code="too_old", hint=CLOCKS_DIFFER)
    if age < -TOLERANCE_SECONDS:
        raise HookError(f"It was signed {-age:.0f} seconds ahead.", code="too_new", hint=CLOCKS_DIFFER)


def _event(body: bytes, webhook_id: str) -> HookEvent:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise HookError("The body is not JSON.", code="not_json") from None
    match content:
        case {"id": int(number), "type": str(kind), "at": str(at), "data": dict(data), "task": task}:
            if type(number) is int and is_task(task):  # True is an int as well
                return HookEvent(number, kind, at, data, task, webhook_id)
    raise HookError("The body is not an event.", code="not_an_event")
