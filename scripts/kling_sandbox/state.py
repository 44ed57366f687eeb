"""The sandbox's settings and everything that happened in it. Its thread writes here while tests read."""

import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, TypeVar

from kling_sandbox.api.families import Family
from kling_sandbox.misbehaviour import Has, check_names
from kling_sandbox.tasks import Task, now

T = TypeVar("T")

KINDS = ("images", "videos", "audios", "elements", "voices")
"""The kinds of results."""


@dataclass(frozen=True)
class Query:
    """A query by a client: `ids` as the client sent them, `at` in unix ms."""

    path: str
    ids: list[str]
    at: int


@dataclass(frozen=True)
class Call:
    """A call that answers at once. `path`: below /v1, or with a leading slash; `values`: its body or its query."""

    method: str
    path: str
    values: dict[str, Any]
    at: int


@dataclass(frozen=True)
class Callback:
    """A callback that was sent; `answered`: the response's HTTP status, or the name of the error."""

    task_id: str
    status: str
    url: str
    headers: dict[str, str]
    body: bytes
    at: int
    answered: int | str


@dataclass(frozen=True)
class Download:
    """A request for a result file, at `at` (unix ms)."""

    task_id: str
    name: str
    at: int


class State:
    """Settings, tasks, and the requests in the order of their arrival."""

    def __init__(
        self,
        *,
        seed: int | None = 0,
        image_seconds: float = 0.05,
        video_seconds: float = 0.05,
        result_seconds: float = 30 * 86400,
        keys: Collection[str] = ("sandbox-key",),
        access_key: str = "sandbox-access",
        secret_key: str = "sandbox-secret-sandbox-secret-sandbox",
        webhook_secret: str | None = None,
        misbehave: Iterable[str] = (),
        concurrency: int | None = None,
        image_bytes: int = 0,
        video_bytes: int = 0,
        base_path: str = "",
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Set the sandbox up.

        `seed`: makes ids and the colours of pictures repeatable. `video_seconds`, `image_seconds`: duration of a task,
        for videos and for all else. `result_seconds`: lifetime of file URLs. `keys`: accepted API keys.
        `webhook_secret`: signs callbacks. `misbehave`: switches that are on for all tasks. `concurrency`: maximum
        results in the making; unlimited if None. `image_bytes`, `video_bytes`: minimum sizes of files. `base_path`:
        prefix of Kling's routes, as relays have one; outside it are routes of OpenAI's. `port`: 0 chooses a free one.
        """
        self.random = Random(seed)
        self.seconds = dict.fromkeys(KINDS, image_seconds) | {"videos": video_seconds}
        self.result_seconds = result_seconds
        self.keys, self.access_key, self.secret_key = keys, access_key, secret_key
        self.webhook_secret = webhook_secret
        self.misbehave = check_names(set(misbehave))
        self.concurrency = concurrency
        self.sizes = dict.fromkeys(("png", "jpg", "avif"), image_bytes) | dict.fromkeys(("mp4", "mov"), video_bytes)
        self.base_path, self.host, self.port = base_path, host, port

        self.tasks: dict[str, Task] = {}
        self.external: dict[str, Task] = {}
        self.shown: dict[str, Task] = {}
        """What calls that answer at once made: only their files are served."""
        self.creates: list[dict[str, Any]] = []
        self.calls: list[Call] = []
        self.queries: list[Query] = []
        self.callbacks: list[Callback] = []
        self.downloads: list[Download] = []
        self.held = False
        self.changed = threading.Condition()
        self._happened: set[tuple[str, ...]] = set()

    def wait_for(self, predicate: Callable[[], T], timeout: float = 10) -> T:
        """Wait until the predicate is true, and return its value. Raises TimeoutError after `timeout` seconds."""
        with self.changed:
            value = self.changed.wait_for(predicate, timeout)
            if not value:
                raise TimeoutError(f"not true after {timeout} s; the account: {self.account()}")
            return value

    def record(self, entries: list[T], entry: T) -> None:
        """Append an entry to one of the lists."""
        with self.changed:
            entries.append(entry)
            self.changed.notify_all()

    def make(self, path: str, family: Family, body: dict[str, Any], has: Has, origin: str, **more: Any) -> Task:
        """Make a task that is in none of the lists yet. `origin`: the address by which the client came."""
        return Task(
            id=self.new_id(),
            alias=self.new_id(),
            result_id=self.new_id(),
            variant=self.random.randrange(100),
            path=path,
            family=family,
            body=body,
            has=has,
            base_url=f"{origin}{self.base_path}",
            result_seconds=self.result_seconds,
            **more,
        )

    def add(self, task: Task) -> None:
        """Add a task, under both of its ids."""
        with self.changed:
            self.tasks[task.id] = task
            if task.external_id and not task.has("drop-external-id"):
                self.external[task.external_id] = task
            self.changed.notify_all()

    def set_status(self, task: Task, status: str) -> None:
        """Change a task's status."""
        with self.changed:
            task.status, task.updated_at = status, now()
            if status == task.final_status:
                task.finished_at = task.updated_at
            self.changed.notify_all()

    def slots_in_use(self) -> int:
        """The number of results in the making."""
        return sum(task.slots for task in self.tasks.values() if task.finished_at is None)

    def new_id(self) -> str:
        """An id of 18 digits."""
        return str(self.random.randrange(10**17, 10**18))

    def is_first(self, *event: str) -> bool:
        """Whether this happens for the first time."""
        first = event not in self._happened
        self._happened.add(event)
        return first

    def switches(self, marks: frozenset[str] = frozenset()) -> Has:
        """The switches of a request: those that are on for all, and those in its marks."""
        return lambda name: name in self.misbehave or name in marks

    def account(self) -> dict[str, Any]:
        """A summary of every task, every call that was answered at once, and totals; served at /sandbox/account."""
        with self.changed:
            totals = {
                "creates": len(self.creates),
                "callbacks": len(self.callbacks),
                "callbacks_refused": sum(callback.answered != 200 for callback in self.callbacks),
                "queries": len(self.queries),
                "downloads": len(self.downloads),
            }
            tasks, calls = [task.summary() for task in self.tasks.values()], [asdict(call) for call in self.calls]
            return {"tasks": tasks, "calls": calls, "totals": totals}
