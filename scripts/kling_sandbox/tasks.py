"""One task: its parameters, status, files and cost."""

import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kling_sandbox.api.families import Family
from kling_sandbox.api.parameters import has_unusable_image
from kling_sandbox.misbehaviour import Has
from kling_sandbox.pictures.page import Page

EXTENSIONS = {"videos": ["mp4"], "audios": ["mp3", "wav"], "voices": ["mp3"], "elements": []}
"""The files of each result, by kind; images have one file of the requested format."""

OTHER_FORMATS = {"png": "avif", "jpg": "avif", "mp4": "mov", "mp3": "m4a", "wav": "flac"}

MULTI_SHOT = "general/ai-multi-shot"
SHOTS = 3
"""Images of one result of this family."""

MARKS = re.compile(r"\[sandbox:[^\]]*\]")
"""The switches in a prompt."""

WATERMARK = "-watermark."
"""What the name of a watermarked copy has in place of the point."""


def now() -> int:
    """The time in unix ms."""
    return time.time_ns() // 1_000_000


@dataclass(eq=False)
class Task:
    """A created task. `body`: as Kling reads it, without empty values. `alias`: the id in a relay's callbacks.
    `names`: its files, if they are not those of its family. `steps`: released once for each step of a held task.
    """

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
    names: Sequence[str] = ()
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
    def model(self) -> str:
        """The name of its model."""
        return self.path.rpartition("/")[2] if self.family.new else str(self.body.get("model_name", "kling-v1"))

    @cached_property
    def has_unusable_image(self) -> bool:
        """Whether one of its images is too small or too narrow."""
        return has_unusable_image(self.body)

    @property
    def failure(self) -> str:
        """Why it will fail; empty if it will not."""
        if self.has_unusable_image:
            return "Image pixel is invalid"
        asked = self.has("failed") or self.has("outer-failure")
        return "The sandbox was asked to fail this task" if asked else ""

    @property
    def final_status(self) -> str:
        """The status at its end."""
        return "failed" if self.failure else "succeed"

    @property
    def is_series(self) -> bool:
        """Whether the images form a series."""
        return self.path == "images/omni-image" and self.body.get("result_type") == "series"

    @property
    def slots(self) -> int:
        """The concurrency that it uses: one for each image."""
        if self.family.kind != "images":
            return 1
        count = self.body.get("series_amount" if self.is_series else "n", 1)
        return count if isinstance(count, int) else 2  # `auto`

    @property
    def cost(self) -> str:
        """The units that it costs."""
        return str(self.slots) if self.family.kind == "images" else "3.5"

    @property
    def files(self) -> Sequence[str]:
        """The names of its files, without watermarked copies."""
        if self.names:
            return self.names
        extensions = EXTENSIONS.get(self.family.kind, [self.body.get("output_format", "png")])
        if self.has("other-formats"):
            extensions = [OTHER_FORMATS[extension] for extension in extensions]
        count = SHOTS if self.path == MULTI_SHOT else self.slots
        return [f"{index}.{extension}" for index in range(count) for extension in extensions]

    def page(self, index: int, *, watermark: bool = False) -> Page:
        """What its file number `index` shows."""
        parameters = list(_texts(self.body))
        prompt = next((value for name, value in parameters if name == "prompt"), self.path)
        ratio = next((value for name, value in parameters if name == "aspect_ratio"), "")
        count = len(self.files) if self.family.kind == "images" else 1
        notes = [f"{index + 1}/{count}" * (count > 1), "with a watermark" * watermark]
        return Page(MARKS.sub("", prompt).strip(), " ".join(filter(None, notes)), ratio, self.variant + index)

    @property
    def has_watermark(self) -> bool:
        """Whether each image and video has a watermarked copy."""
        info = self.family.options(self.body).get("watermark_info", {})
        return info.get("enabled") is True or self.has("watermark-only")

    def file_url(self, name: str) -> str:
        """The address of a file."""
        if self.finished_at is None:  # only a false callback has results before the end
            return f"{self.base_url.replace('127.0.0.1', 'localhost')}/files/forged/{name}"
        expiry = int(self.finished_at / 1000 + self.result_seconds)
        return f"{self.base_url}/files/{self.id}/{name}?ksTime={expiry:x}"

    def message(self, status: str) -> str:
        """The text beside a status."""
        return (self.failure if status == "failed" else "") + "\0" * self.has("nul")

    def summary(self) -> dict[str, Any]:
        """The task in the account."""
        names = ("status", "created_at", "finished_at", "queries")
        ids = {"task_id": self.id, "external_task_id": self.external_id, "family": self.path}
        return ids | {name: getattr(self, name) for name in names} | {"callbacks": list(self.posted)}


def _texts(value: Any) -> Iterator[tuple[str, str]]:
    """The names and values of all texts in a body, the outer ones first."""
    if isinstance(value, dict):
        yield from ((name, text) for name, text in value.items() if isinstance(text, str))
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
