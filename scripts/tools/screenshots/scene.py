"""What the screenshots show: a day of a small shop, in a receiver whose clock is set, against a sandbox."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from kling_callback.protocol.ids import new_id
from kling_sandbox import Sandbox
from kling_sandbox.receiver import RunningReceiver, start_receiver
from tools.harness.loopback import web
from tools.harness.submitting import Json, poll_until, show

STEP_SECONDS = 2_400
"""Between two groups of tasks."""
IMAGE_SECONDS, VIDEO_SECONDS = 14.0, 96.0
"""What the tasks of a group seem to take; each group takes a little longer or less."""
SLOTS = 6
"""Results in the making, at most."""
IMAGES, VIDEOS, ANIMATED = "images/generations", "videos/text2video", "videos/image2video"
IMAGE = "https://shop.example/boat.png"


class Submission(NamedTuple):
    """A task to submit. `fails`: it ends failed, and so do the others of its group."""

    prompt: str
    family: str = IMAGES
    model: str = "kling-v3"
    tags: tuple[str, ...] = ()
    n: int = 1
    ratio: str = "16:9"
    fails: bool = False


DAY = (
    [Submission("Paper boats on a calm canal, morning fog", tags=("spring",), n=4)],
    [Submission("A lighthouse in a storm, seen from the sea", VIDEOS, "kling-v2-6", ("film",))],
    [Submission("The same lighthouse, watercolour", tags=("film",), n=2), Submission("A red fox in fresh snow")],
    [Submission("A ceramic cup, soft light, plain background", tags=("shop", "spring"), n=3)],
    [Submission("The cup turns slowly", ANIMATED, "kling-v2-5-turbo", ("shop",))],
    [Submission("A crowd in front of a stage", tags=("film",), fails=True)],
    [Submission("Two dancers at dusk")],
    [Submission("A linen shirt on a wooden hanger", tags=("shop",), n=4, ratio="3:4")],
    [Submission("一只熊猫在雪地里奔跑", VIDEOS, "kling-v2-5-turbo", ("film",))],
    [Submission("An old tram climbs a steep street", VIDEOS, "kling-v2-6"), Submission("A tram stop in the rain")],
    [Submission("A paper boat, macro photograph", tags=("spring",), n=2), Submission("Tulips, seen from above", n=2)],
    [Submission("The boat drifts away", ANIMATED, "kling-v2-6", ("spring",))],
    [Submission("A kangaroo holding a sign", n=1), Submission("A kangaroo, claymation", ratio="1:1", n=2)],
    [Submission("A candle is lit", VIDEOS, "kling-v2-5-turbo", ("shop",), fails=True)],
    [Submission("A label for a jar of honey", tags=("shop",), n=4, ratio="1:1")],
    [Submission("Waves roll onto black sand", VIDEOS, "kling-v2-6", ("film",)), Submission("Black sand, close-up")],
    [Submission("A bicycle against a yellow wall", tags=("spring",), n=3)],
    [Submission("The bicycle rides off by itself", ANIMATED, "kling-v2-5-turbo", ("spring",))],
    [Submission("Lanterns over a night market", tags=("film",), n=2), Submission("A bowl of noodles, steam rising")],
    [Submission("A wooden toy train on a table", tags=("shop",), n=4), Submission("A train set, seen from above")],
    [Submission("A paper kite above the dunes", VIDEOS, "kling-v2-6", ("spring",))],
    [Submission("Rain on a window, the city behind it", tags=("film",), fails=True)],
)
"""Groups of tasks, the oldest first."""
LAST = (
    Submission("A kangaroo waves from a hot-air balloon", VIDEOS, "kling-v2-6", ("film",)),
    Submission("A hot-air balloon over green hills, early light", tags=("film", "spring"), n=4),
)
"""The newest tasks that have ended."""
GOING = (
    Submission("The balloon lands among the sheep", ANIMATED, "kling-v2-6", ("film",)),
    Submission("A basket of wild apples", tags=("shop",), n=4),
    Submission("A poster: the first flight of the season", tags=("spring",), n=2, ratio="3:4"),
)
"""They have not ended, and the last one waits for a slot."""


class SetClock:
    """Unix seconds that are `behind` the machine's."""

    def __init__(self) -> None:
        self.behind = STEP_SECONDS * (len(DAY) + 0.5)

    def __call__(self) -> float:
        """The time."""
        return time.time() - self.behind

    def advance(self, seconds: float) -> None:
        """Come nearer to the machine's time."""
        self.behind = max(self.behind - seconds, 0.0)


class Scene(NamedTuple):
    """The receiver with its tasks. `shown`: the ids of a task with several images, of a video, and of a failed one."""

    running: RunningReceiver
    gateway: Sandbox
    images: str
    video: str
    failed: str


@contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    """A receiver and a sandbox with a day of tasks, as long as the block runs. Its data lie in the folder.

    It takes some seconds."""
    clock = SetClock()
    with Sandbox(video_seconds=0.02, image_seconds=0.02) as gateway, _endpoint() as endpoint:
        running = start_receiver(folder, api_base=gateway.url, concurrency=str(SLOTS), clock=clock)
        try:
            hooks = _Hooks(running, endpoint)
            hooks.add("shop", "/shop", tags=["shop"])
            hooks.add("archive", "/archive", events=["task.done", "result.stored"])
            hooks.add("film-crew", "/gone", tags=["film"], events=["task.done"], retry_schedule=[])
            hooks.add("billing", "/billing", events=["task.done"])
            failed = ""
            for number, group in enumerate(DAY):
                started = clock.behind
                ids = _run(running, gateway, clock, group, 0.7 + number * 7 % 10 / 12)
                failed = next((ids[n] for n, each in enumerate(group) if each.fails), failed)
                if number == len(DAY) // 2:
                    hooks.pause("billing", "their maintenance, until Friday")
                clock.advance(STEP_SECONDS - (started - clock.behind))
            clock.behind = 600
            video, images = _run(running, gateway, clock, LAST, 1.0)
            clock.behind = 0
            gateway.hold()
            for each in GOING:
                _submit(running, clock, each)
            poll_until(lambda: len([task for task in gateway.tasks.values() if not task.finished_at]) == len(GOING) - 1)
            first = next(task for task in gateway.tasks.values() if not task.finished_at)
            gateway.advance(first.id)
            _wait_until(running, [str(first.external_id)], lambda task: task["status"] == "processing")
            yield Scene(running, gateway, images, video, failed)
        finally:
            running.stop()


def _run(
    running: RunningReceiver, gateway: Sandbox, clock: SetClock, group: Sequence[Submission], pace: float
) -> list[str]:
    """Submit tasks, and let them end: images after some seconds of the clock, videos after more."""
    gateway.hold()
    gateway.misbehave = {"failed"} if any(each.fails for each in group) else set()
    ids = [_submit(running, clock, each) for each in group]
    poll_until(lambda: all(each in gateway.external for each in ids))
    clock.advance(1)
    for kind, seconds in (("images", IMAGE_SECONDS), ("videos", VIDEO_SECONDS - IMAGE_SECONDS)):
        chosen = [each for each, task in zip(ids, group, strict=True) if task.family.startswith(kind)]
        _advance(gateway, clock, chosen, seconds * pace * 0.2)
        _wait_until(running, chosen, lambda task: task["status"] == "processing")
        _advance(gateway, clock, chosen, seconds * pace * 0.8)
        _wait_until(running, chosen, lambda task: task["done"])
    gateway.release()
    return ids


def _advance(gateway: Sandbox, clock: SetClock, ids: Sequence[str], seconds: float) -> None:
    """Let time pass, and tasks take their next status. The sandbox's own clock is not set: its tasks began earlier."""
    clock.advance(seconds)
    for task in (gateway.external[each] for each in ids):
        task.created_at -= int(seconds * 1000)
        gateway.advance(task.id)


def _wait_until(running: RunningReceiver, ids: Sequence[str], condition: Callable[[Json], bool]) -> None:
    poll_until(lambda: all(condition(show(running, each)) for each in ids))


def _submit(running: RunningReceiver, clock: SetClock, task: Submission) -> str:
    """Submit one task through the receiver. Returns its id."""
    body: dict[str, Any] = {"model_name": task.model, "prompt": task.prompt}
    body |= {"image": IMAGE} if task.family == ANIMATED else {"aspect_ratio": task.ratio}
    if task.family == IMAGES:
        body["n"] = task.n
    document = {
        "family": task.family,
        "body": body,
        "tags": list(task.tags),
        "external_task_id": new_id(clock()),
    }
    answer = web.post(f"{running.url}/api/tasks", json=document, headers=running.headers())
    assert answer.status_code == 201, answer.text
    return str(document["external_task_id"])


class _Hooks:
    """Adds and pauses hooks, by the API."""

    def __init__(self, running: RunningReceiver, endpoint: str) -> None:
        self._running, self._endpoint = running, endpoint

    def add(self, name: str, path: str, **fields: Any) -> None:
        self._post("", {"name": name, "address": f"{self._endpoint}{path}", **fields})

    def pause(self, name: str, reason: str) -> None:
        self._post(f"/{name}/pause", {"reason": reason})

    def _post(self, path: str, document: dict[str, Any]) -> None:
        url = f"{self._running.url}/api/hooks{path}"
        web.post(url, json=document, headers=self._running.headers("admin")).raise_for_status()


@contextmanager
def _endpoint() -> Iterator[str]:
    """A program that receives events: all but those at `/gone`, and one in five of `/archive`'s fails at first."""
    count = 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that the base class calls
            nonlocal count
            count += 1
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            is_bad = self.path == "/gone" or (self.path == "/archive" and count % 5 == 0)
            body = b"The database is not reachable." if is_bad else b""
            self.send_response(503 if is_bad else 204)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
