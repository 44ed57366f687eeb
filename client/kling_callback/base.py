"""What a task's JSON says, as attributes: what the blocking and the asynchronous face have in common."""

import mimetypes
from typing import Any, Generic, TypeVar

from kling_callback.errors import Outcome, ResultFailed

EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "video/mp4": "mp4",
    "audio/mpeg": "mp3",
    "audio/wav": "wav",
    "audio/x-wav": "wav",
}
BY_KIND = {"image": "png", "video": "mp4", "audio": "mp3"}


class BaseTask:
    """One task. `data` is its JSON, as last heard from the receiver.

    `unreported` says what the receiver could not be told after the create, with Kling's id; else None.
    """

    def __init__(self, data: dict[str, Any], *, unreported: str | None = None) -> None:
        self.data = data
        self.unreported = unreported

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.status}>"

    @property
    def id(self) -> str:
        """Our id."""
        return str(self.data["id"])

    @property
    def task_id(self) -> str | None:
        """Kling's id, once it is known."""
        return self.data.get("task_id")

    @property
    def family(self) -> str:
        """The kind of job: its path at Kling."""
        return str(self.data.get("family", ""))

    @property
    def model(self) -> str | None:
        """The model's name, if one was given."""
        return self.data.get("model")

    @property
    def tags(self) -> tuple[str, ...]:
        """As given at the create."""
        return tuple(self.data.get("tags") or ())

    @property
    def status(self) -> str:
        """`created`, `submitted`, `processing`, `succeed` or `failed`."""
        return str(self.data["status"])

    @property
    def status_msg(self) -> str:
        """Kling's reason for a failure, or ""."""
        return str(self.data.get("status_msg") or "")

    @property
    def done(self) -> bool:
        """Whether the status is final and believed, and every result is stored or failed."""
        return self.data.get("done") is True

    @property
    def outcome(self) -> Outcome:
        """`created` once anything shows that Kling has the task, else `unknown`: a callback will tell."""
        return "created" if is_created(self.data) else "unknown"


class BaseFile:
    """One result file, as the receiver's archive has it."""

    def __init__(self, data: dict[str, Any], task: dict[str, Any]) -> None:
        self.data, self.task = data, task

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.status}>"

    @property
    def index(self) -> int:
        """Its place among the task's files."""
        return int(self.data["index"])

    @property
    def kind(self) -> str:
        """`image`, `video`, `audio`, `watermark`."""
        return str(self.data.get("kind") or "file")

    @property
    def id(self) -> str | None:
        """Kling's id of the file, if it has one."""
        return self.data.get("id")

    @property
    def duration(self) -> float | None:
        """Seconds, if Kling named them."""
        return self.data.get("duration")

    @property
    def status(self) -> str:
        """`pending`, `stored` or `failed`."""
        return str(self.data.get("status"))

    @property
    def content_type(self) -> str | None:
        """The media type."""
        return self.data.get("content_type")

    @property
    def size(self) -> int | None:
        """Bytes."""
        return self.data.get("size")

    @property
    def sha256(self) -> str | None:
        """Of the content, in hex."""
        return self.data.get("sha256")

    @property
    def href(self) -> str | None:
        """A link that opens for a limited time, without a token."""
        return self.data.get("href")

    @property
    def name(self) -> str:
        """A good name for it: the task's id, its index, and the ending of its media type."""
        return f"{self.task['id']}-{self.index}.{self._ending()}"

    def _ending(self) -> str:
        media = str(self.content_type or "").partition(";")[0].strip().lower()
        guessed = EXTENSIONS.get(media) or (mimetypes.guess_extension(media) or "").removeprefix(".")
        return guessed or BY_KIND.get(self.kind, "bin")


F = TypeVar("F", bound=BaseFile)


class BaseResult(Generic[F]):
    """The files of a task that succeeded; `task` is the task's JSON."""

    def __init__(self, task: dict[str, Any], files: list[F]) -> None:
        self.task, self.files = task, files

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.files}>"

    @property
    def images(self) -> list[F]:
        """The images, in Kling's order."""
        return self._of("image")

    @property
    def videos(self) -> list[F]:
        """The videos."""
        return self._of("video")

    @property
    def audios(self) -> list[F]:
        """The sounds."""
        return self._of("audio")

    def _of(self, kind: str) -> list[F]:
        return [file for file in self.files if file.kind == kind]


def is_created(task: dict[str, Any]) -> bool:
    """Whether Kling surely has this task."""
    return bool(task.get("task_id")) or task["status"] in ("submitted", "processing", "succeed")


def stored_files(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The JSON of the files of a task that can be had, by their index."""
    files = [each for each in task.get("results") or () if isinstance(each, dict)]
    whole = [each for each in files if each.get("status") == "stored" and isinstance(each.get("index"), int)]
    return sorted(whole, key=lambda each: int(each["index"]))


def check_files(task: dict[str, Any]) -> None:
    """Raise ResultFailed unless the task has files, all of them stored."""
    total, stored = len(task.get("results") or ()), len(stored_files(task))
    if not total:
        raise ResultFailed("The task succeeded, but no file came with it.", task=task)
    if stored < total:
        reasons = {str(each["error"]) for each in task["results"] if isinstance(each, dict) and each.get("error")}
        why = "; ".join(sorted(reasons)) or "no reason given"
        raise ResultFailed(
            f"{total - stored} of {total} files could not be stored: {why}.",
            task=task,
            hint=f"Kling's own addresses of them, while they last: kling show {task['id']}",
        )
