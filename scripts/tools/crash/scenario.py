"""The scenario of a crash run: jobs of a client whose steps are each done once, resumed after every crash."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kling_callback.protocol.ids import new_id
from kling_receiver.hooks.config import DEFAULT_HOOK
from kling_receiver.store.database import Database
from kling_sandbox import Sandbox
from tools.crash.history import History
from tools.crash.hook import ENDS, ENDS_HOOK, SECRET, Hook
from tools.harness.process import Process
from tools.harness.submitting import Json, create, register

OVERDUE_SECONDS = 1
"""Seconds. The sandbox does not repeat a callback that a kill cut off; the deadline finds its task."""


ATTEMPTS = ("one", "two")
"""The names of the attempts at the create of a job: only one of them may get the permission."""


@dataclass
class Job:
    """One job of the client. `kling_id`: set once created; `reported`: whether the outcome was registered."""

    family: str
    body: dict[str, Any] = field(default_factory=dict)
    task_id: str = field(default_factory=new_id)
    kling_id: str = ""
    reported: bool = False


def three_jobs() -> list[Job]:
    """An image, two images made from one, a video."""
    image = {"image": "https://example.com/kangaroo.png", "n": 2}
    return [Job("images/generations"), Job("images/generations", image), Job("videos/text2video")]


@dataclass
class Stage:
    """Sandbox, hooks, receiver and jobs of one run. `data`: the receiver's folder; `database`: its URL.

    `history`: what clients and hooks were told. `wanted`: each hook and the types of event that it wants; None for all.
    """

    gateway: Sandbox
    hook: Hook
    receiver: Process
    data: Path
    database: str
    history: History
    wanted: dict[str, frozenset[str] | None]
    jobs: list[Job] = field(default_factory=list)

    def resume(self, job: Job) -> None:
        """Do the remaining steps of a job. Raises httpx.TransportError when the receiver is down."""
        if not job.kling_id:
            # A create whose answer was cut off is looked up, never sent again.
            task = self.gateway.external.get(job.task_id)
            job.kling_id = task.id if task else self._register_and_create(job)
        if not job.reported:
            response = register(self.receiver, job.task_id, job.family, outcome="created", task_id=job.kling_id)
            assert response.status_code == 200, response.text
            job.reported = True

    def _register_and_create(self, job: Job) -> str:
        """Returns Kling's id. A task that the receiver failed meanwhile is replaced by a new one."""
        while not any(answer["create"] for answer in self._register_rivals(job)):
            task = register(self.receiver, job.task_id, job.family, attempt=ATTEMPTS[0]).json()["task"]
            assert (task["status"], task["origin"]) == ("failed", "local"), task
            job.task_id = new_id()
        return create(self.receiver, self.gateway, job.task_id, family=job.family, **job.body)

    def _register_rivals(self, job: Job) -> list[Json]:
        """Register two attempts at once; the permissions to create are recorded, also when an answer is cut off."""

        def attempt(name: str) -> Json:
            answer: Json = register(self.receiver, job.task_id, job.family, attempt=name).json()
            if answer["create"]:
                self.history.grant(job.task_id, name)
            return answer

        with ThreadPoolExecutor(len(ATTEMPTS)) as rivals:
            return list(rivals.map(attempt, ATTEMPTS))

    @contextmanager
    def open_database(self) -> Iterator[Database]:
        """The receiver's database, to be read while the receiver runs."""
        database = Database(self.database)
        try:
            yield database
        finally:
            database.close()


@contextmanager
def stage(
    folder: Path, database: str = "", *, seed: int = 0, task_seconds: float = 0.02, two_hooks: bool = False
) -> Iterator[Stage]:
    """A running sandbox and hooks, and a receiver that is not started. `task_seconds`: duration of a task."""
    data, history = folder / "data", History()
    with ExitStack() as stack:
        gateway = stack.enter_context(Sandbox(seed=seed, image_seconds=task_seconds, video_seconds=task_seconds))
        hook = stack.enter_context(Hook(history))
        wanted: dict[str, frozenset[str] | None] = {DEFAULT_HOOK: None}
        settings = {}
        if two_hooks:
            wanted[ENDS_HOOK] = ENDS
            file = folder / "hooks.toml"
            file.write_text(
                f'[hooks.{ENDS_HOOK}]\naddress = "{hook.ends_url}"\nsecret = "{SECRET}"\nevents = {sorted(ENDS)}\n'
            )
            settings = {"KLING_HOOKS_FILE": str(file)}
        receiver = Process(
            data,
            KLING_API_BASE=gateway.url,
            KLING_DATABASE_URL=database,
            KLING_HOOK_URL=hook.url,
            KLING_HOOK_SECRET=SECRET,
            KLING_OVERDUE_SECONDS=str(OVERDUE_SECONDS),
            **settings,
        )
        stack.callback(lambda: None if receiver.ended else receiver.kill())
        url = database or f"sqlite:///{data / 'kling.db'}"
        yield Stage(gateway, hook, receiver, data, url, history, wanted)
