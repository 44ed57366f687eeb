"""One task, and how the two standards and the relays spell it."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from kling_sandbox.families import Family
from kling_sandbox.misbehaviour import Has
from kling_sandbox.replies import envelope

ENDINGS = {"videos": ["mp4"], "audios": ["mp3", "wav"]}
Occasion = Literal["create", "query", "callback"]
WORDS = {"submitted": "SUBMITTED", "processing": "IN_PROGRESS", "failed": "FAILURE"}


def now() -> int:
    return time.time_ns() // 1_000_000


@dataclass(eq=False)
class Task:
    id: str
    alias: str  # the id by which a relay's callbacks call it
    result_id: str
    variant: int
    path: str
    family: Family
    body: dict[str, Any]
    has: Has
    base_url: str
    lasts: float  # seconds for which its result files can be fetched
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
    def external_id(self) -> str | None:
        return self.family.options(self.body).get("external_task_id")

    @property
    def callback_url(self) -> str | None:
        return self.family.options(self.body).get("callback_url")

    @property
    def ending(self) -> str:
        return "failed" if self.has("failed") or self.has("outer-failure") else "succeed"

    @property
    def series(self) -> bool:
        return self.path == "images/omni-image" and self.body.get("result_type") == "series"

    @property
    def slots(self) -> int:
        count: int = self.body.get("series_amount" if self.series else "n", 1)
        return count if self.family.kind == "images" else 1

    @property
    def cost(self) -> str:
        return str(self.slots) if self.family.kind == "images" else "3.5"

    @property
    def files(self) -> list[str]:
        endings = ENDINGS.get(self.family.kind) or [self.body.get("output_format", "png")]
        return [f"{index}.{ending}" for index in range(self.slots) for ending in endings]

    def address(self, name: str) -> str:
        if self.finished_at is None:  # then only a false callback speaks of results
            return f"{self.base_url.replace('127.0.0.1', 'localhost')}/files/forged/{name}"
        expiry = int(self.finished_at / 1000 + self.lasts)
        return f"{self.base_url}/files/{self.id}/{name}?ksTime={expiry:x}"

    def message(self, status: str) -> str:
        reason = "The sandbox was asked to fail this task" if status == "failed" else ""
        return reason + "\0" * self.has("nul")

    def summary(self) -> dict[str, Any]:
        kept = ("status", "created_at", "finished_at", "queries")
        known = {"task_id": self.id, "external_task_id": self.external_id, "family": self.path}
        return known | {name: getattr(self, name) for name in kept} | {"callbacks": list(self.posted)}


def record(task: Task, status: str = "", *, new: bool, relayed: bool = False, bare: bool = False) -> dict[str, Any]:
    """Spell the task as of a status; `relayed` hides whose it is, `bare` leaves the results out."""
    status = status or task.status
    external_id = None if relayed or task.has("drop-external-id") else task.external_id
    urls = [task.address(name) for name in task.files] if status == "succeed" and not bare else []
    fields = (new_record if new else legacy_record)(task, status, external_id, urls)
    return fields | {"id" if new else "task_id": task.alias if relayed else task.id}


def legacy_record(task: Task, status: str, external_id: str | None, urls: list[str]) -> dict[str, Any]:
    info: dict[str, Any] = {"external_task_id": external_id} if external_id else {}
    if task.path == "videos/video-extend" and status == "succeed":
        info["parent_video"] = {"id": task.body.get("video_id")}
    fields = {
        "task_id": task.id,
        "task_status": status,
        "task_status_msg": task.message(status),
        "task_info": info,
        "task_result": legacy_results(task, urls) if urls else {},
        "created_at": task.created_at,
        "updated_at": task.updated_at,
    }
    return fields | ({"final_unit_deduction": task.cost} if status == "succeed" else {})


def legacy_results(task: Task, urls: list[str]) -> dict[str, Any]:
    if task.family.kind == "images":
        name = "series_images" if task.series else "images"
        return {name: [{"index": index, "url": url} for index, url in enumerate(urls)]}
    if task.family.kind == "audios":
        mp3, wav = urls
        sound = {"url_mp3": mp3, "url_wav": wav, "duration_mp3": "2.0", "duration_wav": "2.0"}
        return {"audios": [{"id": task.result_id, **sound}]}
    length = {} if task.path == "videos/effects" else {"duration": "5.0"}
    return {"videos": [{"id": task.result_id, "url": urls[0], **length}]}


def new_record(task: Task, status: str, external_id: str | None, urls: list[str]) -> dict[str, Any]:
    fields = {
        "id": task.id,
        "status": "succeeded" if status == "succeed" else status,
        "message": task.message(status),
        "create_time": task.created_at,
        "update_time": task.updated_at,
    }
    results = {"outputs": outputs(task, urls), "billing": [{"amount": task.cost}]} if urls else {}
    return fields | results | ({"external_id": external_id} if external_id else {})


def outputs(task: Task, urls: list[str]) -> list[dict[str, Any]]:
    if task.family.kind == "images":
        return [{"type": "image", "url": url, "group_id": task.result_id} for url in urls]
    if task.family.kind == "audios":
        mp3, wav = urls
        return [{"type": "audio", "id": task.result_id, "mp3_url": mp3, "wav_url": wav}]
    return [{"type": "video", "id": task.result_id, "url": urls[0], "duration": "5.0"}]


def dressed(task: Task, fields: dict[str, Any], occasion: Occasion) -> dict[str, Any]:
    """Wrap a record as Kling does (answers once, callbacks not), or as a relay does."""
    if task.has("wrap-twice") or task.has("outer-failure"):
        return wrapped_twice(task, fields)
    again = task.has("wrap-once") and occasion != "create"
    for _ in range((occasion != "callback") + again):
        fields = envelope(fields)
    return fields


def wrapped_twice(task: Task, fields: dict[str, Any]) -> dict[str, Any]:
    word = WORDS.get(fields.get("task_status") or fields["status"], "SUCCESS")
    failed = word == "FAILURE"
    outer = {
        "task_id": fields.get("task_id") or fields["id"],
        "status": word,
        "fail_reason": task.message("failed") if failed else "",
        "progress": "100%" if failed or word == "SUCCESS" else "30%",
        "data": None if failed and task.has("outer-failure") else envelope(fields),
    }
    return {"code": "success", "message": "", "data": outer}
