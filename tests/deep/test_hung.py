"""Storage or a database that hangs without an error: `/readyz` says so in time, and SIGTERM ends the process."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from kling_callback.protocol.ids import new_id
from kling_sandbox import Sandbox
from tests.support.receiver import ABSENT
from tools.harness import hung
from tools.harness.loopback import answers, web
from tools.harness.postgresql import postgresql
from tools.harness.process import Process
from tools.harness.submitting import events, finished, poll_until, post, submit

pytestmark = pytest.mark.no_cover  # the receiver is another process, which is not measured

LIMIT_SECONDS = 12
"""Seconds in which a probe must have its answer; the check's own limit is 5."""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder for result files that can be made to hang."""
    if not hung.available():
        pytest.skip(f"{ABSENT}a file system that hangs")
    return tmp_path / "results"


@pytest.fixture
def server() -> Iterator[str]:
    """A server of this test's own."""
    with postgresql() as url:
        yield url


def not_ready(receiver: Process) -> str:
    """Why the receiver is not ready."""
    answer = web.get(f"{receiver.url}/readyz", timeout=LIMIT_SECONDS)
    assert answer.status_code == 503
    message: str = answer.json()["error"]["message"]
    return message


def many_not_ready(receiver: Process) -> None:
    """Many probes at once, of which none waits for another."""
    with ThreadPoolExecutor(20) as pool:
        for message in pool.map(lambda _: not_ready(receiver), range(20)):
            assert "did not answer within 5 s" in message
    assert web.get(f"{receiver.url}/healthz", timeout=LIMIT_SECONDS).status_code == 200


def test_a_storage_that_hangs(results: Path, tmp_path: Path, gateway: Sandbox) -> None:
    """Callbacks are stored, tasks end, and registrations are read; only their files wait, until it answers."""
    storage = {"KLING_API_BASE": gateway.url, "KLING_STORAGE_URL": results.as_uri()}
    with Process(tmp_path / "data", **storage) as receiver:
        with hung.hung_folder(results / ".parts"):
            many_not_ready(receiver)
            tasks = [submit(receiver, gateway, n=9)[0] for _ in range(5)]
            for task in tasks:
                events(receiver, task, "task.succeed")
            poll_until(lambda: "did not answer" in not_ready(receiver))
        assert answers(f"{receiver.url}/readyz", 30)
        for task in tasks:
            assert {each["status"] for each in finished(receiver, task)["results"]} == {"stored"}


def test_a_storage_that_hangs_delays_no_shutdown(results: Path, tmp_path: Path, gateway: Sandbox) -> None:
    """Also with downloads and probes that wait for it. The next start downloads what is missing."""
    storage = {"KLING_API_BASE": gateway.url, "KLING_STORAGE_URL": results.as_uri()}
    with Process(tmp_path / "data", **storage) as receiver:
        with hung.hung_folder(results / ".parts"):
            task, _ = submit(receiver, gateway, n=3)
            events(receiver, task, "task.succeed")
            assert "did not answer" in not_ready(receiver)
            receiver.signal(signal.SIGTERM)
            assert receiver.wait(40)[0] == 0
        receiver.start()
        assert {each["status"] for each in finished(receiver, task)["results"]} == {"stored"}


def test_a_storage_that_hangs_at_the_start(results: Path, tmp_path: Path) -> None:
    """The start is refused in time, with the setting to fix."""
    with Process(tmp_path / "data", KLING_STORAGE_URL=results.as_uri()) as receiver:
        receiver.kill()
        with hung.hung_folder(results / ".parts"):
            receiver.launch()
            assert receiver.wait(40)[0] == 1
    last = receiver.log_text().splitlines()[-1]
    assert f"KLING_STORAGE_URL cannot be used ({results}: does not answer within 5 s)" in last


@pytest.mark.parametrize("while_waiting", [False, True])
def test_a_database_that_hangs(server: str, tmp_path: Path, while_waiting: bool) -> None:
    """A probe gets its answer in time; SIGTERM ends the process, also with callbacks that wait for their commit."""
    with Process(tmp_path / "data", KLING_DATABASE_URL=server) as receiver, ThreadPoolExecutor(5) as pool:
        assert post(receiver, new_id(), {"task_status": "submitted"}).status_code == 200
        with hung.hung_server(server):
            waiting = [pool.submit(_post, receiver) for _ in range(5 * while_waiting)]
            many_not_ready(receiver)
            receiver.signal(signal.SIGTERM)
            assert receiver.wait(60)[0] == 0
            assert all(each.result() != 200 for each in waiting)
        receiver.start()
        assert post(receiver, new_id(), {"task_status": "submitted"}).status_code == 200


def _post(receiver: Process) -> int:
    """The status of a callback; 0: the connection was closed without an answer."""
    try:
        return post(receiver, new_id(), {"task_status": "submitted"}, timeout=60).status_code
    except httpx.TransportError:
        return 0
