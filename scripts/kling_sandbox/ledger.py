"""What the sandbox is set to and what happened so far; its thread writes here while tests read."""

import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from kling_sandbox.misbehaviour import Has, known
from kling_sandbox.tasks import Task, now

T = TypeVar("T")


@dataclass(frozen=True)
class Query:
    path: str
    ids: list[str]
    at: int


@dataclass(frozen=True)
class Callback:
    task_id: str
    status: str
    url: str
    headers: dict[str, str]
    body: bytes
    at: int
    answered: int | str  # the HTTP status, or the name of the error


@dataclass(frozen=True)
class Download:
    task_id: str
    name: str
    at: int


class Ledger:
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
        self.random = Random(seed)
        self.seconds = {"images": image_seconds, "videos": video_seconds, "audios": image_seconds}
        self.result_seconds = result_seconds
        self.keys, self.access_key, self.secret_key = keys, access_key, secret_key
        self.webhook_secret = webhook_secret
        self.misbehave = known(set(misbehave))
        self.concurrency = concurrency
        self.sizes = {"images": image_bytes, "videos": video_bytes, "audios": 0}
        self.base_path, self.host, self.port = base_path, host, port

        self.tasks: dict[str, Task] = {}
        self.external: dict[str, Task] = {}
        self.creates: list[dict[str, Any]] = []
        self.queries: list[Query] = []
        self.callbacks: list[Callback] = []
        self.downloads: list[Download] = []
        self.held = False
        self.changed = threading.Condition()
        self._happened: set[tuple[str, ...]] = set()

    def wait_for(self, predicate: Callable[[], T], timeout: float = 10) -> T:
        """Wait until what happens here makes the predicate true; TimeoutError if nothing does."""
        with self.changed:
            found = self.changed.wait_for(predicate, timeout)
            if not found:
                raise TimeoutError(f"not true after {timeout} s; the account: {self.account()}")
            return found

    def note(self, entries: list[T], entry: T) -> None:
        with self.changed:
            entries.append(entry)
            self.changed.notify_all()

    def add(self, task: Task) -> None:
        with self.changed:
            self.tasks[task.id] = task
            if task.external_id and not task.has("drop-external-id"):
                self.external[task.external_id] = task
            self.changed.notify_all()

    def turn(self, task: Task, status: str) -> None:
        with self.changed:
            task.status, task.updated_at = status, now()
            if status == task.ending:
                task.finished_at = task.updated_at
            self.changed.notify_all()

    def busy(self) -> int:
        return sum(task.slots for task in self.tasks.values() if task.finished_at is None)

    def number(self) -> str:
        return str(self.random.randrange(10**17, 10**18))

    def first(self, *event: str) -> bool:
        """Say whether this happens for the first time, and remember it."""
        new = event not in self._happened
        self._happened.add(event)
        return new

    def switches(self, marks: frozenset[str] = frozenset()) -> Has:
        return lambda name: name in self.misbehave or name in marks

    def account(self) -> dict[str, Any]:
        with self.changed:
            totals = {
                "creates": len(self.creates),
                "callbacks": len(self.callbacks),
                "callbacks_refused": sum(callback.answered != 200 for callback in self.callbacks),
                "queries": len(self.queries),
                "downloads": len(self.downloads),
            }
            return {"tasks": [task.summary() for task in self.tasks.values()], "totals": totals}
