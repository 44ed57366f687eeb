"""The scripted run: what a client does, each step once, gone on with after every crash of the receiver."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kling_callback.protocol.ids import new_id
from kling_receiver.store.database import Database
from kling_sandbox import Sandbox
from tools.crash.hook import SECRET, Hook
from tools.harness.process import Process
from tools.harness.submitting import create, register

OVERDUE_SECONDS = 1
"""A callback that was cut off by a kill is never sent again; the deadline finds its task."""


@dataclass
class Job:
    """One intent of the client, and how far it came."""

    family: str
    body: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=new_id)
    theirs: str = ""
    reported: bool = False


def three() -> list[Job]:
    """An image, two images made from one, a video."""
    picture = {"image": "https://example.com/kangaroo.png", "n": 2}
    return [Job("images/generations"), Job("images/generations", picture), Job("videos/text2video")]


@dataclass
class Stage:
    """All that takes part in a run."""

    gateway: Sandbox
    hook: Hook
    receiver: Process
    data: Path
    database: str
    jobs: list[Job] = field(default_factory=list)

    def go_on(self, job: Job) -> None:
        """Do what is left of a job. Raises httpx.TransportError when the receiver dies, or is dead."""
        if not job.theirs:
            sent = self.gateway.external.get(job.id)  # its answer was late: looked up, never sent again
            job.theirs = sent.id if sent else self._created(job)
        if not job.reported:
            answer = register(self.receiver, job.id, job.family, outcome="created", task_id=job.theirs)
            assert answer.status_code == 200, answer.text
            job.reported = True

    def _created(self, job: Job) -> str:
        """Registered, then created: Kling's id. A task that the receiver gave up meanwhile is let go."""
        while not (answer := register(self.receiver, job.id, job.family).json())["create"]:
            assert (answer["task"]["status"], answer["task"]["origin"]) == ("failed", "local"), answer
            job.id = new_id()
        return create(self.receiver, self.gateway, job.id, family=job.family, **job.body)

    @contextmanager
    def opened(self) -> Iterator[Database]:
        """The receiver's database, to be read beside it."""
        database = Database(self.database)
        try:
            yield database
        finally:
            database.close()


@contextmanager
def stage(folder: Path, database: str = "", *, seed: int = 0, pace: float = 0.02) -> Iterator[Stage]:
    """A gateway, a hook, and a receiver that is not started yet. `pace`: seconds that a task takes."""
    data = folder / "data"
    with ExitStack() as stack:
        gateway = stack.enter_context(Sandbox(seed=seed, image_seconds=pace, video_seconds=pace))
        hook = stack.enter_context(Hook())
        receiver = Process(
            data,
            KLING_API_BASE=gateway.url,
            KLING_DATABASE_URL=database,
            KLING_HOOK_URL=hook.url,
            KLING_HOOK_SECRET=SECRET,
            KLING_OVERDUE_SECONDS=str(OVERDUE_SECONDS),
        )
        stack.callback(lambda: None if receiver.ended else receiver.kill())
        yield Stage(gateway, hook, receiver, data, database or f"sqlite:///{data / 'kling.db'}")
