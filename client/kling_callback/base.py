"""A task, its result and its files as attributes of their JSON: the bases of the blocking and asynchronous classes.

The JSON is what `is_task` accepts.
"""

from collections.abc import Awaitable
from typing import Any, Generic, TypeVar

from kling_callback.display import escape, file_html, result_html
from kling_callback.errors import Outcome, ResultFailed
from kling_callback.protocol.media_types import extension, is_device


class BaseTask:
    """One task. `data`: dict, its JSON as last received from the receiver.

    `unreported`: str, a message with Kling's id, if the outcome of the create could not be reported to the receiver;
    else None.
    """

    def __init__(self, data: dict[str, Any], *, unreported: str | None = None) -> None:
        self.data = data
        self.unreported = unreported

    def __repr__(self) -> str:
        return escape(f"<{type(self).__name__} {self.id} {self.status}>")

    @property
    def id(self) -> str:
        """Our id of the task: the `external_task_id` at Kling."""
        return str(self.data["id"])

    @property
    def task_id(self) -> str | None:
        """Kling's id of the task; None until it is known."""
        return self.data.get("task_id")

    @property
    def family(self) -> str:
        """The kind of job: its path at Kling, such as `videos/text2video`."""
        return str(self.data.get("family", ""))

    @property
    def model(self) -> str | None:
        """The model's name; None or "" if the create named none."""
        return self.data.get("model")

    @property
    def tags(self) -> tuple[str, ...]:
        """The labels of the task."""
        return tuple(self.data.get("tags") or ())

    @property
    def status(self) -> str:
        """`created`, `submitted`, `processing`, `succeed` or `failed`."""
        return str(self.data["status"])

    @property
    def status_msg(self) -> str:
        """The reason for a failure, or why it is not known whether Kling took the create, or ""."""
        return str(self.data.get("status_msg") or "")

    @property
    def queue_position(self) -> int | None:
        """The place in the receiver's queue, 1 for the next one; None for a task that does not wait for a slot."""
        return self.data.get("queue_position")

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """What Kling made that is no file (elements, voices, a session), with Kling's names."""
        return outputs_of(self.data)

    @property
    def done(self) -> bool:
        """Whether the status is final and authoritative, and every result is stored or failed."""
        return self.data.get("done") is True

    @property
    def outcome(self) -> Outcome:
        """`created` once it is known that Kling has the task, else `unknown`: `wait` finds out."""
        return "created" if is_created(self.data) else "unknown"


class BaseFile:
    """One result file in the receiver's archive. `data`: dict, its JSON; `task`: dict, the JSON of its task."""

    def __init__(self, data: dict[str, Any], task: dict[str, Any]) -> None:
        self.data, self.task = data, task

    def __repr__(self) -> str:
        return escape(f"<{type(self).__name__} {self.name} {self.status}>")

    @property
    def index(self) -> int:
        """The position among the task's files, from 0."""
        return int(self.data["index"])

    @property
    def kind(self) -> str:
        """`image`, `video`, `audio`, `watermark`, or a newer kind of Kling's."""
        return str(self.data.get("kind") or "file")

    @property
    def id(self) -> str | None:
        """Kling's id of the file, or None."""
        return self.data.get("id")

    @property
    def duration(self) -> float | None:
        """Seconds of a video or audio file; None if Kling did not report them."""
        return self.data.get("duration")

    @property
    def status(self) -> str:
        """`pending`, `stored` or `failed`."""
        return str(self.data.get("status"))

    @property
    def content_type(self) -> str | None:
        """The media type, such as `image/png`; None until the file is stored."""
        return self.data.get("content_type")

    @property
    def size(self) -> int | None:
        """Bytes; None until the file is stored."""
        return self.data.get("size")

    @property
    def sha256(self) -> str | None:
        """SHA-256 of the content, in hex; None until the file is stored."""
        return self.data.get("sha256")

    @property
    def href(self) -> str | None:
        """A link that works for a limited time without a token; None until the file is stored."""
        return self.data.get("href")

    @property
    def warning(self) -> str | None:
        """What is unusual about the stored file, such as an unknown type; None for nothing."""
        return self.data.get("warning")

    def _source(self) -> str | None:
        """The address from which a notebook shows the file."""
        return self.href

    def _repr_html_(self) -> str:
        return file_html(self._source(), self.content_type, self.name)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    @property
    def name(self) -> str:
        """A file name: `ID-INDEX.EXT`, with the task's id and the extension for the media type.

        A colon in the id becomes `_`: Windows would take what is before it for a drive. An id like `nul.1` gets a `_`
        before it: Windows would take it for a device.
        """
        name = f"{self.task['id'].replace(':', '_')}-{self.index}.{extension(self.content_type, self.kind)}"
        return f"_{name}" if is_device(name) else name

    def read(self) -> bytes | Awaitable[bytes]:
        """Download the content; the asynchronous class returns an awaitable of it."""
        raise NotImplementedError


F = TypeVar("F", bound=BaseFile)


class BaseResult(Generic[F]):
    """The stored files of a task. `files`: list, in Kling's order; `task`: dict, the task's JSON.

    A notebook shows the files.
    """

    def __init__(self, task: dict[str, Any], files: list[F]) -> None:
        self.task, self.files = task, files

    def __repr__(self) -> str:
        outputs = f" {self.outputs}" if self.outputs else ""
        return f"<{type(self).__name__} {self.files}{outputs}>"

    def _repr_html_(self) -> str:
        return result_html([file._repr_html_() for file in self.files], self.outputs)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """What Kling made that is no file (elements, voices, a session), with Kling's names."""
        return outputs_of(self.task)

    @property
    def images(self) -> list[F]:
        """The images, in Kling's order."""
        return self._of("image")

    @property
    def videos(self) -> list[F]:
        """The videos, in Kling's order."""
        return self._of("video")

    @property
    def audios(self) -> list[F]:
        """The audio files, in Kling's order."""
        return self._of("audio")

    def _of(self, kind: str) -> list[F]:
        return [file for file in self.files if file.kind == kind]


def is_created(task: dict[str, Any]) -> bool:
    """Whether Kling certainly has this task. `task`: its JSON."""
    return bool(task.get("task_id")) or task["status"] in ("submitted", "processing", "succeed")


def outputs_of(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The outputs of a task that are no files. `task`: its JSON."""
    return task.get("outputs") or []


def stored_files(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The JSON of the stored files of a task, sorted by index."""
    stored = [each for each in task.get("results", ()) if each.get("status") == "stored"]
    return sorted(stored, key=lambda each: int(each["index"]))


def check_files(task: dict[str, Any]) -> None:
    """Raise ResultFailed unless the task has files or other outputs, and all files are stored."""
    total, stored = len(task.get("results", ())), len(stored_files(task))
    if not total and not outputs_of(task):
        raise ResultFailed("The task succeeded, but Kling named no result.", task=task)
    if stored < total:
        reasons = {each["error"] for each in task["results"] if each.get("error")}
        why = escape("; ".join(sorted(reasons))) or "no reason given"
        raise ResultFailed(
            f"{total - stored} of {total} files could not be stored: {why}.",
            task=task,
            hint=f"Find Kling's own addresses of them, until they expire, with: kling show {task['id']}",
        )
