"""How tasks and events look from outside: the JSON of the contract, the same in the API, SSE and hooks."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from kling_callback.protocol import signing
from kling_receiver.store.reader import TaskDetail
from kling_receiver.store.rows import EventRow, ResultRow

LINK_SECONDS = 86_400
"""How long a result's `href` opens without a token."""


def iso(milliseconds: int | None) -> str | None:
    """ISO 8601 in UTC, with milliseconds."""
    if milliseconds is None:
        return None
    at = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Payloads:
    """Makes the JSON; `secrets` and `receiver_url` go into the links to files."""

    def __init__(self, secrets: Sequence[str], receiver_url: str, *, clock: Callable[[], float] = time.time) -> None:
        self._secrets, self._url, self._clock = secrets, receiver_url, clock

    def task(self, detail: TaskDetail) -> dict[str, Any]:
        """A task."""
        row = detail.row
        return {
            "id": row["id"],
            "task_id": row["kling_id"],
            "family": row["family"],
            "model": row["model"],
            "tags": detail.tags,
            "status": row["status"],
            "status_msg": row["status_msg"],
            "origin": row["origin"],
            "request": row["request"],
            "results": [self._result(result) for result in detail.results],
            "cost": row["cost"],
            "done": bool(row["done"]),
            "created_at": iso(row["created_at"]),
            "updated_at": iso(row["updated_at"]),
        }

    def _result(self, result: ResultRow) -> dict[str, Any]:
        stored = result["status"] == "stored"
        return {
            "index": result["position"],
            "kind": result["kind"],
            "id": result["kling_id"],
            "duration": result["duration"],
            "status": result["status"],
            "content_type": result["content_type"],
            "size": result["size"],
            "sha256": result["sha256"],
            "href": self._link(result) if stored else None,
            "source_url": result["source_url"] or None,
            "expires_at": iso(result["expires_at"]),
            "error": result["error"] or None,
        }

    def _link(self, result: ResultRow) -> str:
        expires = int(self._clock()) + LINK_SECONDS
        return signing.sign_link(self._secrets, self._url, result["task_id"], result["position"], expires)

    def event(self, event: EventRow, detail: TaskDetail) -> dict[str, Any]:
        """An event, with its task as it is now."""
        return {
            "id": event["id"],
            "type": event["type"],
            "at": iso(event["created_at"]),
            "data": event["data"],
            "task": self.task(detail),
        }
