"""The plugin interface of sinks: one sink for each scheme of a hook's address delivers its events.

A sink of your own (Kafka, SQS, a chat) is a package with an entry point in the group `kling_callback.sinks`, named
by its scheme: a callable that takes the hook's address and returns a `Sink`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

from kling_callback.protocol.events import position_of

MAX_RESPONSE_BYTES = 1_000
"""Bytes of a response that are kept on record; the rest is dropped."""


@dataclass(frozen=True, slots=True)
class Message:
    """One event to deliver to one hook.

    `id`: the same at each attempt and replay. `event`: the event's JSON, with `id`, `log_id`, `type`, `at`, `data` and
    `task`, or for a web address in Kling's format its record; `body`: the same as bytes. `source`: the receiver's
    public address. `files`: paths of the task's stored files.
    """

    id: str
    event: dict[str, Any]
    body: bytes
    source: str
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Delivered:
    """The event was delivered. `status`: an HTTP status or exit code. `response`: the start of the answer, as text."""

    status: int | None = None
    response: str = ""


class NotDelivered(Exception):
    """The event was not delivered, and is retried by the hook's schedule. The reason must contain no secrets.

    `status`, `response`: as in `Delivered`. `retry_after`: seconds to pause the whole hook. `final`: no further
    attempt, the delivery becomes a dead letter. `gone`: pause the hook, because it wants no more events.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        response: str = "",
        retry_after: float | None = None,
        final: bool = False,
        gone: bool = False,
    ) -> None:
        super().__init__(reason)
        self.status, self.response = status, response
        self.retry_after, self.final, self.gone = retry_after, final, gone


class Sink(Protocol):
    """Delivers events to one address. Attempts run concurrently; each is cancelled at the hook's time limit."""

    async def send(self, message: Message) -> Delivered:
        """Deliver one event; return once it is safe. Raises NotDelivered; other exceptions are logged as failures."""

    async def close(self) -> None:
        """Release connections and other resources."""


Factory = Callable[[str], Sink]
"""Opens a sink for an address. Raises ValueError for an invalid address, with what to write instead."""


def parse_address(address: str) -> SplitResult | None:
    """Split `scheme://host:port/name`. Returns None without a host or with an invalid port."""
    try:
        parts = urlsplit(address)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if has_host else None


def describe_error(error: BaseException) -> str:
    """Describe an exception for a delivery's `error`: its type and message, 300 characters at most."""
    return f"{type(error).__name__}: {error}".rstrip(": ")[:300]


def scheme_of(address: str) -> str:
    """The scheme of an address, in lower case; the whole address if it has none."""
    return address.strip().partition(":")[0].lower()


def to_cloudevent(message: Message) -> dict[str, Any]:
    """Convert an event to a CloudEvent (1.0, JSON), as brokers carry it.

    Its `id` is the event's position in its log, so that repeats match, and no event of a restored database does.
    """
    event = message.event
    event_id = str(position_of(event["log_id"], event["id"], event["at"]))
    return {
        "specversion": "1.0",
        "id": event_id if event["id"] else message.id,  # tests all have the event id 0
        "source": message.source,
        "type": f"kling.{event['type']}",
        "subject": event["task"]["id"],
        "time": event["at"],
        "datacontenttype": "application/json",
        "data": event,
    }
