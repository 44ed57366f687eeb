"""One task, and how the two standards and the relays spell it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gateway.families import Family
from gateway.replies import envelope

WORDS = {
    "submitted": "SUBMITTED",
    "processing": "IN_PROGRESS",
    "succeed": "SUCCESS",
    "succeeded": "SUCCESS",
    "failed": "FAILURE",
}


def now() -> int:
    return time.time_ns() // 1_000_000


@dataclass(eq=False)
class Task:
    id: str
    alias: str  # the id by which a relay's callbacks call it
    result_id: str
    variant: int
    family: Family
    path: str
    body: dict[str, Any]
    base_url: str
    lasts: float  # seconds for which its result files can be fetched
    has: Callable[[str], bool]
    status: str = "submitted"
    created_at: int = field(default_factory=now)
    updated_at: int = field(default_factory=now)
    finished_at: int | None = None
    queries: int = 0
    posted: list[dict[str, Any]] = field(default_factory=list)
    outbox: list[Any] = field(default_factory=list)
    held: bool = False
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    @property
    def options(self) -> dict[str, Any]:
        return self.body.get("options") or {} if self.family.new else self.body

    @property
    def external_id(self) -> str | None:
        return self.options.get("external_task_id")

    @property
    def callback_url(self) -> str | None:
        return self.options.get("callback_url")

    @property
    def ending(self) -> str:
        return "failed" if self.has("failed") or self.has("outer-failure") else "succeed"

    @property
    def series(self) -> bool:
        return self.family.path == "images/omni-image" and self.body.get("result_type") == "series"

    @property
    def slots(self) -> int:
        count = self.body.get("series_amount" if self.series else "n", 1)
        return int(count) if self.family.kind == "images" else 1

    @property
    def files(self) -> list[str]:
        endings = {
            "images": [self.body.get("output_format", "png")],
            "videos": ["mp4"],
            "audios": ["mp3", "wav"],
        }
        return [f"{index}.{ending}" for index in range(self.slots) for ending in endings[self.family.kind]]

    def address(self, name: str) -> str:
        if self.finished_at is None:  # then only a false callback speaks of results
            return f"{self.base_url.replace('127.0.0.1', 'localhost')}/files/forged/{name}"
        expiry = int(self.finished_at / 1000 + self.lasts)
        return f"{self.base_url}/files/{self.id}/{name}?ksTime={expiry:x}"

    def message(self, status: str) -> str:
        reason = "The sandbox was asked to fail this task" if status == "failed" else ""
        return reason + "\0" * self.has("nul")


def record(
    task: Task, status: str = "", *, new: bool, relayed: bool = False, bare: bool = False
) -> dict[str, Any]:
    """Spell the task as of a status; `relayed` hides who it is, `bare` leaves the results out."""
    status = status or task.status
    number = task.alias if relayed else task.id
    external_id = None if relayed or task.has("drop-external-id") else task.external_id
    addresses = [task.address(name) for name in task.files] if status == "succeed" and not bare else []
    return (new_record if new else legacy_record)(task, status, number, external_id, addresses)


def legacy_record(
    task: Task, status: str, number: str, external_id: str | None, addresses: list[str]
) -> dict[str, Any]:
    info: dict[str, Any] = {"external_task_id": external_id} if external_id else {}
    if status == "succeed" and "video_id" in task.body:
        info["parent_video"] = {"id": task.body["video_id"]}
    fields = {
        "task_id": number,
        "task_status": status,
        "task_status_msg": task.message(status),
        "task_info": info,
        "task_result": legacy_results(task, addresses) if addresses else {},
        "created_at": task.created_at,
        "updated_at": task.updated_at,
    }
    return fields | ({"final_unit_deduction": cost(task)} if status == "succeed" else {})


def legacy_results(task: Task, addresses: list[str]) -> dict[str, Any]:
    match task.family.kind:
        case "images":
            key = "series_images" if task.series else "images"
            return {key: [{"index": index, "url": url} for index, url in enumerate(addresses)]}
        case "videos":
            video = {"id": task.result_id, "url": addresses[0], "duration": "5.0"}
            if task.family.path == "videos/effects":
                del video["duration"]
            return {"videos": [video]}
        case _:
            mp3, wav = addresses
            sound = {"url_mp3": mp3, "url_wav": wav, "duration_mp3": "2.0", "duration_wav": "2.0"}
            return {"audios": [{"id": task.result_id} | sound]}


def new_record(
    task: Task, status: str, number: str, external_id: str | None, addresses: list[str]
) -> dict[str, Any]:
    fields = {
        "id": number,
        "status": "succeeded" if status == "succeed" else status,
        "message": task.message(status),
        "create_time": task.created_at,
        "update_time": task.updated_at,
    }
    if external_id:
        fields["external_id"] = external_id
    if addresses:
        fields["outputs"] = new_outputs(task, addresses)
        fields["billing"] = [{"amount": cost(task)}]
    return fields


def new_outputs(task: Task, addresses: list[str]) -> list[dict[str, Any]]:
    match task.family.kind:
        case "images":
            return [{"type": "image", "url": url, "group_id": task.result_id} for url in addresses]
        case "videos":
            return [{"type": "video", "id": task.result_id, "url": addresses[0], "duration": "5.0"}]
        case _:
            mp3, wav = addresses
            return [{"type": "audio", "id": task.result_id, "mp3_url": mp3, "wav_url": wav, "duration": "2.0"}]


def cost(task: Task) -> str:
    return str(task.slots) if task.family.kind == "images" else "3.5"


def dressed(task: Task, fields: dict[str, Any], *, callback: bool) -> dict[str, Any]:
    """Wrap a record as Kling does (answers once, callbacks not), or as a relay does."""
    if task.has("wrap-twice") or task.has("outer-failure"):
        return wrapped_twice(task, fields)
    for _ in range((not callback) + task.has("wrap-once")):
        fields = envelope(fields)
    return fields


def wrapped_twice(task: Task, fields: dict[str, Any]) -> dict[str, Any]:
    word = WORDS[fields.get("task_status") or fields["status"]]
    hollow = task.has("outer-failure") and word == "FAILURE"
    outer = {
        "task_id": fields.get("task_id") or fields["id"],
        "status": word,
        "fail_reason": task.message("failed") if word == "FAILURE" else "",
        "progress": "100%" if word in ("SUCCESS", "FAILURE") else "30%",
        "data": None if hollow else envelope(fields),
    }
    return {"code": "success", "message": "", "data": outer}
