"""Where an event may go: one small file per kind of address, chosen by the address's scheme.

A sink of your own (Kafka, SQS, a chat) is a package with an entry point in the group `kling_callback.sinks`,
named by its scheme: a callable that takes the address and returns a `Sink`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

MAX_RESPONSE_BYTES = 1_000
"""How much of an answer is kept."""


@dataclass(frozen=True, slots=True)
class Message:
    """One event on its way to one hook.

    `id`: the same at each attempt. `event`: the event's JSON, `{"id", "type", "at", "data", "task"}`; `body`:
    the same as bytes. `source`: the receiver's public address. `files`: where the task's files lie here.
    """

    id: str
    event: dict[str, Any]
    body: bytes
    source: str
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Delivered:
    """The event was taken. `status`: an HTTP status or exit code. `answer`: its first bytes, as text."""

    status: int | None = None
    response: str = ""


class NotDelivered(Exception):
    """The event was not taken; the message says why, without secrets.

    `retry_after`: seconds that the other side asks for. `final`: trying again would not help.
    `gone`: the other side wants nothing any more.
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
    """Delivers to one address; used by many attempts at once, and cancelled when one takes too long."""

    async def send(self, message: Message) -> Delivered:
        """Deliver one event. Raises NotTaken; anything else counts as such, and is logged."""

    async def close(self) -> None:
        """Give back what it holds."""


Factory = Callable[[str], Sink]
"""Makes a sink for an address. Raises ValueError for an address that it cannot serve, saying what to do."""


def parse_address(address: str) -> SplitResult | None:
    """The parts of `scheme://host:port/name`; None for an address that has no host, or a port that is none."""
    try:
        parts = urlsplit(address)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if named else None


def describe_error(error: BaseException) -> str:
    """What went wrong, by an error that has no words for people."""
    return f"{type(error).__name__}: {error}".rstrip(": ")[:300]


def scheme_of(address: str) -> str:
    """What stands before the first colon."""
    return address.partition(":")[0].lower()


def to_cloudevent(message: Message) -> dict[str, Any]:
    """The event as a CloudEvent (1.0, JSON): what brokers carry. `id` is the event's own; each test has one."""
    event = message.event
    return {
        "specversion": "1.0",
        "id": message.id if event["type"] == "hook.test" else str(event["id"]),
        "source": message.source,
        "type": f"kling.{event['type']}",
        "subject": event["task"]["id"],
        "time": event["at"],
        "datacontenttype": "application/json",
        "data": event,
    }
