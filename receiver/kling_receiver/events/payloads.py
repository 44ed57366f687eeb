"""The JSON of tasks and events, the same in the API, in event streams and in hook deliveries."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, overload
from urllib.parse import quote

from pydantic import Field
from typing_extensions import TypedDict

from kling_callback.protocol import signing
from kling_receiver.events.kling_record import kling_record
from kling_receiver.states import Origin, Status
from kling_receiver.store.reader import TaskDetail
from kling_receiver.store.rows import EventRow, ResultRow
from kling_receiver.store.tables import RESULT_STATUSES

LINK_SECONDS = 86_400
"""Seconds for which a result's `href` opens the file without a token."""
KLING_LINK_SECONDS = 30 * 86_400
"""Seconds for which a link in Kling's format opens the file: programs written for Kling count on its 30 days."""

Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class ResultJson(TypedDict):
    """A file of a task."""

    index: int
    kind: Annotated[str, Field(description="image, video, audio; watermark for a marked copy")]
    id: str | None
    duration: Annotated[float | None, Field(description="seconds")]
    status: Annotated[str, Field(json_schema_extra={"enum": list(RESULT_STATUSES)})]
    content_type: str | None
    size: Annotated[int | None, Field(description="bytes")]
    sha256: str | None
    href: Annotated[str | None, Field(description="a link that opens the file for a limited time without a token")]
    source_url: Annotated[str | None, Field(description="the address at Kling; null until Kling names it")]
    expires_at: Annotated[Timestamp | None, Field(description="when source_url expires, if the URL states it")]
    error: Annotated[str | None, Field(description="why the file was not stored")]
    warning: Annotated[str | None, Field(description="what is unusual about a stored file")]


class TaskJson(TypedDict):
    """A task."""

    id: Annotated[str, Field(description="our id")]
    task_id: Annotated[str | None, Field(description="Kling's id")]
    external_task_id: Annotated[str | None, Field(description="the caller's id at Kling, if it is not our id")]
    family: str
    model: str
    tags: list[str]
    status: Status
    status_msg: str
    origin: Annotated[Origin | None, Field(description="the source of the final status")]
    request: Any
    outputs: Annotated[
        list[dict[str, Any]],
        Field(description="outputs that are no files (elements, voices, a session), with Kling's names"),
    ]
    results: list[ResultJson]
    request_id: Annotated[str | None, Field(description="Kling's id of the create's answer, or of the latest query's")]
    cost: Annotated[Any, Field(description="as Kling reports it")]
    queue_position: Annotated[
        int | None, Field(description="the place of a task that waits for a slot: 1 is the next one; else null")
    ]
    done: Annotated[
        bool, Field(description="the final status is accepted, not only a hint, and every result is stored or failed")
    ]
    created_at: Timestamp
    updated_at: Timestamp
    kling_created_at: Annotated[Timestamp | None, Field(description="when the task was created, by Kling's clock")]
    kling_updated_at: Annotated[Timestamp | None, Field(description="when it last changed, by Kling's clock")]


class EventJson(TypedDict):
    """An event, with its task as it is now."""

    id: int
    log_id: Annotated[str, Field(description="the event log that the id belongs to; a restored database has another")]
    type: str
    at: Timestamp
    data: Any
    task: TaskJson


@overload
def iso(milliseconds: int) -> str: ...
@overload
def iso(milliseconds: int | None) -> str | None: ...
def iso(milliseconds: int | None) -> str | None:
    """Unix milliseconds as ISO 8601 in UTC, with milliseconds."""
    if milliseconds is None:
        return None
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Payloads:
    """Renders tasks and events as JSON. `secrets` sign the links to files, which start with `links_base`."""

    def __init__(self, secrets: Sequence[str], links_base: str, *, clock: Callable[[], float] = time.time) -> None:
        self._secrets, self._url, self._clock = secrets, links_base, clock

    def task(self, detail: TaskDetail) -> TaskJson:
        """Render a task, with a new link for each stored file."""
        row = detail.row
        return {
            "id": row["id"],
            "task_id": row["kling_id"],
            "external_task_id": row["external_task_id"],
            "family": row["family"],
            "model": row["model"],
            "tags": detail.tags,
            "status": row["status"],
            "status_msg": row["status_msg"],
            "origin": row["origin"],
            "request": row["request"],
            "outputs": row["outputs"] or [],
            "results": [self._result(result) for result in detail.results],
            "request_id": row["request_id"],
            "cost": row["cost"],
            "queue_position": detail.queue_position,
            "done": bool(row["done"]),
            "created_at": iso(row["created_at"]),
            "updated_at": iso(row["updated_at"]),
            "kling_created_at": iso(row["kling_created_at"]),
            "kling_updated_at": iso(row["kling_updated_at"]),
        }

    def _result(self, result: ResultRow) -> ResultJson:
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
            "warning": result["warning"] or None,
        }

    def page(self, task_id: str) -> str:
        """The address of a task's page for people, below the same base as the links to files."""
        return f"{self._url}/dashboard/tasks/{quote(task_id, safe='')}"

    def kling(self, detail: TaskDetail, *, new: bool | None = None) -> dict[str, Any]:
        """Render a task as Kling's own record, with links that live as long as Kling's files. `new`: as there."""
        return kling_record(detail, href=lambda result: self._link(result, KLING_LINK_SECONDS), new=new)

    def _link(self, result: ResultRow, seconds: int = LINK_SECONDS) -> str:
        expires = int(self._clock()) + seconds
        return signing.sign_link(self._secrets, self._url, result["task_id"], result["position"], expires)

    def event(self, event: EventRow, detail: TaskDetail) -> EventJson:
        """Render an event, with its task as it is now."""
        return {
            "id": event["id"],
            "log_id": event["log_id"],
            "type": event["type"],
            "at": iso(event["created_at"]),
            "data": {} if event["data"] is None else event["data"],  # handlers expect an object
            "task": self.task(detail),
        }
