"""Verify and parse the events that a hook receives."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kling_callback.api.task_json import is_task
from kling_callback.errors import HookError, SettingsError
from kling_callback.protocol.events import MAX_EVENT_BYTES, Event
from kling_callback.protocol.webhooks import (
    HEADERS,
    TOLERANCE_SECONDS,
    secret_key,
    signature_matches,
    timestamp_of,
)
from kling_callback.settings import split

RAW_BODY = "verify_hook needs the raw body: bytes, neither decoded nor parsed, as from `await request.body()`."


@dataclass(frozen=True, slots=True)
class HookEvent(Event):
    """An event that a hook received. `webhook_id` is the same for each delivery of it: use it to drop repeats."""

    webhook_id: str


def verify_hook(
    body: bytes,
    headers: Mapping[str, str],
    secret: str | Sequence[str],
    *,
    clock: Callable[[], float] = time.time,
) -> HookEvent:
    """Verify a request to a hook, signed at most five minutes ago by Standard Webhooks, and return its event.

    `body`: the raw bytes. `headers`: all of the request's, names in any case. `secret`: the hook's `whsec_...`, or
    several (a sequence, or separated by commas) during a rotation. `clock`: returns unix seconds.

    Raises HookError for any request that is not a valid event, SettingsError for an invalid secret, TypeError for a
    body that is not bytes.
    """
    if not isinstance(body, bytes | bytearray):
        raise TypeError(RAW_BODY)
    secrets, signature = _secrets(secret), _signature_headers(headers)
    if len(body) > MAX_EVENT_BYTES:
        raise HookError(f"The body has more than {MAX_EVENT_BYTES} bytes.", code="too_large")
    signed_at = timestamp_of(signature)
    if signed_at is None:
        raise HookError("The header webhook-timestamp is not in unix seconds.", code="bad_header")
    if not signature_matches(secrets, signature, body):
        raise HookError("The signature is not valid.", code="bad_signature", hint=CHECK_SECRET)
    _check_age(clock() - signed_at)
    return _event(body, signature["webhook-id"])


CHECK_SECRET = "If your receiver sent it, check that the secret is the hook's, and the body the raw bytes."
CHECK_FORMAT = "If it is the record of a hook in Kling's format, verify it with a package of Standard Webhooks."
CHECK_CLOCKS = "If your receiver sent it, check the clocks of both machines."


def _secrets(secret: str | Sequence[str]) -> list[str]:
    secrets, problems = list(split(secret)), []
    for position, each in enumerate(secrets, 1):
        try:
            secret_key(each)
        except ValueError as error:
            problems.append(f"secret {position} {error}")
    if problems or not secrets:
        raise SettingsError(problems or ["the hook's secret is missing. Set it to its whsec_..."])
    return secrets


def _signature_headers(headers: Mapping[Any, Any]) -> dict[str, str]:
    """The three headers of Standard Webhooks. ASGI passes names and values as bytes."""
    values = {_text(name).lower(): _text(value) for name, value in headers.items()}
    for name in HEADERS:
        if not values.get(name):
            raise HookError(f"The header {name} is missing.", code="missing_header")
    return {name: values[name] for name in HEADERS}


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else ""


def _check_age(age: float) -> None:
    if age > TOLERANCE_SECONDS:
        raise HookError(f"The event was signed {age:.0f} seconds ago.", code="too_old", hint=CHECK_CLOCKS)
    if age < -TOLERANCE_SECONDS:
        raise HookError(f"The event was signed {-age:.0f} seconds in the future.", code="too_new", hint=CHECK_CLOCKS)


def _event(body: bytes, webhook_id: str) -> HookEvent:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise HookError("The body is not JSON.", code="not_json") from None
    match content:
        case {
            "id": int(event_id),
            "log_id": str(log_id),
            "type": str(kind),
            "at": str(at),
            "data": dict(data),
            "task": task,
        }:
            if type(event_id) is int and is_task(task):  # True is an int as well
                return HookEvent(event_id, kind, at, data, task, log_id, webhook_id)
    raise HookError("The body is not an event.", code="not_an_event", hint=CHECK_FORMAT)
