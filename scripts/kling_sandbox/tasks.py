"""One task, and its JSON in both standards and in those of relays."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from kling_sandbox.api.families import Family
from kling_sandbox.api.replies import envelope
from kling_sandbox.misbehaviour import Has

EXTENSIONS = {"videos": ["mp4"], "audios": ["mp3", "wav"]}
"""The files of each result, by kind; images have one file of the requested format."""

Occasion = Literal["create", "query", "callback"]
RELAY_STATUSES = {"submitted": "SUBMITTED", "processing": "IN_PROGRESS", "failed": "FAILURE"}
"""The words of relays that wrap twice; every other status is SUCCESS."""


def now() -> int:
    """The time in unix ms."""
    return time.time_ns() // 1_000_000


@dataclass(eq=False)
class Task:
    """A created task. `alias`: the id in a relay's callbacks; `steps`: released once for each step of a held task."""

    id: str
    alias: str
    result_id: str
    variant: int
    path: str
    family: Family
    body: dict[str, Any]
    has: Has
    base_url: str
    result_seconds: float
    status: str = "submitted"
    created_at: int = field(default_factory=now)
    updated_at: int = field(default_factory=now)
    finished_at: int | None = None
    queries: int = 0
    posted: list[dict[str, Any]] = field(default_factory=list)
    unsent: list[Any] = field(default_factory=list)
    held: bool = False
    steps: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    @property
    def external_id(self) -> str | None:
        """The client's id."""
        return self.family.options(self.body).get("external_task_id")

    @property
    def callback_url(self) -> str | None:
        """The address of the callbacks."""
        return self.family.options(self.body).get("callback_url")

    @property
    def final_status(self) -> str:
        """The status at its end."""
        return "failed" if self.has("failed") or self.has("outer-failure") else "succeed"

    @property
    def is_series(self) -> bool:
        """Whether the images form a series."""
        return self.path == "images/omni-image" and self.body.get("result_type") == "series"

    @property
    def slots(self) -> int:
        """The concurrency that it uses: one for each image."""
        count: int = self.body.get("series_amount" if self.is_series else "n", 1)
        return count if self.family.kind == "images" else 1

    @property
    def cost(self) -> str:
        """The units that it costs."""
        return str(self.slots) if self.family.kind == "images" else "3.5"

    @property
    def files(self) -> list[str]:
        """The names of its files."""
        extensions = EXTENSIONS.get(self.family.kind) or [self.body.get("output_format", "png")]
        return [f"{index}.{extension}" for index in range(self.slots) for extension in extensions]

    def file_url(self, name: str) -> str:
        """The address of a file."""
        if self.finished_at is None:  # only a false callback has results before the end
            return f"{self.base_url.replace('127.0.0.1', 'localhost')}/files/forged/{name}"
        expiry = int(self.finished_at / 1000 + self.result_seconds)
        return f"{self.base_url}/files/{self.id}/{name}?ksTime={expiry:x}"

    def message(self, status: str) -> str:
        """The text beside a status."""
        reason = "The sandbox was asked to fail this task" if status == "failed" else ""
        return reason + "\0" * self.has("nul")

    def summary(self) -> dict[str, Any]:
        """The task in the account."""
        names = ("status", "created_at", "finished_at", "queries")
        ids = {"task_id": self.id, "external_task_id": self.external_id, "family": self.path}
        return ids | {name: getattr(self, name) for name in names} | {"callbacks": list(self.posted)}


def task_record(
    task: Task, status: str = "", *, new: bool, relayed: bool = False, bare: bool = False
) -> dict[str, Any]:
    """The task's JSON at a status. `relayed` hides its ids; `bare` leaves the results out."""
    status = status or task.status
    external_id = None if relayed or task.has("drop-external-id") else task.external_id
    urls = [task.file_url(name) for name in task.files] if status == "succeed" and not bare else []
    fields = (_new_record if new else _legacy_record)(task, status, external_id, urls)
    return fields | {"id" if new else "task_id": task.alias if relayed else task.id}


def _legacy_record(task: Task, status: str, external_id: str | None, urls: list[str]) -> dict[str, Any]:
    info: dict[str, Any] = {"external_task_id": external_id} if external_id else {}
    if task.path == "videos/video-extend" and status == "succeed":
        info["parent_video"] = {"id": task.body.get("video_id")}
    fields = {
        "task_id": task.id,
        "task_status": status,
        "task_status_msg": task.message(status),
        "task_info": info,
        "task_result": _legacy_results(task, urls) if urls else {},
        "created_at": task.created_at,
        "updated_at": task.updated_at,
    }
    return fields | ({"final_unit_deduction": task.cost} if status == "succeed" else {})


def _legacy_results(task: Task, urls: list[str]) -> dict[str, Any]:
    if task.family.kind == "images":
        name = "series_images" if task.is_series else "images"
        return {name: [{"index": index, "url": url} for index, url in enumerate(urls)]}
    if task.family.kind == "audios":
        mp3, wav = urls
        sound = {"url_mp3": mp3, "url_wav": wav, "duration_mp3": "2.0", "duration_wav": "2.0"}
        return {"audios": [{"id": task.result_id, **sound}]}
    length = {} if task.path == "videos/effects" else {"duration": "5.0"}
    return {"videos": [{"id": task.result_id, "url": urls[0], **length}]}


def _new_record(task: Task, status: str, external_id: str | None, urls: list[str]) -> dict[str, Any]:
    fields = {
        "id": task.id,
        "status": "succeeded" if status == "succeed" else status,
        "message": task.message(status),
        "create_time": task.created_at,
        "update_time": task.updated_at,
    }
    results = {"outputs": _outputs(task, urls), "billing": [{"amount": task.cost}]} if urls else {}
    return fields | results | ({"external_id": external_id} if external_id else {})


def _outputs(task: Task, urls: list[str]) -> list[dict[str, Any]]:
    if task.family.kind == "images":
        return [{"type": "image", "url": url, "group_id": task.result_id} for url in urls]
    if task.family.kind == "audios":
        mp3, wav = urls
        return [{"type": "audio", "id": task.result_id, "mp3_url": mp3, "wav_url": wav}]
    return [{"type": "video", "id": task.result_id, "url": urls[0], "duration": "5.0"}]


def wrap(task: Task, fields: dict[str, Any], occasion: Occasion) -> dict[str, Any]:
    """Wrap a record as Kling does (answers once, callbacks not), or as a relay does."""
    if task.has("wrap-twice") or task.has("outer-failure"):
        return _wrap_twice(task, fields)
    once_more = task.has("wrap-once") and occasion != "create"
    for _ in range((occasion != "callback") + once_more):
        fields = envelope(fields)
    return fields


def _wrap_twice(task: Task, fields: dict[str, Any]) -> dict[str, Any]:
    status = RELAY_STATUSES.get(fields.get("task_status") or fields["status"], "SUCCESS")
    failed = status == "FAILURE"
    outer = {
        "task_id": fields.get("task_id") or fields["id"],
        "status": status,
        "fail_reason": task.message("failed") if failed else "",
        "progress": "100%" if failed or status == "SUCCESS" else "30%",
        "data": None if failed and task.has("outer-failure") else envelope(fields),
    }
    return {"code": "success", "message": "", "data": outer}
