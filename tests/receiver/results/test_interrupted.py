"""A download that a kill or a stop of the receiver interrupts: it continues where it was."""

import hashlib
import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kling_callback.protocol.ids import new_id
from tests.receiver.results.test_download import picture
from tests.support.web import Visit, host
from tools.harness.process import Process
from tools.harness.submitting import finished, poll_until, post, register

pytestmark = pytest.mark.usefixtures("processes_are_forked")


def killed(receiver: Process) -> None:
    """kill -9."""
    receiver.kill()


def stopped(receiver: Process) -> None:
    """SIGTERM: running jobs get some seconds, and are then interrupted."""
    receiver.signal(signal.SIGTERM)
    receiver.wait()


@pytest.mark.parametrize("end", [killed, stopped])
def test_an_interrupted_download_is_resumed_by_the_next_process(tmp_path: Path, end: Callable[[Process], None]) -> None:
    """By Range, from the last byte on disk; the checksum is that of the whole file."""
    content, half, resume = picture(), 0, threading.Event()
    half = len(content) // 2

    def respond(visit: Visit) -> None:
        if visit.path.startswith("/v1/"):
            result = {"images": [{"url": f"{there.url}/0.png?s=1"}]}
            record = {"task_id": "k", "task_status": "succeed", "task_result": result}
            visit.answer(200, json.dumps({"code": 0, "data": record}).encode())
            return
        start = int(visit.headers.get("Range", "bytes=0-")[6:-1])
        named = f"bytes {start}-{len(content) - 1}/{len(content)}"
        visit.begin(206 if start else 200, ETag='"1"', Content_Length=str(len(content) - start), Content_Range=named)
        visit.send(content[start:] if start else content[:half])
        if not start:
            resume.wait(30)

    with host(respond) as there, Process(tmp_path / "data", KLING_API_BASE=there.url) as receiver:
        task, parts = new_id(), tmp_path / "data" / "results" / ".parts"
        register(receiver, task)
        register(receiver, task, outcome="created", task_id="k")
        post(receiver, task, {"task_id": "k", "task_status": "succeed"})
        poll_until(lambda: any(path.stat().st_size == half for path in parts.glob("part-*")))
        poll_until(lambda: any(path.suffix == ".json" for path in parts.iterdir()))
        (parts / "part-orphan").touch()
        end(receiver)
        resume.set()
        receiver.start()
        (result,) = finished(receiver, task)["results"]
        assert (result["status"], result["sha256"]) == ("stored", hashlib.sha256(content).hexdigest())
        files = [visit for visit in there.visits if visit.path == "/0.png?s=1"]
        assert [visit.headers.get("Range") for visit in files] == [None, f"bytes={half}-"]
        assert list(parts.iterdir()) == []
